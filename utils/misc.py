"""Errors for the user, seeds and devices: what every stage needs once."""

import difflib
import random
from collections.abc import Iterable

import numpy as np
import torch

AMP_TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class InputError(Exception):
    """A mistake in what the user gave (a file, a name, a value): told in one line, exit status 2.

    The message names the file or value at fault and says what to do about it.
    """


def counted(n: int, noun: str) -> str:
    """`n` with its noun: "1 video", "2 videos"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error line that suggests the nearest of the known names, empty where none is near."""
    return "".join(f"; did you mean {near}?" for near in difflib.get_close_matches(name, list(known), 1))


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng(*key: int) -> np.random.Generator:
    """A generator that depends on the integers `key` alone, e.g. (seed, epoch, sample).

    Draws made through it do not depend on the number of workers, on the order in which they
    run, or on what was drawn before, which is what makes a resumed run repeat an uninterrupted one.
    """
    return np.random.default_rng(np.random.SeedSequence([k % 2**63 for k in key]))


def pick_device(name: str | None = None) -> torch.device:
    """The device that `--device` names: "0" or "cuda:0" a GPU, "cpu"; None the first GPU if there is one.

    A GPU becomes the current one: streams, events and compiled kernels are those of the current one. Raises InputError
    when the name is not a device or the GPU is not there.
    """
    if name is None:
        name = "0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{name}" if name.isdigit() else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: not a device; use a GPU's number, cuda:N or cpu")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        if device.index >= torch.cuda.device_count():
            raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs torch can use")
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, and tubes and pictures have many
    return device
