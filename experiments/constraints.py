"""Compare compilers of JSON schemas: jaxinfer's own, llguidance, outlines-core, on the JSON Schema Test Suite.

    git clone https://github.com/json-schema-org/JSON-Schema-Test-Suite suite
    pip install llguidance outlines-core
    jaxinfer run configs/constraints.yaml suite=suite

It counts, for the schemas that an engine takes, the suite's instances that it lets a model write: how many are valid,
and how many are not. An instance counts as written if one of its serializations is: compact or with a space after : and
, its properties in up to 24 orders. Then the time to compile a schema for a real vocabulary, and to mask logits of one
row on the device: by the table (`mask`), and by masks that the host makes in a callback of the program, within a string
where the schema has one (`callback`: without following a draft on the host, which would come on top).
"""

import functools
import itertools
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import jax
import numpy as np

import jaxinfer
from jaxinfer import Constraint, InputError
from jaxinfer.decoding.constraints.constraint import Masks, mask
from jaxinfer.decoding.constraints.grammar.texts import machine_of_schema
from jaxinfer.experiment import KINDS, Kind, Run, Table, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.host.optional import require
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS

DRAFTS = ("draft7", "draft2019-09", "draft2020-12")
SHORT = {"type": "string", "maxLength": 40}
SCHEMAS = {  # and what stands already where masks are measured
    "flat": (
        {"type": "object", "properties": {"name": SHORT, "age": {"type": "integer"}}, "required": ["name", "age"]},
        '{"name":"A',
    ),
    "list": ({"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5}, '["red",'),
    "ten strings": ({"type": "object", "properties": {f"field{i}": SHORT for i in range(10)}}, '{"field1":"A'),
    "any object": ({"type": "object"}, '{"a":"A'),
    "long string": ({"type": "string", "maxLength": 1000}, '"A'),
}
BYTES = [*(bytes([i]) for i in range(256)), b"<end>"]


class Own:
    """jaxinfer's."""

    def __init__(self, schema):
        self.machine = machine_of_schema(schema, "schema")

    def writes(self, text):
        return self.machine.matches(text)


class Guidance:
    """llguidance's, one byte a token."""

    def __init__(self, schema):
        import llguidance

        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        self.matcher = llguidance.LLMatcher(guidance_bytes(), grammar, log_level=0)
        if self.matcher.is_error():
            raise InputError(self.matcher.get_error())

    def writes(self, text):
        self.matcher.reset()
        data = text.encode()
        return self.matcher.try_consume_tokens(list(data)) == len(data) and self.matcher.is_accepting()


class Outlines:
    """outlines-core's: a regular expression, matched as a whole."""

    def __init__(self, schema):
        import regex
        from outlines_core.json_schema import build_regex_from_schema

        try:
            self.pattern = regex.compile(build_regex_from_schema(json.dumps(schema)))
        except (ValueError, TypeError, regex.error) as error:
            raise InputError(str(error)) from None

    def writes(self, text):
        return self.pattern.fullmatch(text, timeout=5) is not None


def tokenizer_of(vocabulary, stop):
    """Make llguidance's tokenizer of a vocabulary."""
    import llguidance

    class Wrapped:
        eos_token_id, bos_token_id, tokens, special_token_ids = stop, None, vocabulary, [stop]

        def __call__(self, text):  # is asked for texts only where llguidance tokenizes; bytes are tokens enough
            return list(text.encode() if isinstance(text, str) else text)

    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapped()), n_vocab=len(vocabulary))


@functools.cache
def guidance_bytes():
    """Make the tokenizer of bytes."""
    return tokenizer_of(BYTES, 256)


def serializations(value):
    """Write its texts: compact and spaced, the names of objects in up to 24 orders."""

    def whole(x):
        if isinstance(x, float) and x.is_integer() and abs(x) < 1e21:
            return int(x)
        if isinstance(x, list):
            return [whole(y) for y in x]
        return {name: whole(y) for name, y in x.items()} if isinstance(x, dict) else x

    def orders(x):
        if isinstance(x, list):
            return [list(y) for y in itertools.islice(itertools.product(*map(orders, x)), 24)]
        if not isinstance(x, dict):
            return [x]
        inner = {name: orders(y) for name, y in x.items()}
        ways = (
            dict(zip(names, some, strict=True))
            for names in itertools.permutations(x)
            for some in itertools.product(*(inner[name] for name in names))
        )
        return list(itertools.islice(ways, 24))

    for one in orders(whole(value)):
        for separators in ((",", ":"), (", ", ": ")):
            yield json.dumps(one, ensure_ascii=False, separators=separators)


def compare(suite: Path, make) -> dict:
    """Count for one engine on all drafts."""
    counts = dict.fromkeys(("schemas", "taken", "valid", "valid_written", "invalid", "invalid_written"), 0)
    start = time.perf_counter()
    for draft in DRAFTS:
        # Drafts do not ask for what an optional file asserts of formats and contents; they ask for all of the others.
        for file in sorted((suite / "tests" / draft).glob("*.json")):
            for group in json.loads(file.read_text(encoding="utf-8")):
                schema = group["schema"]
                if draft == "draft7" and isinstance(schema, dict):
                    schema.setdefault("$schema", "http://json-schema.org/draft-07/schema#")
                counts["schemas"] += 1
                try:
                    engine = make(schema)
                except InputError:
                    continue
                counts["taken"] += 1
                for test in group["tests"]:
                    kind = "valid" if test["valid"] else "invalid"
                    try:
                        written = any(engine.writes(text) for text in serializations(test["data"]))
                    except (UnicodeEncodeError, TimeoutError):
                        written = False
                    counts[kind] += 1
                    counts[f"{kind}_written"] += written
    return counts | {"seconds": round(time.perf_counter() - start, 1)}


def median(call, rounds=5):
    """Give the median in milliseconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(1000 * float(np.median(times)), 3)


def clear_caches():
    """Clear the caches, so that a schema is compiled as the first one is."""
    from jaxinfer.decoding.constraints.grammar import formats, numbers, pattern, strings

    for cached in (pattern.machine_of, numbers.bounded, numbers.multiples, numbers.machine_of_number):
        cached.cache_clear()
    for cached in (strings.contents, strings.written, formats.machine_of_format):
        cached.cache_clear()


def timings(name: str) -> list[dict]:
    """Measure compile and mask times in milliseconds, a row a schema, for the vocabulary of a model."""
    import llguidance
    import llguidance.numpy

    model = jaxinfer.load(name)
    tokenizer, vocab_size = model.tokenizer, model.config.vocab_size
    vocabulary = list(tokenizer.vocabulary)
    start = time.perf_counter()
    outer = tokenizer_of([x or f"<{i}>".encode() for i, x in enumerate(vocabulary)], tokenizer.stop_ids[0])
    found: list[dict] = []
    of_model = {
        "model": name,
        "vocabulary": len(vocabulary),
        "llguidance_tokenizer": round(1000 * (time.perf_counter() - start), 1),
    }
    bits = llguidance.numpy.allocate_token_bitmask(8, len(vocabulary))
    for label, (schema, begin) in SCHEMAS.items():
        clear_caches()
        start = time.perf_counter()
        made = Constraint.json_schema(tokenizer, schema)
        cold = round(1000 * (time.perf_counter() - start), 1)
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        start = time.perf_counter()
        matcher = llguidance.LLMatcher(outer, grammar, log_level=0)
        guidance_cold = round(1000 * (time.perf_counter() - start), 1)
        state, ids = 0, outer.greedy_tokenize(begin)
        for id in ids:
            state = int(made.next[state, made.classes[id]])
        if state < 0 or matcher.try_consume_tokens(ids) != len(ids):
            raise InputError(f"{label}: {begin} is not written")
        one = {
            "table": list(made.next.shape),
            "compile_cold": cold,
            "compile_warm": median(lambda schema=schema: Constraint.json_schema(tokenizer, schema), 3),
            "llguidance_compile_cold": guidance_cold,
            "llguidance_compile_warm": median(
                lambda grammar=grammar: llguidance.LLMatcher(outer, grammar, log_level=0)
            ),
        }
        masks = Masks.of(made, 1, vocab_size, made.stop, lambda x, *_: jax.numpy.asarray(x))
        for width in (1, 8):
            logits, at = jax.numpy.zeros((1, width, vocab_size)), jax.numpy.full((1, width), state, np.int32)
            call = jax.jit(lambda m, at, x: mask(m, at, x).argmax(-1))

            def on_host(_, width=width, matcher=matcher):
                for row in range(width):
                    llguidance.numpy.fill_next_token_bitmask(matcher, bits, row)
                return bits[:width].copy()

            def by_callback(x, width=width, on_host=on_host):
                shape = jax.ShapeDtypeStruct((width, bits.shape[1]), np.int32)
                words = jax.pure_callback(on_host, shape, x[0, 0, 0])
                allowed = (words[:, :, None] >> np.arange(32)) & 1
                allowed = allowed.reshape(width, -1)[:, : x.shape[2]]
                allowed = jax.numpy.pad(allowed, ((0, 0), (0, x.shape[2] - allowed.shape[1])))
                return jax.numpy.where(allowed[None] > 0, x, -np.inf).argmax(-1)

            host = jax.jit(by_callback)
            jax.block_until_ready((call(masks, at, logits), host(logits)))
            one[f"mask_width_{width}"] = median(lambda f=call, x=(masks, at, logits): jax.block_until_ready(f(*x)), 20)
            one[f"callback_width_{width}"] = median(lambda f=host, x=logits: jax.block_until_ready(f(x)), 20)
        one["llguidance_mask_alone"] = median(lambda: on_host(None, 1), 20)
        found.append(of_model | {"schema": label} | one)
    return found


Compiler = Literal["jaxinfer", "llguidance", "outlines-core"]
COMPILERS = {"jaxinfer": Own, "llguidance": Guidance, "outlines-core": Outlines}


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/constraints.yaml."""

    name: str
    suite: str
    compilers: tuple[Compiler, ...] = ("jaxinfer", "llguidance", "outlines-core")
    models: tuple[str, ...] = ("smollm2-135m", "gemma3-270m")
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for a suite that is none, and for a compiler that is not installed."""
        if not (Path(self.suite) / "tests" / DRAFTS[0]).is_dir():
            raise InputError(f"suite: {self.suite}: is no checkout of JSON-Schema-Test-Suite")
        needed = {"llguidance"} if self.models else set()
        for name in sorted(needed | set(self.compilers) - {"jaxinfer"}):
            require(name.replace("-", "_"), "to compare with it", name)


def items(config: Config, prompts: Prompts) -> dict[str, tuple[str, str]]:
    """List the suite by each compiler, then compile and mask times for each model's vocabulary."""
    suites = {f"the suite, {name}": ("suite", name) for name in config.compilers}
    return suites | {f"times, {name}": ("masks", name) for name in config.models}


def measure(item: tuple[str, str], run: Run) -> list[Row]:
    """Measure the counts of a compiler, or a row for each schema."""
    part, name = item
    if part == "masks":
        return timings(name)
    return [{"compiler": name} | compare(Path(run.config.suite), COMPILERS[name])]


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Split the rows into those of compilers and those of times."""
    return [row for row in rows if "compiler" in row], [row for row in rows if "compiler" not in row]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Tabulate what each compiler takes, and what a mask costs."""
    counts, times = split(rows)
    taken = {
        "compiler": "{compiler}",
        "schemas taken": "{taken} of {schemas}",
        "valid written": "{valid_written} of {valid}",
        "invalid written": "{invalid_written} of {invalid}",
        "s": "{seconds}",
    }
    costs = {
        "model": "{model}",
        "schema": "{schema}",
        "compile": "{compile_cold}",
        "llguidance": "{llguidance_compile_cold}",
        **{f"{what} of {width}": f"{{{what}_width_{width}}}" for width in (1, 8) for what in ("mask", "callback")},
    }
    made = [Table.of(counts, taken), Table.of(times, costs, "milliseconds, to compile and to mask")]
    return [table for table in made if table.rows]


def files(run: Run) -> dict[str, str]:
    """Give constraints.json, with the machine and the versions."""
    counts, masks = split(run.rows)
    others = [name for name in run.config.compilers if name != "jaxinfer"]
    data = {
        "command": "jaxinfer run configs/constraints.yaml suite=suite",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "versions": {x: version(x) for x in ("jax", *others)} | {"jaxinfer": jaxinfer.__version__},
        "drafts": DRAFTS,
        "note": "Seconds: the whole suite. Masks: milliseconds; a width is the places of a draft",
        "rows": counts,
        "masks": masks,
    }
    return {"constraints.json": json.dumps(data, indent=1, ensure_ascii=False) + "\n"}


KINDS.add("constraints", Kind(Config, items, measure, tables, check=Config.check, files=files))

if __name__ == "__main__":
    script.run("constraints", __doc__)
