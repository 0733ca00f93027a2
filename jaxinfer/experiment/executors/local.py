"""Items one after the other, in this process."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxinfer.experiment.executors.contract import Work
from jaxinfer.experiment.kind import Kind, Prompts
from jaxinfer.experiment.measuring import measured


class Local:
    """Measures items one after the other, in this process."""

    def begin(
        self,
        kind: Kind,
        config: Any,
        model: Any,
        prompts: Prompts,
        heading: Mapping[str, Any] | None,
        items: Mapping[str, Any],
    ) -> Work:
        return Work(kind, items, kind.prepare(config, model, prompts))

    def measured(self, work: Work) -> Iterator[tuple[str, dict[str, Any]]]:
        kind, total = work.kind, len(work.items)
        for name, item in work.left.items():
            if work.bars:
                notes = filter(None, (kind.note(item, work.run), work.bars.remaining()))
                work.bars.begin(name, ": ".join([f"{kind.unit} {work.number(name)} of {total}: {name}", *notes]))
            yield name, measured(kind, name, item, work.run)


HERE = Local()
