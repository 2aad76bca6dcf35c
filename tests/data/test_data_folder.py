import sys

import numpy as np
import pytest

from lipcert.data import load_dataset
from lipcert.errors import CannotCertify, UsageError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
NAMES = ["b/0.png", "a/10.png", "a/2.bmp", "c/x.PPM"]


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


def test_classes_are_sub_folders_by_name(tmp_path):
    for name, pixels in zip(NAMES, COLOUR, strict=True):
        save(tmp_path / name, pixels)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "d").mkdir()
    (tmp_path / ".hidden").mkdir()
    dataset = load_dataset(str(tmp_path))
    assert (dataset.name, dataset.classes) == (tmp_path.name, 4)
    assert dataset.labels.tolist() == [0, 0, 1, 2]
    np.testing.assert_array_equal(dataset.images, np.moveaxis(COLOUR[[1, 2, 0, 3]], 3, 1))


def test_a_folder_of_the_split_is_entered(tmp_path):
    save(tmp_path / "train" / "a" / "0.png", COLOUR[0])
    save(tmp_path / "test" / "a" / "0.png", COLOUR[1])
    for split, pixels in (("train", COLOUR[0]), ("test", COLOUR[1])):
        dataset = load_dataset(str(tmp_path), split=split)
        np.testing.assert_array_equal(dataset.images[0], np.moveaxis(pixels, 2, 0))


def test_gray_images_have_one_channel(tmp_path):
    gray = COLOUR[0, :, :, 0]
    save(tmp_path / "a" / "0.png", gray)
    save(tmp_path / "a" / "1.png", gray, "LA")
    images = load_dataset(str(tmp_path)).images
    assert images.shape == (2, 1, 6, 5)
    np.testing.assert_array_equal(images[:, 0], [gray, gray])
    save(tmp_path / "a" / "2.png", COLOUR[1])
    images = load_dataset(str(tmp_path)).images
    assert images.shape == (3, 3, 6, 5)
    np.testing.assert_array_equal(images[0], [gray] * 3)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_palettes_and_transparency_become_rgb(tmp_path, mode):
    flat = np.tile(np.array([[[255, 0, 51]]], np.uint8), (6, 5, 1))
    save(tmp_path / "a" / "0.png", flat, mode)
    images = load_dataset(str(tmp_path)).images
    np.testing.assert_array_equal(images[0], np.moveaxis(flat, 2, 0))


def test_several_sizes_are_refused(tmp_path):
    save(tmp_path / "a" / "0.png", COLOUR[0])
    save(tmp_path / "a" / "1.png", COLOUR[1, :4])
    with pytest.raises(UsageError, match=r"1\.png: is 5x4, but .*0\.png is 5x6"):
        load_dataset(str(tmp_path))


def test_numbers_that_tell_no_white_are_refused(tmp_path):
    save(tmp_path / "a" / "0.tiff", np.full((6, 5), 40_000, np.float32))
    with pytest.raises(UsageError, match="8 or 16 bits"):
        load_dataset(str(tmp_path))


def test_a_damaged_image_or_another_format_under_its_name_is_refused(tmp_path):
    path = tmp_path / "a" / "0.png"
    save(path, COLOUR[0])
    sound = path.read_bytes()
    for damaged in (sound[:60], b"%!PS-Adobe-3.0 EPSF-3.0\n", b""):
        path.write_bytes(damaged)
        with pytest.raises(CannotCertify, match=r"0\.png: cannot be read as an image"):
            load_dataset(str(tmp_path))


@pytest.mark.parametrize("most", [20, 10])
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, most):
    save(tmp_path / "a" / "0.png", COLOUR[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    with pytest.raises(CannotCertify, match="decompression bomb"):
        load_dataset(str(tmp_path))


def test_a_folder_without_classes_is_refused(tmp_path):
    save(tmp_path / "0.png", COLOUR[0])
    with pytest.raises(UsageError, match="a sub-folder of images for each class"):
        load_dataset(str(tmp_path))


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a" / "0.png", COLOUR[0])
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UsageError, match=r"pip install 'lipcert\[images\]'"):
        load_dataset(str(tmp_path))
