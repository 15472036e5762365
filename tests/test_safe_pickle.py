"""Pickles are read for their data and never run."""

from pathlib import Path

import numpy as np
import pytest

from tests.pickles import Call, pickled
from utils.misc import InputError
from utils.safe_pickle import read_pickle

WRITTEN = Path(__file__).parent / "fixtures" / "pickles"  # by Python 3.11 and NumPy 2.4
DATA = {
    "a/b.c": [1, -2, 2**40, 1.5, None, True, "é", b"\0\xff", (1, (2,)), {"k": 3}],
    "arrays": [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)),
        np.array([1, 2], ">i4"),
        np.zeros((0, 4), np.uint16),
    ],
    "scalars": [np.uint8(200), np.float64(0.5), np.str_("name")],
    3: [],
}


def same(a, b) -> bool:
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in b)
    if isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(b, np.ndarray):
        return a.dtype == b.dtype.newbyteorder("=") and a.shape == b.shape and (a == b).all()
    return a == b


@pytest.mark.parametrize("protocol", range(6))
def test_data_comes_back_as_the_standard_pickler_was_given_it(protocol):
    assert same(read_pickle(WRITTEN / f"protocol{protocol}.pkl"), DATA)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_pickles_of_the_tests_are_read_as_what_they_were_made_of(tmp_path, protocol):
    arrays = [np.arange(6, dtype=kind).reshape(2, 3) for kind in ("u1", "<u2", ">i4", "<f4")]
    data = {"é": [1, -(2**31), 0.5, None, True, False, (1, (2,)), {3: []}, np.uint8(200)], "arrays": arrays}
    (tmp_path / "a.pkl").write_bytes(pickled(data, protocol))
    assert same(read_pickle(tmp_path / "a.pkl"), data)


def test_one_array_twice_is_one_array():
    a, b = read_pickle(WRITTEN / "one_array_twice.pkl")
    assert a is b and a.tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_calls_anything_is_refused_before_it_runs(tmp_path, protocol, nested):
    target = tmp_path / "made"
    for call in (
        Call("posix", "mkdir", (str(target),)),
        Call("builtins", "eval", (f"open({str(target)!r}, 'w')",)),
        Call("io", "open", (str(target), "w")),
    ):
        (tmp_path / "a.pkl").write_bytes(pickled({"x": [1, call]} if nested else call, protocol))
        with pytest.raises(InputError, match=r"a\.pkl: refused"):
            read_pickle(tmp_path / "a.pkl")
        assert not target.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02.",
        b"(((",
        b"r\xff\xff\xff\x7f.",  # a memo index that would allocate gigabytes
        b"N" + b"r\xff\xff\xff\x7f" + b"(\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        pickled(np.array([1], ">i8")).replace(b"i8", b"O8"),
        pickled({"a": np.arange(6)}).replace(b"(J\x06", b"(J\x07"),
        b"cnumpy\nndarray\n(J\x00\x00\x00\x7ftR.",  # an array of 2 GB, of which nothing is stored
        b"cbuiltins\nbytes\n(J\x00\x00\x00\x7ftR.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.",
    ],
)
def test_malformed_and_unfit_pickles_are_refused(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.pkl"):
        read_pickle(tmp_path / "a.pkl")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_pickle(tmp_path / "none.pkl")
