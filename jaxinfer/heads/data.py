"""Training data of heads: text that a backbone writes itself, and its hidden state at every token.

Heads that guess the backbone's own words should learn from its own words (self-distillation: Medusa, Cai et al. 2024,
section 2.3.2). Prompts come from a set of seeds, and, as many as wanted, from the backbone: given the beginning of a
user's turn and nothing else, a chat model writes what a user might ask (Magpie, Xu et al. 2024).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.api import Model
from jaxinfer.cache import Window
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.decoding.sampling.settings import Sampling
from jaxinfer.errors import InputError
from jaxinfer.host.files import read_json
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.network.transformer import Output
from jaxinfer.runtime import scoring
from jaxinfer.runtime.generation import Generation

FILES = ("tokens", "features", "offsets", "starts")
MADE = "corpus.json"
WINDOW = 256  # tokens: a text file is cut into windows of so many

Text = tuple[Any, int, np.ndarray]  # token ids, how many of them are the prompt, their hidden states float16[T, D]
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class DataSpec:
    """The settings by which training data is made.

    prompts: a bundled set or a .jsonl file, each answered `samples` times. own_prompts: how many more the backbone is
    asked to write, each answered once. text: a text file, learned from as it is, in windows of 256 tokens. corpus: a
    folder where what was made is kept, and from which it is read if it is there: several trainings can share it.
    """

    prompts: str = "distill"
    samples: int = 8
    own_prompts: int = 0
    text: str | None = None
    max_new_tokens: int = 192
    temperature: float = 0.7
    top_p: float = 1.0
    batch: int = 48
    seed: int = 0
    corpus: str | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Corpus:
    """N tokens of several texts, one after the other."""

    tokens: np.ndarray  # int32[N]
    features: np.ndarray  # float16[N, D]: the backbone's hidden state at each token, after the final norm
    offsets: np.ndarray  # int64[texts + 1]: where each text begins; N at the end
    starts: np.ndarray  # int64[texts]: how many tokens of each text are its prompt

    def __len__(self) -> int:
        return len(self.starts)

    def save(self, folder: Path, made: dict[str, Any]) -> None:
        """Write the arrays, and how they were made: {"model": name, "data": the DataSpec, without `corpus`}."""
        for name in FILES:
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / MADE).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, made: dict[str, Any]) -> "Corpus":
        """Read a corpus. Raises InputError if the folder holds none, or one that was made in another way."""
        if not (folder / MADE).is_file():
            raise InputError(f"{folder}: holds no corpus; give a folder that `jaxinfer train heads` made, or a new one")
        theirs, ours = read_json(folder / MADE), json.loads(json.dumps(made))
        for key, theirs_of, ours_of in (
            ("model", theirs.get("model"), ours["model"]),
            *((f"data.{key}", theirs.get("data", {}).get(key), value) for key, value in ours["data"].items()),
        ):
            if theirs_of != ours_of:
                raise InputError(f"{folder}: was made with {key}={theirs_of}, and this is {key}={ours_of}")
        try:
            arrays = [np.load(folder / f"{name}.npy", mmap_mode="r" if name == "features" else None) for name in FILES]
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: a part of the corpus cannot be read: {error}") from None
        return cls(*arrays)


def make_corpus(model: Model, prompts: Sequence[str], spec: DataSpec, text: str | None, progress: Progress) -> Corpus:
    """Make answers of the model to every prompt, windows of `text` if there is one, and all tokens' hidden states."""
    return join([*conversations(model, prompts, spec, progress), *windows(model, text, spec.batch, progress)])


def join(texts: Sequence[Text]) -> Corpus:
    """Join texts as one corpus."""
    if not texts:
        raise InputError("data: there is no text to learn from; give prompts that the model answers, or a text")
    ids, starts, features = zip(*texts, strict=True)
    return Corpus(
        np.concatenate([np.asarray(row, np.int32) for row in ids]),
        np.concatenate(features),
        np.cumsum([0, *map(len, ids)]),
        np.array(starts),
    )


def conversations(model: Model, prompts: Sequence[str], spec: DataSpec, progress: Progress) -> list[Text]:
    """Return `samples` sampled answers to each prompt, and one to each that the model writes itself."""
    asked = [prompt for prompt in prompts for _ in range(spec.samples)]
    asked += own_prompts(model, spec, progress)
    encoded = [_encode(model, prompt) for prompt in asked]
    return list(_sample(model, encoded, spec, spec.temperature, spec.seed, "answers", progress))


def own_prompts(model: Model, spec: DataSpec, progress: Progress) -> list[str]:
    """Let the backbone write in a user's place, sampled at temperature 1. Raises InputError without a chat template.

    A bare turn tells it nothing of the topic; so half of them begin with a first word, a different one in turn.
    """
    if not spec.own_prompts:
        return []
    if model.tokenizer is None or not model.tokenizer.has_chat:
        raise InputError(f"data.own_prompts={spec.own_prompts}: {model.name} has no chat template; set it to 0")
    turns = [model.tokenizer.chat([{"role": "user", "content": word}]) for word in ("apple", "Zebra", "7")]
    alike = [len(set(column)) == 1 for column in zip(*turns, strict=False)]
    bare = turns[0][: alike.index(False)]
    beginnings = ("", "What", "", "Write", "", "How", "", "The", "", "Can you", "", "Explain", "", "Given", "", "I")
    ids = [bare + (model.tokenizer.encode(word) if word else []) for word in beginnings]
    starts = [ids[i % len(ids)] for i in range(spec.own_prompts)]
    written = _sample(model, starts, spec, 1.0, spec.seed + 1_000_000, "prompts", progress)
    texts = [model.tokenizer.decode(ids[len(bare) :]).strip() for ids, _, _ in written]
    return [text for text in texts if text]


def windows(model: Model, text: str | None, batch: int, progress: Progress) -> list[Text]:
    """Cut a text into windows of 256 tokens, the tail dropped; all of it counts."""
    if text is None:
        return []
    ids = np.asarray(model.encode(text[:1], "text") and model.tokenizer.encode(text), np.int32)
    rows, found = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW), []
    for at in range(0, len(rows), batch):
        hidden = scoring.features(model.placed, Window(), rows[at : at + batch])
        found += [(row, 0, x) for row, x in zip(rows[at:], np.asarray(hidden, np.float16), strict=False)]
        progress("text", min(at + batch, len(rows)), len(rows))
    return found


def _encode(model: Model, prompt: str) -> list[int]:
    if model.tokenizer is not None and model.tokenizer.has_chat:
        return model.tokenizer.chat([{"role": "user", "content": prompt}])
    return model.encode(prompt)


@dataclass(frozen=True)
class _Recorded(DecodeMethod):
    """One token a step, as `Sample`, with the hidden state of every token kept in `aux`: float16[B, M, D]."""

    samples: ClassVar[bool] = True
    reads_prompt: ClassVar[bool] = True

    def init(self, ctx: Context, state: DecodeState) -> jax.Array:
        return ctx.extras["hidden"].astype(jnp.float16)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        return Draft(state.pending[:, None], size=jnp.ones_like(state.n))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        rows = jnp.arange(len(state.n))
        kept = state.aux.at[rows, state.n - 1].set(output.hidden[:, 0].astype(jnp.float16))
        return Verdict(*accept(state, draft, logits), aux=kept)


def _sample(
    model: Model, prompts: list[list[int]], spec: DataSpec, temperature: float, seed: int, what: str, progress: Progress
) -> Iterator[Text]:
    """Draw a continuation of each prompt, drawn from its own seed; prompts of like length share a batch.

    The last token of each is left off: no forward has seen it.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    sampling = Sampling(temperature=temperature, top_p=spec.top_p)
    for at in range(0, len(order), spec.batch):
        batch = order[at : at + spec.batch]
        asked, seeds = [prompts[i] for i in batch], [seed + i for i in batch]
        stop, limits = model.tokenizer.stop_ids if model.tokenizer else (), [spec.max_new_tokens] * len(batch)
        method = _Recorded()
        generation = Generation.begin(model.placed, asked, limits, method, Window(), sampling, seeds, stop, False)
        generation.run()
        hidden = np.asarray(generation.state.aux)
        for row, (prompt, answer) in enumerate(zip(asked, generation.rows(), strict=True)):
            ids = (prompt + answer)[:-1]
            yield ids, len(prompt), hidden[row, : len(ids)].copy()
        progress(what, min(at + spec.batch, len(order)), len(order))
