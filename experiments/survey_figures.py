"""The figures of a survey of inference, drawn anew from our own roofline analysis. Nothing is measured or loaded.

    jaxinfer run configs/survey_figures.yaml
    jaxinfer run configs/survey_figures.yaml hardware=h100-sxm "figures=[rooflines, batching]"

"LLM Inference Unveiled: Survey and Roofline Model Insights" (Yuan et al. 2024) explains by the roofline of one device
what each technique can bring. Every figure is data rows, a chart as SVG, and a sentence that says what it shows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from jaxinfer.analysis import hardware as devices
from jaxinfer.analysis.roofline.shapes import config_of
from jaxinfer.analysis.survey import FIGURES, Study
from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.experiment import KINDS, Kind, Run, Table, page, script, sheet
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.experiment.survey import DRAWN
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/survey_figures.yaml."""

    name: str
    hardware: str = "a6000"
    small: str = "llama-2-7b"
    large: str = "llama-2-13b"
    mixture: str = "mixtral-8x7b"
    others: tuple[str, ...] = ("a100-80gb", "h100-sxm", "b200", "groq-lpu", "graphcore-ipu")
    disk: float = 7.45e9
    length: int = 2048
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    longest: int = 200_000
    cases: tuple[tuple[int, ...], ...] = ((1, 1024), (1, 8192), (32, 2048))
    figures: tuple[str, ...] = tuple(FIGURES)
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for what cannot be drawn."""
        for name in self.figures:
            if name not in FIGURES:
                raise InputError(f"figures: there is no {shown(name)}: {', '.join(FIGURES)}{nearest(name, FIGURES)}")
        for name in ("batches", "lengths", "cases", "others"):
            if not getattr(self, name):
                raise InputError(f"{name}: give at least one value")
        if any(len(case) != 2 for case in self.cases):
            raise InputError(f"cases={shown(self.cases)} must be pairs: a batch and tokens")
        sizes = [("length", self.length), ("longest", self.longest)]
        sizes += [(name, size) for name in ("batches", "lengths") for size in getattr(self, name)]
        for name, size in sizes + [("cases", size) for case in self.cases for size in case]:
            if not 1 <= size < 2**31:
                raise InputError(f"{name}: {size} must be a whole number from 1")
        if self.longest < 20:
            raise InputError(f"longest={self.longest} must be at least 20: its curve has 20 points")
        if not 0 < self.disk < float("inf"):
            raise InputError(f"disk={self.disk} must be a number of bytes/s above 0")
        study_of(self)


def study_of(config: Config) -> Study:
    """Look up models and devices. Raises InputError for those that are not known, and for models that do not fit."""
    models = {}
    for name in ("small", "large", "mixture"):
        try:
            models[name] = config_of(getattr(config, name))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    for name in ("small", "large"):
        found = models[name]
        plain = len(found.kinds) == 1 and not (found.kinds[0].moe or found.kinds[0].mixer or found.mla)
        if not (plain and found.gated and found.pre_norms and not found.shared_norm and found.kinds[0].rope):
            raise InputError(f"{name}={getattr(config, name)} must have the layers of Llama: the figures name them")
    if not any(kind.moe for kind in models["mixture"].kinds):
        raise InputError(f"mixture={config.mixture} must have experts")
    sizes = ("disk", "length", "batches", "lengths", "longest", "cases")
    return Study(
        **models,
        device=devices.get(config.hardware),
        others=tuple(devices.get(name) for name in config.others),
        **{name: getattr(config, name) for name in sizes},
    )


def items(config: Config, prompts: Prompts) -> dict[str, str]:
    """List the figures."""
    return {name: name for name in config.figures}


def measure(name: str, run: Run) -> list[Row]:
    """Give the rows of a figure."""
    return [{"figure": name, **row} for row in FIGURES[name](run.ready)]


def by_figure(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Sort the rows by their figure."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["figure"], []).append({key: value for key, value in row.items() if key != "figure"})
    return found


def table(rows: Sequence[Row]) -> Table:
    """Count the rows of each figure: a page has the figures themselves."""
    return Table.of(
        [{"figure": name, "rows": len(found)} for name, found in by_figure(rows).items()],
        {"figure": lambda row: DRAWN[row["figure"]].title, "rows": "{rows}"},
    )


def files(run: Run) -> dict[str, str]:
    """Give results.json and a chart of each figure."""
    found = by_figure(run.rows)
    sentences = {name: DRAWN[name].sentence(run.ready, rows) for name, rows in found.items()}
    results = {name: {"shows": sentences[name], "rows": rows} for name, rows in found.items()}
    made = {f"{name}.svg": DRAWN[name].draw(run.ready, rows) for name, rows in found.items()}
    return {"results.json": json.dumps(results, indent=1) + "\n", **made}


def summary(run: Run) -> str:
    """Say what the figures are of."""
    config = run.config
    return (
        f"{config.small}, {config.large} and {config.mixture} on {run.ready.device.title}: what the roofline "
        "allows, by our analyzer, after Yuan et al. 2024, LLM Inference Unveiled. Bounds, and no measurements."
    )


def pages(run: Run, tables: Sequence[Table], files: Mapping[str, str], summary: str | None) -> dict[str, str]:
    """Make table.md and report.html: of each figure a sentence, the chart, and its figures as a table."""
    title, lead = run.config.name, summary or page.NONE_YET
    text, sections = [f"# {title}", lead], [f"<h1>{escape(title)}</h1><p class=lead>{escape(lead)}</p>"]
    for number, (name, rows) in enumerate(by_figure(run.rows).items(), start=1):
        figure = DRAWN[name]
        shows, made = figure.sentence(run.ready, rows), figure.table(run.ready, rows)
        text += [f"## {number}. {figure.title}", shows, sheet.markdown(made).rstrip()]
        sections.append(
            f"<h2>{number}. {escape(figure.title)}</h2><p class=lead>{escape(shows)}</p>"
            f'<figure style="overflow-x:auto;padding:16px 10px">{files[f"{name}.svg"]}</figure>'
            f"<details><summary>Figures</summary>{page.table_html(made)}<p></p></details>"
        )
    return {"table.md": "\n\n".join(text) + "\n", "report.html": page.html(title, sections, run.folder)}


KINDS.add(
    "survey_figures",
    Kind(
        Config,
        items,
        measure,
        table,
        check=Config.check,
        model=lambda config: None,
        prepare=lambda config, model, prompts: study_of(config),
        summary=summary,
        files=files,
        pages=pages,
        unit="figure",
    ),
)

if __name__ == "__main__":
    script.run("survey_figures", __doc__)
