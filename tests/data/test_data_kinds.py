"""More of each kind of file that people bring: other names, other types, other writers' habits."""

import io

import numpy as np
import pytest
import torch

from lipcert.data import load_dataset
from lipcert.data.dataset import OWN, PIXELS
from lipcert.errors import CannotCertify, UsageError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, (12, 8, 8), dtype=np.uint8)
LABELS = np.arange(12) % 3
ROWS = RANDOM.normal(0, 1, (12, 3)).round(3)


def load(path, **options):
    return load_dataset(str(path), **options)


def picture(pixels=GRAY[0]):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "names",
    [
        ("inputs", "outputs"), ("pixels", "classes"), ("img", "lbl"), ("imgs", "lbls"),
        ("x_testing", "y_testing"), ("testing_images", "testing_labels"), ("testX", "testY"),
        ("features", "targets"), ("arr_0", "arr_1"),
    ],
)  # fmt: skip
def test_names_of_arrays(tmp_path, names):
    np.savez(tmp_path / "own.npz", **dict(zip(names, (GRAY, LABELS), strict=True)))
    found = load(tmp_path / "own.npz")
    assert found.labels.tolist() == LABELS.tolist()
    assert found.unit == PIXELS


@pytest.mark.parametrize(
    "labels",
    [
        LABELS[:, None], np.eye(3)[LABELS], np.eye(3, dtype=np.float16)[LABELS],
        np.eye(3, dtype=bool)[LABELS], LABELS.astype(np.float32), LABELS.astype(str),
        LABELS.astype(">i8"), LABELS.astype(np.uint8)[:, None], LABELS.astype("S1"),
    ],
)  # fmt: skip
def test_ways_of_labels(tmp_path, labels):
    np.savez(tmp_path / "own.npz", images=GRAY, labels=labels)
    assert load(tmp_path / "own.npz").labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    "images", [GRAY > 127, GRAY / 255, (GRAY / 255).astype(np.float16), (GRAY / 255).astype(">f8")]
)
def test_ways_of_pixels(tmp_path, images):
    np.savez(tmp_path / "own.npz", images=images, labels=LABELS)
    found = load(tmp_path / "own.npz")
    assert found.unit == PIXELS
    np.testing.assert_allclose(found.pixels(np.arange(12))[:, 0], images, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "label\n" + "\n".join(map(str, LABELS))),
        ("labels.csv", "id,Label,split\n" + "\n".join(f"{i},{y},x" for i, y in enumerate(LABELS))),
        ("labels.csv", "file;kind\n" + "\n".join(f"{i}.png;{y}" for i, y in enumerate(LABELS))),
        ("labels.csv", "\n".join(map(str, LABELS))),
        ("labels.tsv", "\n".join(f"{i}.png\t{y}" for i, y in enumerate(LABELS))),
        ("labels.txt", "\n".join(map(str, LABELS)) + "\n\n"),
    ],
)
def test_files_of_labels(tmp_path, name, text):
    np.save(tmp_path / "own.npy", GRAY)
    (tmp_path / name).write_text(text)
    found = load(tmp_path / "own.npy", labels=tmp_path / name)
    assert found.labels.tolist() == LABELS.tolist()


def table(delimiter, point="."):
    lines = [[*(str(v).replace(".", point) for v in row), str(y)]
             for row, y in zip(ROWS, LABELS, strict=True)]  # fmt: skip
    return "\n".join(delimiter.join(line) for line in [["a", "b", "c", "label"], *lines])


@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", "])
def test_delimiters_of_tables(tmp_path, delimiter):
    (tmp_path / "own.csv").write_text(table(delimiter))
    found = load(tmp_path / "own.csv")
    np.testing.assert_allclose(found.images, ROWS, atol=1e-6)
    assert (found.unit, found.labels.tolist()) == (OWN, LABELS.tolist())


def test_what_is_wrong_with_a_table_is_said(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(table(";", point=","))
    with pytest.raises(UsageError, match=r"as it has '-?\d+,\d+': .*numbers with a point"):
        load(path)
    path.write_text("a,b,label\n1,,0\n2,3,1\n4,5,1\n")
    with pytest.raises(UsageError, match="the column b lacks a value"):
        load(path)


@pytest.mark.parametrize("split", ["testing", "test"])
def test_folders_of_splits_and_of_systems_are_no_classes(tmp_path, split):
    for name in ("a/1.png", "b/1.png", "__MACOSX/a/1.png", "@eaDir/1.png", "a/.hidden/1.png",
                 "a/Thumbs.db", "a/__MACOSX/2.png"):  # fmt: skip
        path = tmp_path / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
    (tmp_path / "training" / "a").mkdir(parents=True)
    found = load(tmp_path)
    assert (found.names, found.labels.tolist()) == (("a", "b"), [0, 1])
    with pytest.raises(UsageError, match="choose one with --split"):
        load(tmp_path, split="val")


@pytest.mark.parametrize("name", ["1.jpg", "1.PNG", "1.tif", "1.webp"])
def test_a_picture_is_what_it_holds_whatever_it_is_called(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(picture())
    np.testing.assert_array_equal(load(tmp_path).images[0, 0], GRAY[0])


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_more_bits_are_refused_with_what_to_do(tmp_path, mode):
    (tmp_path / "a").mkdir()
    kind = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]
    Image.fromarray(np.full((8, 8), 7, kind)).save(tmp_path / "a" / "1.tiff")
    with pytest.raises(UsageError, match="--data-range"):
        load(tmp_path)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colours_become_red_green_and_blue(tmp_path, mode):
    (tmp_path / "a").mkdir()
    flat = np.tile(np.array([200, 30, 90], np.uint8), (8, 8, 1))
    Image.fromarray(flat).convert(mode).save(tmp_path / "a" / "1.jpg", quality=100)
    found = load(tmp_path).images[0]
    assert np.abs(found.astype(int) - flat.transpose(2, 0, 1)).max() <= 4


@pytest.mark.parametrize(
    "made",
    [
        {"test": (GRAY, LABELS), "train": (GRAY[:2], LABELS[:2])},
        {"test": {"x": GRAY, "y": LABELS}},
        {"testing": [GRAY, np.eye(3)[LABELS]]},
    ],
)
def test_tensors_by_split(tmp_path, made):
    def tensors(value):
        if isinstance(value, dict):
            return {key: tensors(part) for key, part in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(map(tensors, value))
        return torch.from_numpy(value)

    torch.save(tensors(made), tmp_path / "own.pt")
    assert load(tmp_path / "own.pt").labels.tolist() == LABELS.tolist()


def test_parquet_of_polars_has_large_types(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    files = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    path = tmp_path / "own.parquet"
    pictures = arrow.array([picture(pixels) for pixels in GRAY], arrow.large_binary())
    names = arrow.array([("cat", "dog", "emu")[y] for y in LABELS], arrow.large_string())
    files.write_table(arrow.table({"image": pictures, "label": names}), path)
    found = load(path)
    np.testing.assert_array_equal(found.images[:, 0], GRAY)
    assert found.labels.tolist() == LABELS.tolist()
    lists = arrow.array([pixels.ravel().tolist() for pixels in GRAY],
                        arrow.large_list(arrow.uint8()))  # fmt: skip
    files.write_table(arrow.table({"pixels": lists, "label": LABELS}), path)
    np.testing.assert_array_equal(load(path).images, GRAY.reshape(12, 64))


def test_smoothed_one_hot_rows_are_no_labels(tmp_path):
    np.savez(tmp_path / "own.npz", images=GRAY, labels=np.eye(3)[LABELS] * 0.9 + 0.1 / 3)
    with pytest.raises((UsageError, CannotCertify), match="one-hot"):
        load(tmp_path / "own.npz")
