"""Operator norms while a network is trained: estimates that follow the weights.

One vector a segment is kept from step to step and shared by all samples; weights move little in a
step, so that one more power iteration keeps it near the top singular vector. The norm of
``diag(outer) A diag(inner)`` of a sample starts from a second shared vector, the mean of what the
samples of the last step found, and takes ``steps`` iterations of its own. Keeping a vector for
every sample of the data set (Huang et al., 2021: 27 GB for 6C2F) saves at most one of these.

``σ = ‖M v‖`` with ``v`` held fixed has the gradient of the norm itself (``∂‖M‖ = uᵀ ∂M v``).
Power iteration converges from below, so nothing here certifies anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lipcert.network import Segment

Edge = tuple[int, int]

# A root at 0 has no slope.
_TINY = 1e-12
# Of the power iteration before the first step; afterwards one a step follows the weights.
_FIRST_STEPS = 30
# Iterations of every norm where nothing is trained: of the validation.
_CAREFUL = 12


class WarmNorms(nn.Module):
    """The vectors of every segment, by its ends; they are made when a segment is first met."""

    def __init__(self, *, steps: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.steps = steps
        self.seed = seed
        self.whole_vectors = nn.ParameterDict()
        self.local_vectors = nn.ParameterDict()

    def whole(self, segment: Segment) -> Tensor:
        """``‖A‖``, a scalar."""
        start = self._vector(self.whole_vectors, segment)
        with torch.no_grad():
            v = start
            for _ in range(1 if self.training else _CAREFUL):
                v = _unit(segment.transpose(segment.apply(v)))
            if self.training:
                # A vector of zeros would stay one for ever.
                start.copy_(torch.where(v.any(), v, start))
        size: Tensor = segment.apply(v.clone()).flatten().norm()
        return size + _TINY

    def local(self, segment: Segment, inner: Tensor, outer: Tensor) -> Tensor:
        """``‖diag(outer) A diag(inner)‖`` for each sample: ``(B,)``."""
        shared = self._vector(self.local_vectors, segment)
        with torch.no_grad():
            weight, square = inner.detach(), outer.detach().square()
            # Whatever was kept, the start has a part on every neuron that varies.
            v = (shared + 1e-3) * weight
            for _ in range(self.steps if self.training else _CAREFUL):
                v = _unit(v)
                v = weight * segment.transpose(square * segment.apply(weight * v))
            v = _unit(v)
            if self.training:
                shared.copy_(_unit(_mean_over_processes(v.mean(0, keepdim=True))))
        # The root of the sum needs no gradient where a sample has nothing that varies.
        squares = (outer * segment.apply(inner * v)).flatten(1).square().sum(1)
        return (squares + _TINY).sqrt()

    @torch.no_grad()
    def prepare(self, edges: Iterable[Segment]) -> None:
        """Make the vectors of these segments and bring them near their top singular vectors."""
        for segment in edges:
            v = self._vector(self.whole_vectors, segment)
            for _ in range(_FIRST_STEPS):
                v.copy_(_unit(segment.transpose(segment.apply(v))))
            self._vector(self.local_vectors, segment).copy_(v)

    def _vector(self, vectors: nn.ParameterDict, segment: Segment) -> Tensor:
        key = f"{segment.source}_{segment.sink}"
        if key not in vectors:
            number = segment.source * 65_537 + segment.sink + self.seed
            generator = torch.Generator().manual_seed(number)
            shape = (1, *segment.in_shape)
            v = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape))
            anchor = segment.network.anchor
            vectors[key] = nn.Parameter(_unit(v.to(anchor)), requires_grad=False)
        vector: Tensor = vectors[key]
        return vector


def _unit(v: Tensor) -> Tensor:
    """Each sample's vector at length 1, or 0."""
    size: Tensor = v.flatten(1).norm(dim=1).clamp(min=1e-20)
    return v / size.reshape(-1, *(1,) * (v.dim() - 1))


def _mean_over_processes(v: Tensor) -> Tensor:
    """The mean over all of a global batch, however many processes share it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return v
    total = v.contiguous()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
