"""The worth of a model and of a technique: quality, acceptance, and the cost of a step."""

from jaxinfer.analysis.quality import Divergence, Perplexity, divergence, last_word, multiple_choice, perplexity

__all__ = ["Divergence", "Perplexity", "divergence", "last_word", "multiple_choice", "perplexity"]
