"""More of each kind of file that people bring: other names, other types, other writers' habits."""

import io
import struct
import zlib

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


DEEP = np.random.default_rng(5).integers(0, 4096, (8, 8)).astype(np.uint16)


@pytest.mark.parametrize("ending", [".png", ".tiff", ".pgm"])
def test_gray_of_16_bits_keeps_all_of_them(tmp_path, ending):
    (tmp_path / "a").mkdir()
    Image.fromarray(DEEP).save(tmp_path / "a" / f"1{ending}")
    found = load(tmp_path)
    assert found.images.shape == (1, 1, 8, 8)
    np.testing.assert_array_equal(found.images[0, 0], (DEEP / 65535).astype(np.float32))
    assert found.reading["value_range"] == [0, 65535]
    assert "--data-range 0,4095" in found.notes[-1]
    twelve = load(tmp_path, value_range=(0, 4095))
    np.testing.assert_array_equal(twelve.images[0, 0], (DEEP / 4095).astype(np.float32))
    assert (twelve.unit, twelve.notes) == (PIXELS, ())
    # White in 8 bits is white in 16.
    Image.fromarray(np.full((8, 8, 3), 51, np.uint8)).save(tmp_path / "a" / "2.png")
    mixed = load(tmp_path).images
    assert mixed.shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(mixed[0, 2], found.images[0, 0])
    np.testing.assert_array_equal(mixed[1], np.full((3, 8, 8), np.float32(0.2)))


def test_gray_of_16_bits_is_turned_and_brought_to_a_size(tmp_path):
    (tmp_path / "a").mkdir()
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 1000
    for kind in (np.uint16, np.uint8):  # TIFF turns itself in Pillow, but not by its path
        Image.fromarray(deep.astype(kind)).save(tmp_path / "a" / "1.tiff", tiffinfo={274: 6})
        assert load(tmp_path).images.shape == (1, 1, 6, 4)
    np.testing.assert_array_equal(load(tmp_path).images[0, 0], np.rot90(deep.astype(kind), -1))
    Image.fromarray(np.full((4, 6), 40000, np.uint16)).save(tmp_path / "a" / "1.tiff")
    found = load(tmp_path, resize=(3, 2)).images
    np.testing.assert_array_equal(found, np.full((1, 1, 3, 2), np.float32(40000 / 65535)))


def test_colours_of_16_bits_are_read_to_8_and_it_is_said(tmp_path):
    """Pillow has no more; a note says so, as whoever read all 16 bits finds other numbers."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    row = b"\0" + struct.pack(">6H", 65535, 32768, 255, 1, 2, 3)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png)
    (tmp_path / "a" / "2.png").write_bytes(png)
    Image.new("RGB", (2, 2)).save(tmp_path / "a" / "3.png")
    found = load(tmp_path)
    assert found.images[0, :, 0, 0].tolist() == [255, 128, 0]
    assert found.notes[-1].startswith("2 of 3 pictures have 16 bits a colour")


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_without_a_white_are_refused_with_what_to_do(tmp_path, mode):
    (tmp_path / "a").mkdir()
    kind = {"F": np.float32, "I": np.int32}[mode]
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
