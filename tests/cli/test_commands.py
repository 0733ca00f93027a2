"""The commands, run in this process on stand-ins for the model; one subprocess for what only a process can show."""

import dataclasses
import errno
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
from jaxinfer.cli import commands as cli
from jaxinfer.experiment import results
from jaxinfer.runtime.stats import Stats

pytestmark = pytest.mark.quick

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
    several: int = 1  # texts of each prompt
    name: str = "stand-in"
    dtype: str = "float32"
    weights: str | None = None
    config: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(max_positions=1000, vocab_size=1000, kinds=())
    )

    placed: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(check_room=lambda *_: None))

    @property
    def tokenizer(self):
        return SimpleNamespace(
            has_chat=self.has_chat,
            stop_ids=(),
            chat=lambda messages: [(message["role"], message["content"]) for message in messages],
            encode=lambda text: list(range(len(text.split()))),
        )

    def stream(self, prompt, **options):
        self.asked.append((prompt, options))
        return Stream(self._pieces())

    def default_policy(self, policy):
        return policy or jaxinfer.Dense()

    def generate(self, prompts, **options):
        self.asked.append((prompts, options))
        if self.interrupt:
            raise KeyboardInterrupt
        return SimpleNamespace(
            texts=["Hello there"] * len(prompts) * self.several, tokens=[[1, 2]] * len(prompts), stats=STATS
        )

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
            jaxinfer,
            "load",
            lambda source, dtype=None, weights=None, tokenizer=None: model or pytest.fail("the model was loaded"),
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
    options += " --max-new-tokens 7 --seed 3 --stop a --stop b --stop-token 5 --stop-token 9 --ignore-eos"
    options += " --min-new-tokens 2 --include-stop --no-skip-special"
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
                "stop_tokens": (5, 9),
                "ignore_eos": True,
                "min_new_tokens": 2,
                "include_stop": True,
                "skip_special": False,
                "n": 1,
            },
        )
    ]


def test_a_generation_is_traced_into_a_folder(jaxinfer_, tmp_path):
    assert jaxinfer_("generate", "Hi", "--profile", tmp_path / "trace", model=Model())[:2] == (0, "Hello there\n")
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    (tmp_path / "file").touch()
    code, _, err = jaxinfer_("generate", "Hi", "--profile", tmp_path / "file", model=Model())
    assert code == 2
    assert err.startswith("error: profile: ")
    assert err.endswith("cannot be written: File exists\n")


def test_several_samples_are_printed_one_below_the_other(jaxinfer_):
    model = Model(several=3)
    code, out, _ = jaxinfer_("generate", "Hi", "--n", "3", "--temperature", "1", model=model)
    assert (code, out) == (0, "Hello there\n" * 3)
    assert model.asked[0][1]["n"] == 3


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
        ("eval --text tests/data/prose.txt --stride 0", "--stride: expected a whole number from 1, got 0"),
        ("eval --text tests/data/prose.txt --window 8 --stride 9", "--stride: expected at most the window of 8, got 9"),
        ("eval --text tests/data/prose.txt --max-windows 0", "--max-windows: expected a whole number from 1, got 0"),
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
        (b"a b c", 1001, "--window: 1001 is longer than the context of stand-in: 1000 tokens"),
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
    found = re.match(r"perplexity ([\d.]+), 3 windows of 8 without BOS, stride 8, (\d+) tokens, [\d.]+ s", out)
    windows = np.array([n * n % 50 for n in range(24)]).reshape(3, 8)
    logprobs = jax.nn.log_softmax(model.logits(windows)[:, :-1])
    nll = -np.take_along_axis(np.asarray(logprobs), windows[:, 1:, None], axis=2).mean()
    assert float(found[1]) == pytest.approx(np.exp(nll), rel=1e-3)
    options = "--text", text, "--window", 8, "--policy"
    for name in ("dense", "window", "paged", "quantized"):
        refused = "error: policy capacity=6 is too small: a window of 8 tokens needs 7 slots\n"
        assert jaxinfer_("eval", *options, f"{name}:capacity=6", model=model) == (2, "", refused)
    bounded = jaxinfer_("eval", *options, "window:capacity=7", model=model)[1]
    assert re.match(r"perplexity ([\d.]+)", bounded)[1] == found[1]
    coarse = jaxinfer_("eval", *options, "quantized", model=model)[1]
    assert 0 < abs(float(re.match(r"perplexity ([\d.]+)", coarse)[1]) - float(found[1])) < 1


@pytest.fixture
def config(tmp_path):
    """A config of two rows, and the folder of its runs."""
    path = tmp_path / "trial.yaml"
    rows = [{"name": "greedy", "method": "greedy"}, {"name": "lookup", "method": "lookup"}]
    entries = {
        "model": "any",
        "prompts": {"source": ["One", "Two"], "chat": False},
        "rows": rows,
        "output": str(tmp_path / "runs"),
    }
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


def test_a_full_disk_ends_a_run_in_one_line_that_says_how_to_go_on(jaxinfer_, config, monkeypatch):
    path, runs = config
    append, kept = results.append_row, []

    def full(folder, row, check):
        if kept:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept.append(append(folder, row, check))

    monkeypatch.setattr(results, "append_row", full)
    code, out, err = jaxinfer_("run", path, "decoding.repeats=1", model=Model())
    [folder] = runs.iterdir()
    assert (code, out) == (1, "")
    command = f"jaxinfer run {path} decoding.repeats=1 --resume {folder}"
    line = f"error: {folder}: No space left on device; 1 of 2 rows are done; to go on: {command}"
    assert err.splitlines()[-1] == line
    monkeypatch.setattr(results, "append_row", append)
    code, out, _ = jaxinfer_(*command.split()[1:], model=Model())
    assert (code, out.count("\n")) == (0, 4)


def test_run_checks_the_output_before_the_model_loads(jaxinfer_, config):
    path, runs = config
    code, _, err = jaxinfer_("run", path, f"output={path}/runs")
    assert code == 2
    assert err.startswith(f"error: output: cannot write below '{path}/runs': Not a directory")
    assert not runs.exists()


def test_list_names_models_methods_and_policies(jaxinfer_, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path))
    code, first, _ = jaxinfer_("list")
    assert code == 0
    for name in ("smollm2-135m", "installed", "greedy", "sample", "lookup", "dense", "window", "int4-64", "nf4"):
        assert name in first
    monkeypatch.setattr("jaxinfer.cli.commands._catalog", lambda: pytest.fail("the library was asked again"))
    assert jaxinfer_("list")[1] == first


def test_a_damaged_catalog_is_made_again(jaxinfer_, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path))
    expected = jaxinfer_("list")[:2]
    [file] = tmp_path.glob("catalog-*.json")
    file.write_text("{")
    assert jaxinfer_("list")[:2] == expected
    monkeypatch.setenv("JAXINFER_CACHE", "off")
    assert jaxinfer_("list")[:2] == expected
    assert list(tmp_path.glob("catalog-*.json")) == [file]


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


@dataclass
class Templated(Model):
    """A stand-in whose chat keeps what the template is given."""

    @property
    def tokenizer(self):
        return SimpleNamespace(has_chat=self.has_chat, chat=lambda messages, **options: (messages[-1], options))


def test_template_variables_and_tools_reach_the_template(jaxinfer_, tmp_path):
    (file := tmp_path / "tools.json").write_text('[{"name": "f"}]')
    line = ["--template-var", "enable_thinking=false", "--template-var", "notes=[1, a]", "--tools", file]
    expected = {"enable_thinking": False, "notes": [1, "a"], "tools": [{"name": "f"}]}
    jaxinfer_("generate", "Hi", *line, model=(model := Templated()))
    jaxinfer_("chat", *line, model=model, stdin="Hi\n/exit\n")
    assert [prompt for prompt, _ in model.asked] == [({"role": "user", "content": "Hi"}, expected)] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--template-var", "thinking"], "--template-var: 'thinking' must be KEY=VALUE"),
        (["--template-var", "a b=1"], "--template-var: 'a b=1' must be KEY=VALUE"),
        (["--template-var", "messages=[]"], "--template-var: messages is not a variable of your own"),
        (["--template-var", "x=[1"], "--template-var: x:1: not valid YAML"),
        (["--tools", "nowhere.json"], "--tools: nowhere.json: no such file"),
        (["--tools", "/dev/zero"], "--tools: /dev/zero: is a pipe or a device"),
    ],
)
def test_template_options_that_are_none(jaxinfer_, line, message):
    for command in (["generate", "Hi"], ["chat"]):
        code, out, err = jaxinfer_(*command, *line)  # before a model is loaded
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_tools_are_a_list_of_schemas_and_need_a_chat(jaxinfer_, tmp_path):
    file = tmp_path / "tools.json"
    for text in ('{"name": "f"}', "[1]", "[", "[" * 100_000):
        file.write_text(text)
        code, _, err = jaxinfer_("generate", "Hi", "--tools", file)
        assert code == 2
        assert err.startswith(f"error: --tools: {file}")
    file.write_text("[]")
    for option in (["--tools", file], ["--template-var", "x=1"]):
        code, _, err = jaxinfer_("generate", "Hi", *option, model=Templated(has_chat=False))
        assert code == 2
        assert f"{option[0]}: needs a chat" in err
