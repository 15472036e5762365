"""Weights that depend on an entry's name and shape alone, so that two implementations can be compared."""

import functools
import zlib
from pathlib import Path

import numpy as np
import torch

from models.detr import DETR, build_model
from models.weights import build_detr, read_detector

SMALL = {
    "backbone": "resnet18", "stages": 3, "norm": "bn", "hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 2,
    "dim_feedforward": 64, "num_queries": 5, "num_classes": 2, "pre_norm": True,
}  # fmt: skip
"""A detector's settings."""


def fill_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values for the state-dict entry `name`, from NumPy's legacy generator, which never changes."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        return 1 + 0.1 * np.abs(draw)
    if last == "running_mean" or "bias" in last:
        return 0.05 * draw
    if len(shape) <= 1:
        return 1 + 0.1 * draw
    if name.endswith("query_embed.weight"):
        return draw
    gain = 3.0 if name.endswith("in_proj_weight") else 1.0
    return gain * draw / np.sqrt(max(int(np.prod(shape[1:])), 1))


@torch.no_grad()
def fill_state_dict(model: torch.nn.Module) -> torch.nn.Module:
    """Overwrite every floating-point entry of the model's state dict in place."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(fill_array(name, tuple(tensor.shape))))
    return model


filled_once = functools.cache(lambda name, shape: torch.from_numpy(fill_array(name, shape)).float())


def filled_detr(config: dict) -> DETR:
    """A large detector, filled and in evaluation; its weights are drawn once, and shared by all that are built."""
    with torch.device("meta"):
        detr = build_model(config)[0]
    state = {name: filled_once(name, tuple(value.shape)) for name, value in detr.state_dict().items()}
    detr.load_state_dict(state, assign=True)
    return detr.eval()


def load_detr(source: str | Path, checkpoint_root: str | Path = "checkpoint") -> tuple[DETR, dict]:
    """A detector by name or path, as the stages load it, and its configuration."""
    return build_detr(*read_detector(source, checkpoint_root), person_label=1)
