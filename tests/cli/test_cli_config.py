import re
import tomllib
from pathlib import Path

import pytest
from lipcert_process import ROOT
from report import made

from lipcert import config
from lipcert.cli.main import main
from lipcert.errors import UsageError

KEYS = {"eps": "list", "min_certified": "list", "split": "value", "quiet": "flag", "mean": "value"}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with results."""
    made.save(tmp_path / "run", made.full())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(folder: Path, text: str = "", **variables: str) -> dict[str, tuple]:
    (folder / config.FILE).write_text(text)
    settings = config.settings(KEYS, folder, variables)
    return {key: (setting.value, setting.source) for key, setting in settings.items()}


def test_a_file_sets_every_kind_as_it_is_written(tmp_path):
    text = 'eps = ["36/255", 0.30]\nmin-certified = 0.60\nsplit = "train"\nquiet = true\n'
    assert found(tmp_path, text + "mean = [0.1, 0.25]\n") == {
        "eps": (["36/255", "0.30"], "lipcert.toml"),
        "min_certified": (["0.60"], "lipcert.toml"),
        "split": ("train", "lipcert.toml"),
        "quiet": (True, "lipcert.toml"),
        "mean": ("0.1,0.25", "lipcert.toml"),
    }


def test_the_environment_outranks_the_file(tmp_path):
    assert found(tmp_path, 'split = "train"', LIPCERT_SPLIT="test", LIPCERT_QUIET="1") == {
        "split": ("test", "LIPCERT_SPLIT"),
        "quiet": (True, "LIPCERT_QUIET"),
    }
    # A variable without content sets nothing, and other programs' variables are theirs.
    assert found(tmp_path, "", LIPCERT_SPLIT="", LIP_CERT="1", LIPCERT_TEST_X="1") == {}


@pytest.mark.parametrize(
    ("text", "variables", "fix"),
    [
        ("min_certifed = 0.6", {}, "unknown key 'min_certifed'; did you mean min-certified"),
        ("", {"LIPCERT_MIN_CERTIFED": "1"}, "LIPCERT_MIN_CERTIFED; did you mean LIPCERT_MIN_CERT"),
        ("split = true", {}, "give text or a number"),
        ('quiet = "yes"', {}, "give true or false"),
        ("", {"LIPCERT_QUIET": "maybe"}, "1 or 0"),
        ("eps = {a = 1}", {}, "give text or a number"),
        ("eps = [", {}, r"lipcert\.toml: cannot be read"),
        ("eps = " + "[" * 50_000, {}, "nested too deeply"),
        ("[gates]\nmin = 1", {}, "unknown key 'gates'"),
    ],
)
def test_what_cannot_be_a_setting_is_refused(tmp_path, text, variables, fix):
    with pytest.raises(UsageError, match=fix):
        found(tmp_path, text, **variables)


def test_pyproject_has_a_table_for_lipcert_and_only_one_file_counts(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text("[project]\nname = 'x'\n")
    assert config.settings(KEYS, tmp_path, {}) == {}
    assert config.file_in(tmp_path) is None
    project.write_text("[tool.lipcert]\nsplit = 'all'\n")
    assert config.settings(KEYS, tmp_path, {})["split"].value == "all"
    assert config.file_in(tmp_path) == "[tool.lipcert] in pyproject.toml"
    (tmp_path / "lipcert.toml").write_text("")
    with pytest.raises(UsageError, match="keep one of them"):
        config.settings(KEYS, tmp_path, {})
    (tmp_path / "lipcert.toml").unlink()
    project.write_text("[tool]\nlipcert = 1\n")
    with pytest.raises(UsageError, match="must be a table"):
        config.file_in(tmp_path)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_precedence_is_command_line_environment_file_default(here, monkeypatch, capsys):
    gate = ("gate", "run", "--json")
    assert run(capsys, *gate)[0] == 2
    (here / "lipcert.toml").write_text("min-certified = 1\n")
    assert run(capsys, *gate)[0] == 1
    monkeypatch.setenv("LIPCERT_MIN_CERTIFIED", "0.1=0,0.3=0")
    code, out, _ = run(capsys, *gate)
    assert (code, out.count('"pass"')) == (0, 2)
    assert run(capsys, *gate, "--min-certified", "1")[0] == 1


def test_a_flag_in_the_file_or_the_environment_is_one(here, monkeypatch, capsys):
    (here / "lipcert.toml").write_text("min-clean = 0\nquiet = true\n")
    assert run(capsys, "gate", "run") == (0, "", "")
    monkeypatch.setenv("LIPCERT_QUIET", "false")
    assert run(capsys, "gate", "run")[1].startswith("PASS: 1 of 1 gates held")


def test_the_same_gates_serve_the_report(here, capsys):
    (here / "lipcert.toml").write_text("min-certified = '0.1=0.01'\n")
    code, out, _ = run(capsys, "report", "run", "--format", "junit")
    assert code == 0
    assert 'tests="1"' in out


def test_show_config_tells_every_setting_and_its_source(here, monkeypatch, capsys):
    (here / "lipcert.toml").write_text("eps = ['0.1', '36/255']\nlimit = 10\nrange = [0, 255]\n")
    monkeypatch.setenv("LIPCERT_SPLIT", "train")
    monkeypatch.setenv("LIPCERT_DTYPE", "float32")
    code, out, err = run(capsys, "certify", "--show-config", "--limit", "20", "--offline")
    assert (code, err) == (0, "")
    values = tomllib.loads(out)
    assert values["eps"] == ["0.1", "36/255"]
    assert (values["limit"], values["split"], values["offline"]) == (20, "train", True)
    assert values["failure-probability"] == 1e-9
    assert values["dtype"] == "float32"
    sources = dict(re.findall(r"^(\S+) = .*  # (.*)$", out, re.M))
    assert sources["eps"] == sources["range"] == "lipcert.toml"
    assert sources["limit"] == sources["offline"] == "command line"
    assert (sources["split"], sources["method"]) == ("LIPCERT_SPLIT", "default")
    assert "# min-certified is not set" in out


def test_what_it_shows_can_be_read_again(here, capsys):
    (here / "lipcert.toml").write_text("eps = ['0.1']\nmin-certified = ['0.5', '0.1=0.2']\n")
    shown = run(capsys, "certify", "--show-config")[1]
    (here / "lipcert.toml").write_text(shown)
    again = run(capsys, "certify", "--show-config")[1]
    assert tomllib.loads(again) == tomllib.loads(shown)


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("gate", "--help")])
def test_questions_are_answered_whatever_the_settings_are(here, capsys, arguments):
    (here / "lipcert.toml").write_text("nonsense = 1\n")
    assert run(capsys, *arguments)[0] == 0
    code, out, err = run(capsys, "doctor")
    assert (code, out) == (2, "")
    assert "unknown key 'nonsense'" in err


def test_the_project_s_own_file_configures_nothing_by_accident():
    assert config.file_in(ROOT) is None


RECIPE = """eps = "0.3"
data = "digits"
class-weights = [1, 1, 1, 1, 1, 1, 1, 1, 1, 2]
lr = 0.0020
loss = "bcp"
no_such = 1
"""


def test_a_recipe_outranks_variables_and_the_command_line_outranks_it(here, monkeypatch, capsys):
    (here / "lipcert.toml").write_text('eps = ["0.1"]\nlimit = 7\n')
    (here / "mine.toml").write_text(RECIPE.replace("no_such = 1\n", ""))
    monkeypatch.setenv("LIPCERT_LOSS", "gloro")
    for named in (("--config", "mine.toml"), ("--config=mine.toml",)):
        code, out, err = run(capsys, "finetune", "--show-config", *named, "--data", "mnist")
        assert (code, err) == (0, "")
        values, sources = tomllib.loads(out), dict(re.findall(r"^(\S+) = .*  # (.*)$", out, re.M))
        assert (values["eps"], values["loss"], values["limit"]) == ("0.3", "bcp", 7)
        assert (values["data"], values["lr"]) == ("mnist", 0.002)
        assert values["class-weights"] == "1,1,1,1,1,1,1,1,1,2"
        assert (sources["eps"], sources["data"]) == ("mine.toml", "command line")
    # What is shown is a recipe again.
    (here / "again.toml").write_text(out)
    shown = run(capsys, "finetune", "--show-config", "--config", "again.toml")[1]
    assert tomllib.loads(shown) == values


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--config", "mine.toml"), "mine.toml: unknown key 'no_such'; did you mean"),
        (("--config", "absent.toml"), "--config absent.toml: no such file"),
        (("--config", "broken.toml"), "broken.toml: cannot be read"),
        (("--config", "wrong.toml"), "wrong.toml: resume = 'yes': give true or false"),
        # An option of other commands alone.
        (("--config", "other.toml"), "other.toml: unknown key 'method'"),
        (("--config", "code.toml"), "code.toml: sets data to evil:make, which is code"),
        (("--config", ""), "--config '': is empty"),
    ],
)
def test_a_recipe_that_cannot_be_names_the_file_and_the_key(here, capsys, arguments, said):
    for name, text in {
        "mine": RECIPE, "broken": "eps = [", "wrong": 'resume = "yes"', "other": 'method = "auto"',
        "code": 'data = "evil:make"\neps = "0.1"\n',
    }.items():  # fmt: skip
        (here / f"{name}.toml").write_text(text)
    code, out, err = run(capsys, "finetune", "model.onnx", *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_other_commands_say_that_they_have_no_recipe(here, capsys):
    (here / "mine.toml").write_text(RECIPE)
    code, _, err = run(capsys, "doctor", "--config", "mine.toml")
    assert code == 2
    assert "--config" in err
