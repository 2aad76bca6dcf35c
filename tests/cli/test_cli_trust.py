"""What strangers' files may not do: run code unasked, or have other files opened."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lipcert_process import ROOT, lipcert_process
from safetensors.numpy import save_file

from lipcert.cli.main import main

SPY = """
from pathlib import Path
def make(*args, **kwargs):
    Path("ran").write_text("ran")
    raise ValueError("made nothing")
"""
CERTIFY = ("certify", "model.onnx", "--eps", "0.1", "--limit", "1")
WEIGHTS = ("w.safetensors", "--data", "digits", "--eps", "0.1", "--limit", "1")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder of a stranger's, worked in."""
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "spy", raising=False)
    (tmp_path / "spy.py").write_text(SPY)
    shutil.copy(ROOT / "examples" / "digits.onnx", tmp_path / "model.onnx")
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "w.safetensors")
    return tmp_path


def ran(folder: Path) -> bool:
    marker = folder / "ran"
    there = marker.is_file()
    marker.unlink(missing_ok=True)
    return there


PLACES = {
    "lipcert.toml": '{key} = "spy:make"\n',
    "pyproject.toml": '[tool.lipcert]\n{key} = "spy:make"\n',
    "variable": "",
}
RUNS = [
    ("data", CERTIFY),
    ("arch", ("certify", *WEIGHTS)),
    ("arch", ("inspect", "w.safetensors", "--input-shape", "1,8,8")),
    ("data", ("finetune", "model.onnx", "--eps", "0.1", "--output", "out")),
    (
        "train-data",
        ("finetune", "model.onnx", "--data", "digits", "--eps", "0.1", "--output", "out"),
    ),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("key", "arguments"), RUNS)
def test_code_that_settings_name_needs_leave(here, monkeypatch, capsys, place, key, arguments):
    if place == "variable":
        source = "LIPCERT_" + key.replace("-", "_").upper()
        monkeypatch.setenv(source, "spy:make")
    else:
        source = place
        (here / place).write_text(PLACES[place].format(key=key))
    assert main([*arguments]) == 2
    told = capsys.readouterr().err
    assert f"{source}: sets {key.replace('-', '_')} to spy:make, which is code" in told
    assert f"--{key} spy:make" in told
    assert "--allow-code" in told
    assert not ran(here)
    if key == "arch":
        # Weights that do not matter are compared before anything else; the code has run.
        assert main([*arguments, "--allow-code"]) == 2
        assert ran(here)
    else:
        assert main([*arguments, "--allow-code"]) == 2
        assert "made nothing" in capsys.readouterr().err
        assert ran(here)


@pytest.mark.parametrize(("key", "arguments"), RUNS)
def test_the_command_line_is_leave(here, capsys, key, arguments):
    (here / "lipcert.toml").write_text(f'{key} = "other:make"\n')
    assert main([*arguments, f"--{key}", "spy:make"]) == 2
    assert "made nothing" in capsys.readouterr().err
    assert ran(here)


def test_leave_is_not_given_by_a_file(here, monkeypatch, capsys):
    (here / "lipcert.toml").write_text('data = "spy:make"\nallow-code = true\n')
    assert main([*CERTIFY]) == 2
    assert "allow-code: is no setting" in capsys.readouterr().err
    (here / "lipcert.toml").write_text('data = "spy:make"\n')
    monkeypatch.setenv("LIPCERT_ALLOW_CODE", "1")
    assert main([*CERTIFY]) == 2
    assert "LIPCERT_ALLOW_CODE" in capsys.readouterr().err
    assert not ran(here)


def test_settings_that_name_no_code_need_no_leave(here, capsys):
    (here / "lipcert.toml").write_text('data = "digits"\n')
    assert main([*CERTIFY, "--method", "local", "--quiet"]) == 0
    # Another command's code is not this one's matter, and showing runs nothing.
    (here / "lipcert.toml").write_text('data = "spy:make"\n')
    assert main(["certify", "--show-config"]) == 0
    assert "spy:make" in capsys.readouterr().out
    assert main(["inspect", "model.onnx"]) == 0
    assert not ran(here)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    shutil.copy(ROOT / "examples" / "digits.onnx", folder)
    arguments = ("digits.onnx", "--data", "digits", "--eps", "0.1", "--limit", "2")
    run = lipcert_process(
        "certify", *arguments, "--method", "local", "--output", "results", "--quiet", cwd=folder
    )
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture
def audited(results, here) -> Path:
    shutil.copytree(results / "results", here / "results")
    shutil.copy(results / "digits.onnx", here)
    return here


@pytest.mark.parametrize("key", ["data", "arch"])
def test_an_audit_never_runs_what_the_folder_names(audited, monkeypatch, capsys, key):
    for place in ("file", "variable"):
        if place == "file":
            (audited / "lipcert.toml").write_text(f'{key} = "spy:make"\n')
        else:
            (audited / "lipcert.toml").unlink()
            monkeypatch.setenv(f"LIPCERT_{key.upper()}", "spy:make")
        assert main(["audit", "results"]) == 2
        told = capsys.readouterr().err
        assert f"--{key} spy:make on the command line" in told
        assert "--allow-code" not in told
        assert main(["audit", "results", "--allow-code"]) == 2
        capsys.readouterr()
        assert not ran(audited)
    assert main(["audit", "results", f"--{key}", "spy:make"]) in (2, 3)
    capsys.readouterr()
    # Weights that do not fit are found before the model is made.
    assert ran(audited) or key == "arch"


def test_a_certificate_s_data_is_no_code(audited, capsys):
    change(audited, lambda record: record["data"].update(name="spy:make"))
    assert main(["audit", "results"]) == 2
    assert "say where that is with --data" in capsys.readouterr().err
    assert not ran(audited)


def change(folder: Path, how) -> None:
    path = folder / "results" / "certificate.json"
    record = json.loads(path.read_text())
    how(record)
    path.write_text(json.dumps(record))


def named(folder: Path, name: str, *, first: bool) -> None:
    """The certificate names one more file, with its true digest, or the model by another name."""

    def how(record):
        files = record["model"]["files"]
        digest = files["digits.onnx"]
        record["model"]["files"] = {name: digest} if first else files | {name: "0" * 64}

    change(folder, how)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../secret.onnx", "a/../../secret.onnx", "..\\secret.onnx", "C:secret.onnx",
     "./secret.onnx", "link.onnx", "", "a//b"],
)  # fmt: skip
def test_an_audit_opens_no_file_elsewhere(audited, capsys, name, first):
    inner = audited / "inner"
    inner.mkdir()
    for part in ("results", "digits.onnx"):
        shutil.move(audited / part, inner / part)
    secret = audited / "secret.onnx"
    shutil.copy(inner / "digits.onnx", secret)
    (inner / "link.onnx").symlink_to(secret)
    named(inner, name, first=first)
    import os

    os.chdir(inner)
    assert main(["audit", "results", "--samples", "1"]) == 3
    told = capsys.readouterr().err
    assert repr(name) in told
    assert "lies elsewhere" in told
    assert "--model" in told
    assert hashlib.sha256(secret.read_bytes()).hexdigest() not in told


def test_a_split_leads_into_no_other_folder(audited, capsys):
    images = audited / "images" / "0"
    images.mkdir(parents=True)
    for split in ("../..", "/etc", "a/b", ""):
        change(audited, lambda record, split=split: record["data"].update(split=split))
        assert main(["audit", "results", "--data", "images"]) == 3
        assert "names the split" in capsys.readouterr().err


def test_what_is_named_on_the_command_line_is_opened(audited, capsys):
    shutil.move(audited / "digits.onnx", audited.parent / f"{audited.name}.onnx")
    there = str(audited.parent / f"{audited.name}.onnx")
    arguments = ["audit", "results", "--samples", "1", "--restarts", "4", "--quiet"]
    assert main([*arguments, "--model", there]) == 0
