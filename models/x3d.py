"""X3D-XS (Feichtenhofer, CVPR 2020), the video network of the `x3d` action head; state-dict names of PyTorchVideo."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.weights import download, load_weights
from utils.storage.files import load_torch

X3D_URL = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/X3D_XS.pyth"
X3D_FRAMES, X3D_STRIDE, X3D_SIZE = 4, 12, 182
"""The published input (Kinetics-400): frames a clip, frames from one to the next, shorter side in pixels."""
X3D_WIDTH = 2048
"""Width of `features`."""

_STAGES = ((24, 54, 3), (48, 108, 5), (96, 216, 11), (192, 432, 7))  # width, width inside the blocks, blocks


def normalize_x3d(images: Tensor) -> Tensor:
    """uint8 RGB of any shape -> float32 of that shape on the same device: (x / 255 - 0.45) / 0.225, as published."""
    return (images.float() - 0.45 * 255) / (0.225 * 255)


def _named(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


class _SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the channels' means over time and space."""

    def __init__(self, d: int) -> None:
        super().__init__()
        squeezed = (d // 16 + 7) // 8 * 8  # a sixteenth, in eights
        self.block = nn.Sequential(nn.Conv3d(d, squeezed, 1), nn.ReLU(), nn.Conv3d(squeezed, d, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.block(x.mean((2, 3, 4), keepdim=True))


class _Block(nn.Module):
    """Inverted bottleneck with a depthwise 3 x 3 x 3 convolution; `stride` halves height and width."""

    def __init__(self, in_d: int, d: int, inner: int, stride: int, excite: bool) -> None:
        super().__init__()
        step = (1, stride, stride)
        same = in_d == d and stride == 1
        self.branch1_conv = nn.Identity() if same else nn.Conv3d(in_d, d, 1, step, bias=False)
        self.branch1_norm = nn.Identity() if in_d == d else nn.BatchNorm3d(d)
        self.branch2 = _named(
            conv_a=nn.Conv3d(in_d, inner, 1, bias=False),
            norm_a=nn.BatchNorm3d(inner),
            act_a=nn.ReLU(inplace=True),
            conv_b=nn.Conv3d(inner, inner, 3, step, 1, groups=inner, bias=False),
            norm_b=nn.Sequential(nn.BatchNorm3d(inner), _SqueezeExcitation(inner) if excite else nn.Identity()),
            act_b=nn.SiLU(inplace=True),
            conv_c=nn.Conv3d(inner, d, 1, bias=False),
            norm_c=nn.BatchNorm3d(d),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.branch1_norm(self.branch1_conv(x)) + self.branch2(x)).relu()


class _Head(nn.Module):
    def __init__(self, d: int, inner: int, num_classes: int) -> None:
        super().__init__()
        self.pool = _named(
            pre_conv=nn.Conv3d(d, inner, 1, bias=False),
            pre_norm=nn.BatchNorm3d(inner),
            pre_act=nn.ReLU(inplace=True),
            pool=nn.AvgPool3d((X3D_FRAMES, 5, 5), stride=1),
            post_conv=nn.Conv3d(inner, X3D_WIDTH, 1, bias=False),
            post_act=nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout(0.5)
        self.proj = nn.Linear(X3D_WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.dropout(self.pool(x).mean((2, 3, 4))))


class X3D(nn.Module):
    """Clips float (B, 3, T, H, W), normalised by `normalize_x3d`, T >= 4, H and W >= 129 -> logits (B, num_classes).

    `blocks`: the stem, four residual stages (T kept, H and W halved by each of the five), the head.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        d = _STAGES[0][0]
        stem = _named(  # PyTorchVideo calls the convolution over space conv_t and that over time conv_xy
            conv=_named(
                conv_t=nn.Conv3d(3, d, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
                conv_xy=nn.Conv3d(d, d, (5, 1, 1), padding=(2, 0, 0), groups=d, bias=False),
            ),
            norm=nn.BatchNorm3d(d),
            act=nn.ReLU(inplace=True),
        )
        stages, in_d = [], d
        for d, inner, n_blocks in _STAGES:
            first = _Block(in_d, d, inner, stride=2, excite=True)
            others = [_Block(d, d, inner, stride=1, excite=i % 2 == 0) for i in range(1, n_blocks)]
            stages.append(_named(res_blocks=nn.Sequential(first, *others)))
            in_d = d
        self.blocks = nn.Sequential(stem, *stages, _Head(in_d, inner, num_classes))

    def forward(self, clips: Tensor) -> Tensor:
        return self.blocks(clips)

    def features(self, clips: Tensor) -> Tensor:
        """Clips as in `forward` -> (B, 2048), what the head pools, averaged over the positions of its window."""
        return self.blocks[-1].pool(self.blocks[:-1](clips)).mean((2, 3, 4))


def x3d_xs(num_classes: int = 400) -> X3D:
    """X3D-XS with random weights."""
    return X3D(num_classes)


def load_x3d(weights: str | Path | None, checkpoint_root: str | Path, device: str | torch.device = "cpu") -> X3D:
    """X3D-XS with the weights of a file, in evaluation mode on `device`.

    Args:
        weights: the official file (`{"model_state"}`) or a state dict. None: torch.hub's copy, else
            `checkpoint_root`/x3d/X3D_XS.pyth, downloaded once; the release names no checksum.

    Raises:
        InputError: the file cannot be downloaded, is damaged or does not fit.
    """
    path = Path(weights or Path(torch.hub.get_dir()) / "checkpoints" / "X3D_XS.pyth")
    if weights is None and not path.is_file():
        path = Path(checkpoint_root) / "x3d" / "X3D_XS.pyth"
        download(X3D_URL, path)
    checkpoint = load_torch(path, "X3D-XS weights")
    state = checkpoint.get("model_state", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    with torch.device("meta"):  # no time lost on random weights
        model = x3d_xs()
    load_weights(model.to_empty(device=device), state, path)
    return model.eval()
