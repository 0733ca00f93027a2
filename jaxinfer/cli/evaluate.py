"""`jaxinfer eval`: the perplexity of a text file, the accuracy on a task."""

import contextlib
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jaxinfer.analysis import quality
from jaxinfer.cli.options import policy_of
from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.experiment.progress import load_model, stderr
from jaxinfer.experiment.prompts import read_text
from jaxinfer.experiment.spread import Spread


def perplexity(
    source: str,
    dtype: str | None,
    weights: str | None,
    file: str,
    window: int,
    max_windows: int | None,
    policy: str | None = None,
    stride: int | None = None,
    bos: bool | None = None,
    tokenizer: str | None = None,
    spread: Spread | None = None,
):
    """Compute the perplexity of a text file, tokenized whole: see `analysis.quality.perplexity`. Raises InputError."""
    text = read_text(file, "--text")
    for option, value, least in (("--window", window, 2), ("--stride", stride, 1), ("--max-windows", max_windows, 1)):
        if value is not None and value < least:
            raise InputError(f"{option}: expected a whole number from {least}, got {value}")
    if stride is not None and stride > window:
        raise InputError(f"--stride: expected at most the window of {window}, got {stride}")
    kept = policy_of(policy)
    model = load_model(source, dtype, weights, tokenizer=tokenizer, spread=spread)
    if model.tokenizer is None:
        raise InputError(f"--model: {shown(source)} has no tokenizer")
    if bos and quality.bos_of(model) is None:
        raise InputError(f"--bos: {model.name} has no BOS token; leave it out")
    if window > model.config.max_positions:
        raise InputError(
            f"--window: {window} is longer than the context of {model.name}: {model.config.max_positions} tokens"
        )
    tokens = model.tokenizer.encode(text)
    if len(tokens) < window:
        raise InputError(
            f"{shown_text(file)}: has {len(tokens)} tokens, fewer than one window of {window}; use a smaller --window"
        )
    columns = (TextColumn("perplexity {task.fields[running]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with contextlib.ExitStack() as stack:
        progress = Progress(*columns, console=stderr)
        task = progress.add_task("", total=None, running="")

        def show(done: int, total: int, running: float) -> None:
            if not progress.live.is_started:  # nothing is shown before a refusal
                stack.enter_context(progress)
            progress.update(task, completed=done, total=total, running=f"{running:.3f}")

        return quality.perplexity(model, tokens, window, max_windows, show, kept, stride, bos)


def task(
    source: str,
    dtype: str | None,
    weights: str | None,
    file: str,
    limit: int | None = None,
    policy: str | None = None,
    tokenizer: str | None = None,
    spread: Spread | None = None,
) -> str:
    """Measure the accuracy on a task, a .jsonl file of choices or last words, and say it in a line. Raises InputError.

    See `analysis.quality.multiple_choice` and `analysis.quality.last_word`: the first line says which it is.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit: expected a whole number from 1, got {limit}")
    items: Any = quality.read_task(file, limit, "--task")
    kept = policy_of(policy)
    model = load_model(source, dtype, weights, tokenizer=tokenizer, spread=spread)
    if model.tokenizer is None:
        raise InputError(f"--model: {shown(source)} has no tokenizer")
    columns = (TextColumn("items"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr) as progress:
        bar = progress.add_task("", total=len(items))

        def show(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        if isinstance(items[0], quality.Word):
            words = quality.last_word(model, items, kept, show)
            accuracy = f"accuracy {words.acc:.4f} (+- {words.stderr:.4f})"
            return f"{accuracy}, perplexity {words.perplexity:.4f}, {words.items} items"
        found = quality.multiple_choice(model, items, kept, show)
    return (
        f"acc {found.acc:.4f}, acc_norm {found.acc_norm:.4f} (+- {found.stderr:.4f}), acc_bytes {found.acc_bytes:.4f}, "
        f"{found.items} items"
    )
