"""Pickles of public data sets: NumPy arrays and plain containers are read, anything else is refused."""

import io
import math
import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np

from utils.misc import InputError

MAX_GROWTH = 8  # bytes of arrays and byte strings that may be made of one byte of the file


class _DType:
    """Stands for a NumPy dtype of numbers or strings: NumPy itself does not check what a pickle sets in a dtype."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[biuf][1248]|[SU]\d{1,4}", code):
            raise pickle.UnpicklingError(f"it holds an array of {code[:20]!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose state is checked before NumPy takes it."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        array = self.unpickler.array(data, dtype, shape, "F" if fortran else "C")
        super().__setstate__((1, array.shape, array.dtype, False, array.tobytes()))
        del self.unpickler


class _DataUnpickler(pickle._Unpickler):
    """Resolves the constructors of arrays alone.

    The version in Python of `pickle.Unpickler`: that in C allocates whatever a damaged memo index asks for.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.bytes_left = MAX_GROWTH * len(data) + 1024

    def find_class(self, module: str, name: str) -> object:
        constructors = {
            "numpy.dtype": _DType,
            "numpy.ndarray": None,  # only an argument of _reconstruct
            "numpy.core.multiarray._reconstruct": self.unfinished_array,
            "numpy.core.multiarray.scalar": self.scalar,
            "numpy.core.numeric._frombuffer": self.array,
            "_codecs.encode": self.encode,
            "builtins.bytes": lambda: b"",
        }
        known_as = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if known_as not in constructors:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}"[:120])
        return constructors[known_as] and partial(constructors[known_as])  # a new one, as a pickle may change it

    def encode(self, text: str, encoding: str) -> bytes:
        """Byte strings as Python 3 writes them for Python 2."""
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"it encodes text as {encoding}"[:120])
        self.spend(len(text))
        return text.encode("latin1")

    def unfinished_array(self, *_: object) -> _Array:
        array = np.zeros(0).view(_Array)
        array.unpickler = self
        return array

    def scalar(self, dtype: _DType, data: bytes | str) -> object:
        value = self.array(data, dtype, (), "C")[()]
        return value.item() if isinstance(value, str | bytes) else value

    def array(self, data: bytes | bytearray | str, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
        """An array in the machine's byte order, once its bytes are as many as its shape needs."""
        if isinstance(data, str):
            data = data.encode("latin1")  # Python 2's byte strings
        if not all(isinstance(n, int) and n >= 0 for n in shape) or len(shape) > 8:
            raise pickle.UnpicklingError("it holds an array of a malformed shape")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape} does not fit its {len(data)} bytes"[:120])
        self.spend(len(data))
        flat = np.frombuffer(bytes(data), dtype.dtype)
        return flat.astype(flat.dtype.newbyteorder("=")).reshape(shape, order=order)

    def spend(self, n_bytes: int) -> None:
        """UnpicklingError where much more memory is asked for than the file has bytes (one string, many arrays)."""
        self.bytes_left -= n_bytes
        if self.bytes_left < 0:
            raise pickle.UnpicklingError("it would take far more memory than its size")


def read_pickle(path: str | Path, what: str = "pickle") -> object:
    """Read a pickle of plain containers, numbers, strings and NumPy arrays, of protocol 0 to 5.

    Byte strings of Python 2 come back as text (Latin-1).

    Raises:
        InputError: the file is missing, damaged, or refers to anything else; nothing of it is run.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {what} cannot be read ({error.strerror})") from None
    try:
        return _DataUnpickler(data).load()
    except Exception as error:  # damaged pickles raise whatever their instructions lead to
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{path}: refused as a {what}: {reason}; download it again from its publisher") from None
