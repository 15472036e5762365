"""Errors for the user, seeds, devices, cores and progress bars: what every stage needs once."""

import difflib
import math
import os
import random
import re
import sys
import zlib
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    import torch

AMP_TYPES = {"off": None, "bf16": "bfloat16", "fp16": "float16"}
BAR_ON_SCREEN, BAR_IN_FILE = 0.2, 30.0  # seconds between two updates of a progress bar


class InputError(Exception):
    """A mistake in what the user gave (a file, a name, a value): one line and exit status 2.

    The message names the file or value at fault and says what to do about it.
    """


def tell(line: str) -> None:
    """Print a note, a warning or an error on stderr, at once."""
    print(line, file=sys.stderr, flush=True)


def counted(n: int, noun: str) -> str:
    """`n` with its noun: "1 video", "2 videos"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error line that suggests the nearest of the known names, empty where none is near."""
    return "".join(f"; did you mean {near}?" for near in difflib.get_close_matches(name, list(known), 1))


def exceeding(threshold: float) -> float:
    """The lowest float32 number above a threshold: `x >= exceeding(t)` says of float32 numbers what `x > t` says."""
    return float(np.nextafter(np.float32(threshold), np.float32(np.inf)))


def checksum(*parts: str | np.ndarray) -> str:
    """A checksum (CRC-32) of texts and arrays, in this order."""
    total = 0
    for part in parts:
        total = zlib.crc32(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes(), total)
    return f"{total:08x}"


def progress(*args: Any, **options: Any) -> tqdm:
    """`tqdm` on stderr: redrawn in place on a terminal, a line now and then where the output is a file."""
    interval = BAR_ON_SCREEN if sys.stderr.isatty() else BAR_IN_FILE
    return tqdm(*args, **{"mininterval": interval, "maxinterval": interval, "dynamic_ncols": True, **options})


def available_cores() -> int:
    """The CPU cores that this process may use: its affinity, and a container's CPU quota (cgroup v2, `cpu.max`).

    Of several processes that `torchrun` started on one machine each gets its share. At least 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return max(1, math.ceil(min(cores, quota)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def cpu_quota(root: Path, membership: Path) -> float:
    """The smallest CPU quota, in cores, of a process's cgroup (v2) and those around it; infinite where there is none.

    Args:
        root: where cgroups are mounted.
        membership: the process's `/proc/<pid>/cgroup`, with the line `0::<path under root>`.
    """
    line = re.search("^0::/(.*)$", membership.read_text(), re.MULTILINE) if membership.is_file() else None
    path = line[1] if line else ""
    quota = math.inf
    for group in (root / path, *(root / path).parents):
        if (limit := group / "cpu.max").is_file():
            allowed, period = limit.read_text().split()
            if allowed != "max":
                quota = min(quota, int(allowed) / int(period))
    return quota


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (every device)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def start(args: Namespace) -> None:
    """Set PyTorch's threads (`--threads`) and every seed (`--seed`), before anything is drawn or computed."""
    import torch

    torch.set_num_threads(args.threads or available_cores())
    torch.backends.cudnn.benchmark = False
    set_seed(args.seed)


def rng(*key: int) -> np.random.Generator:
    """A generator that depends on the integers `key` alone, e.g. (seed, epoch, sample).

    Draws made through it do not depend on the number of workers, on the order in which they
    run, or on what was drawn before, which is what makes a resumed run repeat an uninterrupted one.
    """
    return np.random.default_rng(np.random.SeedSequence([k % 2**63 for k in key]))


def amp_type(name: str) -> "torch.dtype | None":
    """The dtype of `--amp`: None for "off"."""
    import torch

    return getattr(torch, AMP_TYPES[name]) if AMP_TYPES[name] else None


def pick_device(name: str | None = None) -> "torch.device":
    """The device that `--device` names: "0" or "cuda:0" a GPU, "cpu"; None the first GPU if there is one.

    A GPU becomes the current one: streams, events and compiled kernels are those of the current one.

    Raises:
        InputError: the name is not a device, or this machine lacks the GPU.
    """
    import torch

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
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, and tracks and images have many
    return device
