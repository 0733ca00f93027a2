"""A model that needs no weights: it says its prompt backwards, under lookup with two tokens a step."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import jaxinfer
from jaxinfer.runtime.stats import Stats


class Letters:
    """A tokenizer whose tokens are characters."""

    has_chat = True
    strips_first_space = False
    stop_ids = ()

    def encode(self, text):
        return [ord(letter) for letter in text]

    def chat(self, messages):
        return self.encode("".join(f"[{message['content']}]" for message in messages))


@dataclass
class FakeModel:
    """`calls` lists what was generated as (method, prompts); the call numbered `interrupt_at` is Ctrl-C."""

    interrupt_at: int | None = None
    wrong_under_lookup: str = "\0"  # prompts that hold this come out differently under lookup
    tokenizer: Letters = field(default_factory=Letters)
    calls: list = field(default_factory=list)
    slow_from: int = 10**9  # from this call on the machine has half its speed
    slow_at_first: bool = False  # a method's first calls, one for each set of seeds, have a tenth of it
    name: str = "fake"
    dtype: str = "float32"
    weights: str | None = None
    config: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(max_positions=1000, vocab_size=1000, kinds=())
    )

    placed: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(check_room=lambda *_: None))

    def default_policy(self, policy):
        return policy or jaxinfer.Dense()

    def generate(self, prompts, *, max_new_tokens, method, policy, sampling, seed, ignore_eos=False):
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        call = (type(method).__name__.lower(), len(prompts), tuple(seed))
        speed = 5.0 if len(self.calls) >= self.slow_from else 10.0
        new = call not in self.calls  # it compiles
        if self.slow_at_first and new:
            speed = 1.0
        self.calls.append(call)
        tokens = [prompt[::-1][:max_new_tokens] for prompt in prompts]
        if isinstance(method, jaxinfer.Lookup):
            tokens = [out[1:] if ord(self.wrong_under_lookup) in out else out for out in tokens]
        width = 2 if isinstance(method, jaxinfer.Lookup) else 1
        emitted = [len(out) for out in tokens]
        stats = Stats(
            steps=[-(-n // width) for n in emitted],
            guessed=[-(-n // width) * (width > 1) for n in emitted],
            runs=[[0, n % width, n // width] if width == 2 else [0, n] for n in emitted],
            proposed=[n * (width - 1) for n in emitted],
            accepted=[n - -(-n // width) for n in emitted],
            emitted=emitted,
            prompt_tokens=[len(prompt) for prompt in prompts],
            seconds={"prefill": 0.5, "decode": sum(emitted) / (speed * width), "compile": 2.0 * new},
            weight_bytes=1000,
            cache_bytes=200,
            temp_bytes=30,
            step_bytes=1100,
        )
        return SimpleNamespace(texts=["".join(map(chr, out)) for out in tokens], tokens=tokens, stats=stats)
