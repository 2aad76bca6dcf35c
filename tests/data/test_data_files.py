"""Files and the user's own code as sources of data: what is read, what is refused, and why."""

import io
import json
import os
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lipcert.data import Expected, load_dataset
from lipcert.data.classes import read_classes
from lipcert.data.dataset import OWN, PIXELS
from lipcert.data.pages import unpacked_sizes
from lipcert.errors import CannotCertify, UsageError

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(6) % 3


def encoded(pixels, kind="PNG", **options):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    file = io.BytesIO()
    image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    return path


def load(path, **options):
    return load_dataset(str(path), **options)


# Folders


def test_images_are_turned_as_their_exif_says(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    picture = image.new("RGB", (8, 6))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "0.png", exif=exif)
    images = load(tmp_path).images
    assert images.shape == (1, 3, 8, 6)
    assert np.argwhere(images[0, 0] == 255).tolist() == [[0, 5]]


def test_splits_are_not_taken_for_classes(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / split / "a" / "0.png", encoded(COLOUR[0]))
    with pytest.raises(UsageError, match=r"has the splits train, val, not 'test'; .* --split"):
        load(tmp_path)
    assert len(load(tmp_path, split="validation")) == 1


def test_images_of_several_sizes_can_be_brought_to_one(tmp_path):
    write(tmp_path / "a" / "0.png", encoded(COLOUR[0]))
    write(tmp_path / "a" / "1.png", encoded(COLOUR[0, :4]))
    with pytest.raises(UsageError, match="give one with --resize, such as --resize 8,8"):
        load(tmp_path)
    found = load(tmp_path, resize=(8,))
    assert found.images.shape == (2, 3, 8, 8)
    assert found.reading == {"resize": [8, 8]}
    np.testing.assert_array_equal(found.images[0], np.moveaxis(COLOUR[0], 2, 0))


# Tables


@pytest.mark.parametrize(
    ("text", "options", "label", "labels"),
    [
        ("a,b,species\n5.1,3.5,setosa\n6.0,2.2,virginica\n", {}, 2, [0, 1]),
        ("class;a;b\n1;5.1;3.5\n2;6.0;2.2\n", {}, 0, [1, 2]),
        ("0\t5.1\t3.5\n1\t6.0\t2.2\n0\t6.5\t2.7\n", {}, 0, [0, 1, 0]),
        ("1,14.2,1.7\n2,13.2,1.8\n1,13.1,1.9\n", {"expected": Expected((2,), 3)}, 0, [1, 2, 1]),
        ("14,2,2\n13,1,1\n13,1,0\n", {"label_key": "-1"}, 2, [2, 1, 0]),
        ("a,b,c\n1,2,0\n3,4,1\n", {"label_key": "c"}, 2, [0, 1]),
        ('a,b,label\n1,2,"0"\n\n3,4,"1"\n', {}, 2, [0, 1]),
        ("\ufeffa,b,label\n1,2,0\n3,4,1\n", {}, 2, [0, 1]),
    ],
)
def test_tables_find_their_label(tmp_path, text, options, label, labels):
    found = load(write(tmp_path / "own.csv", text), **options)
    assert (found.unit, found.images.shape[1]) == (OWN, 2)
    assert found.labels.tolist() == labels
    first = [line for line in text.splitlines() if line][-1]
    values = [part for k, part in enumerate(first.replace(";", ",").replace("\t", ",").split(","))
              if k != label]  # fmt: skip
    np.testing.assert_array_equal(found.images[-1], np.array(values, np.float32))


def test_the_row_numbers_of_pandas_are_no_feature(tmp_path):
    found = load(write(tmp_path / "own.csv", ",a,b,label\n0,1.5,2,0\n1,1.0,3,1\n"))
    np.testing.assert_array_equal(found.images, [[1.5, 2], [1, 3]])
    assert "the column of row numbers is left out" in found.notes


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("1,14,2\n2,13,1\n1,13,1\n", {}, "which column is the label; name it with --label-key"),
        ("a,b\n1.5,2.5\n2.5,3.5\n", {}, "it has the columns a, b"),
        ("a,b,label\n1,x,0\n2,y,1\n", {}, "column b is not one of numbers"),
        ("1,2\n", {"label_key": "7"}, "--label-key 7: .* the columns 0, 1"),
        ("1\n2\n", {}, "at least two columns"),
        ("1,2\n", {"layout": "auto", "image_key": "x"}, "--image-key: does not apply"),
    ],
)
def test_tables_that_do_not_tell_are_asked_about(tmp_path, text, options, message):
    with pytest.raises(UsageError, match=message):
        load(write(tmp_path / "own.csv", text), **options)


@pytest.mark.parametrize("text", ["", "1,2\n1,2,3\n", "a,label\n1,0\n" + "2,0\n" * 300 + "x,0\n"])
def test_what_is_no_table_is_refused(tmp_path, text):
    with pytest.raises(CannotCertify, match=r"own\.csv"):
        load(write(tmp_path / "own.csv", text))


# Arrays and tensors


def test_labels_lie_beside_their_images(tmp_path):
    for images, labels in (("x_test", "y_test"), ("images", "labels"), ("X", "y")):
        np.save(tmp_path / f"{images}.npy", COLOUR)
        np.save(tmp_path / f"{labels}.npy", LABELS)
        assert load(tmp_path / f"{images}.npy").labels.tolist() == LABELS.tolist()
    np.save(tmp_path / "alone.npy", COLOUR)
    with pytest.raises(UsageError, match="holds no labels; name their file with --labels"):
        load(tmp_path / "alone.npy")
    truth = write(tmp_path / "truth.txt", "\n".join("cab"[k] for k in LABELS))
    found = load(tmp_path / "alone.npy", labels=truth)
    assert found.names == ("a", "b", "c")
    assert found.labels.tolist() == [2, 0, 1, 2, 0, 1]


def test_a_damaged_npy_file_is_refused(tmp_path):
    np.save(tmp_path / "images.npy", COLOUR)
    np.save(tmp_path / "labels.npy", LABELS)
    path = tmp_path / "images.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"0"):
        path.write_bytes(damaged)
        with pytest.raises(CannotCertify, match=r"images\.npy: declares shape .* but holds"):
            load(path)
    path.write_bytes(whole[:20])
    with pytest.raises(CannotCertify, match="not a sound npy file"):
        load(path)
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(CannotCertify, match="Python objects"):
        load(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_tensors_are_read_and_nothing_else(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    images, labels = torch.from_numpy(COLOUR), torch.from_numpy(LABELS)
    torch.save((images, labels), "pair.pt")
    torch.save({"x_test": images, "y_test": labels, "x_train": images[:1]}, "split.pth")
    save_file({"images": images, "labels": labels}, "pair.safetensors")
    for name in ("pair.pt", "split.pth", "pair.safetensors"):
        found = load_dataset(name)
        np.testing.assert_array_equal(found.images, np.moveaxis(COLOUR, 3, 1))
        assert found.labels.tolist() == LABELS.tolist()
    torch.save(Trap(), "trap.pt")
    write(tmp_path / "broken.safetensors", b"none")
    for name in ("trap.pt", "broken.safetensors"):
        with pytest.raises(CannotCertify, match=name):
            load_dataset(name)
    assert not Path("trapped").exists()


# Parquet


@pytest.fixture
def parquet():
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    files = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

    def save(path, features=None, **columns):
        path.parent.mkdir(parents=True, exist_ok=True)
        table = arrow.table(columns)
        if features is not None:
            info = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": info})
        files.write_table(table, path)
        return path

    return save


def test_parquet_as_the_hub_serves_it(tmp_path, parquet):
    pictures = [{"bytes": encoded(pixels), "path": None} for pixels in COLOUR]
    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog", "emu"]}}
    for split, cut in (("train", slice(0, 2)), ("test", slice(2, 4))):
        for shard in range(2):
            name = f"{split}-0000{shard}-of-00002.parquet"
            some = slice(cut.start + shard, cut.start + shard + 1)
            parquet(tmp_path / "data" / name, features, image=pictures[some],
                    label=LABELS[some].tolist())  # fmt: skip
    found = load(tmp_path)
    np.testing.assert_array_equal(found.images, np.moveaxis(COLOUR[2:4], 3, 1))
    assert found.labels.tolist() == [2, 0]
    assert found.names == ("cat", "dog", "emu")
    assert not found.by_name
    assert len(load(tmp_path, split="train")) == 2
    with pytest.raises(UsageError, match=r"splits train, test, not 'val'; .* --split"):
        load(tmp_path, split="val")


def test_parquet_of_arrays_and_of_features(tmp_path, parquet):
    rows = [pixels.tolist() for pixels in COLOUR]
    path = parquet(tmp_path / "arrays.parquet", img=rows, fine_label=LABELS.tolist())
    np.testing.assert_array_equal(load(path).images, np.moveaxis(COLOUR, 3, 1))
    path = parquet(tmp_path / "table.parquet", a=[1.5, 2.0], b=[3, 4], target=[0, 1])
    found = load(path)
    np.testing.assert_array_equal(found.images, [[1.5, 3], [2, 4]])
    assert (found.unit, found.labels.tolist()) == (OWN, [0, 1])
    path = parquet(tmp_path / "odd.parquet", a=[1.5, 2.0], truth=[0, 1])
    with pytest.raises(UsageError, match="--label-key; it has a, truth"):
        load(path)
    assert load(path, label_key="truth").labels.tolist() == [0, 1]


def test_damaged_parquet_is_refused(tmp_path, parquet):
    pictures = [{"bytes": b"no picture", "path": None}]
    with pytest.raises(CannotCertify, match="row 0: cannot be read as an image"):
        load(parquet(tmp_path / "own.parquet", image=pictures, label=[0]))
    pictures = [{"bytes": None, "path": "0.png"}]
    with pytest.raises(CannotCertify, match="holds no picture, only the path"):
        load(parquet(tmp_path / "own.parquet", image=pictures, label=[0]))
    with pytest.raises(CannotCertify, match="not a sound Parquet file"):
        load(write(tmp_path / "own.parquet", b"PAR1xxxx"))


@pytest.mark.parametrize(
    "how",
    [
        {}, {"compression": "gzip"}, {"compression": "zstd", "data_page_version": "2.0"},
        {"use_dictionary": False, "write_page_index": True}, {"data_page_size": 256},
        {"write_statistics": False, "column_encoding": "DELTA_BINARY_PACKED",
         "use_dictionary": False}, {"write_page_checksum": True}, {"row_group_size": 50},
    ],
)  # fmt: skip
def test_the_pages_of_parquet_declare_what_their_columns_do(tmp_path, how):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    files = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    numbers = np.arange(300) % 7
    path = tmp_path / "table.parquet"
    files.write_table(arrow.table({"a": numbers, "b": 2 * numbers, "label": numbers % 3}), path,
                      **how)  # fmt: skip
    assert load(path).labels.tolist() == (numbers % 3).tolist()
    metadata, seen = files.ParquetFile(path).metadata, 0
    with path.open("rb") as stream:
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for part in map(group.column, range(3)):
                start = part.dictionary_page_offset or part.data_page_offset
                sizes = [*unpacked_sizes(stream, start, part.total_compressed_size)]
                # What is declared counts the headers, of some 20 bytes each, as well.
                assert sum(sizes) < part.total_uncompressed_size < sum(sizes) + 200 * len(sizes)
                seen += len(sizes)
    assert seen >= 3


def test_a_page_that_unpacks_to_more_than_its_column_declares_is_not_unpacked(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    files = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    path = tmp_path / "table.parquet"
    table = arrow.table({"a": np.zeros(140_000), "label": np.zeros(140_000, np.int64)})
    files.write_table(table, path, use_dictionary=False, data_page_size=2 << 20)
    content = path.read_bytes()
    part = files.ParquetFile(path).metadata.row_group(0).column(0)
    with path.open("rb") as stream:
        first = next(unpacked_sizes(stream, part.data_page_offset, part.total_compressed_size))
    written, most = (varint(2 * size) for size in (first, (1 << 20) - 1))
    assert len(written) == len(most) == 3
    assert content.count(written) >= 1
    write(path, content.replace(written, most, 1))
    with pytest.raises(CannotCertify, match="its pages unpack to more than the"):
        load(path)


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


@pytest.mark.parametrize("length", range(1, 40))
def test_cut_pages_are_no_pages(tmp_path, length, parquet):
    path = parquet(tmp_path / "table.parquet", a=[1.5, 2.0], target=[0, 1])
    content = path.read_bytes()[4:]
    with pytest.raises(ValueError, match="page"):
        list(unpacked_sizes(io.BytesIO(content[:length]), 0, len(content) + 20))


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"pip install 'lipcert\[data\]'"):
        load(write(tmp_path / "own.parquet", b""))


# What a factory may return


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`own(body)`: the dataset that a factory of this body makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))

    def load_own(body, **options):
        head = """
        import numpy as np, torch
        from PIL import Image
        from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
        X = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 8, 8) / 4
        Y = torch.tensor([0, 1, 0, 1])
        class Items(Dataset):
            classes = ["cat", "dog"]
            def __len__(self):
                return 4
            def __getitem__(self, i):
                return X[i], int(Y[i])
        class Pictures(Items):
            def __getitem__(self, i):
                pixels = (X[i] * 255).round().byte().permute(1, 2, 0).numpy()
                return Image.fromarray(pixels), int(Y[i])
        class Rows(Items):
            def __getitem__(self, i):
                return {"image": X[i], "label": int(Y[i])}
        class Stream(IterableDataset):
            def __iter__(self):
                return zip(X, Y)
        def batches():
            yield X[:2], Y[:2]
            yield X[2:], Y[2:]
        """
        code = textwrap.dedent(head) + f"def made(split):\n    return {body}\n"
        (tmp_path / "own_data.py").write_text(code)
        return load_dataset("own_data:made", **options)

    return load_own


@pytest.mark.parametrize(
    "body",
    [
        "X, Y",
        "X.clone().requires_grad_(), Y",
        "X.tolist(), Y.tolist()",
        "{f'x_{split}': X, f'y_{split}': Y}",
        "TensorDataset(X, Y)",
        "Items()",
        "Pictures()",
        "Rows()",
        "Stream()",
        "batches()",
        "DataLoader(Items(), batch_size=3, shuffle=True)",
        "DataLoader(Stream(), batch_size=3)",
        "[(x, y) for x, y in zip(X, Y)]",
    ],
)
def test_what_a_factory_may_return(own, body):
    found = own(body)
    assert found.unit == PIXELS
    assert found.images.shape == (4, 3, 8, 8)
    assert found.labels.tolist() == [0, 1, 0, 1]
    shades = found.pixels(np.arange(4))[:, 0, 0, 0]
    np.testing.assert_allclose(shades, [0, 0.25, 0.5, 0.75], atol=0.5 / 255)
    if "Items" in body or "Pictures" in body:
        assert found.names == ("cat", "dog")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("'text'", "returned str; it must return"),
        ("7", "returned int; it must return"),
        ("X, Y, X", "pairs .image, label., not Tensor"),
        ("[(X[0], 0, 1)]", "not tuple of 3"),
        ("[]", "no samples"),
        ("{'fog': X}", "it has fog; name the one to take with --image-key"),
        ("X * 4 - 2, Y", "give the images before that, and --mean and --std"),
        ("[(X[0], 0), (X[1, :, :4], 1)]", "do not fit together"),
    ],
)
def test_what_a_factory_may_not_return(own, body, message):
    with pytest.raises(UsageError, match=message):
        own(body)


# Names of classes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('["cat", "dog"]', [("cat",), ("dog",)]),
        ('{"1": ["n2", "dog"], "0": ["n1", "cat"]}', [("n1", "cat"), ("n2", "dog")]),
        ('{"dog": 1, "cat": 0}', [("cat",), ("dog",)]),
        ("cat\n\ndog\n", [("cat",), ("dog",)]),
        ("0: cat\n1: big dog\n", [("cat",), ("big dog",)]),
        (
            "n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
            [("n01440764", "tench, Tinca tinca"), ("n01443537", "goldfish")],
        ),
    ],
)
def test_classes_are_read_from_every_form(tmp_path, text, names):
    assert read_classes(write(tmp_path / "classes", text)) == names


@pytest.mark.parametrize("text", ["", "[]", '{"0": "a", "2": "b"}', "[1, 2]", "{", '{"0": 1.5}'])
def test_what_names_no_classes_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match="--classes"):
        read_classes(write(tmp_path / "classes", text))


# Tiny-ImageNet and GTSRB

WNIDS = ["n02000010", "n01000010", "n03000010"]


def tiny_imagenet(root):
    write(root / "wnids.txt", "\n".join(WNIDS) + "\n")
    rows = [f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n" for i, wnid in enumerate(WNIDS)]
    write(root / "val" / "val_annotations.txt", "".join(rows))
    gray = RANDOM.integers(0, 256, (64, 64), dtype=np.uint8)
    for i, wnid in enumerate(WNIDS):
        pixels = gray if i == 1 else RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        write(root / "val" / "images" / f"val_{i}.JPEG", encoded(pixels, "JPEG"))
        name = root / "train" / wnid / "images" / f"{wnid}_0.JPEG"
        write(name, encoded(pixels, "JPEG"))
    write(root / "test" / "images" / "test_0.JPEG", encoded(gray, "JPEG"))
    return root


def zipped(folder, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def test_tiny_imagenet_as_its_archive_has_it(tmp_path, monkeypatch):
    monkeypatch.delenv("LIPCERT_DATA_DIR", raising=False)
    root = tiny_imagenet(tmp_path / "data" / "tiny-imagenet-200")
    zipped(tmp_path / "data", tmp_path / "zip" / "tiny-imagenet-200.zip")
    for place in (root.parent, root, tmp_path / "zip"):
        found = load_dataset("tiny-imagenet", data_dir=place)
        assert found.images.shape == (3, 3, 64, 64)
        # In the order of the wnids' names, as torchvision's ImageFolder numbers them.
        assert found.labels.tolist() == [1, 0, 2]
        assert found.names == tuple(sorted(WNIDS))
        assert "the split val" in found.notes[0]
        assert "holds 3 of the 10000 images" in found.notes[1]
        val = load_dataset("tiny-imagenet", split="val", data_dir=place)
        assert val.sha256 == found.sha256
        train = load_dataset("tiny-imagenet", split="train", data_dir=place)
        assert train.labels.tolist() == [0, 1, 2]
    broken = root / "val" / "images" / "val_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(CannotCertify, match=r"val_0\.JPEG: cannot be read as an image"):
        load_dataset("tiny-imagenet", data_dir=root)


def gtsrb(root):
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    write(root / "GT-final_test.csv", head + "00000.ppm;40;30;5;5;35;25;16\n"
                                             "00001.ppm;50;60;5;5;45;55;1\n")  # fmt: skip
    for i, shape in enumerate(((30, 40, 3), (60, 50, 3))):
        pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
        write(root / "Final_Test" / "Images" / f"0000{i}.ppm", encoded(pixels, "PPM"))
        where = root / "Final_Training" / "Images" / f"000{i}2" / "00000_00000.ppm"
        write(where, encoded(pixels, "PPM"))
    return root


def test_gtsrb_as_its_archives_have_it(tmp_path, monkeypatch):
    monkeypatch.delenv("LIPCERT_DATA_DIR", raising=False)
    root = gtsrb(tmp_path / "data" / "GTSRB")
    zips = tmp_path / "zip"
    zipped(root / "Final_Test", zips / "GTSRB_Final_Test_Images.zip")
    with zipfile.ZipFile(zips / "GTSRB_Final_Test_Images.zip", "w") as archive:
        for file in (root / "Final_Test" / "Images").iterdir():
            archive.write(file, f"GTSRB/Final_Test/Images/{file.name}")
    with zipfile.ZipFile(zips / "GTSRB_Final_Test_GT.zip", "w") as archive:
        archive.write(root / "GT-final_test.csv", "GT-final_test.csv")
    for place in (tmp_path / "data", root, zips):
        found = load_dataset("gtsrb", data_dir=place)
        assert found.images.shape == (2, 3, 32, 32)
        assert found.labels.tolist() == [16, 1]
        assert (found.classes, found.names[14]) == (43, "stop")
        assert "brought to 32x32" in found.notes[-1]
    train = load_dataset("gtsrb", split="train", data_dir=root)
    assert train.labels.tolist() == [2, 12]
    wide = load_dataset("gtsrb", data_dir=root, expected=Expected((3, 48, 48), 43))
    assert wide.images.shape == (2, 3, 48, 48)
    assert load_dataset("gtsrb", data_dir=root, resize=(20, 24)).images.shape[2:] == (20, 24)


@pytest.mark.parametrize("name", ["tiny-imagenet", "gtsrb"])
def test_what_is_not_here_tells_where_it_is_published(tmp_path, monkeypatch, name):
    monkeypatch.delenv("LIPCERT_DATA_DIR", raising=False)
    with pytest.raises(CannotCertify, match="was not found: it is published at https://"):
        load_dataset(name, data_dir=tmp_path)
    with pytest.raises(UsageError, match="has the splits"):
        load_dataset(name, split="dev", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"), [("tiny-imagenet", (1000, 3, 64, 64)), ("gtsrb", (1290, 3, 32, 32))]
)
def test_parts_of_the_real_sets_are_read(name, shape):
    shared = os.environ.get("LIPCERT_SHARED_DIR")
    if not shared:
        pytest.skip("LIPCERT_SHARED_DIR names no folder of real data")
    found = load_dataset(name, data_dir=Path(shared) / "data")
    assert found.images.shape == shape
    assert len(np.unique(found.labels)) == found.classes
