import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lipcert.data.pickled import unpickle
from lipcert.errors import CannotCertify

NUMERIC = st.one_of(
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)


@given(hnp.arrays(NUMERIC, hnp.array_shapes(min_side=0)), st.integers(0, 5), st.booleans())
def test_every_protocol_gives_the_array_back(array, protocol, fortran):
    array = np.asfortranarray(array) if fortran else array
    for core in (b"numpy._core", b"numpy.core "):
        data = pickle.dumps({"data": array}, protocol)
        if protocol < 4:  # later ones prefix names with their length
            data = data.replace(b"numpy._core", core.strip())
        found = unpickle(data, "source")["data"].array
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@given(st.dictionaries(st.text() | st.binary(), st.lists(st.integers() | st.text() | st.binary())))
def test_plain_objects_come_back(value):
    for protocol in range(6):
        assert unpickle(pickle.dumps(value, protocol), "source") == value


def test_what_python_2_and_numpy_1_wrote_is_read():
    data = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x02\x07\xfftbs."
    )
    assert unpickle(data, "source")["data"].array.tolist() == [7, 255]


class Call:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_and_not_made(tmp_path, protocol):
    trace = tmp_path / "trace"
    hostile = pickle.dumps({"data": Call(os.mkdir, str(trace))}, protocol)
    with pytest.raises(CannotCertify, match=r"source: .*(posix|nt)\.mkdir"):
        unpickle(hostile, "source")
    assert not trace.exists()
    pickle.loads(hostile)  # noqa: S301 - the harm is real where it is not refused
    assert trace.exists()


@pytest.mark.parametrize(
    ("function", "named"),
    [(eval, "eval"), (getattr, "getattr"), (__import__, "__import__"), (np.load, "load")],
)
def test_the_forbidden_global_is_named(function, named):
    with pytest.raises(CannotCertify, match=named):
        unpickle(pickle.dumps(Call(function, "0"), 2), "source")


@pytest.mark.parametrize("dtype", [object, "S4", "M8[s]", [("a", "u1")]])
def test_other_arrays_are_refused(dtype):
    with pytest.raises(CannotCertify):
        unpickle(pickle.dumps(np.zeros(2, dtype)), "source")


@given(st.binary())
def test_noise_is_refused_or_harmless(data):
    try:
        unpickle(data, "source")
    except CannotCertify as error:
        assert "source" in str(error)  # noqa: PT017 - noise may also be a sound pickle


def test_a_shape_that_contradicts_its_bytes_is_refused():
    data = pickle.dumps(np.zeros(7, np.uint8), 2)
    with pytest.raises(CannotCertify, match="not a sound pickle"):
        unpickle(data.replace(b"K\x07\x85", b"K\x09\x85"), "source")
