"""Kinds of experiments of a user's own: a file, a config, `jaxinfer run`; and every way to get one wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fakes import FakeModel

import jaxinfer
from jaxinfer.cli import commands as cli
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, finished, kinds, load_config, measure, results
from jaxinfer.experiment.schema import Experiment
from jaxinfer.host import plugins
from jaxinfer.host.registry import Registry

ROOT = Path(__file__).parents[2]
SQUARES = '''
"""The squares of some numbers."""

import os
from dataclasses import dataclass

import numpy as np

from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Table
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Config:
    name: str
    numbers: tuple[int, ...]
    power: int = 2
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


def check(config):
    if config.power < 1:
        raise InputError(f"power={config.power} must be 1 or above")


def measure(number, run):
    if str(number) == os.environ.get("STOP_AT"):
        raise KeyboardInterrupt
    run.expect(2)
    run.tick()
    run.say(f"measured {number}")
    run.tick()
    return {"number": number, "result": np.float64(number) ** run.config.power}


def table(rows):
    return Table.of(rows, {"number": "{number}", "result": "{result:.1f}"}, "powers")


KINDS.add(
    "its name",
    Kind(
        Config,
        items=lambda config, prompts: {f"number {n}": n for n in config.numbers},
        measure=measure,
        table=table,
        check=check,
        summary=lambda run: f"{len(run.rows)} numbers",
        files=lambda run: {"sum.txt": f"{sum(row['result'] for row in run.rows)}\\n"},
        failed=lambda rows: any(row["result"] < 0 for row in rows),
    ),
)
'''


@pytest.fixture(autouse=True)
def _forget():
    """Take what a test has registered away again."""
    before, loaded = len(Registry.added), dict(plugins._loaded)
    yield
    while len(Registry.added) > before:
        registry, name = Registry.added[-1]
        registry.remove(name)
    plugins._loaded.clear()
    plugins._loaded.update(loaded)


@pytest.fixture
def jaxinfer_(monkeypatch, capsys):
    """Runs a command line: (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxinfer", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        return leave.value.code, *capsys.readouterr()

    monkeypatch.setattr(jaxinfer, "load", lambda *_: pytest.fail("a model was loaded"))
    return call


@pytest.fixture
def workshop(tmp_path):
    """A config of a kind of the user's own, in a plug-in beside it."""
    (tmp_path / "mine.py").write_text(SQUARES.replace("its name", "squares"))
    return config(tmp_path)


def config(folder, **changes):
    given = {"kind": "squares", "plugins": ["mine.py"], "name": "sq", "numbers": [1, 2, 3]}
    file = folder / "squares.yaml"
    file.write_text(yaml.safe_dump(given | {"output": str(folder / "runs")} | changes))
    return file


def test_a_kind_of_a_user_is_run_interrupted_resumed_and_its_table_is_written(
    jaxinfer_, workshop, tmp_path, monkeypatch
):
    monkeypatch.setenv("STOP_AT", "3")
    code, out, err = jaxinfer_("run", workshop, "power=3")
    [folder] = (tmp_path / "runs").iterdir()
    assert (code, out) == (130, "")
    assert "item 1 of 3: number 1\nmeasured 1\nitem 2 of 3: number 2\nmeasured 2\n" in err
    assert f"interrupted: 2 of 3 items are done; to go on: jaxinfer run {workshop} power=3 --resume {folder}\n" in err
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert lines == [
        {"item": "number 1", "rows": [{"number": 1, "result": 1.0}]},
        {"item": "number 2", "rows": [{"number": 2, "result": 8.0}]},
    ]
    assert (folder / "sum.txt").read_text() == "9.0\n"

    monkeypatch.delenv("STOP_AT")
    code, out, err = jaxinfer_("run", workshop, "power=3", "--resume", folder)
    assert code == 0
    assert out == "powers\n\n| number | result |\n| :----- | -----: |\n| 1      |    1.0 |\n| 2      |    8.0 |\n" + (
        "| 3      |   27.0 |\n"
    )
    assert "measured 2" not in err
    assert "item 3 of 3: number 3\nmeasured 3\n" in err
    assert f"3 numbers\nreport: {folder}/report.html\n" in err
    assert (folder / "table.md").read_text() == f"# sq\n\n3 numbers\n\n{out}"
    page = (folder / "report.html").read_text()
    assert "<h2>powers</h2>" in page
    assert "<td>27.0</td>" in page
    names = ["config.yaml", "report.html", "rows.jsonl", "sum.txt", "table.md", "versions.json"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_run_folders_config_is_one(jaxinfer_, workshop, tmp_path):
    assert jaxinfer_("run", workshop, "numbers=[4]")[0] == 0
    [folder] = (tmp_path / "runs").iterdir()
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert (kept["kind"], kept["power"], kept["numbers"]) == ("squares", 2, [4])
    assert [Path(file).name for file in kept["plugins"]] == ["mine.py"]
    code, out, _ = jaxinfer_("run", folder / "config.yaml")
    assert (code, out.splitlines()[-1]) == (0, "| 4      |   16.0 |")


def test_another_config_does_not_go_on(jaxinfer_, workshop, tmp_path):
    jaxinfer_("run", workshop)
    [folder] = (tmp_path / "runs").iterdir()
    code, _, err = jaxinfer_("run", workshop, "power=3", "--resume")
    assert (code, err) == (2, f"error: --resume: {folder} has another config: power was 2, is 3\n")
    (folder / "rows.jsonl").write_text('{"item": "number 1", "rows": [3]}\n')
    code, _, err = jaxinfer_("run", workshop, "--resume")
    assert code == 2
    assert err.startswith(f"error: {folder}/rows.jsonl:1: is no finished item: rows must be a list of mappings")


def test_a_kind_may_end_with_exit_code_1(jaxinfer_, workshop):
    assert jaxinfer_("run", workshop, "numbers=[-1]", "power=3")[0] == 1


def test_a_file_in_experiments_beside_the_config_or_below_the_working_folder_needs_no_plugin(
    jaxinfer_, tmp_path, monkeypatch
):
    (tmp_path / "one" / "configs").mkdir(parents=True)
    for place, name in ((tmp_path / "one", "cubes"), (tmp_path, "fourths")):
        (place / "experiments").mkdir()
        (place / "experiments" / f"{name}.py").write_text(SQUARES.replace("its name", name))
    file = config(tmp_path / "one" / "configs", kind="cubes", plugins=[])
    assert jaxinfer_("run", file)[0] == 0
    monkeypatch.chdir(tmp_path)
    assert jaxinfer_("run", file, "kind=fourths")[0] == 0
    code, _, err = jaxinfer_("run", file, "kind=fourth")
    assert code == 2
    assert err.endswith("kind: unknown kind of experiment 'fourth'; nearest: 'fourths'\n")


def test_a_plugin_of_the_command_line_is_in_the_line_that_says_how_to_go_on(jaxinfer_, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SQUARES.replace("its name", "squares"))
    monkeypatch.chdir(tmp_path)
    code, _, err = jaxinfer_("run", config(tmp_path, plugins=[]), "--plugin", "mine.py", "numbers=[]")
    assert (code, err) == (2, f"error: {tmp_path}/squares.yaml: there is nothing to measure in it\n")
    monkeypatch.setenv("STOP_AT", "1")
    code, _, err = jaxinfer_("run", "squares.yaml", "--plugin", "mine.py")
    [folder] = (tmp_path / "runs").iterdir()
    assert code == 130
    assert f"to go on: jaxinfer run squares.yaml --plugin mine.py --resume {folder}\n" in err


BAD = {
    "fails.py": "import nothing_of_this_name\n",
    "twice.py": "from jaxinfer.experiment import KINDS\nKINDS.add('rows', KINDS['rows'])\n",
    "again.py": SQUARES.replace("its name", "squares") + "KINDS.add('squares', KINDS['squares'])\n",
    "plain.py": "from jaxinfer.experiment import Kind\nKind(dict, None, None, None)\n",
    "open.py": SQUARES.replace("    __pydantic_config__ = FORBID_UNKNOWN_KEYS\n", ""),
    "folder/experiments/empty.py": "",
}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["kind=step_tme"],
            "kind=step_tme': kind: unknown kind of experiment 'step_tme'; nearest: 'step_time'",
        ),
        (["kind=squars"], "unknown kind of experiment 'squars'; nearest: 'squares'"),
        (["kind=../mine"], "unknown kind of experiment '../mine'"),
        (["kind=[1]"], "kind: unknown kind of experiment [1]; valid: rows, "),
        (["kind=", "plugins=[]"], "numbers: unknown key; nearest: 'name'"),
        (["kind=empty"], "experiments/empty.py: registers no kind of experiment 'empty'"),
        (["plugins=fails.py"], "plugins: expected a list of Python files, got 'fails.py'"),
        (["plugins=[3]"], "plugins: expected a list of Python files, got [3]"),
        (["plugins=[none.py]"], "/none.py: no such file"),
        (["plugins=[fails.py]"], "fails.py: line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        (["plugins=[twice.py]"], "twice.py: line 2: kind of experiment 'rows' is registered already"),
        (["plugins=[again.py]"], "kind of experiment 'squares' is registered already"),
        (
            ["plugins=[plain.py]"],
            "plain.py: line 2: config=<class 'dict'> must be a frozen dataclass with a field",
        ),
        (["plugins=[open.py]"], "config Config: must forbid unknown keys: write '__pydantic_config__ = "),
        (["powr=3"], "override 'powr=3': powr: unknown key; nearest: 'power'"),
        (["knd=3"], "override 'knd=3': knd: unknown key; nearest: 'kind'"),
        (["power=two"], "override 'power=two': power: expected a whole number, got 'two'"),
        (["power=0"], "power=0 must be 1 or above"),
        (["name=a/b"], "name: letters, digits and ._- only (it names a folder), got 'a/b'"),
        (
            ["kind=rows", "plugins=[]", "numbers=1"],
            "numbers: unknown key; nearest: 'name'",
        ),
        (["--plugin", "FOLDER/fails.py"], "fails.py: line 1: ModuleNotFoundError: "),
        (["--plugin", "none.py"], "--plugin: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(jaxinfer_, workshop, tmp_path, monkeypatch, overrides, expected):
    for name, text in BAD.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path / "folder" if "kind=empty" in overrides else ROOT)
    before = list(KINDS)
    code, out, err = jaxinfer_("run", workshop, *(one.replace("FOLDER", str(tmp_path)) for one in overrides))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    assert expected in err
    assert not (tmp_path / "runs").exists()
    assert set(KINDS) - set(before) <= {"squares"}


def test_a_format_of_weights_that_is_unknown_lists_those_that_are(jaxinfer_, config_file, tmp_path):
    for override in ("model.weights=int3", "extras.draft={source: a, weights: int3}"):
        code, out, err = jaxinfer_("run", config_file, override)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert all(name in err for name in ("int3", "int8", "int4", "int4-64", "int4-128", "w8a8"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [["generate", "hi"], ["chat"], ["eval", "--text", "tests/data/prose.txt"]])
def test_every_command_that_decodes_takes_plugins(jaxinfer_, tmp_path, command):
    (tmp_path / "fails.py").write_text(BAD["fails.py"])
    code, out, err = jaxinfer_(*command, "--plugin", tmp_path / "fails.py")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{tmp_path}/fails.py: line 1: ModuleNotFoundError: " in err


def test_the_library_s_load_config_reads_rows_and_plugins(tmp_path, config_file):
    (tmp_path / "mine.py").write_text(SQUARES.replace("its name", "squares"))
    assert load_config(config_file, ["kind=rows", "plugins=[mine.py]"]) == load_config(config_file)
    assert "squares" in KINDS
    with pytest.raises(InputError, match=r"kind: expected 'rows', got 'squares'"):
        load_config(config_file, ["kind=squares"])


def test_rows_have_the_same_folder_whether_the_config_names_its_kind(config_file):
    assert kinds.read(config_file).heading == kinds.read(config_file, ["kind=rows"]).heading == {}
    assert isinstance(kinds.read(config_file).config, Experiment)


@pytest.mark.parametrize("found", [{"x": float("nan")}, {"x": {1, 2}}, {"x": object()}])
def test_what_is_no_plain_data_is_named(workshop, found):
    asked = kinds.read(workshop)
    kind = Kind(asked.kind.config, asked.kind.items, lambda item, run: found, asked.kind.table)
    with pytest.raises(InputError, match="'number 1': what was measured is no plain data: "):
        measure(kind, asked.config)


def test_items_that_take_turns_give_several_rows_and_prepare_comes_before_the_folder(workshop, tmp_path):
    asked, seen = kinds.read(workshop), []

    def prepare(config, model, prompts):
        seen.append((config, model, prompts, (tmp_path / "runs").exists()))
        return "ready"

    def two(number, run: Run):
        assert (run.ready, len(run.rows)) == ("ready", 2 * (number - 1))
        return [{"number": number, "result": n} for n in (1, 2)]

    kind = Kind(asked.kind.config, asked.kind.items, two, asked.kind.table, prepare=prepare)
    run = measure(kind, asked.config)
    assert seen == [(asked.config, None, (), False)]
    assert [row["result"] for row in run.rows] == [1, 2] * 3
    assert len(results.read_rows(run.folder, kind.finished)) == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("3", "is no finished item: 3"),
        ("{}", "is no finished item: item is missing"),
        ('{"item": 3, "rows": []}', "is no finished item: item is 3"),
        ('{"item": "b", "rows": {}}', "is no finished item: rows is {}"),
        ('{"item": "b", "rows": [1]}', "rows must be a list of mappings, got [1]"),
        ('{"item": "a", "rows": []}', "item 'a' is there twice; remove one of them"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_damaged_item_is_one_line_with_its_number(tmp_path, line, problem):
    (tmp_path / "rows.jsonl").write_text(f'{{"item": "a", "rows": []}}\n{line}\n')
    with pytest.raises(InputError) as caught:
        results.read_rows(tmp_path, finished.check_item)
    assert str(caught.value).startswith(f"{tmp_path}/rows.jsonl:2: ")
    assert problem in str(caught.value)


def test_a_table_is_written_for_markdown_and_the_terminal():
    table = Table.of([{"a": "x|y", "b": 2.0}], {"name": "{a}", "b": lambda row: f"{row['b']:.2f}"})
    assert table == Table(("name", "b"), (("x|y", "2.00"),))


def test_python_experiments_x_is_the_same_and_names_its_config(tmp_path):
    """The three lines at the end of a file: run as a script, it is the kind of a config that names none."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = tmp_path / "squares.py"
    ending = (
        'if __name__ == "__main__":\n    from jaxinfer.experiment import script\n    script.run("squares", __doc__)\n'
    )
    script.write_text(SQUARES.replace("its name", "squares") + ending)
    file = config(tmp_path)
    given = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({key: x for key, x in given.items() if key not in ("kind", "plugins")}))

    def call(*arguments, **more):
        command = [sys.executable, script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment | more, timeout=120, check=False)
        return done.returncode, done.stdout, done.stderr

    code, out, err = call(file, "numbers=[5]")
    assert (code, out.splitlines()[-1]) == (0, "| 5      |   25.0 |"), err
    code, _, err = call(file, STOP_AT="2")
    assert code == 130
    assert f"to go on: python {script} {file} --resume " in err
    code, out, _ = call(file, "--resume")
    assert (code, out.count("\n")) == (0, 7)
    for arguments, expected in (
        ([file, "powr=3"], "powr: unknown key; nearest: 'power'"),
        ([file, "--resum"], "--resum: no such option"),
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert expected in err
    assert "The squares of some numbers." in call()[2]


METHOD = """
from dataclasses import dataclass

from jaxinfer import METHODS, Lookup


@dataclass(frozen=True)
class Mine(Lookup):
    width: int = 4


METHODS.add("mine", Mine)
"""


@pytest.mark.parametrize("by_option", [True, False])
def test_a_method_of_a_plugin_is_a_row(jaxinfer_, config_file, tmp_path, monkeypatch, by_option):
    (tmp_path / "mine.py").write_text(METHOD)
    monkeypatch.setattr(jaxinfer, "load", lambda *_: FakeModel())
    given = ["--plugin", tmp_path / "mine.py"] if by_option else ["plugins=[mine.py]"]
    code, out, err = jaxinfer_("run", config_file, "rows.2.method=mine", "decoding.repeats=1", *given)
    assert code == 0, err
    [folder] = (tmp_path / "runs").iterdir()
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert (kept["kind"], kept["rows"][2]["method"]["name"], kept["rows"][2]["method"]["width"]) == ("rows", "mine", 4)
    assert "| lookup <8> |" in out
