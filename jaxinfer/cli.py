"""The `jaxinfer` command. Each command is a few lines over the library; jax is imported only once one needs it."""

import os
import sys
from typing import Annotated, Any

try:
    import typer
except ModuleNotFoundError:
    print("error: the jaxinfer command needs typer: pip install typer", file=sys.stderr)
    raise SystemExit(2) from None

import jaxinfer
from jaxinfer.errors import InputError

USAGE, INTERRUPTED = 2, 130  # exit codes

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LLM inference in JAX: generate, chat, and measure what each technique buys.",
    epilog="The environment variable JAXINFER_CACHE names the folder for compiled programs and tokenizers "
    "(default: ~/.cache/jaxinfer), or switches it off (off).",
)

Model = Annotated[str, typer.Option(help="A built-in name (see `list`), a .gguf file, or a folder.")]
Dtype = Annotated[str | None, typer.Option(help="float32 or bfloat16; default: float32 on CPU.")]
Weights = Annotated[str | None, typer.Option(help="Round the weights to int8, int4, ...; default: as they are.")]
System = Annotated[str | None, typer.Option(help="The system message of the chat.")]
Method = Annotated[str | None, typer.Option(help="A decode method (see `list`); default: what the options ask for.")]
Width = Annotated[int | None, typer.Option(help="lookup and others: tokens scored per step.")]
Ngram = Annotated[int | None, typer.Option(help="lookup and others: the longest match looked for.")]
DraftModel = Annotated[str | None, typer.Option(help="speculative: the model that guesses, as --model takes it.")]
Policy = Annotated[
    str | None,
    typer.Option(help="Cache policy, such as quantized or paged:block=16 (see `list`); default: what suits the model."),
]
Capacity = Annotated[int | None, typer.Option(help="Cache slots; default: what is needed.")]
Temperature = Annotated[float | None, typer.Option(help="Randomness; 0 takes the most likely token.")]
TopK = Annotated[int | None, typer.Option(help="Sample among the k most likely tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option(help="Sample among the likeliest tokens with this much probability.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens less likely than this times the likeliest.")]
TypicalP = Annotated[
    float | None, typer.Option(help="Sample among the most typical tokens with this much probability.")
]
TopNSigma = Annotated[
    float | None, typer.Option(help="Drop scores so many standard deviations below the best; 0: none.")
]
MirostatTau = Annotated[float | None, typer.Option(help="Hold the surprise of a token at so many bits; 0: off.")]
Repetition = Annotated[float | None, typer.Option(help="Divide the scores of tokens seen before; 1: none.")]
Presence = Annotated[float | None, typer.Option(help="Subtract from the scores of tokens generated before, once.")]
Frequency = Annotated[float | None, typer.Option(help="The same, for each time that they were generated.")]
NoRepeatNgram = Annotated[int | None, typer.Option(help="Never emit so many tokens in a row twice; 0: off.")]
MaxNewTokens = Annotated[int, typer.Option(help="Stop after so many tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]
Regex = Annotated[str | None, typer.Option(help="The answer matches this regular expression, as a whole.")]
JsonSchema = Annotated[str | None, typer.Option(help="The answer is JSON of the schema in this file.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop where this text appears; may be given several times.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        typer.echo(f"jaxinfer {jaxinfer.__version__}")
        raise typer.Exit


@app.command()
def generate(
    text: Annotated[str, typer.Argument(help='The prompt; "-" reads standard input.')],
    model: Model = "smollm2-135m",
    dtype: Dtype = None,
    weights: Weights = None,
    chat: Annotated[bool | None, typer.Option(help="Wrap it in the chat template; default: if there is one.")] = None,
    system: System = None,
    method: Method = None,
    width: Width = None,
    ngram: Ngram = None,
    draft: DraftModel = None,
    policy: Policy = None,
    capacity: Capacity = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    top_n_sigma: TopNSigma = None,
    mirostat_tau: MirostatTau = None,
    repetition_penalty: Repetition = None,
    presence_penalty: Presence = None,
    frequency_penalty: Frequency = None,
    no_repeat_ngram: NoRepeatNgram = None,
    max_new_tokens: MaxNewTokens = 128,
    seed: Seed = 0,
    stop: Stop = None,
    regex: Regex = None,
    json_schema: JsonSchema = None,
    stream: Annotated[bool, typer.Option(help="Print the text as it comes.")] = True,
) -> None:
    """Continue or answer TEXT. The answer goes to standard output, a line of figures to standard error."""
    from jaxinfer.experiment import terminal

    settings = terminal.options(
        method or (draft and "speculative"),
        {"width": width, "ngram": ngram},
        policy,
        capacity,
        {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "typical_p": typical_p,
            "top_n_sigma": top_n_sigma,
            "mirostat_tau": mirostat_tau,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "no_repeat_ngram": no_repeat_ngram,
        },
    ) | {"max_new_tokens": max_new_tokens, "seed": seed, "stop": tuple(stop or ())}
    text = terminal.read_prompt(text)
    loaded = terminal.load_model(model, dtype, weights, draft)
    prompt = terminal.encode_prompt(loaded, text, chat, system)
    settings |= terminal.constraint(loaded, regex, json_schema)
    if stream:
        result = loaded.stream(prompt, **settings)
        terminal.write_pieces(result)
    else:
        result = loaded.generate([prompt], **settings)
        terminal.write_pieces(result.texts)
    terminal.show_figures(result.stats)


@app.command()
def chat(
    model: Model = "smollm2-135m",
    dtype: Dtype = None,
    weights: Weights = None,
    system: System = None,
    method: Method = None,
    width: Width = None,
    ngram: Ngram = None,
    draft: DraftModel = None,
    policy: Policy = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Repetition = None,
    max_new_tokens: MaxNewTokens = 512,
    seed: Seed = 0,
) -> None:
    """Talk to a model, turn by turn. /reset, /exit, /help; Ctrl-C stops an answer."""
    from jaxinfer.experiment import terminal

    sampling = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    method = method or (draft and "speculative")
    settings = terminal.options(method, {"width": width, "ngram": ngram}, policy, None, sampling)
    settings |= {"max_new_tokens": max_new_tokens, "seed": seed}
    terminal.chat(terminal.load_model(model, dtype, weights, draft), system, settings)


@app.command("eval")
def evaluate(
    text: Annotated[str, typer.Option(help="A text file.")],
    model: Model = "smollm2-135m",
    dtype: Dtype = None,
    weights: Weights = None,
    window: Annotated[int, typer.Option(help="Tokens in a window.")] = 2048,
    max_windows: Annotated[int | None, typer.Option(help="Only the first so many windows.")] = None,
    policy: Policy = None,
) -> None:
    """Perplexity on a text file: tokenized whole, in disjoint windows, the tail dropped (as GPTQ and AWQ do)."""
    import time

    from jaxinfer.experiment import terminal

    start = time.perf_counter()
    result = terminal.perplexity(model, dtype, weights, text, window, max_windows, policy)
    seconds = time.perf_counter() - start
    typer.echo(
        f"perplexity {result.value:.4f}, {result.windows} windows, {result.tokens} tokens, {seconds:.1f} s in all"
    )


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="A YAML file, such as configs/quickstart.yaml.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides by dotted path, such as rows.1.method.width=4."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Skip the rows that are done: in the run folder given next, else in the newest."),
    ] = False,
) -> None:
    """Measure the rows of a config on one model, and write a table and a report."""
    from jaxinfer.experiment import terminal

    terminal.run_experiment(config, arguments or [], resume)


train = typer.Typer(no_args_is_help=True, help="Train small parts on a frozen model.")
app.add_typer(train, name="train")


@train.command("heads")
def _train_heads(
    config: Annotated[str, typer.Argument(help="A YAML file, such as configs/train_medusa.yaml.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides by dotted path, such as training.steps=100."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was interrupted.")] = False,
) -> None:
    """Train Medusa, Hydra or EAGLE heads on text that the model writes itself."""
    from jaxinfer.experiment.terminal import stderr
    from jaxinfer.heads.train import train_from

    folder = train_from(config, arguments or [], resume, stderr)
    typer.echo(f"heads: {folder}")


@app.command("list")
def list_() -> None:
    """The built-in models, the decode methods and the cache policies."""
    from rich.console import Console

    from jaxinfer.experiment import terminal

    console = Console(highlight=False)
    for table in terminal.tables():
        console.print(table, "")


@app.command("convert")
def _convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="What `generate --model` takes.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A new folder, in Orbax's format.")],
    dtype: Dtype = None,
    weights: Weights = None,
) -> None:
    """Convert a checkpoint to Orbax's format, which loads fast and can be sharded."""
    from jaxinfer.checkpoint import convert

    convert(source, destination, dtype or "float32", weights)


@app.command("export")
def _export(
    source: Annotated[str, typer.Argument(metavar="SRC", help="What `generate --model` takes.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A new folder, in Hugging Face's format.")],
    dtype: Dtype = None,
) -> None:
    """Write a model as a Hugging Face folder, which transformers loads."""
    from jaxinfer.checkpoint import export

    export(source, destination, dtype or "float32")


def main() -> None:
    """The entry point: one line for bad input and exit code 2, 130 after Ctrl-C, and never a traceback for either."""
    usage_error: Any = typer.BadParameter.__base__  # click's UsageError, whichever click it is that typer carries
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except InputError as error:
        _fail(str(error))
    except usage_error as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str) -> None:
    if message:  # empty: a command without arguments, whose help is on the screen already
        print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(USAGE)


if __name__ == "__main__":
    main()
