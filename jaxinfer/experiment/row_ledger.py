"""The ledger of a row: what physics allows its programs, what the compiler made of them, and what the clock said."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.analysis import hardware
from jaxinfer.analysis.ledger import ledger_of, room
from jaxinfer.experiment.prepare import Ready, batches, seeds
from jaxinfer.experiment.schema import DecodingSpec
from jaxinfer.runtime.request import Options

STEPS = 4  # of a call that is timed
ROUNDS = 6  # at most


def measured(
    model: Any,
    row: Ready,
    found: Mapping[str, Any],
    tokens: list[list[int]],
    decoding: DecodingSpec,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure a row's own programs on the batch whose shortest text is the longest, so that none ends meanwhile.

    found: the row's record, whose texts tell how long they are. Gives {"ledger": ...}, or nothing where all texts are
    too short for one round.
    """

    def emitted(batch: range) -> int:
        return min(len(found["prompts"][index]["tokens"]) for index in batch)

    batch = max(batches(tokens, decoding.batch), key=emitted)
    each = max(1.0, 1.5 * found["tokens_per_step"])  # some steps emit more than the mean
    rounds = next((n for n in range(ROUNDS, 0, -1) if room(n, STEPS, 1) * each <= emitted(batch)), 0)
    if not rounds:
        say(f"no ledger: the texts are shorter than {room(1, STEPS, 1) * each:.0f} tokens")
        return {}
    device = hardware.get(hardware.THIS_MACHINE, say=say)
    options = Options(**row.options, seed=seeds(decoding, batch))
    given = [tokens[index] for index in batch]
    return {"ledger": ledger_of(model, given, options, STEPS, device, rounds).as_dict()}
