"""DETR's transformer with the official state-dict names: batch first, attention by PyTorch's fused kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention with the parameter names of `nn.MultiheadAttention`.

    `query` (B, N, d), `key` and `value` (B, S, d), `padding` bool (B, S), True on keys to ignore, or None
    -> (B, N, d).
    """

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d, d))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d))
        self.out_proj = nn.Linear(d, d)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        if q.requires_grad and q.device.type == "cpu":  # gradients of bf16 attention take twice as long there
            q, k, v = q.float(), k.float(), v.float()
        visible = None if padding is None else ~padding[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        with torch.autocast(q.device.type, enabled=False):  # it would make them bf16 again
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(-2))


class _Layer(nn.Module):
    """Residual steps and feed-forward network of encoder and decoder layers; LayerNorm before (pre_norm) or after."""

    def __init__(self, d: int, ff: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(d, ff), nn.Linear(ff, d)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def step(self, x: Tensor, norm: nn.LayerNorm, change) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(change(norm(x)))
        return norm(x + self.dropout(change(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.linear1(x).relu()))


class EncoderLayer(_Layer):
    """Self-attention over the feature map; positions are added to queries and keys, not to values."""

    def __init__(self, d: int, heads: int, ff: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(d, ff, dropout, pre_norm)
        self.self_attn = Attention(d, heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, padding: Tensor | None, pos: Tensor) -> Tensor:
        x = self.step(x, self.norm1, lambda y: self.self_attn(y + pos, y + pos, y, padding))
        return self.step(x, self.norm2, self.feed_forward)


class DecoderLayer(_Layer):
    """Self-attention between object queries, then cross-attention from them to the encoder's memory."""

    def __init__(self, d: int, heads: int, ff: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(d, ff, dropout, pre_norm)
        self.self_attn = Attention(d, heads, dropout)
        self.multihead_attn = Attention(d, heads, dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, key: Tensor, padding: Tensor | None) -> Tensor:
        x = self.step(x, self.norm1, lambda y: self.self_attn(y + query_pos, y + query_pos, y, None))
        x = self.step(x, self.norm2, lambda y: self.multihead_attn(y + query_pos, key, memory, padding))
        return self.step(x, self.norm3, self.feed_forward)


class Transformer(nn.Module):
    """DETR's encoder-decoder (Carion et al., ECCV 2020)."""

    def __init__(
        self, d: int, heads: int, enc_layers: int, dec_layers: int, ff: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        layer = (d, heads, ff, dropout, pre_norm)
        encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(enc_layers))
        decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(dec_layers))
        self.encoder = nn.ModuleDict({"layers": encoder, "norm": nn.LayerNorm(d) if pre_norm else nn.Identity()})
        self.decoder = nn.ModuleDict({"layers": decoder, "norm": nn.LayerNorm(d)})
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, src: Tensor, mask: Tensor | None, query_embed: Tensor, pos: Tensor) -> Tensor:
        """The states (L, B, N, d) of all decoder layers, after the final norm.

        Args:
            src: feature map (B, d, h, w).
            mask: bool (B, h, w), True on padding, or None.
            query_embed: (N, d).
            pos: position embedding (B or 1, d, h, w).
        """
        memory = src.flatten(2).transpose(1, 2)
        pos = pos.flatten(2).transpose(1, 2).to(memory.dtype)
        padding = None if mask is None else mask.flatten(1)
        for layer in self.encoder.layers:
            memory = layer(memory, padding, pos)
        memory = self.encoder.norm(memory)
        key = memory + pos
        query_pos = query_embed.to(memory.dtype).expand(len(src), -1, -1)
        x = torch.zeros_like(query_pos)
        states = []
        for layer in self.decoder.layers:
            x = layer(x, query_pos, memory, key, padding)
            states.append(x)
        return torch.stack([self.decoder.norm(state) for state in states])
