"""Read the pickles that public data sets ship, without running any.

A pickle is a program, and Python's unpickler runs it. Here its instructions are interpreted for what
they build: numbers, strings, bytes, lists, tuples, dicts with plain keys, and NumPy arrays and scalars
of numbers and strings. Naming anything else is an error before anything is made of it, and damage cannot
allocate more than a few times the file's own size, nor bring the interpreter down.
"""

import math
import pickletools
import re
import warnings
from pathlib import Path

import numpy as np

from utils.misc import InputError

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_MOST = 8  # bytes that may be made out of one of the file
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_ALLOWED = {
    ("numpy", "dtype"): "dtype",
    ("numpy", "ndarray"): "ndarray",
    ("_codecs", "encode"): "encode",
    **{(module, "bytes"): "no bytes" for module in ("__builtin__", "builtins")},
    **{(module, "_reconstruct"): "array" for module in _MULTIARRAY},
    **{(module, "scalar"): "scalar" for module in _MULTIARRAY},
    **{(module, "_frombuffer"): "frombuffer" for module in _NUMERIC},
}


class _Global:
    """A name the pickle refers to; only those of `_ALLOWED` exist."""

    def __init__(self, module: str, name: str) -> None:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"it refers to {module}.{name}"[:120])
        self.kind = _ALLOWED[module, name]


class _DType:
    """A dtype under construction: its code, then its byte order."""

    def __init__(self, code: object) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"[biuf][1248]|[SU]\d{1,4}", code)):
            raise ValueError(f"it holds an array of {str(code)[:20]!r}")
        self.code, self.order = code, "="

    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """An array under construction, and the memo entries that stand for it."""

    def __init__(self) -> None:
        self.memo_keys: list[int] = []


def _array(data: object, dtype: object, shape: object, fortran: bool) -> np.ndarray:
    if isinstance(data, str):
        data = data.encode("latin1")  # Python 2's byte strings
    if not (isinstance(dtype, _DType) and isinstance(data, bytes | bytearray) and isinstance(shape, tuple)):
        raise ValueError("it holds a malformed array")
    if not all(isinstance(n, int) and n >= 0 for n in shape) or len(shape) > 8:
        raise ValueError("it holds an array of a malformed shape")
    if math.prod(shape) * dtype.dtype().itemsize != len(data):
        raise ValueError(f"an array of shape {shape} does not fit its {len(data)} bytes"[:120])
    flat = np.frombuffer(bytes(data), dtype.dtype())
    return flat.astype(flat.dtype.newbyteorder("=")).reshape(shape, order="F" if fortran else "C")


def _call(function: object, args: object) -> object:
    """What REDUCE gives for the few constructors that arrays are written with."""
    if not (isinstance(function, _Global) and isinstance(args, tuple)):
        raise ValueError("it calls something that is not an array's constructor")
    if function.kind == "array":
        return _Array()
    if function.kind == "dtype":
        return _DType(args[0])
    if function.kind == "no bytes" and not args:
        return b""
    if function.kind == "encode" and isinstance(args[0], str) and args[1:] in (("latin1",), ("latin-1",)):
        return args[0].encode("latin1")
    if function.kind == "scalar":
        value = _array(args[1], args[0], (), False)[()]
        return value.item() if isinstance(value, str | bytes) else value
    if function.kind == "frombuffer":
        return _array(args[0], args[1], args[2], args[3] == "F")
    raise ValueError("it calls something that is not an array's constructor")


def _build(item: object, state: object) -> object:
    """What BUILD makes of an unfinished array or dtype."""
    if isinstance(item, _Array) and isinstance(state, tuple) and len(state) == 5:
        return _array(state[4], state[2], state[1], bool(state[3]))
    if isinstance(item, _DType) and isinstance(state, tuple) and len(state) > 1 and state[1] in tuple("<>=|"):
        item.order = state[1]
        return item
    raise ValueError("it sets the state of something that is not an array")


class _Machine:
    """The pickle machine's stack and memo, for the instructions that build data."""

    def __init__(self, size: int) -> None:
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.left = _MOST * size + 1024

    def push_made(self, item: object) -> None:
        """Push what a constructor gave: one memoised string could be made into thousands of arrays."""
        self.left -= item.nbytes if isinstance(item, np.ndarray) else len(item) if isinstance(item, bytes) else 0
        if self.left < 0:
            raise ValueError("it would take far more memory than it is long")
        self.stack.append(item)

    def pop_mark(self) -> list[object]:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def set_items(self, pairs: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError("it is malformed")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int | float | bytes | np.number):
                raise ValueError(f"a dict's key is a {type(key).__name__}")
            target[key] = value

    def append(self, items: list[object]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("it is malformed")
        self.stack[-1].extend(items)

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]
        if isinstance(self.stack[-1], _Array):
            self.stack[-1].memo_keys.append(key)

    def step(self, name: str, arg: object) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(arg)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.remember(arg)
        elif name == "MEMOIZE":
            self.remember(len(self.memo))
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[arg])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
        elif name == "TUPLE":
            stack.append(tuple(self.pop_mark()))
        elif name == "LIST":
            stack.append(self.pop_mark())
        elif name in ("DICT", "SETITEMS"):
            pairs = self.pop_mark()
            if name == "DICT":
                stack.append({})
            self.set_items(pairs)
        elif name == "SETITEM":
            pair = stack[-2:]
            del stack[-2:]
            self.set_items(pair)
        elif name == "APPEND":
            self.append([stack.pop()])
        elif name == "APPENDS":
            self.append(self.pop_mark())
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            stack.append(_Global(*str(arg).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Global(str(module), str(attribute)))
        elif name == "REDUCE":
            args, function = stack.pop(), stack.pop()
            self.push_made(_call(function, args))
        elif name == "BUILD":
            state, item = stack.pop(), stack.pop()
            self.push_made(_build(item, state))
            if isinstance(item, _Array):
                self.memo.update(dict.fromkeys(item.memo_keys, stack[-1]))
        elif name == "POP":
            stack.pop()
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it uses the instruction {name}")


def read_pickle(path: str | Path, what: str = "pickle") -> object:
    """The plain containers, numbers, strings and NumPy arrays that a pickle (protocol 0 to 5) holds.

    Python 2's strings come back as text (Latin-1). Raises InputError when the file is missing, damaged,
    or holds or calls anything else.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: no readable {what} ({error.strerror})") from None
    machine = _Machine(len(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in damaged strings
            for opcode, arg, _ in pickletools.genops(data):
                machine.step(opcode.name, arg)
        (value,) = machine.stack
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: refused as a {what}: {error}; get the file again from its publisher") from None
    return value
