"""`jaxinfer train heads`: a backbone writes text, and heads learn to guess it.

What is under way lies in `<output>.partial`: the text with its hidden states (unless `data.corpus` names a folder for
it, which several trainings can share), and the newest checkpoint. At the end `<output>` appears as a whole: the heads,
`training.json` (configuration, losses, accuracies) and `loss.svg`.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jaxinfer.api import Model
from jaxinfer.errors import InputError
from jaxinfer.experiment import lines
from jaxinfer.experiment.progress import load_model
from jaxinfer.experiment.prompts import load_prompts, read_text
from jaxinfer.experiment.results import check_writable
from jaxinfer.experiment.schema import ModelSpec, PromptSpec
from jaxinfer.experiment.typed import read_as
from jaxinfer.heads import store
from jaxinfer.heads.data import Corpus, DataSpec, make_corpus
from jaxinfer.heads.train import TrainSpec, learn
from jaxinfer.host.files import new_folder, path_of, refuse_existing
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.network.heads import HeadsConfig, Kind

_DATA, _STEPS = DataSpec(), TrainSpec()


@dataclass(frozen=True)
class Training:
    """The heads to train, the model they are for, the data, and the folder they go to."""

    model: ModelSpec
    output: str
    kind: Kind = "medusa"
    count: int = 4
    draft_vocab: int = 8192
    data: DataSpec = _DATA
    training: TrainSpec = _STEPS

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


def train_from(file: str, overrides: list[str], resume: bool, console: Console) -> Path:
    """Run the command: read and check the config, load the model, train. Raises InputError."""
    config = read_as(Training, file, overrides)
    check(config, file)
    prompts = [prompt.text for prompt in load_prompts(PromptSpec(config.data.prompts), Path(file).parent)]
    text = None if config.data.text is None else read_text(config.data.text, "data.text")
    output = refuse_existing(config.output)
    partial = output.with_name(output.name + ".partial")
    check_writable(str(output.parent))
    if config.data.corpus is not None:
        check_writable(str(path_of(config.data.corpus, "data.corpus").absolute().parent), "data.corpus")
    if partial.exists() and not resume:
        raise InputError(f"{partial}: holds a training under way; go on with --resume, or remove it")
    if resume and not partial.exists():
        raise InputError(f"--resume: there is no training under way in {partial}")
    if config.model.mesh is not None or config.model.pad_heads:
        raise InputError(f"{file}: model.mesh: heads are trained on one device; leave it out")
    model = load_model(config.model.source, config.model.dtype, config.model.weights, tokenizer=config.model.tokenizer)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            name = what.split(" ")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(what, total=total)
            bars.update(tasks[name], description=what, completed=done, total=total)

        try:
            return train(model, config, prompts, text, show)
        except KeyboardInterrupt:
            console.print(f"interrupted: {partial} is kept; to go on, add --resume", markup=False, soft_wrap=True)
            raise


def check(config: Training, file: str) -> None:
    """Raise InputError for a number that cannot be."""
    least: dict[str, Any] = {
        "data": {"samples": 0, "own_prompts": 0, "max_new_tokens": 8, "batch": 1, "seed": 0, "temperature": 0},
        "training": {"steps": 1, "batch": 1, "every": 1, "seed": 0, "learning_rate": 0, "weight_decay": 0},
    }
    for section, keys in least.items():
        for key, low in keys.items():
            value = getattr(getattr(config, section), key)
            if not low <= value < 2**31:
                raise InputError(f"{file}: {section}.{key}: expected a number from {low}, got {value}")
    if not config.output.strip():
        raise InputError(f"{file}: output: is empty; give the folder that the heads go to")


def train(
    model: Model, config: Training, prompts: list[str], text: str | None, show: Callable[[str, int, int], None]
) -> Path:
    """Make the corpus, train, write the folder `config.output`; goes on with what its .partial holds."""
    output = refuse_existing(config.output)
    cfg = HeadsConfig.of(
        config.kind, model.name, model.config, min(config.draft_vocab, model.config.vocab_size), config.count
    )
    partial = output.with_name(output.name + ".partial")
    folder = Path(config.data.corpus).expanduser() if config.data.corpus else partial / "corpus"
    made = {"model": model.name, "data": {**dataclasses.asdict(config.data), "corpus": None}}
    if folder.exists():
        Corpus.load(folder, made)  # whether it fits, before anything is written
    partial.mkdir(parents=True, exist_ok=True)
    _same(partial, config)
    if not folder.exists():
        with new_folder(folder) as draft:
            make_corpus(model, prompts, config.data, text, show).save(draft, made)
    heads, state = learn(model, cfg, Corpus.load(folder, made), config.training, partial, show)
    with new_folder(output) as folder:
        store.write(heads, folder)
        record = {"config": dataclasses.asdict(config), "losses": state.losses, "accuracy": state.accuracy}
        (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        chart = lines.chart(f"{cfg.kind} heads for {cfg.backbone}", "step", "loss", {"training": state.losses})
        (folder / "loss.svg").write_text(chart, encoding="utf-8")
    shutil.rmtree(partial)
    return output


def _same(partial: Path, config: Training) -> None:
    """Raise InputError if what is under way was begun with another configuration."""
    file, ours = partial / "config.json", json.loads(json.dumps(dataclasses.asdict(config)))
    if not file.exists():
        file.write_text(json.dumps(ours, indent=1), encoding="utf-8")
        return
    theirs = json.loads(file.read_text(encoding="utf-8"))
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise InputError(f"{partial}: was begun with {key}={theirs.get(key)}, and this is {key}={value}")
