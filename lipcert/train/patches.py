"""Training of the patch networks of ``loading.architectures``, whose layers stay isometries.

Every matrix ``W`` has orthonormal columns, MaxMin and the moves of channels keep distances, and
the last layer has rows of length 1. So ``f_y − f_j − eps ‖w_y − w_j‖`` is a margin over the whole
ball, without any bound of a norm, and the exported file is certified by the product of its norms.

Steps stay orthogonal: the gradient is that of ``(1 + S) W`` in a skew matrix ``S`` at 0; the
optimiser moves ``S``, and ``W`` becomes ``(1 − S/2)⁻¹ (1 + S/2) W``, Cayley's map, which is
orthogonal for every skew ``S`` and the same to first order; then ``S`` is 0 again.

Values are held as ``(channels, rows, columns, samples)``: a layer is one product of matrices, and
a move of channels copies whole runs of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.errors import UsageError
from lipcert.loading.architectures import PatchArchitecture
from lipcert.train.estimate import Estimate
from lipcert.train.trainable import PreprocessingFront, Trainable

# What an average pixel is taken for, where biases start.
_CENTRE = 0.47
# Steps of Newton and Schulz, from a product of two orthogonal matrices, and an average of many.
_POLISH, _MOST_POLISH = 1, 12
# Axis and step of the moves of the four eighths, as ``architectures`` writes them.
_MOVES = ((2, 1), (2, -1), (1, 1), (1, -1))


class PatchTrainable(Trainable):
    """A patch network whose steps stay orthogonal.

    ``tensors`` holds the file's own matrices, which the optimiser does not see: it moves ``skews``,
    and for the last layer ``directions``, of any length: the longer they have become, the less a
    step turns them.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        name: str,
        preprocessed: PreprocessingFront,
        architecture: PatchArchitecture,
    ) -> None:
        super().__init__(model, name, preprocessed)
        if self.input:
            raise UsageError(f"--arch {name}: takes pixels as they are; leave out --mean and --std")
        self.architecture = architecture
        by_name = dict(zip(self.names, self.tensors, strict=True))
        layers = range(1, architecture.depth + 1)
        self.matrices = [by_name[f"layer{i}.weight"].requires_grad_(False) for i in layers]
        self.biases = [by_name[f"layer{i}.bias"] for i in layers]
        self.rows = by_name["logits.weight"].requires_grad_(False)
        self.bias = by_name["logits.bias"]
        width = architecture.width
        self.skews = nn.ParameterList(nn.Parameter(torch.zeros(width, width)) for _ in layers)
        self.directions = nn.Parameter(self.rows.detach().clone())
        with torch.no_grad():
            if not bool(self.biases[0].any()):
                self.biases[0].copy_(-_CENTRE * self.matrices[0].flatten(1).sum(1))

    def estimate(
        self, pixels: Tensor, labels: Tensor, eps: float, dtype: torch.dtype = torch.float32
    ) -> Estimate:
        """Logits, computed in ``dtype`` but for the last sums, and the margins over the ball."""
        x = F.pixel_unshuffle(pixels, self.architecture.patch)
        x = x.permute(1, 2, 3, 0).contiguous().to(dtype)
        for number, (matrix, skew, bias) in enumerate(
            zip(self.matrices, self.skews, self.biases, strict=True)
        ):
            weight = matrix.flatten(1)
            if torch.is_grad_enabled():
                weight = weight + _skew(skew) @ weight
            x = _Layer.apply(x, weight.to(dtype), bias.to(dtype), number > 0)  # type: ignore[no-untyped-call]
        rows = F.normalize(self.directions, dim=1) if torch.is_grad_enabled() else self.rows
        logits = (rows.to(dtype) @ x.flatten(0, 2)).float().T + self.bias
        apart = distances(rows)[labels]
        margins = logits.gather(1, labels[:, None]) - logits - eps * apart
        return Estimate(self.template, logits, margins, {})

    def features(self, pixels: Tensor) -> Tensor:
        """Its layers turn what they are given without loss."""
        raise UsageError(
            f"--distil-features: --arch {self.name} has layers of isometries, of which no features "
            "are kept; give --distil"
        )

    @torch.no_grad()
    def project(self) -> None:
        """Bring what the optimiser did to the skew matrices into the orthogonal ones."""
        half = torch.stack([_skew(skew) for skew in self.skews]) / 2
        one = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
        turns = torch.linalg.solve(one - half, one + half)
        for matrix, skew, turn in zip(self.matrices, self.skews, turns, strict=True):
            matrix.copy_(orthonormal(turn @ matrix.flatten(1), _POLISH).reshape(matrix.shape))
            skew.zero_()
        self.rows.copy_(F.normalize(self.directions, dim=1))

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """The weights nearest to these that are orthogonal: an average of isometries is none."""
        super().load_weights(weights)
        for matrix in self.matrices:
            matrix.copy_(orthonormal(matrix.flatten(1)).reshape(matrix.shape))
        self.rows.copy_(F.normalize(self.rows, dim=1))


def distances(rows: Tensor) -> Tensor:
    """``‖w_i − w_j‖`` of all pairs of rows, differentiable, 0 on the diagonal."""
    squares = (rows[:, None] - rows).square().sum(2)
    # A root has no derivative at 0.
    same = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return torch.where(same, 0, squares.masked_fill(same, 1).sqrt())


def orthonormal(matrix: Tensor, steps: int = _MOST_POLISH) -> Tensor:
    """The nearest matrix with orthonormal columns, of one whose singular values lie in (0, √3)."""
    for _ in range(steps):
        matrix = 1.5 * matrix - 0.5 * matrix @ (matrix.mT @ matrix)
    return matrix


def _skew(matrix: Tensor) -> Tensor:
    return (matrix - matrix.mT) / 2


def _moved(x: Tensor, sign: int) -> Tensor:
    """The four eighths of the channels moved to their sides (``sign`` 1) or back (−1)."""
    share = len(x) // 8
    out = torch.empty_like(x)
    for number, (axis, step) in enumerate(_MOVES):
        part = slice(number * share, (number + 1) * share)
        source, target = x[part], out[part]
        size = x.shape[axis]
        first, rest = (size - 1, 0) if sign * step > 0 else (0, 1)
        start, others = (0, 1) if sign * step > 0 else (size - 1, 0)
        target.narrow(axis, start, 1).copy_(source.narrow(axis, first, 1))
        target.narrow(axis, others, size - 1).copy_(source.narrow(axis, rest, size - 1))
    out[4 * share :].copy_(x[4 * share :])
    return out


class _Layer(torch.autograd.Function):
    """Move, multiply, add, MaxMin; what autograd would keep of each of them takes three times the
    memory, and the time to fill it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, moves: bool) -> Tensor:
        flat = (_moved(x, 1) if moves else x).flatten(1)
        first, second = torch.addmm(bias[:, None], weight, flat).chunk(2)
        ctx.save_for_backward(flat, weight, first >= second)
        ctx.moves, ctx.shape = moves, x.shape
        out = torch.cat([torch.maximum(first, second), torch.minimum(first, second)])
        return out.reshape(-1, *x.shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        flat, weight, larger = ctx.saved_tensors
        high, low = grads[0].flatten(1).chunk(2)
        share = larger.to(high.dtype)
        grad = torch.cat([torch.lerp(low, high, share), torch.lerp(high, low, share)])
        back = None
        if ctx.needs_input_grad[0]:
            back = (weight.mT @ grad).reshape(ctx.shape)
            back = _moved(back, -1) if ctx.moves else back
        return back, grad @ flat.mT, grad.sum(1), None
