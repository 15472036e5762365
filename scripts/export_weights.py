"""Checkpoints of a chain -> the small ones that come with the code, in half precision.

    python -m scripts.export_weights checkpoint/synthetic/weights --made_by "bash scripts/make_weights.sh"

Writes `weights/<name>/{detr,encoder,head}.pth` and `README.md` with versions and checksums. Matrices and kernels are
rounded to float16, vectors (biases, statistics of BatchNorm) stay float32; loading gives float32 again. The
configurations name the rounded detector and encoder instead of those that were trained.
"""

import hashlib
import json
import platform
from pathlib import Path

import torch
from torch import Tensor

from models.weights import SHIPPED, weights_hash
from utils.cli import Parser, run
from utils.misc import InputError
from utils.storage.files import epoch_path, load_checkpoint, save_torch, write_text

KINDS = {"detr": "train_detr.py", "encoder": "train_qmm.py", "head": "train_action_head.py"}


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with its float tensors of two or more dimensions in float16; InputError where that overflows."""
    half = {name: t.half() if t.is_floating_point() and t.dim() > 1 else t for name, t in state.items()}
    for name, tensor in half.items():
        if not tensor.isfinite().all():
            raise InputError(f"{name}: has values beyond float16")
    return half


def renamed(config: dict, names: dict[str, str]) -> dict:
    """A configuration with `names` replaced in all its texts."""
    text = json.dumps(config)
    for old, new in names.items():
        text = text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    return json.loads(text)


def export(paths: dict[str, Path], folder: Path, name: str) -> None:
    """Write `folder/{detr,encoder,head}.pth` from the checkpoints `paths` of one chain."""
    names: dict[str, str] = {}
    for kind, path in paths.items():
        checkpoint = load_checkpoint(path, kind)
        if kind == "encoder":
            names[checkpoint["config"]["detector"]["source"]] = name
        state = rounded(checkpoint["model"])
        config = renamed(checkpoint["config"], names)
        loaded = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}  # float32 again
        names[weights_hash(checkpoint["model"])] = weights_hash(loaded)
        save_torch(folder / f"{kind}.pth", {"model": state, "config": config, "epoch": checkpoint["epoch"]})


TEXT = """# Weights `{name}`

For `--detr {name}`, `--encoder {name}` and `--head {name}`. Made by `{made_by}` with Python {python} and
PyTorch {torch} on {machine}; seeds are the scripts' defaults.

| file | bytes | SHA-256 |
| --- | --- | --- |
"""


def describe(folder: Path, name: str, made_by: str) -> str:
    """The text of `folder/README.md`."""
    python, machine = platform.python_version(), platform.machine()
    text = TEXT.format(name=name, made_by=made_by, python=python, torch=torch.__version__, machine=machine)
    for kind in KINDS:
        data = (folder / f"{kind}.pth").read_bytes()
        text += f"| `{kind}.pth` | {len(data):,} | `{hashlib.sha256(data).hexdigest()}` |\n"
    return text


def main() -> None:
    """The command line."""
    parser = Parser("Export a chain's newest checkpoints in half precision.")
    parser.add_argument("run", help="folder of the chain, with detr, encoder and head/<name> in it")
    parser.flag("output", "name", default="synthetic", help="name for --detr, --encoder and --head")
    parser.flag("output", "made_by", required=True, help="command that made the chain, for the text beside the weights")
    args = parser.parse_args()
    chain, folder = Path(args.run), SHIPPED / args.name
    heads = {path.parent for path in (chain / "head").rglob("epoch_*.pth")}
    if len(heads) != 1:
        raise InputError(f"{chain / 'head'}: needs the checkpoints of one head, not of {len(heads)}")
    folders = {"detr": chain / "detr", "encoder": chain / "encoder", "head": heads.pop()}
    export({kind: epoch_path(folders[kind], None, kind, KINDS[kind]) for kind in KINDS}, folder, args.name)
    write_text(folder / "README.md", describe(folder, args.name, args.made_by))
    print(f"{folder}: {sum(path.stat().st_size for path in folder.glob('*.pth')) / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
