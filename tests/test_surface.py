"""Every option and argument of every command, given anything: an end with one line, and no traceback."""

import os
import sys
import typing
from types import SimpleNamespace

import pytest
import typer

import jaxinfer
from jaxinfer.checkpoint import conversion
from jaxinfer.cli import commands as cli
from jaxinfer.errors import InputError

ANYTHING = [
    *("", "a" * 100_000, "\udcff", "\ud800", "\x00", "é", "~nouser/x", "/dev/zero", "FIFO", "."),
    *("-1", "0", "-2147483649", "9" * 23, "9" * 5000, "nan", "inf", "-inf", "1e400"),
    *(
        "[[[",
        "{a: &a [*a]}",
        "!!x y",
        ":",
        "=",
        "dense:",
        "dense:=",
        "dense:capacity=[",
        "window:capacity=1,capacity=2",
    ),
    *("paged:block=" + "9" * 23, "paged:" + "a" * 100_000 + "=1", "rows.0.method=" + "a" * 100_000, "rows.\u0661=x"),
]
LOADED = "so far"
BASE = {
    "generate": ["generate", "hi"],
    "chat": ["chat"],
    "eval": ["eval", "--text", "text.txt"],
    "run": ["run", "config.yaml"],
    "heads": ["train", "heads", "heads.yaml"],
    "convert": ["convert", "random:llama3-8b", "made"],
    "export": ["export", "random:llama3-8b", "made"],
    "list": ["list"],
    "roofline": ["roofline", "--model", "llama-2-7b", "--hardware", "none"],
    "plan": ["plan", "--model", "llama-3-8b", "--target", "none"],
    "compile": ["compile", "--model", "llama-3-8b", "--target", "cpu:1", "--mesh", "tensor=2"],
}
CONFIG = "name: a\nmodel: b\nprompts: [c]\nrows: [{name: greedy, method: greedy}]\noutput: runs\n"


def lines():
    """Each command line with anything in one place, and the name of that place."""
    group: typing.Any = typer.main.get_command(cli.app)
    commands = {**group.commands, **group.commands["train"].commands}
    for name, base in BASE.items():
        for parameter in commands[name].params:
            if parameter.param_type_name == "argument":
                place = len(base) - 1 if name not in ("convert", "export") or parameter.name == "destination" else 1
                values = [value for value in ANYTHING if not value.startswith("-")]
                extra = name in ("run", "heads") and parameter.name == "arguments"
                many = [[*base, value] if extra else [*base[:place], value, *base[place + 1 :]] for value in values]
            elif parameter.is_flag:
                continue
            else:
                many = [[*base, f"{parameter.opts[0]}={value}"] for value in ANYTHING]
            yield pytest.param(many, id=f"{name} {parameter.name}")


@pytest.mark.parametrize("many", list(lines()))
def test_anything_anywhere_is_one_line(many, tmp_path, monkeypatch, capsys):
    def load(source, *_, **__):
        raise InputError(LOADED)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("hello " * 50)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "heads.yaml").write_text("model: a\noutput: heads\n")
    os.mkfifo("FIFO")
    monkeypatch.setattr(jaxinfer, "load", load)
    monkeypatch.setattr(conversion, "load_checkpoint", load)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(read=lambda n: "", isatty=lambda: False))
    for arguments in many:
        monkeypatch.setattr(sys, "argv", ["jaxinfer", *arguments])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        out, err = capsys.readouterr()
        assert leave.value.code == 2, arguments
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1, arguments
        assert len(err) < 900, arguments
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("key", ["output", "data.corpus"])
def test_heads_that_could_not_be_written_are_refused_before_the_model_loads(tmp_path, monkeypatch, capsys, key):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxinfer", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        return leave.value.code, capsys.readouterr().err

    monkeypatch.setattr(jaxinfer, "load", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    (tmp_path / "heads.yaml").write_text(f"model: any\noutput: {tmp_path}/heads\n")
    code, err = call("train", "heads", tmp_path / "heads.yaml", f"{key}={tmp_path}/file/below/heads")
    assert code == 2
    assert f"{tmp_path}/file/below" in err
    assert "Not a directory" in err
    assert not (tmp_path / "heads.partial").exists()
    code, err = call("train", "heads", tmp_path / "heads.yaml", f"{key}=~nobody-of-this-name/heads")
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no such user's home folder" in err
