"""Checkpoints from files: released and shipped ones by name, others by path; errors say what does not fit."""

import contextlib
import fcntl
import hashlib
import http.client
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.detr import DETR, DETR_CONFIG, full_config
from utils.misc import InputError, counted, tell
from utils.storage.files import load_torch

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/detr/"
OFFICIAL = {
    "coco-r50": "detr-r50-e632da11.pth",
    "coco-r50-dc5": "detr-r50-dc5-f0fb7ef5.pth",
    "coco-r101": "detr-r101-2c7b67e5.pth",
    "coco-r101-dc5": "detr-r101-dc5-a2e86def.pth",
}
"""Names for `--detr` and the files of the official release, whose names end in the start of their SHA-256."""

SHIPPED = Path(__file__).parents[1] / "weights"
"""Folder of the checkpoints that come with the code, `<name>/{detr,encoder,head}.pth`: names for `--detr`,
`--encoder` and `--head`."""

_FROM_SHAPES = ("hidden_dim", "enc_layers", "dec_layers", "dim_feedforward", "num_queries", "num_classes", "pre_norm",
                "norm", "stages")  # fmt: skip
_WITHOUT_TRACE = ("dilation", "nheads", "position_embedding")  # in shapes, of the official settings
_MAKE = "make one with train_detr.py, or name an official one"
_PERSON_IS_1 = (91, 250)  # classes of COCO, of its panoptic form
_BLOCKS = {2: "resnet18", 6: "resnet50", 23: "resnet101"}  # residual blocks of the third stage; 34 has 6 basic ones


def shipped_names() -> list[str]:
    """Names of the checkpoints that come with the code."""
    return sorted(path.name for path in SHIPPED.glob("*/") if (path / "detr.pth").is_file())


def checkpoint_path(name: str | Path, kind: str) -> Path:
    """File of a checkpoint: `name` is one of `shipped_names` or a path, `kind` "detr", "encoder" or "head"."""
    return SHIPPED / str(name) / f"{kind}.pth" if str(name) in shipped_names() else Path(name)


def read_detector(source: str | Path, checkpoint_root: str | Path) -> tuple[Path, object]:
    """File of a detector, and what it holds; `source` is a name of `OFFICIAL` (downloaded once, to
    `checkpoint_root`/detr), a shipped checkpoint's name, or a path."""
    if str(source) in OFFICIAL:
        name = OFFICIAL[str(source)]
        path = Path(checkpoint_root) / "detr" / name
        download(OFFICIAL_URL + name, path, name.removesuffix(".pth").rsplit("-", 1)[1])
    else:
        path = checkpoint_path(source, "detr")
        if not path.exists():
            known = ", ".join([*OFFICIAL, *shipped_names()])
            raise InputError(f"{source}: no such detector checkpoint; give a file or one of {known}")
    return path, load_torch(path, "detector checkpoint")


def build_detr(
    path: Path, checkpoint: object, device: str | torch.device = "cpu", person_label: int | str | None = None
) -> tuple[DETR, dict]:
    """Detector of a checkpoint, in evaluation mode, and its full configuration.

    Args:
        path: the file's name, which says "dc5" of a dilated backbone where `checkpoint` does not say it.
        checkpoint: an official one (`{"model"}`, with `args` where official training made it), a state dict alone, or
            one of this project (`{"model", "config", "epoch"}`).
        person_label: the class of people; None where the checkpoint says it, or has COCO's classes.

    Raises:
        InputError: it is none of these, its weights do not fit its configuration, or which of its classes is the
            person is not known.
    """
    checkpoint = checkpoint if isinstance(checkpoint, dict) and "model" in checkpoint else {"model": checkpoint}
    state, own, args = without_module(checkpoint["model"]), "config" in checkpoint, checkpoint.get("args")
    if not (is_weights(state) and "query_embed.weight" in state):
        raise InputError(f"{path}: not a detector checkpoint; it holds {describe(state or checkpoint)}; {_MAKE}")
    try:
        inferred = infer_config(state, path.name, args if isinstance(args, Namespace) else None)
        config = full_config(checkpoint["config"] if own else inferred)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError):
        raise InputError(f"{path}: not a detector checkpoint; it holds {describe(state)}; {_MAKE}") from None
    for name in _FROM_SHAPES:  # before anything is built from sizes that a file claims
        if config[name] != inferred[name]:
            raise InputError(
                f"{path}: its config says {name}={config[name]}, its weights {inferred[name]}; it is damaged"
            )
    config["person_label"] = _person_label(path, config, person_label, own)
    if dilation_is_unknown(path, checkpoint):
        note = "does not say whether its backbone is dilated, so it is not; if it is, have dc5 in its name"
        tell(f"note: {path} {note}")
    with torch.device("meta"):  # no time lost on random weights
        detr = DETR(config)
    load_weights(detr.to_empty(device=device), state, path)
    return detr.eval(), config


def dilation_is_unknown(path: Path, checkpoint: object) -> bool:
    """Whether neither a file nor its name says if the backbone is dilated, which is then taken as not dilated."""
    known = isinstance(checkpoint, dict) and ("config" in checkpoint or isinstance(checkpoint.get("args"), Namespace))
    return not (known or "dc5" in path.name.lower() or path.name in OFFICIAL.values())


def _person_label(path: Path, config: dict, given: int | str | None, own: bool) -> int:
    """The class of people: `given`, else the config's where it is known, of our `own` training or COCO's classes."""
    n, label = config["num_classes"], config["person_label"] if given is None else given
    if isinstance(label, str):
        raise InputError(f"--person_label {label}: {path} has no names of labels; give a number from 0 to {n - 1}")
    fault = f"has no label {label}" if label >= n else ""
    if given is None and not own and n not in _PERSON_IS_1:
        fault = "does not say which of its labels is the person's"
    if fault:
        raise InputError(f"{path}: {fault} (they are 0 to {n - 1}); name the person's with --person_label")
    return label


def infer_config(state: Mapping[str, Tensor], name: str = "", args: Namespace | None = None) -> dict:
    """The configuration of a DETR state dict, from its names and shapes.

    What leaves no trace there is taken from the `args` of official training, else from the file's name (`dilation`,
    from "dc5"), or is the default.
    """

    def count(pattern: str) -> int:
        return len({m.group(1) for key in state if (m := re.match(pattern, key))})

    third = count(r"backbone\.0\.body\.layer3\.(\d+)\.")
    bottleneck = "backbone.0.body.layer1.0.conv3.weight" in state
    queries, width = state["query_embed.weight"].shape
    return DETR_CONFIG | {
        "backbone": "resnet34" if third == 6 and not bottleneck else _BLOCKS.get(third, f"of {third} blocks"),
        "dilation": "dc5" in name.lower(),
        "hidden_dim": width,
        "enc_layers": count(r"transformer\.encoder\.layers\.(\d+)\."),
        "dec_layers": count(r"transformer\.decoder\.layers\.(\d+)\."),
        "dim_feedforward": len(state["transformer.encoder.layers.0.linear1.weight"]),
        "num_queries": queries,
        "num_classes": len(state["class_embed.weight"]) - 1,
        "pre_norm": "transformer.encoder.norm.weight" in state,
        "norm": "bn" if "backbone.0.body.bn1.num_batches_tracked" in state else "frozen",
        "stages": count(r"backbone\.0\.body\.layer(\d)\."),
        **{key: value for key, value in (vars(args) if args else {}).items() if key in _WITHOUT_TRACE},
    }


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load strictly; InputError names the first names or shapes that differ and what `state` holds."""
    if not is_weights(state):
        raise InputError(f"{source}: not weights; it holds {describe(state)}")
    own = module.state_dict()
    faults = [f"{name} is missing" for name in own if name not in state]
    faults += [f"{name} is not in this model" for name in state if name not in own]
    shapes = {name: (tuple(state[name].shape), tuple(own[name].shape)) for name in own if name in state}
    faults += [f"{name} is {given}, not {needed}" for name, (given, needed) in shapes.items() if given != needed]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(
            f"{source}: weights of another architecture: {'; '.join(faults[:3])}{more}; it holds {describe(state)}"
        )
    module.load_state_dict(state)


def is_weights(state: object) -> bool:
    """Whether `state` is a mapping to tensors."""
    return isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())


def without_module(state: object) -> object:
    """A state dict without the `module.` before the names of a parallel run; anything else as it is."""
    if not is_weights(state):
        return state
    return {str(name).removeprefix("module."): value for name, value in state.items()}


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
    return f"{counted(len(names), 'item')} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits of the SHA-256 over names, dtypes, shapes and bytes, whatever the entries' order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def download(url: str, path: str | Path, sha256: str = "") -> None:
    """Download `url` to `path` unless it exists; the file appears whole or not at all.

    Processes that want the same file wait for the one that downloads it.

    InputError when it cannot be downloaded, or its checksum does not begin with the hex digits `sha256`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for partial in path.parent.glob(f"{path.name}.*.partial"):  # of a download that was killed
                partial.unlink()
            try:
                if not path.is_file():
                    torch.hub.download_url_to_file(url, str(path), sha256 or None)
            except (OSError, RuntimeError, http.client.HTTPException) as error:  # RuntimeError: the checksum is another
                reason = getattr(error, "reason", None) or error
                text = f"no such file, and the download failed ({reason}); download {url} elsewhere and copy it there"
                raise InputError(f"{path}: {text}") from None
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256):
        raise InputError(f"{path}: damaged (its SHA-256 does not start with {sha256}); remove it and try again")
