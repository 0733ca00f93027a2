"""Measure the ledger of a loaded model in a setting."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxinfer.analysis import hardware as devices
from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.hlo import Memory, Module, report
from jaxinfer.analysis.hlo.findings import unaliased
from jaxinfer.analysis.hlo.programs import attention_trips
from jaxinfer.analysis.ledger.losses import losses
from jaxinfer.analysis.ledger.meter import Meter, now
from jaxinfer.analysis.ledger.physics import Physics, physics, setting_of
from jaxinfer.analysis.ledger.record import Compiler, Ledger, Stage
from jaxinfer.analysis.ledger.running import Ran, Recording, modules_of, timing
from jaxinfer.api import Model
from jaxinfer.cache import CachePolicy
from jaxinfer.decoding.contract import DecodeMethod
from jaxinfer.decoding.loop import decode
from jaxinfer.decoding.methods import Greedy
from jaxinfer.errors import InputError, shown
from jaxinfer.host.values import whole
from jaxinfer.runtime.beginning import Prompts
from jaxinfer.runtime.compiled import program
from jaxinfer.runtime.generation import Generation
from jaxinfer.runtime.placed import PlacedModel
from jaxinfer.runtime.request import Call, Options

ROUNDS = 12
TRACED_PART = 2  # of the steps of a call, one in so many is traced: a trace of more takes long to read
LONG = 2.0  # seconds: so long prefills are measured, and one at least

Prompt = int | Sequence[int] | Sequence[Sequence[int]]


def ledger(
    model: Model,
    prompt: Prompt = 128,
    batch: int = 1,
    policy: CachePolicy | None = None,
    method: DecodeMethod | None = None,
    steps: int = 4,
    hardware: Hardware | str = devices.THIS_MACHINE,
    rounds: int = ROUNDS,
) -> Ledger:
    """Measure a prefill and decode steps of a model: some seconds, compiling apart.

    prompt: tokens of each of `batch` rows; or a list with the tokens of each row; or token ids, a list for each row,
    which a method's guesses may depend on. Random tokens are taken where only their number is given. steps: of the loop
    in a call, `rounds` of which are measured. policy, method: the model's own policy and greedy decoding, if left out.
    hardware: whose bound; the device that it runs on, measured once, if left out. Raises InputError for what generate
    cannot do, and for hardware that is not known.
    """
    steps, rounds = whole(steps, "steps", 1), whole(rounds, "rounds", 1)
    tokens, how = rows_of(model, prompt, batch), Greedy() if method is None else method
    asked = Options(room(rounds, steps, how.width), how, policy, ignore_eos=True)
    return ledger_of(model, tokens, asked, steps, hardware, rounds)


def ledger_of(
    model: Model,
    tokens: Sequence[Sequence[int]],
    options: Options,
    steps: int = 4,
    hardware: Hardware | str = devices.THIS_MACHINE,
    rounds: int = ROUNDS,
) -> Ledger:
    """Measure what `model.generate(tokens, **options)` runs, by its own programs: nothing else is compiled for it.

    Texts should not end within the steps that are measured: see `room`. Raises InputError as `ledger`.
    """
    device = hardware if isinstance(hardware, Hardware) else devices.get(hardware)
    running = Running.begin(model, tokens, options.checked(model, tokens), steps, rounds)
    stages = {}
    if any(len(row) > 1 for row in tokens):
        stages["prefill"] = running.prefill(device)
    stages["decode"] = running.decode(device)
    setting = {
        "model": model.name,
        "weights": model.weights or model.dtype,
        "batch": len(tokens),
        "prompt": [len(row) for row in tokens],
        "policy": described(running.call.policy),
        "method": described(running.call.method),
        "steps": steps,
        "context": running.context,
        "tokens_per_step": running.tokens_per_step,
        "bandwidth": stages["decode"].physics.hardware.bandwidth,
    }
    return Ledger(device.name, setting, stages)


def room(rounds: int, steps: int, width: int) -> int:
    """Count the new tokens that a row may emit while it is measured."""
    return (1 + rounds) * (steps + max(1, steps // TRACED_PART)) * width


def rows_of(model: Model, prompt: Prompt, batch: int) -> list[list[int]]:
    """Make the rows of token ids. Raises InputError for what is no prompt of this model."""
    batch = whole(batch, "batch", 1)
    most = model.config.max_positions - 1
    given = [prompt] * batch if isinstance(prompt, int) else prompt
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise InputError(f"prompt={shown(prompt)} must be a number of tokens, a list of them, or lists of token ids")
    rows: list[list[int]]
    if isinstance(given[0], Sequence):
        rows = [model.encode(row, f"prompt {i}") for i, row in enumerate(given)]  # type: ignore[arg-type]
    else:
        random, vocab = np.random.default_rng(0), model.config.vocab_size
        rows = [random.integers(0, vocab, whole(length, "prompt", 1, most)).tolist() for length in given]
    if len(rows) != batch and batch != 1:
        raise InputError(f"batch={batch}: prompt has {len(rows)} rows; leave batch out")
    return rows


def described(part: Any) -> dict[str, Any]:
    """Give a method or a policy as plain data: its name, and those of its fields that are not the default."""
    given = {field.name: (getattr(part, field.name), field.default) for field in dataclasses.fields(part)}
    plain = str | int | float | None
    changed = {name: x if isinstance(x, plain) else shown(x) for name, (x, usual) in given.items() if x != usual}
    return {"name": type(part).__name__.lower(), **changed}


@dataclass
class Running:
    """A generation that is measured: its prompts read again and again, its steps taken a few at a time."""

    model: Model
    tokens: Sequence[Sequence[int]]
    call: Call
    generation: Generation
    steps: int
    rounds: int

    @classmethod
    def begin(cls, model: Model, tokens: Sequence[Sequence[int]], call: Call, steps: int, rounds: int) -> "Running":
        """Read the prompts and take the steps of a call, so that all is compiled."""
        rows = [list(row) for row in tokens]
        generation = Generation.of(model.placed, rows, call)
        generation.advance(steps)
        return cls(model, rows, call, generation, steps, rounds)

    def prefill(self, device: Hardware, beside: bool = True) -> Stage:
        """Measure the reading of all prompts but their last tokens. beside: measure this machine's rates too."""
        placed, policy = self.model.placed, self.call.policy
        recording = Recording(placed.model, placed.params, placed.layout, placed.extras)
        given = Prompts.of(self.tokens, self.call.limits, self.model.config, policy)

        def read(placed: PlacedModel = placed) -> tuple[float, float]:
            start = time.perf_counter()
            cache, _, _ = placed.read(policy, given.tokens, given.lengths, given.ends)
            jax.block_until_ready(cache)
            return time.perf_counter() - start, 1.0

        read(recording)
        seconds, _ = read()
        rounds = min(self.rounds, max(1, int(LONG / seconds)))
        ran = recording.ran
        modules = modules_of(ran)
        setting = setting_of(self.model, self.generation.state.cache)
        lengths = [len(row) - 1 for row in self.tokens if len(row) > 1]

        def allowed_on(device: Hardware) -> Physics:
            return physics(self.model.config, device, setting, "prefill", lengths)

        meter = metered(allowed_on(device), 1) if beside else None
        taken = timing(read, read, modules, self.model.config, rounds, meter)
        allowed = allowed_on(now(device, taken.beside) if meter else device)
        calls = f"{len(ran)} call{'s' * (len(ran) != 1)} of programs"
        return Stage(allowed, compiler(ran, modules), taken, losses(allowed, taken, calls))

    def decode(self, device: Hardware, beside: bool = True) -> Stage:
        """Measure decode steps. beside: measure this machine's rates too."""
        generation, state = self.generation, self.generation.state
        args = (generation.placed.params, generation.extras, state, np.int32(self.steps))
        static = (generation.placed.model, generation.method)
        found, _ = program(decode, static, args, carry=2, layout=generation.placed.layout)
        trips = attention_trips(self.model.config, state.cache, generation.method.width)
        ran = [Ran(decode.__name__, found, {**trips, "jit(decode)/while": 1})]
        before, emitted = self._steps(), self._lengths()

        def advance(steps: int) -> tuple[float, float]:
            begin = self._steps()
            start = time.perf_counter()
            generation.advance(steps)
            seconds = time.perf_counter() - start
            return seconds, self._steps() - begin

        few = max(1, self.steps // TRACED_PART)
        modules, config = modules_of(ran), self.model.config
        width = generation.method.width
        setting = setting_of(self.model, state.cache, width)
        first = physics(config, device, setting, "decode", emitted.tolist())
        meter = metered(first, self.steps) if beside else None
        taken = timing(lambda: advance(self.steps), lambda: advance(few), modules, config, self.rounds, meter)
        device = now(device, taken.beside) if meter else device
        after = self._lengths()
        self.tokens_per_step = float(np.mean(after - emitted)) / (self._steps() - before)
        self.context = ((emitted + after) / 2).tolist()
        allowed = physics(config, device, setting, "decode", self.context)
        calls = f"once for {self.steps} step{'s' * (self.steps != 1)}"
        return Stage(allowed, compiler(ran, modules), taken, losses(allowed, taken, calls))

    def _steps(self) -> int:
        return int(np.max(np.asarray(self.generation.state.steps)))

    def _lengths(self) -> np.ndarray:
        return np.asarray(self.generation.state.n)


def metered(allowed: Physics, units: int) -> Meter | None:
    """Make what measures this machine beside so many units of a stage; None for another device, or one of its own."""
    device = allowed.hardware
    own = device.name == devices.THIS_MACHINE and device.kind == "cpu"
    return Meter(allowed.bytes * units, allowed.ops * units) if own else None


def compiler(ran: Sequence[Ran], modules: Sequence[tuple[str, Module]]) -> Compiler:
    """Sum up what the compiler made of the programs of a stage, each as often as it runs."""
    reports: dict[int, Any] = {}
    for one, (_, module) in zip(ran, modules, strict=True):
        if id(module) not in reports:
            reports[id(module)] = report(module, one.name, trips=one.trips), one.program.compiled, module
    each = [reports[id(module)][0] for _, module in modules]
    memories = [Memory.of(compiled) for _, compiled, _ in reports.values()]
    return Compiler(
        ops=sum(one.total.operations for one in each),
        bytes=sum(one.total.bytes for one in each),
        fusions=sum(one.fusions_in_text for one, _, _ in reports.values()),
        kernels=sum(len(one.kernels) for one, _, _ in reports.values()),
        copies=sum(len(one.copies) for one, _, _ in reports.values()),
        unaliased=sum(len(unaliased(module, compiled)) for _, compiled, module in reports.values()),
        temp_bytes=max(one.temporaries if one else 0 for one in memories),
        peak_bytes=max(one.peak if one else 0 for one in memories),
    )
