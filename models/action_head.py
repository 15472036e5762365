"""The action head: the queries of a track -> a class distribution for each frame."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.head_types import HEAD_TYPES, TIME_ENCODINGS
from models.long_attention import use_long_attention
from models.weights import checkpoint_path, load_weights
from utils.misc import InputError
from utils.storage.files import load_checkpoint

NEEDED = ("head.head_type", "head.n_classes", "head.in_d", "head.time_cycle", "head.nhead", "labels", "frames",
          "min_tube_length", "settings.encoder", "settings.detector.key", "settings.psn_score_th", "settings.sim_th",
          "settings.filter_length", "settings.end_consecutive_frames", "settings.link_cues", "settings.linker",
          "settings.strict")  # fmt: skip
"""What a checkpoint's config must say."""


def time_encoding(times: Tensor, d: int, time_cycle: int) -> Tensor:
    """Sines and cosines of the time, periodic with `time_cycle` frames.

    First d / 2 sines, then d / 2 cosines of 2 pi h_k t / time_cycle. The harmonics h_k are whole numbers, so that times
    `time_cycle` apart have the same vector; h_0 = 1, so that times within one cycle have different ones. They grow
    geometrically, as the wavelengths of Vaswani et al. (NIPS 2017) shrink, to a wavelength of about 2 pi frames:
    h_k = round(H ** (k / (d / 2 - 1))), H = max(1, round(time_cycle / (2 pi))).

    Args:
        times: int64 of any shape, frames.
        d: width, even.
        time_cycle: period in frames.

    Returns:
        float32 (..., d).
    """
    k = torch.arange(d // 2, dtype=torch.float64, device=times.device)
    highest = max(1, round(time_cycle / (2 * math.pi)))
    harmonics = (highest ** (k / max(d // 2 - 1, 1))).round().long()
    # reduced to one turn while these are integers, which keeps times far apart exact
    angles = (times[..., None] * harmonics % time_cycle).float() * (2 * math.pi / time_cycle)
    return torch.cat([angles.sin(), angles.cos()], -1)


def published_time_encoding(times: Tensor, d: int, base: int) -> Tensor:
    """The sinusoids of the published code: interleaved sines and cosines of t w_k with w_k = base ** (-2k / d).

    Those of Vaswani et al. (NIPS 2017) with another base than 10,000; they do not repeat after `base` frames.
    Shapes as in `time_encoding`.
    """
    k = torch.arange(0, d, 2, dtype=torch.float32, device=times.device)
    angles = times[..., None].float() * torch.exp(k * (-math.log(base) / d))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


class ActionHead(nn.Module):
    """A transformer over a track's queries, then a linear layer; see `build_action_head`.

    `config` rebuilds it; `needs_frames` names the features that `forward` needs ("x3d" or "res"), or is None.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        c = self.config = dict(config)
        self.needs_frames = HEAD_TYPES[c["head_type"]].frames
        self.time_d, width = _widths(c["head_type"], c["in_d"], c["time_d"])
        layer = (width, c["nhead"], c["dim_feedforward"], c["dropout"])
        # Not batch_first: with it torch takes its inference path, which holds whole attention matrices (1 GB for
        # a track of 4,000 frames, 92 MB this way) and is slower from some hundred frames on.
        if self.needs_frames:
            self.frame_proj = nn.Linear(c["frame_d"], c["in_d"])
            self.transformer = nn.TransformerDecoder(nn.TransformerDecoderLayer(*layer), c["n_layers"])
        else:
            encoder_layer = nn.TransformerEncoderLayer(*layer)
            self.transformer = nn.TransformerEncoder(encoder_layer, c["n_layers"], enable_nested_tensor=False)
        use_long_attention(self.transformer)
        self.classify = nn.Linear(width, c["n_classes"] + (not c["multi_label"]))
        for parameter in self.transformer.parameters():  # torch starts all layers as copies of one
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        queries: Tensor,
        times: Tensor,
        padding: Tensor | None = None,
        frame_features: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """Classify the frames of a batch of tracks.

        Args:
            queries: float (B, T, in_d); finite on padding, which changes nothing elsewhere.
            times: int64 (B, T), frames since the track's first one, gaps kept.
            padding: bool (B, T), True after a track's end; None without padding.
            frame_features: float (B, T, frame_d), for heads with `needs_frames`.
            start: how many of its track's detections come before these.

        Returns:
            Logits (B, T, n_classes + 1), the last class is "no action", or with `multi_label` (B, T, n_classes), each
            of a sigmoid; undefined on padding.
        """
        if padding is not None:
            padding = padding & ~padding.all(1, keepdim=True)  # attention to nothing at all is NaN in some kernels
        queries = self._with_time(queries, times, start)
        if not self.needs_frames:
            out = self.transformer(queries, src_key_padding_mask=padding)
        elif frame_features is None:
            raise ValueError(f"a head of type {self.needs_frames} needs frame_features")
        else:
            frames = self._with_time(self.frame_proj(frame_features), times, start)
            out = self.transformer(frames, queries, tgt_key_padding_mask=padding, memory_key_padding_mask=padding)
        return self.classify(out.transpose(0, 1))

    def _with_time(self, x: Tensor, times: Tensor, start: int) -> Tensor:
        """(B, T, in_d), (B, T) -> (T, B, width)."""
        joined, cycle = HEAD_TYPES[self.config["head_type"]].time, self.config["time_cycle"]
        if joined is None:
            return x.transpose(0, 1)
        if self.config["time_encoding"] == "periodic":
            time = time_encoding(times, self.time_d, cycle)
        else:
            if joined == "add":  # the published code counts detections, not frames
                times = torch.arange(start, start + times.shape[1], device=times.device).expand_as(times)
            time = published_time_encoding(times, self.time_d, cycle)
        x = x + time.to(x.dtype) if joined == "add" else torch.cat([x, time.to(x.dtype)], -1)
        return x.transpose(0, 1)


@torch.inference_mode()
def action_probabilities(
    head: ActionHead, queries: np.ndarray, times: np.ndarray, frame_features: np.ndarray | None = None, start: int = 0
) -> np.ndarray:
    """Class probabilities of a track's frames; arguments as in `ActionHead.forward`, but of one track.

    Returns:
        float32 (T, n_classes + 1), the last class is "no action"; with `multi_label` each class has a probability of
        its own, and that of "no action" is 0.
    """
    device = next(head.parameters()).device
    arrays = (queries, times, frame_features)
    queries, times, frame_features = (None if a is None else torch.from_numpy(a)[None].to(device) for a in arrays)
    logits = head(queries, times, None, frame_features, start)[0].float()
    probabilities = F.pad(logits.sigmoid(), (0, 1)) if head.config["multi_label"] else logits.softmax(-1)
    return probabilities.cpu().numpy()


def load_head(path: str | Path, device: torch.device | str = "cpu") -> tuple[ActionHead, dict, int]:
    """The head of a checkpoint of `train_action_head.py`, in evaluation mode; its config and epoch.

    InputError when the file is something else.
    """
    path = checkpoint_path(path, "head")
    checkpoint = load_checkpoint(path, "action head", NEEDED, "train_action_head.py")
    config = checkpoint["config"]
    try:
        head = build_action_head(**config["head"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    load_weights(head, checkpoint["model"], path)
    return head.to(device).eval(), config, checkpoint["epoch"]


def _widths(head_type: str, in_d: int, time_d: int) -> tuple[int, int]:
    """Widths of the time's vector (0: none) and of the transformer."""
    return {None: (0, in_d), "add": (in_d, in_d), "append": (time_d, in_d + time_d)}[HEAD_TYPES[head_type].time]


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
    time_encoding: str = "periodic",
    multi_label: bool = False,
) -> ActionHead:
    """An action head with random weights; `build_action_head(**head.config)` builds it again.

    Args:
        head_type: an entry of `models.head_types.HEAD_TYPES`.
        n_classes: actions, without "no action", which is added after the last.
        in_d: width of a query.
        time_cycle: period in frames of the time encoding, or base of the published one.
        frame_d: width of the frame features of `x3d` and `res`.
        n_layers, nhead, dim_feedforward, dropout: of the transformer.
        time_d: width of the time where it is appended, which makes the transformer in_d + time_d wide.
        time_encoding: "periodic" (`time_encoding`), or "published" (`published_time_encoding`; added times count a
            track's detections there, appended ones its frames).
        multi_label: a frame may have several actions: a sigmoid for each class and no "no action".

    Raises:
        InputError: an unknown type or encoding, or sizes that do not go together.
    """
    config = dict(locals())
    for name, choices in (("head_type", HEAD_TYPES), ("time_encoding", TIME_ENCODINGS)):
        if config[name] not in choices:
            raise InputError(f"--{name} {config[name]}: choose from {', '.join(choices)}")
    sizes = ("n_classes", "in_d", "time_cycle", "n_layers", "nhead", "dim_feedforward", "time_d")
    for name in (*sizes, "frame_d") if HEAD_TYPES[head_type].frames else sizes:
        if not isinstance(config[name], int) or config[name] < 1:
            raise InputError(f"action head setting {name}={config[name]!r}: must be an integer of at least 1")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(f"action head setting dropout={dropout!r}: must be from 0 up to 1")
    encoded, width = _widths(head_type, in_d, time_d)
    if width % nhead:
        raise InputError(f"action head setting nhead={nhead}: must divide the width of {head_type}, {width}")
    if encoded % 2:
        raise InputError(f"action head of type {head_type}: its time is {encoded} wide, which must be even")
    return ActionHead(config)
