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

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.numpy import load_file, save_file

from jaxinfer.api import Model
from jaxinfer.checkpoint.orbax import new_folder, refuse_existing
from jaxinfer.errors import InputError
from jaxinfer.experiment import lines
from jaxinfer.experiment.prompts import load_prompts
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, ModelSpec, PromptSpec, read_as
from jaxinfer.experiment.script import read_text
from jaxinfer.heads import fit, store
from jaxinfer.heads.data import Corpus, DataSpec, make_corpus
from jaxinfer.heads.heads import Heads, HeadsConfig, Kind, frequent, unembedding
from jaxinfer.heads.start import begin

HELD_OUT = 10  # every tenth text is never trained on
BATCHES = 8  # of held-out texts say how often guesses are right
SHOWN = 20  # the loss is kept for every so many steps, as their mean


@dataclass(frozen=True)
class TrainSpec:
    """steps, and tokens learned from in each; a checkpoint and accuracies on held-out texts every so many steps."""

    steps: int = 1000
    batch: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    every: int = 200
    seed: int = 0

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


_DATA, _STEPS = DataSpec(), TrainSpec()


@dataclass(frozen=True)
class Training:
    """What heads to train, for which model, on what, and the folder they go to."""

    model: ModelSpec
    output: str
    kind: Kind = "medusa"
    count: int = 4
    draft_vocab: int = 8192
    data: DataSpec = _DATA
    training: TrainSpec = _STEPS

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass
class State:
    """Where training stands."""

    params: Any
    opt_state: Any
    step: int
    losses: list[tuple[int, float]]
    accuracy: list[tuple[int, list[list[float]]]]  # step, and by head the share of labels that were the r-th best guess


def train_from(file: str, overrides: list[str], resume: bool, console: Console) -> Path:
    """The command: read and check the config, load the model, train. Raises InputError."""
    config = read_as(Training, file, overrides)
    check(config, file)
    prompts = [prompt.text for prompt in load_prompts(PromptSpec(config.data.prompts), Path(file).parent)]
    text = None if config.data.text is None else read_text(config.data.text, "data.text")
    output = refuse_existing(config.output)
    partial = output.with_name(output.name + ".partial")
    if partial.exists() and not resume:
        raise InputError(f"{partial}: holds a training under way; go on with --resume, or remove it")
    if resume and not partial.exists():
        raise InputError(f"--resume: there is no training under way in {partial}")
    from jaxinfer.experiment.terminal import load_model

    model = load_model(config.model.source, config.model.dtype, config.model.weights)
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
    """Raises InputError for a number that cannot be."""
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


def learn(
    model: Model,
    cfg: HeadsConfig,
    corpus: Corpus,
    spec: TrainSpec,
    partial: Path,
    show: Callable[[str, int, int], None],
) -> tuple[Heads, State]:
    """Heads trained on a corpus, from the newest checkpoint in `partial` on if there is one."""
    texts = np.arange(len(corpus))
    held = texts[texts % HELD_OUT == HELD_OUT - 1] if len(corpus) >= HELD_OUT else texts[-1:]
    taught = np.setdiff1d(texts, held) if len(corpus) > 1 else texts
    if cfg.kind != "eagle" and not len(fit.places(cfg, corpus, taught)):
        raise InputError(f"data: no text has more than count={cfg.count} new tokens; raise data.max_new_tokens")
    vocab = frequent(corpus.tokens, cfg.vocab_size, cfg.draft_vocab)
    frozen = fit.Frozen(
        {"embed": {"embedding": model.params["embed"]["embedding"]}},
        unembedding(model.params, jnp.asarray(vocab)),
        jnp.asarray(fit.place_of(vocab, cfg.vocab_size)),
    )
    tx = fit.optimizer(spec.steps, spec.learning_rate, spec.weight_decay)
    params = begin(cfg, model.params, corpus, taught, spec.seed)
    state = _restore(partial, State(params, tx.init(params), 0, [], []))
    update, recent, lesson = fit.make_update(cfg, tx), [], fit.teach(corpus, frozen.rows)
    for batch in fit.batches(cfg, lesson, taught, spec.batch, spec.seed, state.step):
        if state.step >= spec.steps:
            break
        key = jax.random.fold_in(jax.random.key(spec.seed), state.step)
        state.params, state.opt_state, value = update(state.params, state.opt_state, frozen, batch, key)
        recent.append(float(value))
        state.step += 1
        if state.step % SHOWN == 0 or state.step == spec.steps:
            state.losses.append((state.step, sum(recent) / len(recent)))
            recent = []
        if state.step % spec.every == 0 or state.step == spec.steps:
            state.accuracy.append((state.step, evaluate(cfg, state.params, frozen, lesson, held, spec)))
            _keep(partial, state)
        show(f"training {_figures(state)}", state.step, spec.steps)
    return Heads(state.params, jnp.asarray(vocab), cfg), state


def evaluate(
    cfg: HeadsConfig, params: Any, frozen: fit.Frozen, lesson: fit.Lesson, held: np.ndarray, spec: TrainSpec
) -> list[list[float]]:
    """By head, the share of held-out labels that were the r-th best guess: [K][RANKS], over some random batches."""
    right, total = np.zeros((1, fit.RANKS)), np.zeros(1)
    for number, batch in enumerate(fit.batches(cfg, lesson, held, spec.batch, spec.seed + 1, 0)):
        if number == BATCHES:
            break
        hits, n = fit.hits(cfg, params, frozen, batch)
        right, total = right + np.asarray(hits, np.float64), total + np.asarray(n, np.float64)
    return np.round(right / np.maximum(total, 1)[:, None], 4).tolist()


def _figures(state: State) -> str:
    found = [f"loss {state.losses[-1][1]:.3f}"] if state.losses else []
    if state.accuracy:
        found.append("first guess right " + " ".join(f"{head[0]:.0%}" for head in state.accuracy[-1][1]))
    return ", ".join(found)


def _same(partial: Path, config: Training) -> None:
    """Raises InputError if what is under way was begun with another configuration."""
    file, ours = partial / "config.json", json.loads(json.dumps(dataclasses.asdict(config)))
    if not file.exists():
        file.write_text(json.dumps(ours, indent=1), encoding="utf-8")
        return
    theirs = json.loads(file.read_text(encoding="utf-8"))
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise InputError(f"{partial}: was begun with {key}={theirs.get(key)}, and this is {key}={value}")


def _keep(partial: Path, state: State) -> None:
    leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves((state.params, state.opt_state)))}
    notes = {"step": state.step, "losses": state.losses, "accuracy": state.accuracy}
    draft = partial / "state.tmp"
    save_file(leaves, draft, {"notes": json.dumps(notes)})
    draft.rename(partial / "state.safetensors")


def _restore(partial: Path, fresh: State) -> State:
    """The newest checkpoint, or `fresh` if there is none."""
    file = partial / "state.safetensors"
    if not file.exists():
        return fresh
    from safetensors import safe_open

    with safe_open(file, "numpy") as opened:
        notes = json.loads(opened.metadata()["notes"])
    leaves, tree = load_file(file), jax.tree.structure((fresh.params, fresh.opt_state))
    params, opt_state = jax.tree.unflatten(tree, [jnp.asarray(leaves[str(i)]) for i in range(len(leaves))])
    losses = [tuple(pair) for pair in notes["losses"]]
    return State(params, opt_state, notes["step"], losses, [tuple(pair) for pair in notes["accuracy"]])
