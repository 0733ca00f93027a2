"""What a model and a technique are worth: quality, and later speed against its physical limits."""

from jaxinfer.analysis.quality import Perplexity, perplexity

__all__ = ["Perplexity", "perplexity"]
