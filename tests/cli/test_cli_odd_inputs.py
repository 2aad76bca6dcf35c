"""Odd but right: inputs as people have them, each read as what its owner means.

All are the same twenty digits in other clothes, so all have the same clean accuracy.
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lipcert_process import ROOT

from lipcert.cli.main import main
from lipcert.data import load_dataset

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

DIGITS = load_dataset("digits")
X, Y = np.rint(DIGITS.images[:20] * 255).astype(np.uint8), DIGITS.labels[:20]
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FLAT = ("--data-layout", "flat")
OWN = """
import numpy as np, torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
with np.load("own.npz") as own:
    X, Y = torch.tensor(own["images"]) / 255, torch.tensor(own["labels"]).long()
class Lazy(Dataset):
    classes = [f"digit {i}" for i in range(10)]
    def __len__(self): return 20
    def __getitem__(self, i):
        if i >= 20: raise KeyError(i)
        from PIL import Image
        return Image.fromarray((X[i, 0] * 255).round().byte().numpy()), int(Y[i])
class Stream(IterableDataset):
    def __iter__(self): return iter(zip(X, Y.tolist()))
def shuffled(): return DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True, drop_last=True)
def subset():
    more = TensorDataset(torch.cat([X[:3], X]), torch.cat([Y[:3], Y]))
    return Subset(more, range(3, 23))
def gradients(): return X.clone().requires_grad_(), Y
def narrow(): return X.bfloat16(), Y
def batches():
    for k in range(0, 20, 8): yield X[k:k + 8], Y[k:k + 8]
def splits(): return {"train": (X[:3], Y[:3]), "test": {"images": X, "labels": Y}}
def lists(): return X.tolist(), Y.tolist()
def lazy(): return Lazy()
def stream(): return Stream()
def mappings(): return [{"image": x, "label": y} for x, y in zip(X, Y)]
"""


def folder(place, write, called=str):
    for k in range(20):
        inside = place / called(int(Y[k]))
        inside.mkdir(parents=True, exist_ok=True)
        write(k, inside)


def pictures(mode=None, ending="png", **options):
    def write(k, inside):
        picture = Image.fromarray(X[k, 0])
        picture = picture.convert(mode) if mode else picture
        picture.save(inside / f"{k}.{ending}", **options)

    return lambda place: folder(place, write)


def nested(place):
    def write(k, inside):
        (inside / "a" / "b").mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[k, 0]).save(inside / "a" / "b" / f"{k}.PNG")

    folder(place, write)


def named(place):
    def write(k, inside):
        Image.fromarray(X[k, 0]).save(inside / f"{k}.png")

    folder(place, write, lambda label: f"Ziffer {NAMES[label]} é")
    lines = "\r\n".join(f"Ziffer {name} é" for name in NAMES) + "\r\n"
    (place.parent / "names.txt").write_bytes(lines.encode("utf-8-sig"))


def deep(place):
    def write(k, inside):
        Image.fromarray(X[k, 0].astype(np.uint16) * 257).save(inside / f"{k}.png")

    folder(place, write)


def arrays(**given):
    return lambda place: np.savez(place, **given)


def semicolons(place):
    head = "label;" + ";".join(f"p{i}" for i in range(64))
    rows = [";".join(map(str, (Y[k], *X[k].ravel()))) for k in range(20)]
    place.write_bytes("\r\n".join((head, *rows)).encode("utf-8-sig"))


def tabs(place):
    head = "\t".join([f"p{i}" for i in range(64)] + ["class"])
    rows = ["\t".join(map(str, (*X[k].ravel(), Y[k]))) for k in range(20)]
    place.write_text("\n".join((head, *rows)))


def headless(place):
    place.write_text("\n".join(",".join(map(str, (Y[k], *X[k].ravel()))) for k in range(20)))


def hub(kind):
    def make(place):
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        contents = []
        for k in range(20):
            stream = io.BytesIO()
            Image.fromarray(X[k, 0].astype(kind) * (257 if kind == np.uint16 else 1)).save(
                stream, "PNG"
            )
            contents.append({"bytes": stream.getvalue(), "path": None})
        parquet.write_table(arrow.table({"image": contents, "label": arrow.array(Y)}), place)

    return make


def tensors(place):
    torch.save((torch.tensor(X / 255.0).float(), torch.tensor(Y)), place)


def code(place):
    np.savez("own.npz", images=X, labels=Y)
    Path("odd_inputs_own.py").write_text(OWN)


# A file or folder, what makes it, and what else is said on the command line.
ODD = {
    "gray with transparency": ("la", pictures("LA"), ()),
    "a palette": ("p", pictures("L", "bmp"), ()),
    "PNG called jpg": ("j", pictures(None, "jpg", format="PNG"), ()),
    "16 bits": ("deep", deep, ()),
    "folders in folders": ("nested", nested, ()),
    "names of classes, as Windows writes them": ("words", named, ("--classes", "names.txt")),
    "labels in a column": ("c.npz", arrays(images=np.asfortranarray(X), labels=Y[:, None]), ()),
    "big-endian": ("b.npz", arrays(x=(X / 255).astype(">f8"), y=Y.astype(">i4")), ()),
    "half precision, one-hot": (
        "h.npz", arrays(data=(X / 255).astype(np.float16), target=np.eye(10, dtype=bool)[Y]), (),
    ),
    "numbers as text": ("s.npz", arrays(x=X[:, 0], y=Y.astype(str)), ()),
    "flat": ("f.npz", arrays(x=X.reshape(20, 64), y=Y.astype(float)), ()),
    "wide integers": ("i.npz", arrays(x=X.astype(np.int64), y=Y), ()),
    "channels last": ("l.npz", arrays(x=X.transpose(0, 2, 3, 1), y=Y), ()),
    "both splits": (
        "k.npz", arrays(x_train=X[:3], y_train=Y[:3], x_test=X, y_test=Y), (),
    ),
    "labels from 1": ("o.npz", arrays(x=X, y=Y + 1), ("--label-offset", "-1")),
    "semicolons": ("s.csv", semicolons, FLAT),
    "no header": ("h.csv", headless, (*FLAT, "--label-key", "0")),
    "tabs": ("t.tsv", tabs, FLAT),
    "the hub's": ("hub.parquet", hub(np.uint8), ()),
    "the hub's, 16 bits": ("deep.parquet", hub(np.uint16), ()),
    "a pair of tensors": ("t.pt", tensors, ()),
} | {
    f"code: {name}": (f"odd_inputs_own:{name}", code, ())
    for name in (
        "subset", "gradients", "narrow", "batches", "splits", "lists", "lazy", "stream", "mappings",
        "shuffled",
    )
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_input_is_what_its_owner_means(tmp_path, monkeypatch, capsys, odd):
    spec, make, more = ODD[odd]
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "digits.onnx", tmp_path / "My Modèl.ONNX")
    make(tmp_path / spec)
    arguments = ("--eps", "8/255, 16/255", "--method", "global", "--json", "--quiet", *more)
    code = main(["certify", "My Modèl.ONNX", "--data", spec, *arguments])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    summary = json.loads(shown.out)["summary"]
    assert (summary["n"], summary["clean_correct"]) == (20, 19)
