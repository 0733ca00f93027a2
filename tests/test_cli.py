"""The commands, run in this process on stand-ins for the model; one subprocess for what only a process can show."""

import dataclasses
import io
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml

import jaxinfer
from jaxinfer import cli
from jaxinfer.stats import Stats

STATS = Stats(
    [2],
    [1],
    [[0, 1, 0, 0, 1]],
    [7],
    [3],
    [5],
    [9],
    {"prefill": 0.5, "decode": 0.25, "compile": 1.5},
    1000,
    100,
    10,
    1000,
)


class Stream:
    """Pieces, then figures."""

    stats, tokens = STATS, [1, 2]

    def __init__(self, pieces):
        self.pieces = iter(pieces)

    def __iter__(self):
        return self.pieces


@dataclass
class Model:
    """Answers "Hello there" and remembers what it was asked."""

    has_chat: bool = True
    interrupt: bool = False
    asked: list = field(default_factory=list)
    name: str = "stand-in"
    dtype: str = "float32"
    weights: str | None = None
    config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(max_positions=1000))

    @property
    def tokenizer(self):
        return SimpleNamespace(
            has_chat=self.has_chat,
            chat=lambda messages: [(message["role"], message["content"]) for message in messages],
            encode=lambda text: list(range(len(text.split()))),
        )

    def stream(self, prompt, **options):
        self.asked.append((prompt, options))
        return Stream(self._pieces())

    def generate(self, prompts, **options):
        self.asked.append((prompts, options))
        if self.interrupt:
            raise KeyboardInterrupt
        return SimpleNamespace(texts=["Hello there"] * len(prompts), tokens=[[1, 2]] * len(prompts), stats=STATS)

    def _pieces(self):
        yield "Hello"
        if self.interrupt:
            raise KeyboardInterrupt
        yield " there"


@pytest.fixture
def jaxinfer_(monkeypatch, capsys):
    """Runs a command line on a model: (exit code, standard output, standard error)."""

    def call(*arguments, model=None, stdin=""):
        monkeypatch.setattr(sys, "argv", ["jaxinfer", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setattr(
            jaxinfer, "load", lambda source, dtype=None, weights=None: model or pytest.fail("the model was loaded")
        )
        with pytest.raises(SystemExit) as leave:
            cli.main()
        out, err = capsys.readouterr()
        return leave.value.code, out, err

    return call


@pytest.mark.parametrize("arguments", [[], ["--stream"], ["--no-stream"]])
def test_generate_prints_the_text_and_the_figures_apart(jaxinfer_, arguments):
    code, out, err = jaxinfer_("generate", "Hi", *arguments, model=Model())
    assert (code, out) == (0, "Hello there\n")
    assert err == "prefill 16.0 tokens/s, decode 20.0 tokens/s, 2.50 tokens/step, compile 1.5 s, 8e-06 GB/s\n"


def test_generate_passes_its_options_on(jaxinfer_):
    model = Model()
    options = "--method lookup --width 4 --policy paged:block=16,format=int8 --capacity 99"
    options += " --max-new-tokens 7 --seed 3 --stop a --stop b"
    jaxinfer_("generate", "-", "--system", "Be brief", *options.split(), model=model, stdin="Hi\n")
    assert model.asked == [
        (
            [("system", "Be brief"), ("user", "Hi\n")],
            {
                "method": jaxinfer.Lookup(width=4),
                "policy": jaxinfer.Paged(99, block=16, format="int8"),
                "sampling": None,
                "max_new_tokens": 7,
                "seed": 3,
                "stop": ("a", "b"),
            },
        )
    ]


def test_a_constraint_is_made_for_the_model(jaxinfer_, monkeypatch):
    model = Model()
    monkeypatch.setattr(jaxinfer.Constraint, "regex", lambda given, pattern: (given, pattern), raising=False)
    jaxinfer_("generate", "Hi", "--regex", "[0-9]+", model=model)
    assert model.asked[0][1]["constraint"] == (model, "[0-9]+")
    code, _, err = jaxinfer_("generate", "Hi", "--regex", "a", "--json-schema", "b", model=model)
    assert (code, err) == (2, "error: --regex and --json-schema: give one of them\n")


def test_sampling_options_ask_for_sampling_and_no_chat_for_plain_text(jaxinfer_):
    model = Model()
    given = "--temperature 0.5 --top-k 9 --no-repeat-ngram 3"
    jaxinfer_("generate", "Hi", "--no-chat", *given.split(), model=model)
    [(prompt, options)] = model.asked
    assert prompt == "Hi"
    assert options["method"] == jaxinfer.Sample()
    assert options["sampling"] == jaxinfer.Sampling(temperature=0.5, top_k=9, no_repeat_ngram=3)
    assert options["policy"] is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("genrate", "No such command 'genrate'"),
        ("generate", "Missing argument"),
        ("generate Hi --frobnicate", "No such option: --frobnicate"),
        ("generate Hi --top-k many", "Invalid value for '--top-k'"),
        ("generate Hi --method lookp", "--method: unknown method 'lookp'; nearest: 'lookup'"),
        ("generate Hi --method greedy --width 3", "--method: width: method 'greedy' has no such parameter"),
        ("generate Hi --method greedy --top-p 0.5", "--top-p: method 'greedy' does not sample"),
        ("generate Hi --temperature -1", "temperature=-1.0 must be 0 (the most likely token) or a positive number"),
        ("generate Hi --policy densee", "--policy: unknown policy 'densee'; nearest: 'dense'"),
        ("generate Hi --policy paged:16", "--policy: '16' must be key=value, as in paged:block=16,pool=64"),
        ("generate Hi --policy paged:block=many", "--policy: block: expected a whole number, got 'many'"),
        ("generate Hi --policy paged:block=24", "block=24 must be a power of two, 16 or above"),
        ("chat --policy paged:pool=0", "pool=0 must be at least 1 block, or left out"),
        ("generate Hi --policy quantized:formt=fp8", "policy 'quantized' has no such parameter; nearest: 'format'"),
        ("generate Hi --policy quantized:format=int4", "--policy: format: expected 'int8' or 'fp8', got 'int4'"),
        ("eval --text tests/data/prose.txt --policy dens", "--policy: unknown policy 'dens'; nearest: 'dense'"),
        ("generate -", "the prompt is empty"),
        ("eval --text nowhere.txt", "--text: nowhere.txt: no such file"),
        ("run nowhere.yaml", "nowhere.yaml: no such config file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_before_the_model_loads(jaxinfer_, line, expected):
    code, out, err = jaxinfer_(*line.split())
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err


def test_a_model_without_a_chat_template(jaxinfer_):
    code, out, _ = jaxinfer_("generate", "Hi", model=(model := Model(has_chat=False)))
    assert (code, out, model.asked[0][0]) == (0, "Hello there\n", "Hi")
    for line in ("generate Hi --chat", "generate Hi --system x", "chat"):
        code, _, err = jaxinfer_(*line.split(), model=Model(has_chat=False))
        assert code == 2
        assert "chat template" in err


def test_ctrl_c_leaves_with_130(jaxinfer_):
    code, out, err = jaxinfer_("generate", "Hi", model=Model(interrupt=True))
    assert (code, out) == (130, "Hello")
    assert "Traceback" not in err


def test_chat_keeps_the_turns_until_reset(jaxinfer_):
    model = Model()
    lines = "One\nTwo\n/help\n/reset\nThree\n/exit\nFour\n"
    code, out, err = jaxinfer_("chat", "--system", "S", model=model, stdin=lines)
    assert (code, out) == (0, "Hello there\n" * 3)
    assert [prompt for prompt, _ in model.asked] == [
        [("system", "S"), ("user", "One")],
        [("system", "S"), ("user", "One"), ("assistant", "Hello there"), ("user", "Two")],
        [("system", "S"), ("user", "Three")],
    ]
    assert err.count("tokens/step") == 3


def test_ctrl_c_in_a_chat_stops_that_answer_only(jaxinfer_):
    model = Model(interrupt=True)
    code, out, _ = jaxinfer_("chat", model=model, stdin="One\nTwo\n")
    assert (code, out) == (0, "Hello\nHello\n")
    assert model.asked[1][0][1] == ("assistant", "Hello")


def test_eval_refuses_what_it_cannot_measure(jaxinfer_, tmp_path):
    text = tmp_path / "text.txt"
    for content, window, expected in (
        (b"", 8, "is empty"),
        (b"\xff\xfe", 8, "not UTF-8 text"),
        (b"a b c", 8, "has 3 tokens, fewer than one window of 8"),
        (b"a b c", 1, "--window: expected a whole number from 2, got 1"),
    ):
        text.write_bytes(content)
        code, _, err = jaxinfer_("eval", "--text", text, "--window", window, model=Model())
        assert code == 2
        assert expected in err


def test_eval_prints_the_perplexity_of_disjoint_windows(jaxinfer_, tmp_path):
    segments = (jaxinfer.Segment((jaxinfer.LayerKind(),), 2),)
    shape = {"d_model": 16, "d_ff": 32, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "max_positions": 64}
    random = jaxinfer.Model.random(jaxinfer.ModelConfig("llama", vocab_size=50, segments=segments, **shape))
    model = dataclasses.replace(random, tokenizer=SimpleNamespace(encode=lambda text: [int(n) for n in text.split()]))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(str(n * n % 50) for n in range(28)))
    code, out, _ = jaxinfer_("eval", "--text", text, "--window", 8, model=model)
    assert code == 0
    found = re.match(r"perplexity ([\d.]+), 3 windows, (\d+) tokens, [\d.]+ s", out)
    windows = np.array([n * n % 50 for n in range(24)]).reshape(3, 8)
    logprobs = jax.nn.log_softmax(model.logits(windows)[:, :-1])
    nll = -np.take_along_axis(np.asarray(logprobs), windows[:, 1:, None], axis=2).mean()
    assert float(found[1]) == pytest.approx(np.exp(nll), rel=1e-3)
    options = "--text", text, "--window", 8, "--policy"
    coarse = jaxinfer_("eval", *options, "quantized", model=model)[1]
    assert 0 < abs(float(re.match(r"perplexity ([\d.]+)", coarse)[1]) - float(found[1])) < 1


@pytest.fixture
def config(tmp_path):
    """A config of two rows, and the folder of its runs."""
    path = tmp_path / "trial.yaml"
    rows = [{"name": "greedy", "method": "greedy"}, {"name": "lookup", "method": "lookup"}]
    entries = {"model": "any", "prompts": ["One", "Two"], "rows": rows, "output": str(tmp_path / "runs")}
    path.write_text(yaml.safe_dump({"name": "trial", **entries}))
    return path, tmp_path / "runs"


def test_run_writes_the_table(jaxinfer_, config):
    path, runs = config
    code, out, err = jaxinfer_("run", path, "decoding.repeats=1", model=Model())
    assert code == 0
    [folder] = runs.iterdir()
    assert [line.split()[1] for line in out.splitlines()] == ["row", ":-----", "greedy", "lookup"]
    assert (folder / "report.html").exists()
    assert f"report: {folder}/report.html" in err
    assert "2 rows on any in float32 (weights float32, " in err


def test_run_says_how_to_resume_and_resumes(jaxinfer_, config):
    path, runs = config
    code, _, err = jaxinfer_("run", path, "decoding.seed=1", model=Model(interrupt=True))
    assert code == 130
    [folder] = runs.iterdir()
    assert f"0 of 2 rows are done; to go on: jaxinfer run {path} decoding.seed=1 --resume {folder}\n" in err
    for resume in (["--resume", folder], ["--resume"]):
        code, out, _ = jaxinfer_("run", path, "decoding.seed=1", *resume, model=Model())
        assert (code, out.count("\n")) == (0, 4)
    assert list(runs.iterdir()) == [folder]
    code, _, err = jaxinfer_("run", path, "--resume", folder)
    assert code == 2
    assert err == f"error: --resume: {folder} has another config: decoding.seed was 1, is 0\n"


def test_run_checks_the_output_before_the_model_loads(jaxinfer_, config):
    path, runs = config
    code, _, err = jaxinfer_("run", path, f"output={path}/runs")
    assert code == 2
    assert err.startswith(f"error: output: cannot write below '{path}/runs': Not a directory")
    assert not runs.exists()


def test_list_names_models_methods_and_policies(jaxinfer_):
    code, out, _ = jaxinfer_("list")
    assert code == 0
    for name in ("smollm2-135m", "greedy", "sample", "lookup", "dense", "window"):
        assert name in out


def test_version_and_help(jaxinfer_):
    assert jaxinfer_("--version") == (0, f"jaxinfer {jaxinfer.__version__}\n", "")
    code, out, _ = jaxinfer_("--help")
    assert code == 0
    assert "JAXINFER_CACHE" in out
    assert "Usage" in jaxinfer_()[1]


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m jaxinfer.cli generate --help | true"
    root = Path(jaxinfer.__file__).parents[1]
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=root, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
