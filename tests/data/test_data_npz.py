import io
import os
import struct
import zipfile

import numpy as np
import pytest

from lipcert.data import load_dataset
from lipcert.errors import CannotCertify, UsageError

IMAGES = np.arange(2 * 5 * 5 * 3, dtype=np.uint8).reshape(2, 5, 5, 3)
LABELS = np.array([1, 0])


def npy(array, shape=None):
    """The bytes of an npy file, its header declaring `shape` whatever the array's own is."""
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, {**header, "shape": shape or array.shape})
    return file.getvalue() + array.tobytes()


def write(path, images=None, labels=None, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("images.npy", npy(IMAGES) if images is None else images)
        archive.writestr("labels.npy", npy(LABELS) if labels is None else labels)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("image_key", "label_key"), [("images", "labels"), ("x", "y")])
def test_what_numpy_saves_is_read_back(tmp_path, save, image_key, label_key):
    path = tmp_path / "own.npz"
    save(path, **{image_key: IMAGES, label_key: LABELS, "names": np.array(["a", "b"])})
    dataset = load_dataset(str(path))
    assert (dataset.name, dataset.split, dataset.source) == ("own", "test", "own.npz")
    assert dataset.classes == 2
    np.testing.assert_array_equal(dataset.images, np.moveaxis(IMAGES, 3, 1))
    np.testing.assert_array_equal(dataset.labels, LABELS)


def test_declarations_reach_the_arrays(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, images=np.full((2, 3, 3, 3), 0.5), labels=LABELS)
    dataset = load_dataset(str(path), layout="nhwc", value_range=(-1, 1))
    assert dataset.images.dtype == np.float32
    np.testing.assert_array_equal(dataset.images, 0.75)


@pytest.mark.parametrize("images", [np.asfortranarray(IMAGES), IMAGES / 255, IMAGES.astype(">f4")])
def test_orders_and_widths_are_read(tmp_path, images):
    path = tmp_path / "own.npz"
    np.savez(path, images=images, labels=LABELS.astype(np.uint8))
    pixels = load_dataset(str(path), value_range=(0, images.max())).pixels(np.arange(2))
    np.testing.assert_allclose(pixels, np.moveaxis(images / images.max(), 3, 1), rtol=1e-6)


def test_missing_arrays_are_named(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, images=IMAGES, truth=LABELS)
    with pytest.raises(UsageError, match=r"labels or y; it has images, truth; name .* --label-key"):
        load_dataset(str(path))


@pytest.mark.parametrize("shape", [(2**40, 5, 5, 3), (3, 5, 5, 3), (2, 5, 5, 2), (-2, -5, 5, 3)])
def test_a_header_that_contradicts_its_size_is_refused(tmp_path, shape):
    path = write(tmp_path / "own.npz", images=npy(IMAGES, shape))
    with pytest.raises(CannotCertify, match=r"header declares|not a sound"):
        load_dataset(str(path))


@pytest.mark.parametrize("declared", [2**31, 2**32 - 2])
def test_a_directory_that_declares_more_than_its_bytes_can_hold_is_refused(tmp_path, declared):
    path = write(tmp_path / "own.npz")
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", declared)
    path.write_bytes(content)
    with pytest.raises(CannotCertify, match=f"declares {declared} bytes"):
        load_dataset(str(path))
    content[entry + 20 : entry + 24] = struct.pack("<I", declared)
    path.write_bytes(content)
    with pytest.raises(CannotCertify, match=f"declares {declared} bytes, more than the file has"):
        load_dataset(str(path))


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_objects_are_never_unpickled(tmp_path):
    path, trace = tmp_path / "own.npz", tmp_path / "trace"
    np.savez(path, images=np.array([Touch(trace)] * 2, dtype=object), labels=LABELS)
    with pytest.raises(CannotCertify, match="Python objects"):
        load_dataset(str(path))
    assert not trace.exists()


def test_damage_is_refused(tmp_path):
    path = write(tmp_path / "own.npz", method=zipfile.ZIP_STORED)
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[sound.index(IMAGES.tobytes())] ^= 1
    for damaged in (sound[:-30], sound[: len(sound) // 2], b"", b"text", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(CannotCertify, match="not a sound npz file"):
            load_dataset(str(path))
