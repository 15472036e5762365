"""The sine position embedding of DETR (appendix A.4)."""

import math

import torch
from torch import Tensor


def sine_position_encoding(inside: Tensor, d: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of a cell's row (first half of the `d` channels) and column (second half), relative to the
    unpadded image: `inside` bool (B, h, w), False on padding -> float32 (B, d, h, w)."""
    half = d // 2
    wave = torch.arange(half, dtype=torch.float32, device=inside.device)
    wave = temperature ** (2 * (wave // 2) / half)
    parts = []
    for dim in (1, 2):
        position = inside.cumsum(dim, dtype=torch.float32)
        position = position / (position.narrow(dim, position.shape[dim] - 1, 1) + 1e-6) * (2 * math.pi)
        angle = position[..., None] / wave
        parts.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2))
    return torch.cat(parts, -1).permute(0, 3, 1, 2)
