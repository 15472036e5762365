"""Pickles, spelled out instruction by instruction: as public data sets ship them, and hostile ones.

For the tests of their reader, which must not need what it replaces.
"""

import struct
from typing import NamedTuple

import numpy as np


class Call(NamedTuple):
    """A function that is called with text when the pickle is run."""

    module: str
    name: str
    arguments: tuple[str, ...]


def pickled(value: object, protocol: int = 2) -> bytes:
    """`value` as a pickle; by default of the protocol that the public annotations have.

    Of None, bool, int of 32 bits, float, str, list, tuple, dict, NumPy arrays and unsigned bytes of NumPy, and `Call`.
    """
    header = b"" if protocol < 2 else b"\x80" + bytes([protocol])
    return header + _instructions(value, protocol) + b"."


def _instructions(value: object, protocol: int) -> bytes:
    def of(*values: object) -> bytes:
        return b"".join(_instructions(one, protocol) for one in values)

    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"I01\n", False: b"I00\n"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, Call):
        return _name(value.module, value.name, protocol) + of(value.arguments) + b"R"
    if isinstance(value, list):
        return b"](" + of(*value) + b"e"
    if isinstance(value, tuple):
        return b"(" + of(*value) + b"t"
    if isinstance(value, dict):
        return b"}(" + of(*(part for pair in value.items() for part in pair)) + b"u"
    if isinstance(value, np.uint8):
        scalar = _name("numpy.core.multiarray", "scalar", protocol)
        return scalar + b"(" + _dtype(value.dtype, protocol) + _bytes(value.tobytes()) + b"tR"
    if isinstance(value, np.ndarray):
        begun = _name("numpy.core.multiarray", "_reconstruct", protocol) + b"(" + _name("numpy", "ndarray", protocol)
        begun += of((0,)) + _bytes(b"b") + b"tR"
        return (
            begun
            + b"("
            + of(1, value.shape)
            + _dtype(value.dtype, protocol)
            + of(False)
            + _bytes(value.tobytes())
            + b"tb"
        )
    raise TypeError(f"{type(value).__name__} has no instructions here")


def _name(module: str, name: str, protocol: int) -> bytes:
    if protocol < 4:
        return f"c{module}\n{name}\n".encode()
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


def _bytes(data: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(data)) + data  # a byte string of Python 2


def _dtype(dtype: np.dtype, protocol: int) -> bytes:
    begun = _name("numpy", "dtype", protocol) + _instructions((dtype.str[1:], 0, 1), protocol) + b"R"
    return begun + _instructions((3, dtype.str[0], None, None, None, -1, -1, 0), protocol) + b"b"
