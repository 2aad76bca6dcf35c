import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lipcert.data import Dataset
from lipcert.data.arrays import to_dataset
from lipcert.errors import CannotCertify, UsageError

LABELS = np.array([0, 1, 2])


def make(images, labels=LABELS, **options):
    return to_dataset("name", "test", np.asarray(images), labels, source="source", **options)


@given(hnp.arrays(np.uint8, (3, 2, 5)), st.permutations(range(3)))
def test_bytes_become_pixels_by_255(images, order):
    pixels = make(images).pixels(np.array(order))
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 1, 2, 5)
    np.testing.assert_array_equal(pixels[:, 0], images[order].astype(np.float32) / 255)


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)))
def test_floats_in_pixels_stay_as_they_are(images):
    np.testing.assert_array_equal(make(images).pixels(np.arange(3)), images)


@given(
    hnp.arrays(np.float64, (3, 4), elements=st.floats(0, 1)),
    st.floats(-1e3, 1e3),
    st.floats(1e-2, 1e3),
)
def test_a_declared_range_maps_back_to_pixels(unit, lo, width):
    hi = lo + width
    images = np.clip(lo + unit * width, lo, hi)
    pixels = make(images, value_range=(lo, hi)).pixels(np.arange(3))
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    np.testing.assert_allclose(pixels, unit, atol=1e-6)


def test_a_declared_range_wins_even_where_floats_already_look_like_pixels():
    images = np.full((3, 4), 0.5, np.float32)
    np.testing.assert_array_equal(make(images, value_range=(-1, 1)).images, 0.75)
    bytes_of_16 = np.full((3, 2, 2), 8, np.uint8)
    np.testing.assert_array_equal(make(bytes_of_16, value_range=(0, 16)).images, 0.5)
    assert make(bytes_of_16, value_range=(0, 255)).images.dtype == np.uint8


@pytest.mark.parametrize("layout", ["auto", "nchw", "nhwc"])
@given(images=hnp.arrays(np.uint8, (3, 2, 5, 3)))
def test_layouts_agree(layout, images):
    stored = np.moveaxis(images, 3, 1) if layout == "nchw" else images
    dataset = make(stored, layout=layout)
    np.testing.assert_array_equal(dataset.images, np.moveaxis(images, 3, 1))
    assert dataset.sha256 == make(images).sha256


@pytest.mark.parametrize("shape", [(3, 3, 8, 3), (3, 8, 8, 8), (3, 1, 1, 1)])
def test_an_ambiguous_layout_is_asked_for(shape):
    with pytest.raises(UsageError, match="--data-layout"):
        make(np.zeros(shape, np.uint8))
    assert make(np.zeros(shape, np.uint8), layout="nchw").images.shape == shape


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.full((3, 4, 4), 1.5), {}, "--data-layout ncl"),
        (np.full((3, 5, 5, 1), 1.5), {}, "--data-range lo,hi, such as --data-range 0,15"),
        (np.full((3, 5, 5, 1), -0.1), {}, "--data-range lo,hi, such as --data-range=-1,1"),
        (np.full((3, 5, 5, 1), -2.1), {}, "give the images before that, and --mean and --std"),
        (np.full((3, 4), 1.5), {"layout": "flat"}, "--data-range"),
        (np.full((3, 4), np.nan), {}, "NaN"),
        (np.full((3, 4), np.inf), {"value_range": (0, 1)}, "NaN or infinite"),
        (np.full((3, 4), 2.0), {"value_range": (-1, 1)}, "outside"),
        (np.full((3, 4), 0.5), {"value_range": (1, 1)}, "the smaller first"),
        (np.full((3, 4), 0.5), {"value_range": (0, np.inf)}, "finite"),
        (np.full((3, 5, 5, 1), 9, np.int32), {}, "in int32: .* --data-range lo,hi"),
        (np.full((3, 5, 5, 1), 300, np.int32), {}, "--data-range 0,4095"),
        (np.zeros((3, 4), str), {}, "not <U1"),
        (np.zeros((3, 4), complex), {}, "not complex"),
        (np.zeros(3), {}, "shape"),
        (np.zeros((3, 1, 2, 2, 2, 2)), {}, "shape"),
        (np.zeros((3, 2, 2, 2, 2)), {}, "--data-layout ncdhw"),
        (np.zeros((3, 4)), {"layout": "ncl"}, "needs arrays of 3 axes"),
        (np.zeros((2, 4)), {}, "labels"),
        (np.zeros((3, 2, 2, 1)), {"layout": "chw"}, "--data-layout chw"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, options, message):
    with pytest.raises(UsageError, match=message):
        make(images, **options)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0.0, 1.5, 2.0]),
        np.array([0.0, np.nan, 2.0]),
        np.array([[0, 2], [1, 0], [1, 0]]),
        np.array([[0, 1], [1, 1], [1, 0]]),
        np.array([[[0]], [[1]], [[2]]]),
        np.array([0, None, 1]),
        np.array([0, 1, -1]),
        np.array([0, 1, 3]),
        np.array([0, 1]),
        np.array([0, 1, 2**63], np.uint64),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(UsageError, match="label"):
        make(np.zeros((3, 4)), labels, classes=3)


def test_classes_are_counted_where_unknown():
    assert make(np.zeros((3, 4)), np.array([4, 0, 4])).classes == 5
    assert make(np.zeros((3, 4)), classes=7).classes == 7


def test_no_images_cannot_be_certified():
    with pytest.raises(CannotCertify, match="nothing to certify"):
        make(np.zeros((0, 4)), np.array([], int))


def test_a_dataset_checks_what_it_is_made_of():
    def direct(images, labels=LABELS):
        return Dataset("name", "test", images, labels, 3, "source")

    assert len(direct(np.zeros((3, 4), np.float32))) == 3
    for images in (
        np.zeros((3, 4)),
        np.zeros((3, 4, 4, 1, 1, 1), np.uint8),
        np.full((3, 4), np.nan, np.float32),
        np.full((3, 4), 1.5, np.float32),
    ):
        with pytest.raises(UsageError):
            direct(images)


def test_the_digest_is_of_values_dtype_and_shape():
    images = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    digest = make(images).sha256
    assert digest == make(np.asfortranarray(images)).sha256
    assert digest == make(images, LABELS.astype(">i4")).sha256
    others = [
        make(images + 1),
        make(images.reshape(3, 4, 2)),
        make(images.reshape(3, 8)),
        make(images, LABELS[::-1]),
        make(images / 255),
    ]
    assert len({digest, *(other.sha256 for other in others)}) == 6
