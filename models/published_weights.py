"""Weights of the method's public code: state dicts alone, with other names, which do not say all that is needed."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from models.action_head import ActionHead, build_action_head, published_time_encoding
from models.person_encoder import PersonEncoder
from models.weights import describe, is_weights, load_weights, without_module
from utils.misc import InputError
from utils.storage.files import load_torch

TIME_TABLE = "pos_encoder.pe"  # the time encoding of times 0 to 4,999
_HEAD_NAMES = {
    r"^transformer_(en|de)coder\.": "transformer.",
    r"^head\.": "classify.",
    r"^extractor\.mlp\.": "frame_proj.",
}


def read_state(path: str | Path, what: str) -> dict[str, Tensor]:
    """The state dict that a file holds, without the `module.` of a parallel run; InputError when it is none."""
    state = load_torch(path, what)
    if not (is_weights(state) and state):
        raise InputError(f"{path}: not a state dict of the method's public code; it holds {describe(state)}")
    return without_module(state)


def published_encoder(path: str | Path, skip: bool) -> tuple[PersonEncoder, dict]:
    """The person encoder of a file of the method's public code, and the settings that build it; the weights do not say
    whether it has a skip connection, `skip` does."""
    state = {}
    for name, value in read_state(path, "person encoder").items():
        match = re.fullmatch(r"psn_query_embed\.layers\.(\d)\.(\w+)", name)
        state[f"layers.{3 * int(match[1])}.{match[2]}" if match else name] = value
    try:
        hidden_d, in_d = state["layers.0.weight"].shape
        settings = {"in_d": in_d, "out_d": len(state["layers.6.weight"]), "hidden_d": hidden_d, "skip": skip}
        encoder = PersonEncoder(**settings)
    except (LookupError, ValueError) as error:
        raise InputError(f"{path}: not a person encoder ({error}); it holds {describe(state)}") from None
    load_weights(encoder, state, path)
    return encoder.eval(), {**settings, "dropout": 0.1}


def time_base(table: Tensor) -> int:
    """The base of a table float (T, d) of the published time encoding, whose [1, 2] is sin(base ** (-2 / d))."""
    return round(math.asin(float(table[1, 2])) ** (-table.shape[1] / 2))


def published_head(path: str | Path, head_type: str | None = None) -> ActionHead:
    """The action head of a file of the method's public code, with the published time encoding.

    Args:
        head_type: "x3d" or "res", which have the same weights; the other types are recognised by theirs.

    Raises:
        InputError: the file is no such head, or `head_type` is needed, or is another one than the weights'.
    """
    state = read_state(path, "action head")
    table = state.pop(TIME_TABLE, None)
    for pattern, ours in _HEAD_NAMES.items():
        state = {re.sub(pattern, ours, name): value for name, value in state.items()}
    try:
        n_classes, width = state["classify.weight"].shape
        sizes = {"in_d": width, "time_cycle": 100 if table is None else time_base(table)}
        if table is None:
            inferred = "vanilla"
        elif table.shape[1] == width:
            inferred = "time_ecd:add"
        else:
            inferred = "time_ecd:cat"
            sizes |= {"in_d": width - table.shape[1], "time_d": table.shape[1]}
        if "frame_proj.weight" in state:
            inferred, sizes["frame_d"] = head_type, state["frame_proj.weight"].shape[1]
            if inferred not in ("x3d", "res"):
                raise InputError("a head with frame features; say with --head_type whether they are x3d or res")
        if head_type not in (None, inferred):
            raise InputError(f"a head of type {inferred}, not {head_type}")
        n_layers = len({name.split(".")[2] for name in state if name.startswith("transformer.layers.")})
        sizes |= {"n_layers": n_layers, "dim_feedforward": len(state["transformer.layers.0.linear1.weight"])}
        head = build_action_head(inferred, n_classes - 1, time_encoding="published", **sizes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (LookupError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"{path}: not an action head ({error}); it holds {describe(state)}") from None
    load_weights(head, state, path)
    if table is not None:
        table = table[:1000].float()
        ours = published_time_encoding(torch.arange(len(table)), table.shape[1], head.config["time_cycle"])
        if not torch.allclose(table, ours, atol=1e-3):
            raise InputError(f"{path}: {TIME_TABLE} is not the published time encoding of a whole base")
    return head.eval()
