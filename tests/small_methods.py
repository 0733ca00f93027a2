"""Every decode method of the registry, small enough for random models, and what those need that need something."""

from jaxinfer import METHODS, Datastore, Jacobi, Lookahead, Recycling, Retrieval, Suffix, references

_SMALLER = {
    "suffix": Suffix(width=8, ngram=3, depth=4, matches=4),
    "retrieval": Retrieval(width=8, ngram=3, depth=4, matches=4),
    "jacobi": Jacobi(width=5),
    "lookahead": Lookahead(window=3, ngram=3, guesses=3, buckets=64),
    "recycling": Recycling(width=8, successors=3),
}
SMALL = {name: _SMALLER.get(name) or method() for name, method in METHODS.items()}
"""An instance of every method, by its name in the registry."""

NO_MODEL = [SMALL[name] for name in ("suffix", "llma", "retrieval", "jacobi", "lookahead", "recycling")]
"""The methods that draft without a model, apart from Lookup: tests run them under one policy, for compiling costs."""


def stocked(model, documents):
    """The model with these documents, lists of token ids, as datastore and as references."""
    return model.attach(datastore=Datastore.build(documents), references=references(documents))
