"""Weights from files: the official detectors by name, our own checkpoints, and errors that say what does not fit."""

import contextlib
import fcntl
import hashlib
import http.client
import re
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.detr import DETR, DETR_CONFIG, PostProcess, full_config
from models.detr_loss import SetCriterion
from utils.misc import InputError, progress
from utils.storage.files import atomic, load_torch

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/detr/"
OFFICIAL = {
    "coco-r50": "detr-r50-e632da11.pth",
    "coco-r50-dc5": "detr-r50-dc5-f0fb7ef5.pth",
    "coco-r101": "detr-r101-2c7b67e5.pth",
    "coco-r101-dc5": "detr-r101-dc5-a2e86def.pth",
}
"""Names for `--detr` and the files of the official release, whose names end in the start of their SHA-256."""

_FROM_SHAPES = ("hidden_dim", "enc_layers", "dec_layers", "dim_feedforward", "num_queries", "num_classes")
_FROM_SHAPES += ("pre_norm", "norm", "stages")
_BLOCKS = {2: "resnet18", 6: "resnet50", 23: "resnet101"}  # residual blocks of the third stage; 34 has 6 basic ones


def load_detr(
    source: str | Path,
    checkpoint_root: str | Path = "checkpoint",
    device: str | torch.device = "cpu",
    url: str = OFFICIAL_URL,
) -> tuple[DETR, SetCriterion, PostProcess, dict]:
    """The detector that `source` names, in evaluation mode on `device`: model, loss, post-processing, full config.

    `source` is a name of `OFFICIAL` (kept in `checkpoint_root`/detr, downloaded from `url` when it is not
    there), an official file (`{"model"}`) or a checkpoint of this project (`{"model", "config", "epoch"}`).
    InputError when it is none of these, or does not fit.
    """
    if str(source) in OFFICIAL:
        name = OFFICIAL[str(source)]
        path = Path(checkpoint_root) / "detr" / name
        download(url + name, path, name.removesuffix(".pth").rsplit("-", 1)[1])
    else:
        path = Path(source)
        if not path.is_file():
            raise InputError(f"{source}: no such detector checkpoint; give a file or one of {', '.join(OFFICIAL)}")
    held = load_torch(path, "detector checkpoint")
    state = held.get("model") if isinstance(held, dict) else None
    if not (_is_weights(state) and "query_embed.weight" in state):
        raise InputError(f"{path}: not a detector checkpoint; it holds {describe(state or held)}")
    try:
        told = infer_config(state, path.name)
        config = full_config(held.get("config", told))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError):
        raise InputError(f"{path}: not a detector checkpoint; it holds {describe(state)}") from None
    for name in _FROM_SHAPES:  # before anything is built from sizes that a file claims
        if config[name] != told[name]:
            raise InputError(f"{path}: its config says {name}={config[name]}, its weights {told[name]}; it is damaged")
    with torch.device("meta"):  # no time lost on random weights
        detr = DETR(config)
    load_weights(detr.to_empty(device=device), state, path)
    return detr.eval(), SetCriterion(config).to(device).eval(), PostProcess(), config


def infer_config(state: Mapping[str, Tensor], name: str = "") -> dict:
    """The configuration of a DETR state dict, from its names and shapes.

    What leaves no trace there is taken from the file's name (`dilation`, from "dc5") or is the default.
    """

    def count(pattern: str) -> int:
        return len({m.group(1) for key in state if (m := re.match(pattern, key))})

    third = count(r"backbone\.0\.body\.layer3\.(\d+)\.")
    bottleneck = "backbone.0.body.layer1.0.conv3.weight" in state
    queries, width = state["query_embed.weight"].shape
    return DETR_CONFIG | {
        "backbone": "resnet34" if third == 6 and not bottleneck else _BLOCKS.get(third, f"of {third} blocks"),
        "dilation": "dc5" in name,
        "hidden_dim": width,
        "enc_layers": count(r"transformer\.encoder\.layers\.(\d+)\."),
        "dec_layers": count(r"transformer\.decoder\.layers\.(\d+)\."),
        "dim_feedforward": len(state["transformer.encoder.layers.0.linear1.weight"]),
        "num_queries": queries,
        "num_classes": len(state["class_embed.weight"]) - 1,
        "pre_norm": "transformer.encoder.norm.weight" in state,
        "norm": "bn" if "backbone.0.body.bn1.num_batches_tracked" in state else "frozen",
        "stages": count(r"backbone\.0\.body\.layer(\d)\."),
    }


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load strictly; InputError names the first names or shapes that differ and what `state` holds."""
    if not _is_weights(state):
        raise InputError(f"{source}: not weights; it holds {describe(state)}")
    own = module.state_dict()
    faults = [f"{name} is missing" for name in own if name not in state]
    faults += [f"{name} is not in this model" for name in state if name not in own]
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(
            f"{source}: weights of another architecture: {'; '.join(faults[:3])}{more}; it holds {describe(state)}"
        )
    module.load_state_dict(state)


def _is_weights(state: object) -> bool:
    return isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())


def describe(state: object) -> str:
    """A few words on what a loaded file holds, for error messages."""
    if not isinstance(state, Mapping):
        return f"a {type(state).__name__}"
    if "query_embed.weight" in state:
        with contextlib.suppress(LookupError, AttributeError, TypeError, ValueError):
            c = infer_config(state)
            return (
                f"a DETR: {c['backbone']} ({c['stages']} stages), hidden_dim {c['hidden_dim']}, {c['enc_layers']} + "
                f"{c['dec_layers']} layers, {c['num_queries']} queries, {c['num_classes']} classes"
            )
    names = [str(name) for name in state]
    return f"{len(names)} entries ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits of the SHA-256 over names, dtypes, shapes and bytes, whatever the entries' order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def download(url: str, path: str | Path, sha256: str = "") -> None:
    """Fetch `url` to `path` unless it is there, with a progress bar; the file appears whole or not at all.

    `sha256` is the start of the checksum in hex, verified for a file that was there already too. Processes
    that want the same file wait for the one that downloads it. InputError when the file is damaged or
    cannot be had, with where to put it.
    """
    path = Path(path)
    if not path.is_file():
        try:
            with _alone(path):
                if not path.is_file():
                    _fetch(url, path, sha256)
                    return
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise InputError(
                f"{path}: not there, and the download failed ({reason}); get {url} where there is a network "
                "and put it there"
            ) from None
    if not _sha256(path).startswith(sha256):
        raise InputError(f"{path}: damaged (its SHA-256 does not start with {sha256}); remove it and try again")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is writing `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch(url: str, path: Path, sha256: str) -> None:
    """Download to a temporary name, verify, rename. OSError when the connection fails or ends early."""
    with urllib.request.urlopen(url, timeout=20) as answer, atomic(path) as part:
        size = int(answer.headers.get("Content-Length") or 0)
        with part.open("wb") as file, progress(total=size or None, unit="B", unit_scale=True, desc=path.name) as bar:
            while block := answer.read(1 << 20):
                bar.update(file.write(block))
        if bar.n < size:
            raise OSError(f"only {bar.n} of {size} bytes came")
        if not (found := _sha256(part)).startswith(sha256):
            raise OSError(f"its SHA-256 starts with {found[:8]}, not {sha256}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
