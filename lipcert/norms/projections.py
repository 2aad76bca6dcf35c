"""The coins of random projections: normal and Cauchy numbers for each sample, used once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.norms.coins import uniform


class Projections:
    """For the samples of the ``streams`` ``(B,)``; every draw has a number of its own."""

    def __init__(self, key: int, streams: Tensor, call: int) -> None:
        self.key, self.streams, self.call, self.draws = key, streams, call, 0

    def normals(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """``(B, count, *shape)``, by Box and Muller."""
        size = count * math.prod(shape)
        even = self._uniform(2 * ((size + 1) // 2))
        length = torch.sqrt(-2 * torch.log(even[:, : even.shape[1] // 2]))
        angle = 2 * math.pi * even[:, even.shape[1] // 2 :]
        normal = torch.cat([length * torch.cos(angle), length * torch.sin(angle)], 1)
        return normal[:, :size].reshape(-1, count, *shape)

    def cauchy(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """``(B, count, *shape)``: tangents of uniform angles."""
        even = self._uniform(count * math.prod(shape))
        return even.sub_(0.5).mul_(math.pi).tan_().reshape(-1, count, *shape)

    def _uniform(self, size: int) -> Tensor:
        self.draws += 1
        return uniform(self.key, self.streams, self.call * 2**12 + self.draws, size)
