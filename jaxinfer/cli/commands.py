"""Each command is a few lines over the library; jax is imported only once one needs it."""

from typing import Annotated, Any

import typer

from jaxinfer.cli import analyze  # noqa: F401  (which adds its commands to the application)
from jaxinfer.cli.app import (
    Capacity,
    DraftModel,
    Dtype,
    Executable,
    IgnoreEos,
    IncludeStop,
    JsonSchema,
    MaxNewTokens,
    Mesh,
    Method,
    MinNewTokens,
    Model,
    Ngram,
    PadHeads,
    Plugin,
    Policy,
    Profile,
    Regex,
    Samples,
    Seed,
    SkipSpecial,
    Stop,
    StopToken,
    System,
    TemplateVar,
    TokenizerPath,
    Tools,
    Weights,
    Width,
    app,
    library,
    sampled,
)
from jaxinfer.host import plugins, process


@app.command()
@sampled
def generate(
    text: Annotated[str, typer.Argument(help='The prompt; "-" reads standard input.')],
    model: Model = "smollm2-135m",
    dtype: Dtype = None,
    weights: Weights = None,
    tokenizer: TokenizerPath = None,
    mesh: Mesh = None,
    pad_heads: PadHeads = False,
    chat: Annotated[bool | None, typer.Option(help="Wrap it in the chat template; default: if there is one.")] = None,
    system: System = None,
    template_var: TemplateVar = None,
    tools: Tools = None,
    method: Method = None,
    width: Width = None,
    ngram: Ngram = None,
    draft: DraftModel = None,
    policy: Policy = None,
    capacity: Capacity = None,
    max_new_tokens: MaxNewTokens = 128,
    seed: Seed = 0,
    stop: Stop = None,
    stop_token: StopToken = None,
    ignore_eos: IgnoreEos = False,
    min_new_tokens: MinNewTokens = 0,
    include_stop: IncludeStop = False,
    skip_special: SkipSpecial = True,
    n: Samples = 1,
    regex: Regex = None,
    json_schema: JsonSchema = None,
    stream: Annotated[bool, typer.Option(help="Print the text as it comes.")] = True,
    executable: Executable = None,
    profile: Profile = None,
    plugin: Plugin = None,
    **sampling: Any,
) -> None:
    """Continue or answer TEXT. The answer goes to standard output, a line of figures to standard error."""
    with library():
        from jaxinfer.cli import conversation, options
        from jaxinfer.experiment import spread
        from jaxinfer.experiment.progress import load_model
    plugins.load(plugin or (), name="--plugin")
    settings = options.options(
        method or (draft and "speculative"),
        {"width": width, "ngram": ngram},
        policy,
        capacity,
        sampling,
    ) | {
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "stop": tuple(stop or ()),
        "stop_tokens": tuple(stop_token or ()),
        "ignore_eos": ignore_eos,
        "min_new_tokens": min_new_tokens,
        "include_stop": include_stop,
        "skip_special": skip_special,
        "n": n,
    }
    template = options.template_options(template_var, tools)
    text = options.read_prompt(text)
    laid_on = options.executable(executable) or spread.of_options(mesh, pad_heads)
    loaded = load_model(model, dtype, weights, draft, tokenizer, laid_on)
    prompt = options.encode_prompt(loaded, text, chat, system, template)
    settings |= options.constraint(loaded, regex, json_schema)
    with options.profiled(profile):
        if stream and n == 1:
            result = loaded.stream(prompt, **settings)
            conversation.write_pieces(result)
        else:
            result = loaded.generate([prompt], **settings)
            conversation.write_pieces(["\n".join(result.texts)])
    conversation.show_figures(result.stats)


@app.command()
@sampled
def chat(
    model: Model = "smollm2-135m",
    dtype: Dtype = None,
    weights: Weights = None,
    tokenizer: TokenizerPath = None,
    mesh: Mesh = None,
    pad_heads: PadHeads = False,
    system: System = None,
    template_var: TemplateVar = None,
    tools: Tools = None,
    method: Method = None,
    width: Width = None,
    ngram: Ngram = None,
    draft: DraftModel = None,
    policy: Policy = None,
    max_new_tokens: MaxNewTokens = 512,
    seed: Seed = 0,
    plugin: Plugin = None,
    **sampling: Any,
) -> None:
    """Talk to a model, turn by turn. /reset, /exit, /help; Ctrl-C stops an answer."""
    with library():
        from jaxinfer.cli import conversation, options
        from jaxinfer.experiment import spread
        from jaxinfer.experiment.progress import load_model
    plugins.load(plugin or (), name="--plugin")
    method = method or (draft and "speculative")
    settings = options.options(method, {"width": width, "ngram": ngram}, policy, None, sampling)
    settings |= {"max_new_tokens": max_new_tokens, "seed": seed}
    template = options.template_options(template_var, tools)
    loaded = load_model(model, dtype, weights, draft, tokenizer, spread.of_options(mesh, pad_heads))
    conversation.chat(loaded, system, settings, template)


@app.command("eval")
def evaluate(
    text: Annotated[str | None, typer.Option(help="A text file, for perplexity.")] = None,
    task: Annotated[str | None, typer.Option(help="A .jsonl file of choices or last words, for accuracy.")] = None,
    limit: Annotated[int | None, typer.Option(help="task: only the first so many items.")] = None,
    model: Model = "smollm2-135m",
    dtype: Dtype = None,
    weights: Weights = None,
    tokenizer: TokenizerPath = None,
    mesh: Mesh = None,
    pad_heads: PadHeads = False,
    window: Annotated[int, typer.Option(help="Tokens in a window.")] = 2048,
    max_windows: Annotated[int | None, typer.Option(help="Only the first so many windows.")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Begin a window every so many tokens; default: --window, disjoint windows.")
    ] = None,
    bos: Annotated[
        bool | None,
        typer.Option(help="Put BOS before every window, or before none; default: as the tokenizer has it."),
    ] = None,
    policy: Policy = None,
    plugin: Plugin = None,
) -> None:
    """Measure perplexity on a text, tokenized whole and cut into windows, or accuracy on a task as lm-eval has it."""
    import time

    with library():
        from jaxinfer.cli import evaluate as evaluation
        from jaxinfer.experiment import spread
    plugins.load(plugin or (), name="--plugin")
    if (text is None) == (task is None):
        raise typer.BadParameter("give one of --text and --task")
    over = spread.of_options(mesh, pad_heads)
    if task is not None:
        typer.echo(evaluation.task(model, dtype, weights, task, limit, policy, tokenizer, over))
        return
    assert text is not None
    start = time.perf_counter()
    how = (window, max_windows, policy, stride, bos, tokenizer, over)
    result = evaluation.perplexity(model, dtype, weights, text, *how)
    seconds = time.perf_counter() - start
    typer.echo(
        f"perplexity {result.value:.4f}, {result.windows} {result.protocol}, {result.tokens} tokens, "
        f"{seconds:.1f} s in all"
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
        typer.Option("--resume", help="Skip what is done: in the run folder given next, else in the newest."),
    ] = False,
    executable: Executable = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="A trace of every row for XProf and TensorBoard, in the run folder.")
    ] = False,
    mesh: Mesh = None,
    pad_heads: PadHeads = False,
    plugin: Plugin = None,
    on: Annotated[
        str | None, typer.Option(help="Where rows are measured: ray or ray://HOST:PORT, a cluster; default: here.")
    ] = None,
) -> int:
    """Measure what a config asks for, and write a table and a report.

    Its kind is one that is registered, or a file experiments/KIND.py beside the folder of the config.
    """
    with library():
        from jaxinfer.cli import options
        from jaxinfer.experiment.command import run_config
    laid_on = options.executable(executable)
    over = ["profile=true"] if profile else []
    over += [] if mesh is None else [f"mesh={mesh or repr(mesh)}"]
    over += ["pad_heads=true"] if pad_heads else []
    return run_config(config, [*(arguments or []), *over], resume, plugin or (), on=on, spread_over=laid_on)


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
    with library():
        from jaxinfer.experiment.progress import stderr
        from jaxinfer.experiment.train_heads import train_from
    folder = train_from(config, arguments or [], resume, stderr)
    typer.echo(f"heads: {folder}")


@app.command("list")
def list_() -> None:
    """List the built-in models, the decode methods, the cache policies and the weight formats."""
    from rich.console import Console

    from jaxinfer.cli.listing import tables

    console = Console(highlight=False)
    for table in tables(_catalog):
        console.print(table, "")


def _catalog() -> dict[str, list[list[str]]]:
    with library():
        from jaxinfer.cli.catalog import catalog
    return catalog()


@app.command("convert")
def _convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="What `generate --model` takes.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A new folder, in Orbax's format.")],
    dtype: Dtype = None,
    weights: Weights = None,
) -> None:
    """Convert a checkpoint to Orbax's format, which loads fast and can be sharded."""
    with library():
        from jaxinfer.checkpoint import convert
    convert(source, destination, dtype or "float32", weights)


@app.command("export")
def _export(
    source: Annotated[str, typer.Argument(metavar="SRC", help="What `generate --model` takes.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A new folder, in Hugging Face's format.")],
    dtype: Dtype = None,
) -> None:
    """Write a model as a Hugging Face folder, which transformers loads."""
    with library():
        from jaxinfer.checkpoint import export
    export(source, destination, dtype or "float32")


def main() -> None:
    """Run the command: one line for bad input and exit code 2, 130 after Ctrl-C, and never a traceback for either."""
    usage: Any = typer.BadParameter.__base__  # click's UsageError, whichever click it is that typer carries
    process.guard(lambda: app(standalone_mode=False), usage, typer.Abort)
