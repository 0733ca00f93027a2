"""The ledger of a setting: what physics allows, what the compiler made of it, what the clock said."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxinfer.analysis.ledger.losses import Loss
from jaxinfer.analysis.ledger.physics import Physics
from jaxinfer.analysis.ledger.running import Timing

TITLES = {"prefill": "The prefill", "decode": "A decode step"}


@dataclass(frozen=True)
class Compiler:
    """The compiler's figures of a stage: sums over its programs; memory is that of the largest."""

    ops: float
    bytes: float
    fusions: int
    kernels: int  # custom calls
    copies: int  # that write 1 MB or more
    unaliased: int  # donated arguments whose memory no result took over
    temp_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Stage:
    """A prefill of all rows, or one decode step."""

    physics: Physics
    compiler: Compiler
    timing: Timing
    losses: tuple[Loss, ...]

    @property
    def mbu(self) -> float:
        """Divide compulsory bytes a second by the bandwidth."""
        return self.physics.memory_seconds / self.timing.seconds

    @property
    def mfu(self) -> float:
        """Divide operations a second by the peak."""
        return self.physics.compute_seconds / self.timing.seconds

    @property
    def share(self) -> float:
        """Divide the bound by the clock's time: 1 is all that the device allows."""
        return self.physics.seconds / self.timing.seconds

    def as_dict(self) -> dict[str, Any]:
        operators = sorted(self.timing.operators.items(), key=lambda item: -item[1])
        clock = {
            "seconds": self.timing.seconds,
            "mbu": self.mbu,
            "mfu": self.mfu,
            "share": self.share,
            "traced_seconds": self.timing.traced,
            "operators": [{"name": name, "seconds": seconds} for name, seconds in operators],
        }
        found = {"physics": self.physics.as_dict(), "compiler": asdict(self.compiler), "clock": clock}
        return found | {"losses": [asdict(loss) for loss in self.losses]}


@dataclass(frozen=True)
class Ledger:
    """Three figures of each stage side by side, and where the time goes."""

    hardware: str
    setting: Mapping[str, Any]  # model, weights, batch, prompt, policy, method and what was measured
    stages: Mapping[str, Stage]  # prefill, decode

    def as_dict(self) -> dict[str, Any]:
        """Give all of it as plain data.

        Figures of `physics.operators` are those of one layer; `clock.operators` are sums over layers.
        """
        return {
            "hardware": self.hardware,
            "setting": dict(self.setting),
            "stages": {name: stage.as_dict() for name, stage in self.stages.items()},
            "sentence": self.sentence,
        }

    @property
    def sentence(self) -> str:
        """Say in plain words how far the last stage is from its bound, and what takes most of the rest."""
        name, stage = list(self.stages.items())[-1]
        physics, largest = stage.physics, stage.losses[0]
        hardware = physics.hardware
        what = f"{1e-9 * hardware.bandwidth:.1f} GB/s" if physics.bound == "memory" else "the peak of arithmetic"
        return (
            f"{TITLES[name]} takes {1e3 * stage.timing.seconds:.2f} ms; {what} would allow "
            f"{1e3 * physics.seconds:.2f} ms, {stage.share:.0%} of that. The largest loss is {largest.name}, "
            f"{largest.milliseconds:.2f} ms: {largest.why}."
        )

    def rows(self) -> list[tuple[str, ...]]:
        """List the lines of the table: stage, what, how much, and why."""
        found: list[tuple[str, ...]] = []
        for name, stage in self.stages.items():
            physics, compiler = stage.physics, stage.compiler
            why = f"{physics.bytes / 1e6:,.1f} MB, {physics.ops / 1e9:,.2f} GFLOP: bound by {physics.bound}"
            found.append((name, "physics allows", _ms(physics.seconds), why))
            made = f"{compiler.bytes / 1e6:,.1f} MB, {compiler.ops / 1e9:,.2f} GFLOP: {compiler.fusions} fusions, "
            made += f"{compiler.kernels} kernels, {compiler.copies} copies, {compiler.temp_bytes / 1e6:,.1f} MB scratch"
            found.append((name, "the compiler made", "", made))
            said = f"{stage.share:.0%} of the bound, MBU {stage.mbu:.0%}, MFU {stage.mfu:.0%}"
            found.append((name, "the clock said", _ms(stage.timing.seconds), said))
            found += [(name, loss.name, f"{loss.milliseconds:+.2f} ms", loss.why) for loss in stage.losses]
        return found

    def markdown(self) -> str:
        """Write the table in Markdown, and the sentence under it."""
        lines = ["| stage | part | time | |", "|---|---|---:|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows()]
        return "\n".join([*lines, "", self.sentence, ""])

    def table(self) -> Any:
        """Make the table that rich prints."""
        from rich.table import Table

        table = Table("stage", "part", "time", "", title=f"on {self.hardware}", caption=self.sentence)
        for i, row in enumerate(rows := self.rows()):
            table.add_row(*row, end_section=i + 1 < len(rows) and rows[i + 1][0] != row[0])
        return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"
