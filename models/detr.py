"""DETR (Carion et al., ECCV 2020): the detector and its output in pixels."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import CHANNELS, Backbone, fuse_batchnorm
from models.detr_config import DETR_CONFIG
from models.detr_loss import SetCriterion
from models.position_encoding import sine_position_encoding
from models.transformer import Attention, Transformer
from utils.box_ops import box_cxcywh_to_xyxy
from utils.misc import InputError

PERSON = DETR_CONFIG["person_label"]

_CHOICES = {
    "backbone": tuple(CHANNELS),
    "position_embedding": ("sine",),
    "norm": ("frozen", "bn"),
    "box_overlap": ("giou", "iou"),
}


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB (..., 3, H, W) -> float32, normalised by ImageNet's mean and standard deviation."""
    mean, deviation = _statistics(images.device)
    return (images.float() - mean) / deviation


@functools.cache  # a new constant would make the host wait for the GPU at every batch
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None] * 255
    deviation = torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None] * 255
    return mean, deviation


class _MLP(nn.Module):
    def __init__(self, d: int, out_d: int, n_layers: int) -> None:
        super().__init__()
        widths = [d] * n_layers + [out_d]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def pad_images(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Images (3, H, W) of any sizes -> a batch (B, 3, H', W') padded right and below, mask bool (B, H', W') True on
    padding."""
    height, width = (max(image.shape[i] for image in images) for i in (1, 2))
    batch = images[0].new_zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=batch.device)
    for i, image in enumerate(images):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
        mask[i, : image.shape[1], : image.shape[2]] = False
    return batch, mask


def pad_square(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) padded with zeros right and below to squares, channels last in memory."""
    height, width = images.shape[-2:]
    side = max(height, width)
    return F.pad(images, (0, side - width, 0, side - height)).contiguous(memory_format=torch.channels_last)


class DETR(nn.Module):
    """Images -> N object queries, each with a class distribution and a box."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        d = config["hidden_dim"]
        backbone = Backbone(config["backbone"], config["dilation"], config["norm"], config["stages"])
        self.backbone = nn.Sequential(backbone)  # the official names begin with backbone.0
        self.input_proj = nn.Conv2d(backbone.num_channels, d, 1)
        self.temperature, self.position_in_features = config["temperature"], config["position_in_features"]
        names = ("nheads", "enc_layers", "dec_layers", "dim_feedforward", "dropout", "pre_norm")
        self.transformer = Transformer(d, *(config[name] for name in names))
        self.query_embed = nn.Embedding(config["num_queries"], d)
        self.class_embed = nn.Linear(d, config["num_classes"] + 1)
        self.bbox_embed = _MLP(d, 4, 3)
        self.aux_loss = config["aux_loss"]
        self.dtype: torch.dtype | None = None  # set by `for_inference`
        self.query_layer: int | None = None  # decoder layer, from 1, of `queries`; None: the last one

    def forward(self, images: Tensor | list[Tensor], mask: Tensor | None = None) -> dict:
        """Detect.

        Args:
            images: float (B, 3, H, W), normalised (`normalize`), or a list of (3, H, W) of different sizes.
            mask: bool (B, H, W), True on padding; None where nothing is padded.

        Returns:
            `pred_logits` (B, N, C + 1), `pred_boxes` (B, N, 4) cxcywh relative to the unpadded image and `queries`
            (B, N, d) of the last decoder layer (or `query_layer`), all float32; `features` (B, c, h, w) of the
            backbone; in training `aux_outputs`, a list of logits and boxes of the earlier decoder layers.
        """
        if not isinstance(images, Tensor):
            images, mask = pad_images(images)
        device = images.device.type
        with contextlib.nullcontext() if self.dtype is None else torch.autocast(device, self.dtype):
            features = self.backbone(images)
            size = features.shape[-2:]
            if mask is None:
                inside = torch.ones(1, *size, dtype=torch.bool, device=features.device)
            else:
                mask = F.interpolate(mask[:, None].float(), size=size)[:, 0] > 0.5
                inside = ~mask
            # full precision between the layers and in the heads: bf16 rounds a box at 500 pixels by up to 2
            embed = self.query_embed.weight
            pos = sine_position_encoding(inside, embed.shape[1], self.temperature)
            source = self.input_proj(features).to(embed.dtype)
            if self.position_in_features:
                source = source + pos
            states = self.transformer(source, mask, embed, pos)
        with torch.autocast(device, enabled=False):
            states = states.to(embed.dtype)
            scored = states if self.training else states[-1:]  # earlier layers have outputs for their losses alone
            logits, boxes = self.class_embed(scored), self.bbox_embed(scored).sigmoid()
        queries = states[-1 if self.query_layer is None else self.query_layer - 1]
        out = {"pred_logits": logits[-1], "pred_boxes": boxes[-1], "queries": queries, "features": features}
        if self.training and self.aux_loss:
            earlier = zip(logits[:-1], boxes[:-1], strict=True)
            out["aux_outputs"] = [{"pred_logits": a, "pred_boxes": b} for a, b in earlier]
        return out


@torch.no_grad()
def for_inference(detr: DETR, dtype: torch.dtype | None = None) -> DETR:
    """Make `detr` fast for inference, in place: BatchNorm folded into convolutions, channels last, weights in `dtype`
    (bfloat16 or float16; None: float32).

    Its outputs stay float32 and equal up to rounding; the names of its state dict change. Call it on the target device
    and without autocast around it.
    """
    fuse_batchnorm(detr.eval().requires_grad_(False)).to(memory_format=torch.channels_last)
    detr.dtype = dtype
    if dtype is not None:
        for part in (*detr.backbone.modules(), detr.input_proj, *detr.transformer.modules()):
            if isinstance(part, nn.Conv2d | nn.Linear | Attention):
                part.to(dtype)
    return detr


@torch.no_grad()
def postprocess(outputs: dict, sizes: Tensor) -> list[dict[str, Tensor]]:
    """Detections in pixels, as the official release's PostProcess gives them.

    Args:
        outputs: of `DETR`.
        sizes: (B, 2), height and width in pixels of each original image.

    Returns:
        An image's `scores` (N,), `labels` (N,) without "no object" and `boxes` (N, 4) xyxy.
    """
    scores, labels = outputs["pred_logits"].softmax(-1)[..., :-1].max(-1)
    boxes = box_cxcywh_to_xyxy(outputs["pred_boxes"]) * sizes.flip(1).repeat(1, 2)[:, None]
    rows = zip(scores, labels, boxes, strict=True)
    return [{"scores": s, "labels": c, "boxes": b} for s, c, b in rows]


def _checked(name: str, value: object) -> bool | int | float | str:
    """`value` in the type of the setting's default; InputError when it is invalid."""
    kind = type(DETR_CONFIG[name])
    if choices := _CHOICES.get(name):
        if value not in choices:
            raise InputError(f"detector setting {name}={value!r}: choose from {', '.join(choices)}")
        return value
    minimum = 1 if kind is int and name != "person_label" else 0
    if not isinstance(value, int | float) or not minimum <= value < math.inf or kind(value) != value:
        raise InputError(f"detector setting {name}={value!r}: must be a {kind.__name__} of at least {minimum}")
    return kind(value)


def full_config(config: Mapping) -> dict:
    """`config` completed by the defaults; InputError for unknown names and invalid values."""
    if unknown := sorted(config.keys() - DETR_CONFIG.keys()):
        raise InputError(f"detector setting {unknown[0]!r} does not exist; choose from {', '.join(DETR_CONFIG)}")
    config = {name: _checked(name, value) for name, value in {**DETR_CONFIG, **config}.items()}
    if not 1 <= config["stages"] <= 4:
        raise InputError(f"detector setting stages={config['stages']}: a ResNet has 1 to 4 stages")
    if config["hidden_dim"] % config["nheads"] or config["hidden_dim"] % 4:
        raise InputError("detector setting hidden_dim must be a multiple of nheads and of 4")
    return config


def build_model(config: Mapping) -> tuple[DETR, SetCriterion, Callable[[dict, Tensor], list[dict[str, Tensor]]]]:
    """Detector with random weights, loss and post-processing of a configuration (`DETR_CONFIG` has the defaults)."""
    config = full_config(config)
    return DETR(config), SetCriterion(config), postprocess
