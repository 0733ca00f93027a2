"""Write answers as they come, and hold a conversation."""

import contextlib
import sys
from collections.abc import Iterable
from typing import Any

from jaxinfer.cli.options import check_text
from jaxinfer.errors import InputError
from jaxinfer.experiment import table
from jaxinfer.experiment.progress import stderr

CHAT_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def write_pieces(pieces: Iterable[str]) -> None:
    """Write text to standard output, each piece at once."""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def figures(stats) -> str:
    """Write the line of figures that follows an answer."""
    held = (stats.device_weight_bytes, stats.device_cache_bytes)
    weights, cache = map(table.size, held)
    mesh = f", mesh {stats.mesh}: {weights} of weights and {cache} of cache a device" if stats.mesh else ""
    return (
        f"prefill {table.rate(stats.prefill_rate)} tokens/s, decode {table.rate(stats.decode_rate)} tokens/s, "
        f"{stats.tokens_per_step:.2f} tokens/step, compile {stats.seconds['compile']:.1f} s, "
        f"{stats.bandwidth / 1e9:.3g} GB/s{mesh}"
    )


def show_figures(stats) -> None:
    """Print the figures, dimmed, to standard error: standard output holds the answer alone."""
    stderr.print(figures(stats), style="dim", soft_wrap=True)


def chat(model, system: str | None, settings: dict[str, Any], template: dict[str, Any] | None = None) -> None:
    """Hold a conversation, until /exit or the end of input. Ctrl-C stops an answer; at the prompt it leaves."""
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
            try:
                check_text(text, "that line")
            except InputError as error:
                stderr.print(f"error: {error}", markup=False, soft_wrap=True)
                continue
            turns = _answer(model, [*turns, {"role": "user", "content": text}], settings, template or {})


def _answer(
    model, turns: list[dict[str, str]], settings: dict[str, Any], template: dict[str, Any]
) -> list[dict[str, str]]:
    """Stream one answer; the turns with it, or without the question if it could not be answered."""
    pieces: list[str] = []

    def kept(stream):
        for piece in stream:
            pieces.append(piece)
            yield piece

    try:
        stream = model.stream(model.tokenizer.chat(turns, **template), **settings)
        write_pieces(kept(stream))
        show_figures(stream.stats)
    except InputError as error:  # such as a conversation that has outgrown the context
        stderr.print(f"error: {error}; /reset starts over", markup=False, soft_wrap=True)
        return turns[:-1]
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        stderr.print("stopped", style="dim")
    return [*turns, {"role": "assistant", "content": "".join(pieces)}]
