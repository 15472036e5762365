"""Exact shortcuts for inference in the convolutions of `transformers`' detectors, whose blocks are known by name."""

import math
import types

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import fuse_batchnorm


@torch.no_grad()
def fuse(model: nn.Module) -> None:
    """Fold what follows a convolution into it, in place: BatchNorm, a RepVGG block's second branch, an affine layer
    after a ReLU; and run 1x1 convolutions as products of matrices on CPUs. Answers stay, up to rounding.
    """
    fuse_batchnorm(model)
    for block in model.modules():
        if type(block).__name__.endswith("RepVggBlock"):
            _merge_branches(block)
        elif isinstance(getattr(block, "activation", None), nn.ReLU) and hasattr(block, "lab"):
            _fold_affine(block)
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and _pointwise(conv) and conv.weight.device.type == "cpu":
            conv.forward = types.MethodType(_as_product, conv)


def _merge_branches(block: nn.Module) -> None:
    """act(conv3x3(x) + conv1x1(x)) is act(conv3x3(x)) with the 1x1 kernel added in the middle."""
    large, small = (getattr(getattr(block, name, None), "conv", None) for name in ("conv1", "conv2"))
    convs = isinstance(large, nn.Conv2d) and isinstance(small, nn.Conv2d)
    if not (convs and large.kernel_size == (3, 3) and small.kernel_size == (1, 1) and large.padding == (1, 1)):
        return  # LW-DETR's blocks of that name are one after another
    large.weight += F.pad(small.weight, (1, 1, 1, 1))
    large.bias += small.bias
    block.forward = nn.Sequential(block.conv1, block.activation).forward
    del block.conv2


def _fold_affine(block: nn.Module) -> None:
    """scale * relu(conv(x)) + bias is max(scale * conv(x) + bias, bias) for a scale that is not negative."""
    conv, affine = block.convolution, block.lab
    if isinstance(affine, nn.Identity) or affine.scale.item() < 0:
        return
    conv.weight *= affine.scale
    conv.bias.mul_(affine.scale).add_(affine.bias)
    block.activation, block.lab = nn.Hardtanh(affine.bias.item(), math.inf, inplace=True), nn.Identity()


def _pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def _as_product(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of images that are channels last in memory; one thread is slow at it otherwise."""
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)
