"""Traces of rows for XProf and TensorBoard: one more pass of each over its first batch, under JAX's profiler."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxinfer.analysis.profile import profile_to
from jaxinfer.experiment.prepare import Ready, batches, seeds
from jaxinfer.experiment.schema import DecodingSpec

FOLDER = "profile"


def written(
    model: Any, row: Ready, name: str, tokens: list[list[int]], decoding: DecodingSpec, folder: Path, say: Callable
) -> dict[str, str]:
    """Write the trace of a row into `profile/` of the run folder, after its timed passes, whose clock it would slow.

    name: the row's, of which the trace's folder has what a folder's name may have. Gives {"profile": that folder}.
    """
    say("writing a trace")
    where = Path(FOLDER) / (re.sub(r"[^\w.+-]+", "_", name).strip("_.") or "row")
    batch = batches(tokens, decoding.batch)[0]
    with profile_to(folder / where):
        model.generate([tokens[index] for index in batch], seed=seeds(decoding, batch), **row.options)
    return {"profile": where.as_posix()}
