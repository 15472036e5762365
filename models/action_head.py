"""The action head: the linked queries of one person -> a class distribution for each frame."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.weights import checkpoint_path, load_weights
from utils.misc import InputError
from utils.storage.files import load_checkpoint

HEAD_TYPES = ("vanilla", "time_ecd:add", "time_ecd:cat", "x3d", "res")
"""`vanilla` sees the queries in no order; `time_ecd` adds the time to them or appends it; `x3d` and `res` ask
with features of the frames (X3D-XS, DETR's backbone) what the queries answer, both with the time appended."""

_FRAMES = ("x3d", "res")


def time_encoding(times: Tensor, d: int, time_cycle: int) -> Tensor:
    """Sines and cosines of a time that goes round once in `time_cycle` frames.

    `times` int64 of any shape, frames -> float32 (..., d), d even: first d / 2 sines, then d / 2 cosines of
    2 pi h_k t / time_cycle. The harmonics h_k are whole numbers, so that times `time_cycle` apart have the
    same vector; h_0 = 1, so that times within one cycle have different ones. They grow geometrically, as
    the wavelengths of Vaswani et al. (NIPS 2017) shrink, to a wavelength of about 2 pi frames:
    h_k = round(H ** (k / (d / 2 - 1))), H = max(1, round(time_cycle / (2 pi))).
    """
    k = torch.arange(d // 2, dtype=torch.float64, device=times.device)
    highest = max(1, round(time_cycle / (2 * math.pi)))
    harmonics = (highest ** (k / max(d // 2 - 1, 1))).round().long()
    # reduced to one turn while these are integers, which keeps times far apart exact
    angles = (times[..., None] * harmonics % time_cycle).float() * (2 * math.pi / time_cycle)
    return torch.cat([angles.sin(), angles.cos()], -1)


class ActionHead(nn.Module):
    """A transformer over one person's linked queries, then a linear layer; see `build_action_head`.

    `config` rebuilds it; `needs_frames` names the features that `forward` needs ("x3d" or "res"), or is None.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        c = self.config = dict(config)
        self.needs_frames = c["head_type"] if c["head_type"] in _FRAMES else None
        self.time_d, width = _widths(c["head_type"], c["in_d"], c["time_d"])
        layer = (width, c["nhead"], c["dim_feedforward"], c["dropout"])
        # Not batch_first: with it torch takes its inference path, which holds whole attention matrices (1 GB for
        # a tube of 4,000 frames, 92 MB this way) and is slower from some hundred frames on.
        if self.needs_frames:
            self.frame_proj = nn.Linear(c["frame_d"], c["in_d"])
            decoder_layer = nn.TransformerDecoderLayer(*layer)
            self.transformer = nn.TransformerDecoder(decoder_layer, c["n_layers"])
        else:
            encoder_layer = nn.TransformerEncoderLayer(*layer)
            self.transformer = nn.TransformerEncoder(encoder_layer, c["n_layers"], enable_nested_tensor=False)
        self.classify = nn.Linear(width, c["n_classes"] + 1)
        for parameter in self.transformer.parameters():  # torch starts all layers as copies of one
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, queries: Tensor, times: Tensor, padding: Tensor | None = None, frame_features: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, n_classes + 1) of each frame; the last class is "no action".

        `queries` float (B, T, in_d); `times` int64 (B, T), frames since the tube's first one, gaps kept;
        `padding` bool (B, T), True where a tube has ended, or None; `frame_features` float (B, T, frame_d) for
        heads with `needs_frames`. Padded places, which must be finite (0, say), change nothing elsewhere; the
        logits there mean nothing.
        """
        if padding is not None:
            padding = padding & ~padding.all(1, keepdim=True)  # attention to nothing at all is NaN in some kernels
        queries = self._with_time(queries, times)
        if not self.needs_frames:
            out = self.transformer(queries, src_key_padding_mask=padding)
        elif frame_features is None:
            raise ValueError(f"a head of type {self.needs_frames} needs frame_features")
        else:
            asking = self._with_time(self.frame_proj(frame_features), times)
            out = self.transformer(asking, queries, tgt_key_padding_mask=padding, memory_key_padding_mask=padding)
        return self.classify(out.transpose(0, 1))

    def _with_time(self, x: Tensor, times: Tensor) -> Tensor:
        """(B, T, in_d), (B, T) -> (T, B, width)."""
        if self.time_d:
            time = time_encoding(times, self.time_d, self.config["time_cycle"]).to(x.dtype)
            x = x + time if self.config["head_type"] == "time_ecd:add" else torch.cat([x, time], -1)
        return x.transpose(0, 1)


@torch.inference_mode()
def action_probabilities(
    head: ActionHead, queries: np.ndarray, times: np.ndarray, frame_features: np.ndarray | None = None
) -> np.ndarray:
    """One person's queries (T, d) at `times` int64 (T,), frames since the tube's first, with features (T, f) where the
    head needs them -> class probabilities of each frame, float32 (T, n_classes + 1), the last of "no action"."""
    device = next(head.parameters()).device
    times = torch.from_numpy(times)[None].to(device)
    features = None if frame_features is None else torch.from_numpy(frame_features)[None].to(device)
    logits = head(torch.from_numpy(queries)[None].to(device), times, None, features)
    return logits[0].float().softmax(-1).cpu().numpy()


def load_head(path: str | Path, device: torch.device | str = "cpu") -> tuple[ActionHead, dict, int]:
    """The head of a checkpoint of `train_action_head.py`, in evaluation mode; its config and epoch.

    InputError when the file is something else.
    """
    path = checkpoint_path(path, "head")
    held = load_checkpoint(path, "action head")
    try:
        head, config = build_action_head(**held["config"]["head"]), held["config"]
        known = len(config["labels"]) == config["head"]["n_classes"] and {"settings", "frames"} <= config.keys()
    except (KeyError, TypeError, ValueError, AttributeError):
        known = False
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not known:
        raise InputError(f"{path}: not an action head's checkpoint; make one with train_action_head.py")
    load_weights(head, held["model"], path)
    return head.to(device).eval(), config, held["epoch"]


def _widths(head_type: str, in_d: int, time_d: int) -> tuple[int, int]:
    """Widths of the time's vector (0: none) and of the transformer."""
    return {"vanilla": (0, in_d), "time_ecd:add": (in_d, in_d)}.get(head_type, (time_d, in_d + time_d))


def build_action_head(
    head_type: str,
    n_classes: int,
    in_d: int = 256,
    time_cycle: int = 100,
    frame_d: int = 0,
    n_layers: int = 2,
    nhead: int = 8,
    dim_feedforward: int = 256,
    dropout: float = 0.1,
    time_d: int = 32,
) -> ActionHead:
    """The head of one of `HEAD_TYPES` with random weights; `build_action_head(**head.config)` builds it again.

    Args: `n_classes` without "no action", which is added after the last; `in_d` width of a query; `time_cycle`
    period of the time encoding in frames (`time_encoding`); `frame_d` width of the frame features that `x3d` and
    `res` need; `time_d` width of the time where it is appended, which makes the transformer in_d + time_d wide;
    `n_layers`, `nhead`, `dim_feedforward`, `dropout` of the transformer.
    InputError for a type that does not exist and for sizes that do not go together.
    """
    config = dict(locals())
    if head_type not in HEAD_TYPES:
        raise InputError(f"--head_type {head_type}: choose from {', '.join(HEAD_TYPES)}")
    for name, value in config.items():
        if name in ("head_type", "dropout") or (name == "frame_d" and head_type not in _FRAMES):
            continue
        if not isinstance(value, int) or value < 1:
            raise InputError(f"action head setting {name}={value!r}: must be an integer of at least 1")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(f"action head setting dropout={dropout!r}: must be from 0 up to 1")
    encoded, width = _widths(head_type, in_d, time_d)
    if width % nhead:
        raise InputError(f"action head setting nhead={nhead}: must divide the width of {head_type}, {width}")
    if encoded % 2:
        raise InputError(f"action head of type {head_type}: its time is {encoded} wide, which must be even")
    return ActionHead(config)
