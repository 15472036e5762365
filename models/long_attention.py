"""Attention over tracks of any length, whose memory in training too grows with the length and not with its square."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

MATRIX = 2**24  # weights of a batch (tracks x heads x queries x keys) up to which they may all be in memory: 64 MiB
ALIGNED = 8  # what a head's width must be a multiple of for PyTorch's memory-efficient kernels of every dtype


class LongAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose training never holds more than `MATRIX` attention weights, and returns none.

    PyTorch's kernels that compute attention block by block do not drop single weights on a CPU. Beyond `MATRIX` the
    weights of random keys are dropped instead, the same ones for all queries of a track and head: the output's
    expectation is the same. Smaller batches, and evaluation, are computed as by `nn.MultiheadAttention`, which takes
    the `options`.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """`query` (T, B, d), `key` and `value` (S, B, d), `key_padding_mask` (B, S), True or -inf on padding."""
        n_weights = query.shape[1] * self.num_heads * len(query) * len(key)
        by_kernel = query.is_cuda and self.head_dim % ALIGNED == 0  # it drops single weights, block by block
        if not self.training or not self.dropout or n_weights <= MATRIX or by_kernel:
            return super().forward(query, key, value, key_padding_mask, **options)
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        projected = map(F.linear, (query, key, value), weights, biases)
        q, k, v = (self._heads(x) for x in projected)
        v = v * F.dropout(v.new_ones(*v.shape[:3], 1), self.dropout)
        visible = None if key_padding_mask is None else (key_padding_mask == 0)[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, visible, scale=self.head_dim**-0.5)[..., : self.head_dim]
        return self.out_proj(out.permute(2, 0, 1, 3).flatten(2)), None

    def _heads(self, x: Tensor) -> Tensor:
        """(T, B, d) -> (B, heads, T, width of a head, padded with zeros)."""
        x = x.unflatten(2, (self.num_heads, self.head_dim)).permute(1, 2, 0, 3)
        return F.pad(x, (0, -self.head_dim % ALIGNED))


def use_long_attention(transformer: nn.Module) -> None:
    """Make every attention of a transformer a `LongAttention`, with its weights as they are."""
    for module in transformer.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = LongAttention  # building anew would draw other random weights
