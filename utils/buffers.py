"""Memory for large tensors that come and go at the same size."""

import math
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

MAX_FREE = 4  # tensors whose memory is kept for the next ones


class Buffers:
    """Memory for images, used again once its last tensor is gone: fresh pages cost as much as colour jitter."""

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=MAX_FREE)

    def take(self, shape: tuple[int, ...], pin: bool) -> Tensor:
        """A uint8 tensor with anything in it; pinned ones come from torch, which keeps its own store."""
        if pin:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        size = math.prod(shape)
        try:
            memory = self._free.popleft()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
        view = memory[:size]
        weakref.finalize(view, self._free.append, memory).atexit = False
        return torch.from_numpy(view).view(shape)
