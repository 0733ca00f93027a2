"""The command's application, the options that several commands share, and what they do at their beginning."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

try:
    import typer
except ModuleNotFoundError:
    print("error: the jaxinfer command needs typer: pip install typer", file=sys.stderr)
    raise SystemExit(2) from None

import jaxinfer
from jaxinfer.cli import processes
from jaxinfer.host import interrupts
from jaxinfer.host.places import TIMEOUT

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
Weights = Annotated[str | None, typer.Option(help="Round weights to int8, int4, nf4, fp8, ...; default: as they are.")]
TokenizerPath = Annotated[
    str | None, typer.Option("--tokenizer", help="A folder, tokenizer.json or .gguf file to take the tokenizer from.")
]
Mesh = Annotated[
    str | None,
    typer.Option(help="Spread the model over devices, such as data=2,tensor=4; one CPU shows as many as it takes."),
]
PadHeads = Annotated[
    bool, typer.Option("--pad-heads", help="With --mesh: add heads of zeros where heads do not divide an axis.")
]
System = Annotated[str | None, typer.Option(help="The system message of the chat.")]
TemplateVar = Annotated[
    list[str] | None,
    typer.Option(help="KEY=VALUE for the chat template, such as enable_thinking=false; may be given several times."),
]
Tools = Annotated[str | None, typer.Option(help="Functions that the model may call: a JSON file, a list of schemas.")]
Method = Annotated[str | None, typer.Option(help="A decode method (see `list`); default: what the options ask for.")]
Width = Annotated[int | None, typer.Option(help="lookup and others: tokens scored per step.")]
Ngram = Annotated[int | None, typer.Option(help="lookup and others: the longest match looked for.")]
DraftModel = Annotated[str | None, typer.Option(help="speculative: the model that guesses, as --model takes it.")]
Policy = Annotated[
    str | None,
    typer.Option(help="Cache policy, such as quantized or paged:block=16 (see `list`); default: what suits the model."),
]
Capacity = Annotated[int | None, typer.Option(help="Cache slots; default: what is needed.")]
MaxNewTokens = Annotated[int, typer.Option(help="Stop after so many tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]
Regex = Annotated[str | None, typer.Option(help="The answer matches this regular expression, as a whole.")]
JsonSchema = Annotated[str | None, typer.Option(help="The answer is JSON of the schema in this file.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop where this text appears; may be given several times.")]
StopToken = Annotated[list[int] | None, typer.Option(help="Stop at this token id too; may be given several times.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Do not stop at the model's own stop tokens.")]
MinNewTokens = Annotated[int, typer.Option(help="No stop token before so many tokens.")]
IncludeStop = Annotated[bool, typer.Option("--include-stop", help="Print what the text stopped at, too.")]
SkipSpecial = Annotated[bool, typer.Option(help="Leave special tokens out of the text.")]
Plugin = Annotated[
    list[str] | None,
    typer.Option(help="A Python file that adds methods, policies, formats or kinds; may be given several times."),
]
Profile = Annotated[
    str | None, typer.Option(help="Write a trace of the generation, for XProf and TensorBoard, into this folder.")
]
Executable = Annotated[
    str | None, typer.Option(help="A file of `compile --save`: its programs are run, and the model lies on its mesh.")
]
Samples = Annotated[int, typer.Option("--n", help="Samples of the prompt, one below the other; above 1 not streamed.")]

SAMPLING: dict[str, tuple[Any, str]] = {
    "temperature": (float | None, "Randomness; 0 takes the most likely token."),
    "top_k": (int | None, "Sample among the k most likely tokens; 0: all."),
    "top_p": (float | None, "Sample among the likeliest tokens with this much probability."),
    "min_p": (float | None, "Drop tokens less likely than this times the likeliest."),
    "typical_p": (float | None, "Sample among the most typical tokens with this much probability."),
    "top_n_sigma": (float | None, "Drop scores so many standard deviations below the best; 0: none."),
    "mirostat_tau": (float | None, "Hold the surprise of a token at so many bits; 0: off."),
    "repetition_penalty": (float | None, "Divide the scores of tokens seen before; 1: none."),
    "presence_penalty": (float | None, "Subtract from the scores of tokens generated before, once."),
    "frequency_penalty": (float | None, "The same, for each time that they were generated."),
    "no_repeat_ngram": (int | None, "Never emit so many tokens in a row twice; 0: off."),
}
"""The options of sampling, by the field of `Sampling` that they set: type and help."""


def sampled(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of sampling, in place of its `**sampling`."""
    given = inspect.signature(command, eval_str=True)
    own = [option for option in given.parameters.values() if option.kind is not option.VAR_KEYWORD]
    more = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, typer.Option(help=text)]
        )
        for name, (kind, text) in SAMPLING.items()
    ]

    @functools.wraps(command)
    def with_sampling(**options: Any) -> None:
        command(**options)

    signature = inspect.Signature([*own, *more])
    with_sampling.__signature__ = signature  # type: ignore[attr-defined]  # which typer reads
    with_sampling.__annotations__ = {option.name: option.annotation for option in signature.parameters.values()}
    return with_sampling


@contextlib.contextmanager
def library() -> Iterator[None]:
    """Say on a terminal that what a command does is imported, with JAX; afterwards Ctrl-C is the command's."""
    waiting = sys.stderr is not None and sys.stderr.isatty()
    if waiting:
        print("loading JAX", end="\r", file=sys.stderr, flush=True)
    yield
    if waiting:
        print(" " * len("loading JAX"), end="\r", file=sys.stderr, flush=True)
    interrupts.ready()
    processes.begin()


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    coordinator: processes.Coordinator = None,
    process: processes.Process = None,
    n_processes: processes.Processes = None,
    join_timeout: processes.JoinTimeout = TIMEOUT,
) -> None:
    asked = {"coordinator": coordinator, "process": process, "processes": n_processes, "timeout": join_timeout}
    processes.ask(context.invoked_subcommand, asked)
    if version:
        typer.echo(f"jaxinfer {jaxinfer.__version__}")
        raise typer.Exit
