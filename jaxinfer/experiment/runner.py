"""Measuring the rows of an experiment, one after the other, on one loaded model."""

import dataclasses
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jaxinfer.errors import InputError
from jaxinfer.experiment import compare, extras, registry, report, results
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.prompts import Prompt, token_ids
from jaxinfer.experiment.schema import ConstraintSpec, DecodingSpec, Experiment, ModelSpec, RowSpec
from jaxinfer.transform import extend_context


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run: what is kept, and where."""

    def __init__(self, folder: Path, done: int, total: int):
        super().__init__(f"{done} of {total} rows are done")
        self.folder, self.done, self.total = folder, done, total


def run(
    config: Experiment,
    model,
    prompts: tuple[Prompt, ...],
    resume: Path | None = None,
    console: Console | None = None,
    beside: Callable[[dict[str, Any]], Any] | None = None,
) -> Path:
    """Measure the rows of a config in order, in a new run folder or in `resume`, whose finished rows are kept.

    `model` is `config.model.source` as it was loaded: its context is extended here if the config says so. Returns the
    folder. After each row the row, table.md and report.html are on disk, so an interruption (raised as Interrupted)
    costs the row under way and no more. `beside` measures something else: see `measure`. Raises InputError, before
    anything is written, for a prompt that does not fit the model, a context that cannot be extended, and a constraint
    that cannot be kept to.
    """
    model = extended(model, config.model)
    tokens = encode(model, prompts, config)
    rows = plan(config)
    for row in config.rows:
        if row.constraint:
            extras.constraint(model, row.constraint)  # an error in one is told before the others are measured
    folder = resume or results.new_run(config)
    done = results.read_rows(folder)
    report.write(folder, config, done)
    try:
        with _progress(console) as progress:
            overall = progress.add_task("rows", total=len(rows), completed=len(done))
            current = progress.add_task("", total=None)
            names = {record["name"] for record in done}
            for row in [row for row in rows if row.name not in names]:
                base = baseline(row, rows)
                passes = 1 + config.decoding.repeats * (1 if base == row else 2)
                total = len(_batches(prompts, config.decoding.batch)) * passes
                progress.reset(current, description=row.name, total=total)
                tick = partial(_advance, progress, current)
                record = measure(model, row, base, prompts, tokens, config.decoding, tick, beside)
                results.append_row(folder, record)
                done.append(record)
                report.write(folder, config, done)
                _advance(progress, overall)
            progress.update(current, visible=False)
    except KeyboardInterrupt:
        raise Interrupted(folder, len(done), len(rows)) from None
    return folder


def extended(model, spec: ModelSpec):
    """The loaded model with the context that its spec asks for. Raises InputError if it cannot have that."""
    if spec.context is None:
        return model
    try:
        return extend_context(model, spec.context.kind, spec.context.factor)
    except InputError as error:
        raise InputError(f"model.context: {error}") from None


def encode(model, prompts: tuple[Prompt, ...], config: Experiment) -> list[list[int]]:
    """Token ids of every prompt, with the chat template if the config asks for it.

    Raises InputError for a model without a tokenizer or a chat template, and for a prompt that leaves no room for the
    new tokens in the model's context.
    """
    if model.tokenizer is None:
        raise InputError(f"model.source: {config.model.source!r} has no tokenizer")
    if config.prompts.chat and not model.tokenizer.has_chat:
        raise InputError(f"prompts.chat: {config.model.source!r} has no chat template; set prompts.chat=false")
    tokens = []
    for index, prompt in enumerate(prompts):
        tokens.append(token_ids(model, prompt, config.prompts.chat))
        length, room = len(tokens[-1]), model.config.max_positions - config.decoding.max_new_tokens
        if length > room:
            raise InputError(
                f"prompts: prompt {index} has {length} tokens; with decoding.max_new_tokens="
                f"{config.decoding.max_new_tokens} this model takes at most {max(room, 0)}"
            )
    return tokens


def plan(config: Experiment) -> list[RowSpec]:
    """The rows to measure: the config's, after a greedy reference for each that has no greedy row to compare with."""
    rows = [dataclasses.asdict(row) for row in config.rows]
    keys = {compare.baseline_key(row) for row in rows if compare.is_baseline(row)}
    references: list[RowSpec] = []
    for row in rows:
        key = compare.baseline_key(row)
        if key in keys:
            continue
        keys.add(key)
        method, sampling = {"name": "greedy"}, None
        if not compare.is_sampled(row) and (penalties := compare.penalties(row)):
            method, sampling = {"name": "sample"}, {"temperature": 0.0, **penalties}
        name = f"{compare.REFERENCE} {len(references) + 1}" if references else compare.REFERENCE
        constraint = row["constraint"] and ConstraintSpec(**row["constraint"])
        references.append(RowSpec(name, method, row["policy"], sampling, constraint))
    return [*references, *config.rows]


def baseline(row: RowSpec, rows: list[RowSpec]) -> RowSpec:
    """The greedy row of a plan that `row` is compared with; for that row itself, the first such."""
    key = compare.baseline_key(dataclasses.asdict(row))
    plain = ((other, dataclasses.asdict(other)) for other in rows)
    return next(other for other, found in plain if compare.is_baseline(found) and compare.baseline_key(found) == key)


def measure(
    model,
    row: RowSpec,
    base: RowSpec,
    prompts: tuple[Prompt, ...],
    tokens: list[list[int]],
    decoding: DecodingSpec,
    tick: Callable[[], None] = lambda: None,
    beside: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    """One row: `decoding.repeats` passes over all prompts, each followed by a pass of `base`, unless that is the row.

    A machine's speed drifts: what is compared is measured in alternation. Rates are tokens/s, bandwidths bytes/s, one a
    pass. A pass before them compiles and is not timed, for the first call of a program takes up to half a second more:
    what multiplies prepares itself. Every pass has the same seeds, hence the same outputs, and a prompt keeps its seed
    however the prompts are batched. `tick` is called after each batch. `beside` measures something else behind each
    timed pass, for the same reason: it is given the row with what its prompts gave, and the record keeps a list of what
    it returns.
    """

    constraint = (
        {"constraint": extras.constraint(model, row.constraint)} if row.constraint else {}
    )  # the baseline's too

    def one_pass(row: RowSpec) -> list:
        origin = Origin("row")
        options = {
            "max_new_tokens": decoding.max_new_tokens,
            "method": registry.method(row.method, ("method",), origin),
            "policy": row.policy and registry.policy(row.policy, ("policy",), origin),
            "sampling": row.sampling and registry.sampling(row.sampling, ("sampling",), origin),
        }
        outputs = []
        for batch in _batches(tokens, decoding.batch):
            seeds = [decoding.seed + index for index in batch]
            outputs.append(model.generate([tokens[index] for index in batch], seed=seeds, **options, **constraint))
            tick()
        return outputs

    outputs = one_pass(row)
    first, stats, base_rates, others = [output.stats for output in outputs], [], [], []
    what = dataclasses.asdict(row) | {"prompts": _records(prompts, outputs)}
    for _ in range(decoding.repeats):
        stats.append([output.stats for output in one_pass(row)])
        greedy = stats[-1] if base == row else [output.stats for output in one_pass(base)]
        base_rates.append(_mean(greedy, "decode_rate", _decode_seconds))
        if beside:
            others.append(beside(what))
    return {
        **what,
        "dtype": model.dtype,
        "weights": model.weights or model.dtype,
        "decode_rates": [_mean(one, "decode_rate", _decode_seconds) for one in stats],
        "baseline_rates": base_rates,
        "prefill_rates": [_mean(one, "prefill_rate", _prefill_seconds) for one in stats],
        "bandwidths": [_mean(one, "bandwidth", _decode_seconds) for one in stats],
        "tokens_per_step": _mean(first, "tokens_per_step", lambda one: sum(one.steps)),
        "compile_seconds": sum(one.seconds["compile"] for one in itertools.chain(first, *stats)),
        "weight_bytes": max(one.weight_bytes for one in first),
        "cache_bytes": max(one.cache_bytes for one in first),
        "temp_bytes": max(one.temp_bytes for one in first),
        "peak_rss_bytes": peak_rss(),
    } | ({"beside": others} if beside else {})


def peak_rss() -> int | None:
    """The most memory this process ever held, in bytes; None where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _records(prompts: tuple[Prompt, ...], outputs: list) -> list[dict[str, Any]]:
    """What each prompt gave, for charts by family and for comparing outputs."""
    records: list[dict[str, Any]] = []
    for output in outputs:
        stats = output.stats
        for index, (text, tokens) in enumerate(zip(output.texts, output.tokens, strict=True)):
            prompt = prompts[len(records)]
            records.append(
                {
                    "family": prompt.family,
                    "prompt": prompt.text,
                    "output": text,
                    "tokens": [int(token) for token in tokens],
                    "prompt_tokens": int(stats.prompt_tokens[index]),
                    "steps": int(stats.steps[index]),
                    "guessed": int(stats.guessed[index]),
                    "runs": stats.runs[index],
                    "emitted": int(stats.emitted[index]),
                    "proposed": int(stats.proposed[index]),
                    "accepted": int(stats.accepted[index]),
                }
            )
    return records


def _mean(stats: list, rate: str, weight: Callable) -> float:
    """The mean of a rate over the batches of a pass, weighted by what it was divided by."""
    weights = [float(weight(one)) for one in stats]
    total = sum(w * float(getattr(one, rate)) for one, w in zip(stats, weights, strict=True) if w > 0)
    return total / sum(weights) if sum(weights) > 0 else 0.0


def _decode_seconds(stats) -> float:
    return stats.seconds["decode"]


def _prefill_seconds(stats) -> float:
    return stats.seconds["prefill"]


def _batches(items, size: int) -> list[range]:
    """The indices of `items`, `size` at a time."""
    return [range(start, min(start + size, len(items))) for start in range(0, len(items), size)]


def _progress(console: Console | None) -> Progress:
    # Refreshed between batches and never by a thread of its own: drawing would disturb the clock.
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console or Console(stderr=True), auto_refresh=False)


def _advance(progress: Progress, task) -> None:
    progress.advance(task)
    progress.refresh()
