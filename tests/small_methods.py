"""Every decode method of the registry, small enough for random models, and what those need that need something."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from jaxinfer import (
    METHODS,
    Cascade,
    Datastore,
    Jacobi,
    Lookahead,
    Lookup,
    Recycling,
    Retrieval,
    SpeculativeTree,
    Suffix,
    references,
)


class Watched:
    """Before a method's class: notes how wide each step was scored, and the most that a row had to say in it."""

    seen: ClassVar[list[tuple[int, int]]] = []

    def verify(self, ctx, state, draft, output, logits):
        width = logits.shape[1]
        jax.debug.callback(lambda size: self.seen.append((width, int(size.max()))), draft.size)
        return super().verify(ctx, state, draft, output, logits)


_SMALLER = {
    "suffix": Suffix(width=8, ngram=3, depth=4, matches=4),
    "retrieval": Retrieval(width=8, ngram=3, depth=4, matches=4),
    "jacobi": Jacobi(width=5),
    "lookahead": Lookahead(window=3, ngram=3, guesses=3, buckets=64),
    "recycling": Recycling(width=8, successors=3),
    "speculative_tree": SpeculativeTree(paths=((0, 0), (0, 1), (1, 0))),
    "cascade": Cascade(width=5, inner=Lookup(width=3)),
}
SMALL = {
    name: _SMALLER.get(name) or method()
    for name, method in METHODS.items()
    if "heads" not in method().needs and method().lossless
}
"""An instance of every lossless method, by its name in the registry; those with heads have tests of their own."""


def equip(model, method, documents):
    """The model with what a method needs: documents, lists of token ids; as a draft model itself, a little wrong."""
    made = {
        "draft": blurred,
        "datastore": lambda _: Datastore.build(documents),
        "references": lambda _: references(documents),
    }
    return model.attach(**{name: made[name](model) for name in method.needs})


def blurred(model, by=0.1, seed=0):
    """The model with noise on its weights, relative to their spread: it often says the same."""
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(lambda x: x + by * x.std() * rng.normal(size=x.shape).astype(x.dtype), model.params)
    return dataclasses.replace(model, params=noisy)


def silenced(model, layers):
    """The model with what these layers add to the residual at zero."""

    def zero(path, leaf):
        names = [entry.key for entry in path]
        if not names[0].startswith("segment_") or names[-2] not in ("o", "down"):
            return leaf
        segment, j = int(names[0][8:]), int(names[1][6:])
        before = sum(len(s.pattern) * s.repeats for s in model.config.segments[:segment])
        period = len(model.config.segments[segment].pattern)
        gone = [before + repeat * period + j in layers for repeat in range(leaf.shape[0])]
        return leaf * (1 - np.array(gone, leaf.dtype)).reshape(-1, *(1,) * (leaf.ndim - 1))

    return dataclasses.replace(model, params=jax.tree_util.tree_map_with_path(zero, model.params))
