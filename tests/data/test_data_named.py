import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lipcert.data import available, files, load_dataset
from lipcert.data.published import NAMED
from lipcert.errors import CannotCertify, UsageError

IDX_STEM = {"train": "train", "test": "t10k"}
SETS = ["mnist", "fashion-mnist", "cifar10", "cifar100"]
CIFAR = ["cifar10", "cifar100"]


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx(folder, split, images, labels, dot="-", gz=""):
    images = images[:, 0]
    for kind, code, array in (("images", 3, images), ("labels", 1, labels.astype(np.uint8))):
        header = struct.pack(f">I{code}I", 0x0800 + code, *array.shape)
        name = f"{IDX_STEM[split]}-{kind}{dot}idx{code}-ubyte{gz}"
        save(folder / name, header + array.tobytes())


def binary(name, images, labels):
    coarse = [np.full(len(labels), 99, np.uint8)] if name == "cifar100" else []
    columns = [*coarse, labels.astype(np.uint8)]
    return np.hstack([*(c[:, None] for c in columns), images.reshape(len(images), -1)]).tobytes()


def pickled(name, images, labels, as_bytes=False):
    keys = {"cifar10": ("labels",), "cifar100": ("fine_labels", "coarse_labels")}[name]
    batch = {"data": images.reshape(len(images), -1)}
    batch |= {key: [int(label) for label in labels] for key in keys[:1]}
    batch |= {key: [99] * len(labels) for key in keys[1:]}
    return pickle.dumps({k.encode() if as_bytes else k: v for k, v in batch.items()}, protocol=2)


def members(name, split, images, labels, form, write):
    """The files of a CIFAR form, the images divided over them."""
    names = NAMED[name].forms[form].files[split]
    parts = zip(np.array_split(images, len(names)), np.array_split(labels, len(names)), strict=True)
    return {path: write(name, *part) for path, part in zip(names, parts, strict=True)}


def write_tar(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in [("readme.html", b"read me"), *contents.items()]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def check(name, split, arrays, **options):
    images, labels = arrays(name, split)
    dataset = load_dataset(name, split=split, offline=True, **options)
    assert (dataset.name, dataset.split, dataset.classes) == (name, split, NAMED[name].classes)
    assert dataset.images.dtype == np.uint8
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    return dataset


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("subfolder", ["", "data"])
@pytest.mark.parametrize("nhwc", [True, False])
def test_npz_is_read(small, arrays, tmp_path, name, split, subfolder, nhwc):
    small(name)
    images, labels = arrays(name, split)
    file = tmp_path / subfolder / f"{name.replace('-', '_')}_{split}.npz"
    file.parent.mkdir(exist_ok=True)
    np.savez(file, images=np.moveaxis(images, 1, 3) if nhwc else images, labels=labels)
    assert check(name, split, arrays, data_dir=tmp_path).source == file.name


@pytest.mark.parametrize(
    ("name", "subfolder"),
    [
        ("mnist", ""),
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", ""),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_idx_is_read(small, arrays, tmp_path, name, subfolder, split, dot, gz):
    small(name)
    write_idx(tmp_path / subfolder, split, *arrays(name, split), dot, gz)
    check(name, split, arrays, data_dir=tmp_path)


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("form", "write"), [(0, binary), (1, pickled)])
@pytest.mark.parametrize("archived", [True, False])
def test_cifar_is_read(small, arrays, tmp_path, name, split, form, write, archived):
    small(name)
    contents = members(name, split, *arrays(name, split), form, write)
    if archived:
        write_tar(tmp_path / NAMED[name].forms[form].archive, contents)
    else:
        for path, content in contents.items():
            save(tmp_path / path, content)
    check(name, split, arrays, data_dir=tmp_path)


def test_bytes_as_keys_of_a_pickle_are_read(small, arrays, tmp_path):
    small("cifar100")
    content = pickled("cifar100", *arrays("cifar100", "test"), as_bytes=True)
    save(tmp_path / "cifar-100-python/test", content)
    check("cifar100", "test", arrays, data_dir=tmp_path)


def test_folders_are_searched_in_order(small, arrays, tmp_path, empty_cache, monkeypatch):
    small("mnist")
    images, labels = arrays("mnist", "test")
    places = [tmp_path / "given", tmp_path / "environment", empty_cache / "mnist"]
    monkeypatch.setenv("LIPCERT_DATA_DIR", str(places[1]))
    for shade, place in reversed(list(enumerate(places))):
        write_idx(place, "test", np.full_like(images, shade), labels)
        given = {"data_dir": places[0]} if shade == 0 else {}
        dataset = load_dataset("mnist", offline=True, **given)
        assert set(dataset.images.ravel()) == {shade}


def test_available_tells_where(small, arrays, tmp_path, empty_cache):
    write_idx(tmp_path / "MNIST/raw", "test", *arrays("mnist", "test"))
    write_tar(empty_cache / "cifar10" / "cifar-10-python.tar.gz", {})
    found = {(name, split): where for name, split, where in available(tmp_path) if where}
    archive = empty_cache / "cifar10/cifar-10-python.tar.gz"
    assert found == {
        ("mnist", "test"): tmp_path / "MNIST/raw/t10k-images-idx3-ubyte",
        ("cifar10", "train"): archive,
        ("cifar10", "test"): archive,
    }
    assert len(available(tmp_path)) == 8 + 5


def test_a_changed_pixel_is_not_the_published_set(small, arrays, tmp_path):
    small("mnist")
    write_idx(tmp_path, "test", *arrays("mnist", "test"))
    published = check("mnist", "test", arrays, data_dir=tmp_path).sha256
    small("mnist", sha256={"test": published})
    check("mnist", "test", arrays, data_dir=tmp_path)
    images, labels = arrays("mnist", "test")
    images[3, 0, 5, 5] ^= 1
    write_idx(tmp_path, "test", images, labels)
    with pytest.raises(CannotCertify, match="is not the published set") as error:
        load_dataset("mnist", data_dir=tmp_path, offline=True)
    assert published in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_one_set_is_not_taken_for_another(small, arrays, tmp_path):
    for name in ("mnist", "fashion-mnist"):
        small(name)
    write_idx(tmp_path, "train", *arrays("mnist", "train"))
    published = check("mnist", "train", arrays, data_dir=tmp_path).sha256
    small("mnist", sha256={"train": published})
    with pytest.raises(CannotCertify, match="is mnist, not fashion-mnist"):
        load_dataset("fashion-mnist", split="train", data_dir=tmp_path, offline=True)


def test_a_part_or_floats_are_not_the_published_set(small, arrays, tmp_path):
    small("cifar100")
    images, labels = arrays("cifar100", "test")
    for kept in ((images[:-1], labels[:-1]), (images / 255, labels)):
        np.savez(tmp_path / "cifar100_test.npz", images=kept[0], labels=kept[1])
        with pytest.raises(CannotCertify, match="is not the published set"):
            load_dataset("cifar100", data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_damaged_idx_is_refused(small, arrays, tmp_path, gz, kind):
    small("mnist")
    write_idx(tmp_path, "test", *arrays("mnist", "test"), gz=gz)
    path = tmp_path / f"t10k-{kind}-ubyte{gz}"
    sound = path.read_bytes()
    for damaged in (sound[:-1], sound[:3], b"", b"\x01" + sound[1:], sound + b"\x01"):
        path.write_bytes(damaged)
        with pytest.raises(CannotCertify, match=path.name):
            load_dataset("mnist", data_dir=tmp_path, offline=True)


@pytest.mark.parametrize(("form", "write"), [(0, binary), (1, pickled)])
def test_damaged_cifar_is_refused(small, arrays, tmp_path, form, write):
    small("cifar10")
    contents = members("cifar10", "test", *arrays("cifar10", "test"), form, write)
    ((name, sound),) = contents.items()
    for damaged in (sound[:-1], sound[: len(sound) // 2], b"text"):
        save(tmp_path / name, damaged)
        with pytest.raises(CannotCertify, match=Path(name).name):
            load_dataset("cifar10", data_dir=tmp_path, offline=True)


@pytest.mark.parametrize(
    "batch",
    [
        [],
        {"labels": [0]},
        {"data": [0] * 3072, "labels": [0]},
        {"data": np.zeros((1, 3072)), "labels": [0]},
        {"data": np.zeros((1, 3071), np.uint8), "labels": [0]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": [0, 1]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": "a"},
        {"data": np.zeros((1, 3072), np.uint8)},
    ],
)
def test_a_pickle_of_something_else_is_refused(small, tmp_path, batch):
    small("cifar10")
    save(tmp_path / "cifar-10-batches-py/test_batch", pickle.dumps(batch))
    with pytest.raises(CannotCertify, match="test_batch"):
        load_dataset("cifar10", data_dir=tmp_path, offline=True)


class Touch:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("archived", [True, False])
def test_a_malicious_batch_is_refused_and_not_executed(small, tmp_path, archived):
    small("cifar10")
    name, trace = "cifar-10-batches-py/test_batch", tmp_path / "trace"
    content = pickle.dumps({"data": Touch(trace), "labels": [0]})
    if archived:
        write_tar(tmp_path / "cifar-10-python.tar.gz", {name: content})
    else:
        save(tmp_path / name, content)
    with pytest.raises(CannotCertify, match=r"(posix|nt)\.mkdir"):
        load_dataset("cifar10", data_dir=tmp_path, offline=True)
    assert not trace.exists()


def test_damaged_archives_are_refused(small, arrays, tmp_path):
    small("cifar10")
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_tar(path, members("cifar10", "test", *arrays("cifar10", "test"), 0, binary))
    sound = path.read_bytes()
    for damaged in (sound[: len(sound) // 2], b"text", b""):
        path.write_bytes(damaged)
        with pytest.raises(CannotCertify, match=path.name):
            load_dataset("cifar10", data_dir=tmp_path, offline=True)
    path.write_bytes(sound)
    with pytest.raises(CannotCertify, match="lacks cifar-10-batches-bin/data_batch_1"):
        load_dataset("cifar10", split="train", data_dir=tmp_path, offline=True)


def test_a_link_in_an_archive_is_not_followed(small, tmp_path):
    small("cifar10")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with pytest.raises(CannotCertify, match="lacks"):
        load_dataset("cifar10", data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("archived", [True, False])
def test_bombs_are_bounded(small, tmp_path, monkeypatch, archived):
    small("cifar10")
    monkeypatch.setattr(files, "PUBLISHED_BYTES", 1 << 20)
    name, zeros = "cifar-10-batches-bin/test_batch.bin", bytes(4 << 20)
    if archived:
        write_tar(tmp_path / "cifar-10-binary.tar.gz", {name: zeros})
    else:
        save(tmp_path / f"{name}.gz", zeros)
    with pytest.raises(CannotCertify, match="more than the 1048576 that are read"):
        load_dataset("cifar10", data_dir=tmp_path, offline=True)


def test_offline_names_what_was_looked_for(empty_cache, tmp_path):
    with pytest.raises(CannotCertify) as error:
        load_dataset("cifar10", data_dir=tmp_path, offline=True)
    for part in (
        str(tmp_path),
        str(empty_cache),
        "--data-dir",
        "cifar10_test.npz",
        "test_batch.bin",
        "cifar-10-python.tar.gz",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, "train, test"),
        ({"layout": "nhwc"}, "do not apply"),
        ({"value_range": (0, 1)}, "do not apply"),
        ({"data_dir": Path("absent")}, "no such folder"),
    ],
)
def test_wrong_use_of_a_named_set(empty_cache, options, message):
    with pytest.raises(UsageError, match=message):
        load_dataset("mnist", offline=True, **options)


def real_data():
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("LIPCERT_DATA_DIR") or beside)


@pytest.mark.skipif(
    not real_data().is_dir(), reason="LIPCERT_DATA_DIR is unset and ../shared/data is absent"
)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_real_sets_are_the_published_ones(name, split):
    folder = real_data()
    if not any((n, s) == (name, split) and where for n, s, where in available(folder)):
        pytest.skip(f"{name} {split} is in none of the data folders")
    dataset = load_dataset(name, split=split, data_dir=folder, offline=True)
    assert len(dataset) == NAMED[name].counts[split]
    assert set(np.unique(dataset.labels)) == set(range(NAMED[name].classes))


def test_a_folder_of_data_may_be_named_by_a_string(tmp_path: Path) -> None:
    images = np.zeros((2, 1, 28, 28), np.uint8)
    write_idx(tmp_path, "test", images, np.arange(2))
    with pytest.raises(CannotCertify, match=r"t10k|mnist"):
        load_dataset("mnist", data_dir=str(tmp_path), offline=True)
    with pytest.raises(UsageError, match="no such folder"):
        load_dataset("mnist", data_dir=str(tmp_path / "none"), offline=True)
