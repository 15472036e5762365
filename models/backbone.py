"""ResNet backbones with the state-dict names of the official DETR release."""

import torch
from torch import Tensor, nn
from torchvision.models import resnet

CHANNELS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048}  # after the fourth stage

_CONV_AND_NORM = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1"), ("conv", "norm"))
_CONV_AND_NORM += (("convolution", "normalization"),)
FIRST_SCALE = 0.1  # initial scale of a deep ResNet's residual branches, trained from scratch (Goyal et al. 2017: 0)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and affine parameters: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(value)))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = _affine(self)
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The scale and shift, (C,) each, that a BatchNorm with fixed statistics amounts to."""
    scale = norm.weight * (norm.running_var + getattr(norm, "eps", 1e-5)).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def _dilate(stage: nn.Module) -> None:
    """Replace a stage's stride of 2 by dilation of its later 3x3 convolutions (DC5): the receptive field stays."""
    strided = stage[0].conv2 if isinstance(stage[0], resnet.Bottleneck) else stage[0].conv1
    for conv in (module for module in stage.modules() if isinstance(module, nn.Conv2d)):
        conv.stride = (1, 1)
        if conv.kernel_size == (3, 3) and conv is not strided:
            conv.dilation = conv.padding = (2, 2)


class Backbone(nn.Module):
    """A ResNet up to its `stages`-th stage: images (B, 3, H, W) -> feature map (B, `num_channels`, h, w).

    Args:
        name: a key of `CHANNELS`.
        dilation: replace the last stage's stride by dilation.
        norm: "frozen" keeps BatchNorm's statistics and the first stage as loaded (pretrained weights), "bn" trains
            everything (from scratch).
        stages: number of stages, 1 to 4.
    """

    def __init__(self, name: str, dilation: bool, norm: str, stages: int) -> None:
        super().__init__()
        norm_layer = FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
        full = getattr(resnet, name)(weights=None, norm_layer=norm_layer)
        layers = [f"layer{i}" for i in range(1, stages + 1)]
        if dilation:
            _dilate(getattr(full, layers[-1]))
        self.body = nn.Sequential()
        for part in ("conv1", "bn1", "relu", "maxpool", *layers):
            self.body.add_module(part, getattr(full, part))
        self.num_channels = CHANNELS[name] // 2 ** (4 - stages)
        if norm == "frozen":
            self.body.conv1.requires_grad_(False)
            self.body.layer1.requires_grad_(False)
        else:
            for block in self.body.modules():
                if isinstance(block, resnet.Bottleneck):  # a deep network: each block begins close to the identity
                    nn.init.constant_(block.bn3.weight, FIRST_SCALE)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


@torch.no_grad()
def fuse_batchnorm(module: nn.Module) -> nn.Module:
    """Fold every BatchNorm into the convolution before it, in place, and return the module.

    For inference: running statistics are used, and the names of the state dict change. Pairs are recognised by their
    names, those of torchvision, of this project and of `transformers`.
    """
    for parent in list(module.modules()):
        names = dict(parent.named_children())
        for conv_name, norm_name in _CONV_AND_NORM:
            conv, norm = names.get(conv_name), names.get(norm_name)
            frozen = type(norm).__name__.endswith("FrozenBatchNorm2d")
            if not (isinstance(conv, nn.Conv2d) and (frozen or isinstance(norm, nn.BatchNorm2d))):
                continue
            scale, shift = _affine(norm)
            conv.weight.mul_(scale[:, None, None, None])
            conv.bias = nn.Parameter(shift.clone() if conv.bias is None else conv.bias * scale + shift)
            setattr(parent, norm_name, nn.Identity())
    return module
