"""Quality of a model: perplexity on a text, distance from another model, accuracy on tasks.

perplexity(model, tokens, window=512)            exp of the mean cross-entropy
divergence(model, quantized, texts)              KL divergence and agreement of the likeliest tokens
multiple_choice(model, read_choices(file))       accuracy by log-likelihood, as in lm-evaluation-harness
last_word(model, read_words(file))               accuracy on the last word of a text
"""

from jaxinfer.analysis.quality.divergence import Divergence, divergence
from jaxinfer.analysis.quality.items import Choice, Word, read_choices, read_task, read_words
from jaxinfer.analysis.quality.perplexity import (
    Perplexity,
    adds_bos,
    bos_of,
    cross_entropy,
    perplexity,
    token_nll,
)
from jaxinfer.analysis.quality.tasks import ChoiceScore, WordScore, last_word, multiple_choice

__all__ = [
    "Choice",
    "ChoiceScore",
    "Divergence",
    "Perplexity",
    "Word",
    "WordScore",
    "adds_bos",
    "bos_of",
    "cross_entropy",
    "divergence",
    "last_word",
    "multiple_choice",
    "perplexity",
    "read_choices",
    "read_task",
    "read_words",
    "token_nll",
]
