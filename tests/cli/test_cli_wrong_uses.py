"""More wrong uses, each answered in one line that is true and names what to do."""

import re
import shutil

import numpy as np
import onnx
import pytest
from lipcert_process import ROOT
from onnx import numpy_helper
from safetensors.numpy import save_file

from lipcert.cli.main import main
from lipcert.data import load_dataset

CERTIFY = ("certify", "model.onnx", "--data", "d.npz", "--eps", "0.1", "--limit", "5", "--quiet")
FINETUNE = ("finetune", "model.onnx", "--data", "digits", "--eps", "0.1", "--output", "ft")
FACTORIES = """
import numpy as np
def nothing(): return None
def images(): return np.zeros((4, 1, 8, 8), np.float32)
def shapes(): return [(np.zeros((1, 8, 8), np.float32), 0), (np.zeros((1, 9, 9), np.float32), 1)]
def boom(): raise RuntimeError("no disk")
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    shutil.copy(ROOT / "examples" / "digits.onnx", folder / "model.onnx")
    digits = load_dataset("digits")
    x, y = (digits.images[:20] * 255).astype(np.uint8), digits.labels[:20]
    np.savez(folder / "d.npz", x_test=x, y_test=y)
    np.savez(folder / "big.npz", x=np.zeros((4, 1, 9, 9), np.float32), y=np.zeros(4, int))
    np.savez(folder / "rgb.npz", x=np.zeros((4, 8, 8, 3), np.uint8), y=np.zeros(4, int))
    np.savez(folder / "halves.npz", x=x, y=y + 0.5)
    np.savez(folder / "images.npz", x=x)
    np.save(folder / "few.npy", y[:-1])
    (folder / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (folder / "t.csv").write_text("a,b,label\n1,x,0\n2,y,1\n")
    (folder / "indices.txt").write_text("-1\n")
    (folder / "classes.json").write_text("{")
    (folder / "map.json").write_text('{"0": "zero"}')
    (folder / "own.py").write_text(FACTORIES)
    for name in ("lfs.onnx", "lfs.npz", "lfs.npy", "lfs.pt", "lfs.safetensors", "lfs.parquet"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for name in ("page.onnx", "page.npz"):
        (folder / name).write_text("\n<!DOCTYPE html><html>not found</html>")
    for name in ("zero.onnx", "zero.npz", "zero.safetensors"):
        (folder / name).touch()
    (folder / "names.csv").write_text("a,b,label\n")
    (folder / "ragged.csv").write_text("a,b,label\n1,2,0\n1,2\n")
    (folder / "words.txt").write_text("0\n\nfirst\n")
    np.savez(folder / "uneven.npz", x=x, y=y[:10])
    np.savez(folder / "complex.npz", x=x.astype(complex), y=y)
    (folder / "broken" / "a").mkdir(parents=True)
    (folder / "broken" / "a" / "0.png").write_text("no picture")
    model, apart = onnx.load(folder / "model.onnx"), onnx.load(folder / "model.onnx")
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    save_file({"other": np.zeros(3, np.float32)}, folder / "other.safetensors")
    save_file(weights, folder / "w.safetensors")
    onnx.save_model(apart, folder / "apart.onnx", save_as_external_data=True,
                    location="apart.data", size_threshold=0)  # fmt: skip
    (folder / "apart.data").unlink()
    tensor = model.graph.initializer[0]
    nothing = np.full_like(weights[tensor.name], np.nan)
    tensor.CopyFrom(numpy_helper.from_array(nothing, tensor.name))
    onnx.save(model, folder / "nan.onnx")
    (folder / "empty").mkdir()
    (folder / "results").mkdir()
    (folder / "results" / "samples.jsonl").write_text('{"index": 0}\n{"index": 1}\n')
    return folder


def certify(*more, **changed):
    arguments = list(CERTIFY)
    for option, value in changed.items():
        arguments[arguments.index(f"--{option}") + 1] = value
    return (*arguments, *more)


WRONG = [
    (certify(eps="1e999"), 2, "too large.*36/255"),
    (certify(eps="0.1;0.2"), 2, "36/255"),
    (certify(eps="inf"), 2, "number ≥ 0"),
    (("certify", "digits", "--data", "model.onnx", "--eps", "1"), 2, "a model, which comes first"),
    (("certify", "a.h5", *CERTIFY[2:]), 3, "export the model to ONNX"),
    (("certify", ".", *CERTIFY[2:]), 2, "give the path of an ONNX file"),
    (certify(data="big.npz"), 2, "give images of 8x8.*--resize 8,8"),
    (certify(data="rgb.npz"), 2, "reads gray images: give gray ones"),
    (certify("--channels", "bgr"), 2, "leave --channels out"),
    (certify("--channels", "rgba"), 2, "'rgb', 'bgr'"),
    (certify(data="halves.npz"), 2, "whole numbers, not 0.5"),
    (certify(data="images.npz"), 2, "--label-key"),
    (certify("--labels", "few.npy", data="images.npz"), 2, "20 samples need as many"),
    (certify("--labels", "gone.npy", data="images.npz"), 2, "gone.npy: there is no such file"),
    (certify("--image-key", "z"), 2, "it has x_test, y_test"),
    (certify("--split", "train"), 2, "has the splits test"),
    (certify("--resize", "8,8"), 2, "does not apply to d.npz; leave it out"),
    (certify("--resize", "99999,1", data="empty"), 2, "up to 4096"),
    (certify("--indices", "indices.txt"), 2, "entry 1 is -1, outside 0 to 19"),
    (certify("--data-layout", "nf"), 2, "needs arrays of 2 axes"),
    (certify("--label-offset", "-5"), 2, "which no class is"),
    (certify("--label-offset", "100"), 2, "--label-map"),
    (certify("--label-map", "map.json"), 2, "'0' is sent to 'zero'"),
    (certify("--classes", "classes.json"), 2, "classes.json: is no JSON"),
    (certify("--classes", "gone.txt"), 2, "gone.txt: cannot be read"),
    (certify(data="gone"), 2, "nor a file or folder of that name"),
    (certify(data="cifar"), 2, "did you mean cifar10"),
    (certify(data="own.py"), 2, "name what makes the data in it, own:factory"),
    (certify(data="own:nothing"), 2, r"must return \(images, labels\)"),
    (certify(data="own:images"), 2, r"pairs \(image, label\)"),
    (certify(data="own:shapes"), 2, "do not fit together"),
    (certify(data="own:boom"), 2, "own:boom: RuntimeError: no disk"),
    (certify(data="empty"), 2, "sub-folder of images for each class"),
    (certify(data="t.csv"), 2, "column [ab].*--label-key"),
    (certify("--data-dir", "gone", data="mnist"), 2, "--data-dir or LIPCERT_DATA_DIR gone"),
    (certify("--output", ""), 2, "--output '': is empty; name a path"),
    (certify("--weights", " "), 2, "leave --weights out"),
    (certify("--mean", "0.1,"), 2, "--mean.*such as"),
    (certify("--range", "0,255,1"), 2, "two numbers"),
    (certify("--seed", "1.5"), 2, "whole number from 0"),
    (certify("--seed", str(2**129)), 2, "2\\^128"),
    (certify("--shard", "1/0"), 2, "such as 1/4"),
    (certify("--memory-limit", "lots"), 2, "such as 8GiB"),
    (certify("--min-certified", "110%"), 2, "such as 0.60 or 60%"),
    (certify("--warn-certified", "0"), 2, "can never warn"),
    (certify("--save-proofs"), 2, "--output"),
    (("certify", "model.onnx", "digits", *CERTIFY[2:]), 2, "unexpected extra argument"),
    (("gate", "results/samples.jsonl", "--min-clean", "0.5"), 3, "name the --output of lipcert"),
    (("report", "model.onnx"), 3, "name the --output of lipcert certify"),
    (("compare", "model.onnx", "results"), 3, "name the --output of lipcert certify"),
    (("doctor", "--data-dir", "gone"), 2, "gone: there is no such folder"),
    (("merge", "gone", "--output", "m"), 2, "no such folder or file"),
    (("inspect", "results"), 2, "give the path of an ONNX file"),
    (("inspect", "model.onnx", "--output-name", "x"), 2, "it has output"),
    ((*FINETUNE, "--epochs", "0"), 2, "--epochs 0: give a number from 1 up"),
    ((*FINETUNE, "--arch", "9c9f"), 2, "4c3f, 6c2f, 8c2f"),
    ((*FINETUNE, "--select", "best"), 2, "such as clean>=0.75"),
    ((*FINETUNE, "--validation", "0"), 2, "above 0 and below 1"),
    ((*FINETUNE, "--resume"), 2, "leave --resume out"),
    (("finetune", "--data", "digits", "--eps", "0.1", "--output", "ft"), 2, "or --arch"),
    # What people have in the place of a file.
    (("certify", "lfs.onnx", *CERTIFY[2:]), 3, "lfs.onnx: .*pointer of Git LFS.*git lfs pull"),
    (("certify", "page.onnx", *CERTIFY[2:]), 3, "page.onnx: .*web page.*raw address"),
    (("certify", "zero.onnx", *CERTIFY[2:]), 3, "zero.onnx: .*empty; write or download it"),
    (certify("--weights", "lfs.safetensors"), 3, "lfs.safetensors: .*git lfs pull"),
    (certify("--weights", "zero.safetensors"), 3, "zero.safetensors: .*empty; write or download"),
    (certify("--weights", "model.onnx"), 3, "give a .safetensors file"),
    (certify("--weights", "other.safetensors"), 3, "; missing: .*; .*that were saved of this"),
    (("certify", "lfs.pt", "--arch", "4c3f", *CERTIFY[2:]), 3, "lfs.pt: .*git lfs pull"),
    (certify(data="lfs.npz"), 3, "lfs.npz: .*git lfs pull"),
    (certify("--labels", "few.npy", data="lfs.npy"), 3, "lfs.npy: .*git lfs pull"),
    (certify(data="lfs.pt"), 3, "lfs.pt: .*git lfs pull"),
    (certify(data="lfs.safetensors"), 3, "lfs.safetensors: .*git lfs pull"),
    (certify(data="page.npz"), 3, "page.npz: .*download it by its raw address"),
    (certify(data="zero.npz"), 3, "zero.npz: .*empty"),
    (certify(data="broken"), 3, r"0.png: cannot be read as an image; replace it, or take it away$"),
    # What a file lacks.
    (("certify", "apart.onnx", *CERTIFY[2:]), 3, "put that file beside apart.onnx"),
    (("certify", "nan.onnx", *CERTIFY[2:]), 3, "export the model again from weights"),
    (("certify", "w.safetensors", *CERTIFY[2:]), 2, "say with --arch what they belong to"),
    (("inspect", "w.safetensors"), 2, "say with --arch what they belong to"),
    (certify("--arch", "4c3f"), 2, "--arch 4c3f goes with weights alone.*leave it out"),
    (certify(data="names.csv"), 3, "a line of names and no rows"),
    (certify(data="ragged.csv"), 3, "line 3 has 2 columns.*give every line as many"),
    (certify(data="uneven.npz"), 2, "20 samples need as many.*of one split"),
    (certify(data="complex.npz"), 2, "must be real numbers, not complex128"),
    (certify("--indices", "words.txt"), 2, "line 3 is 'first'; write one whole number a line"),
    # Numbers that do not fit, under the option's own name.
    (certify("--mean", "0.5,0.5,0.5"), 2, "--mean 0.5,0.5,0.5: give one finite number, for"),
    (certify("--std", "0"), 2, "--std 0: every number must be above 0"),
    (certify("--layout", "HWX"), 2, "--layout 'HWX': give an order of all the letters C, H and W"),
    (("finetune", "model.onnx", "--data", "digits", "--eps", "0.1", "--batch-size", "9999",
      "--output", "large"), 2, "--batch-size 9999: .*give at most 1293"),
    (("merge", "results", "--output", "m"), 2, "holds no certificate of a shard"),
    (("interval", "model.onnx", "--data", "d.npz", "--eps", "1", "--output", "results"), 2,
     "--output results: is a folder; name a file in it"),
]  # fmt: skip


def answered(capsys, arguments, code, fix):
    assert main([*arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    # Before it there may be what was begun.
    line = shown.err.splitlines()[-1]
    assert line.startswith("lipcert: error: ")
    assert "Traceback" not in shown.err
    assert re.search(fix, line), line


@pytest.mark.parametrize(("arguments", "code", "fix"), WRONG)
def test_a_wrong_use_names_what_to_do(workplace, monkeypatch, capsys, arguments, code, fix):
    monkeypatch.chdir(workplace)
    answered(capsys, arguments, code, fix)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ('[certify]\neps = "0.1"\n', "settings stand at the top"),
        ("allow-code = true\n", "--allow-code on the command line"),
        ("limt = 5\n", "did you mean limit"),
        ("eps = [\n", "lipcert.toml: cannot be read"),
    ],
)
def test_a_wrong_setting_names_what_to_do(workplace, monkeypatch, capsys, tmp_path, text, fix):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lipcert.toml").write_text(text)
    answered(capsys, ("certify", "m.onnx", "--data", "digits", "--eps", "0.1"), 2, fix)


def test_a_variable_that_is_no_setting_names_what_to_do(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("LIPCERT_ALLOW_CODE", "1")
    answered(capsys, CERTIFY, 2, "--allow-code on the command line")


def test_an_audit_on_other_data_says_which_they_were(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    assert main([*CERTIFY, "--method", "global", "--output", "run"]) == 0
    capsys.readouterr()
    audit = ("audit", "run", "--model", "model.onnx", "--data", "digits")
    answered(capsys, audit, 3, "made on d.npz; name that with --data")


def test_labels_below_0_are_numbered_and_it_is_said(workplace, monkeypatch, capsys, tmp_path):
    """Two classes called −1 and 1, as many have them."""
    monkeypatch.chdir(tmp_path)
    with np.load(workplace / "d.npz") as arrays:
        x, y = arrays["x_test"], arrays["y_test"].astype(int)
    few = y < 2
    np.savez("signs.npz", x=x[few], y=2 * y[few] - 1)
    shutil.copy(workplace / "model.onnx", tmp_path)
    assert main([*certify(data="signs.npz")[:-1], "--method", "global"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "the labels -1 and 1 were numbered 0 and 1" in shown
    assert "clean accuracy 100.00 %" in shown
