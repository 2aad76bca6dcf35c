"""The axes of arrays: declared, told by shape or model, or asked for; units and labels."""

import numpy as np
import pytest

from lipcert.data import Expected
from lipcert.data.arrays import to_dataset
from lipcert.data.dataset import OWN, PIXELS, RANGE
from lipcert.errors import UsageError

LABELS = np.array([0, 1, 2])


def make(images, **options):
    return to_dataset("name", "test", images, LABELS, source="source", **options)


@pytest.mark.parametrize(
    ("shape", "expected", "layout"),
    [
        ((3, 8), None, "nf"),
        ((3, 8), (8,), "nf"),
        ((3, 5), (1, 1, 5), "nf"),
        ((3, 64), (1, 8, 8), "flat"),
        ((3, 64), (8, 8, 1), "flat"),
        ((3, 8, 8), (1, 8, 8), "nhw"),
        ((3, 2, 32), None, "ncl"),
        ((3, 32, 2), None, "nlc"),
        ((3, 2, 32), (2, 32), "ncl"),
        ((3, 13, 20, 20), (13, 20, 20), "nchw"),
        ((3, 20, 20, 13), (13, 20, 20), "nhwc"),
        ((3, 20, 20, 13), (20, 20, 13), "nhwc"),
        ((3, 9, 9, 9), (1, 9, 9, 9), "ndhw"),
        ((3, 1, 4, 6, 6), None, "ncdhw"),
        ((3, 5, 6, 6, 1), None, "ndhwc"),
        ((3, 2, 7, 6, 5), (2, 7, 6, 5), "ncdhw"),
    ],
)
def test_what_shape_and_model_tell(shape, expected, layout):
    made = make(np.zeros(shape, np.float32), expected=Expected(expected, 3))
    assert made.reading["layout"] == layout


@pytest.mark.parametrize(
    ("shape", "expected", "options"),
    [
        ((3, 6, 6, 6), (6, 6, 6), "nchw or --data-layout nhwc"),
        ((3, 13, 20, 20), None, "nchw or --data-layout nhwc"),
        ((3, 2, 7, 6, 5), None, "ncdhw or --data-layout ndhwc"),
        ((3, 4, 6, 6, 1), None, "ncdhw or --data-layout ndhwc"),
    ],
)
def test_what_neither_tells_is_asked_for(shape, expected, options):
    with pytest.raises(UsageError, match=f"--data-layout {options}"):
        make(np.zeros(shape, np.float32), expected=Expected(expected, 3))


@pytest.mark.parametrize(
    ("layout", "shape", "inside"),
    [
        ("nhwc", (3, 4, 5, 2), (3, 2, 4, 5)),
        ("nhw", (3, 4, 5), (3, 1, 4, 5)),
        ("nlc", (3, 9, 2), (3, 2, 9)),
        ("ndhw", (3, 4, 5, 6), (3, 1, 4, 5, 6)),
        ("ndhwc", (3, 4, 5, 6, 2), (3, 2, 4, 5, 6)),
    ],
)
def test_channels_come_first_inside(layout, shape, inside):
    images = np.random.default_rng(0).random(shape, np.float32)
    made = make(images, layout=layout)
    assert made.images.shape == inside
    if layout in ("nlc", "nhwc", "ndhwc"):
        np.testing.assert_array_equal(made.images[:, 1], images[..., 1])


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 32), (3, 1, 4, 6, 6)])
def test_tables_signals_and_volumes_keep_their_own_numbers(shape):
    values = np.random.default_rng(0).normal(0, 300, shape)
    made = make(values)
    assert made.unit == OWN
    np.testing.assert_array_equal(made.pixels(np.arange(3)), values.astype(np.float32))
    sides = np.ptp(made.images.reshape(3, -1).astype(float), axis=0)
    assert made.reach == pytest.approx(np.sqrt((sides**2).sum()))


def test_a_declared_range_is_the_unit_of_a_table():
    made = make(np.array([[-6.0], [9.0], [1.5]]), value_range=(-6, 9))
    assert made.unit == RANGE
    assert made.reach is None
    np.testing.assert_array_equal(made.images[:, 0], [0, 1, 0.5])


def test_bytes_of_volumes_are_brought_to_0_and_1_and_it_is_said():
    made = make(np.full((3, 1, 4, 6, 6), 51, np.uint8))
    assert made.unit == RANGE
    assert made.pixels(np.arange(1)).max() == np.float32(0.2)
    assert "bytes of 0 to 255" in made.notes[0]


@pytest.mark.parametrize("dtype", ["i8", "u2", "f4", "f8"])
def test_whole_numbers_of_bytes_are_bytes(dtype):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3)).astype(dtype)
    images[0, 0, 0, 0] = 255
    made = make(images)
    assert (made.images.dtype, made.unit) == (np.uint8, PIXELS)
    np.testing.assert_array_equal(made.images, np.moveaxis(images, 3, 1))


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (np.array([[2], [0], [1]], np.uint8), [2, 0, 1], ()),
        (np.eye(3, dtype=np.float32)[[2, 0, 1]], [2, 0, 1], ()),
        (np.array([2.0, 0.0, 1.0]), [2, 0, 1], ()),
        (np.array([True, False, True]), [1, 0, 1], ()),
        (np.array(["2", "0", "10"]), [2, 0, 10], ()),
        (np.array(["dog", "cat", "dog"]), [1, 0, 1], ("cat", "dog")),
        (np.array([b"dog", b"cat", b"dog"]), [1, 0, 1], ("cat", "dog")),
    ],
)
def test_labels_as_people_write_them(labels, numbers, names):
    made = to_dataset("name", "test", np.zeros((3, 4)), labels, source="source")
    assert made.labels.tolist() == numbers
    assert made.names == names
    assert made.by_name == bool(names)
