"""Train heads on a corpus: steps, accuracies on held-out texts, and a checkpoint to go on from."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxinfer.api import Model
from jaxinfer.errors import InputError
from jaxinfer.heads import fit
from jaxinfer.heads.data import Corpus
from jaxinfer.heads.start import begin
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.network.heads import Heads, HeadsConfig, frequent, unembedding

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


@dataclass
class State:
    """The state of training."""

    params: Any
    opt_state: Any
    step: int
    losses: list[tuple[int, float]]
    accuracy: list[tuple[int, list[list[float]]]]  # step, and by head the share of labels that were the r-th best guess


def learn(
    model: Model,
    cfg: HeadsConfig,
    corpus: Corpus,
    spec: TrainSpec,
    partial: Path,
    show: Callable[[str, int, int], None],
) -> tuple[Heads, State]:
    """Train heads on a corpus, from the newest checkpoint in `partial` on if there is one."""
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
    """Return, by head, the share of held-out labels that were the r-th best guess: [K][RANKS], over random batches."""
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


def _keep(partial: Path, state: State) -> None:
    leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves((state.params, state.opt_state)))}
    notes = {"step": state.step, "losses": state.losses, "accuracy": state.accuracy}
    draft = partial / "state.tmp"
    save_file(leaves, draft, {"notes": json.dumps(notes)})
    draft.rename(partial / "state.safetensors")


def _restore(partial: Path, fresh: State) -> State:
    """Return the newest checkpoint, or `fresh` if there is none."""
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
