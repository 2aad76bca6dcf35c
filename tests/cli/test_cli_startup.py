import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import lipcert
from lipcert.cli import parse
from lipcert.cli.main import app, main
from lipcert.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], ["certify", "--help"], ["inspect", "-h"], ["audit", "-h"]],
)
def test_help_and_version_answer_without_the_heavy_libraries(arguments):
    code = (
        "import sys; from lipcert.cli.main import main\n"
        f"assert main({arguments}) == 0\n"
        "print({'torch', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules), file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(lipcert.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stderr.strip() == "set()"
    expected = lipcert.__version__ if arguments == ["--version"] else "Usage: lipcert"
    assert expected in process.stdout


def test_help_shows_what_stands_in_brackets(monkeypatch, capsys):
    """Markup eats brackets that are not escaped: `lipcert[cluster]` was shown as `lipcert`."""
    monkeypatch.setenv("COLUMNS", "400")
    looked_at = set()
    for name, command in typer.main.get_command(app).commands.items():
        said = [getattr(option, "help", None) or "" for option in command.params]
        wanted = {found for text in said for found in re.findall(r"\[[^\]\\]+\]", text)}
        if wanted:
            assert main([name, "--help"]) == 0
            shown = capsys.readouterr().out
            assert [text for text in wanted if text not in shown] == []
            looked_at |= wanted
    assert {"[cluster]", "[tool.lipcert]"} <= looked_at


def test_the_version_is_the_package_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lipcert.__version__ == project["version"]


def test_the_library_s_names_are_there_and_no_others():
    assert callable(lipcert.load)
    assert callable(lipcert.certify)
    assert lipcert.Model
    assert lipcert.Result
    with pytest.raises(AttributeError, match="nothing"):
        _ = lipcert.nothing


def test_values_are_parsed():
    assert parse.texts(["0.1, 36/255", "1"]) == ["0.1", "36/255", "1"]
    assert parse.numbers("--mean", "0.5, -1e-3") == (0.5, -0.001)
    assert parse.pair("--range", "-1,1") == (-1.0, 1.0)
    assert parse.shape("--input-shape", "3, 32,32") == (3, 32, 32)
    assert parse.numbers("--mean", None) is parse.pair("-", None) is parse.shape("-", None) is None


@pytest.mark.parametrize(
    ("parser", "value"),
    [
        (parse.numbers, "1,,2"),
        (parse.numbers, "nan"),
        (parse.numbers, "1,inf"),
        (parse.pair, "1"),
        (parse.pair, "1,1"),
        (parse.pair, "0,1,2"),
        (parse.shape, "3,0,2"),
        (parse.shape, "3,-1"),
        (parse.shape, "²,3"),
        (parse.shape, ""),
    ],
)
def test_values_that_make_no_sense_are_refused_with_the_option_s_name(parser, value):
    with pytest.raises(UsageError, match="--option"):
        parser("--option", value)
