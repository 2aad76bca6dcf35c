"""Element-wise functions around a sample: on its box each lies on a few lines, within a band.

For ``z = z0 + d``, ``d`` in a box ``[low, high]`` that holds 0, the function changes by
``|σ(z0 + d) − σ(z0) − (slope_p d + offset_p)| ≤ band_p`` on piece ``p``, ``begin_p ≤ d ≤ end_p``.
A piecewise linear function has its own pieces. A smooth one gets the chords of a grid: with slopes
of σ between ``a`` and ``b`` on a cell of width ``h`` it stays within ``(b − a) h / 4`` of its
chord, as it meets it at both ends, and leaves it by no more than ``b − s`` and ``s − a`` a step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from lipcert.audit.bent import Bent, bent_function
from lipcert.audit.interpreter import Value
from lipcert.audit.matrix import ENTRY
from lipcert.audit.operators import attributes_of

UNIT = 2.0**-53
# Cells of the grid on either side of the sample.
_CELLS = 6


@dataclass(frozen=True, eq=False)
class Pieces:
    """The lines and their bands, ``(B, p, n)`` each; ``tangent``: a slope at the sample;
    ``flat ≤ (σ(z0 + d) − σ(z0)) / d ≤ steep`` for every ``d`` of the box; and ``most``, the
    steepest between any two points there: ``(B, n)`` each."""

    begins: Tensor
    ends: Tensor
    slopes: Tensor
    offsets: Tensor
    band: Tensor
    tangent: Tensor
    flat: Tensor
    steep: Tensor
    most: Tensor

    @classmethod
    def of(
        cls, begins: Tensor, ends: Tensor, slopes: Tensor, offsets: Tensor, band: Tensor,
        tangent: Tensor, least: Tensor, largest: Tensor,
    ) -> Pieces:  # fmt: skip
        """``least`` and ``largest``: the slopes of the function on each piece, ``(B, p, n)``.

        A secant from the sample is a mean of slopes, and ``slope + (offset ± band) / d`` on a
        piece, extreme at its ends; within the piece around the sample nothing but slopes tell it.
        """
        there, around = begins <= ends, (begins <= 0) & (ends >= 0)
        low, high = torch.where(there, least, math.inf), torch.where(there, largest, -math.inf)
        flat = torch.where(around, low, math.inf).amin(1)
        steep = torch.where(around, high, -math.inf).amax(1)
        for end in (begins, ends):
            counts = there & ~around
            length = torch.where(counts, end, 1.0)
            secant, doubt = slopes + offsets / length, band / length.abs()
            flat = torch.minimum(flat, torch.where(counts, secant - doubt, math.inf).amin(1))
            steep = torch.maximum(steep, torch.where(counts, secant + doubt, -math.inf).amax(1))
        flat, steep = torch.maximum(flat, low.amin(1)), torch.minimum(steep, high.amax(1))
        most = torch.maximum(low.amin(1).abs(), high.amax(1).abs())
        return cls(begins, ends, slopes, offsets, band, tangent, flat, steep, most)


class Function(ABC):
    """One element-wise function. ``rounding``: a run's ``σ(z)`` errs by at most ``u`` times
    ``r |σ(z)| + a``, ``(r, a)``; ``fixed`` bounds the constants that it adds."""

    rounding: tuple[float, float]
    fixed = 1.0

    @abstractmethod
    def value(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def pieces(self, at: Tensor, low: Tensor, high: Tensor) -> Pieces:
        """Around ``at``, ``(B, n)``, for changes from ``low ≤ 0`` to ``high ≥ 0``."""


class Piecewise(Function):
    """Continuous and piecewise linear."""

    def __init__(self, bent: Bent) -> None:
        self.bent = bent
        self.slopes = torch.from_numpy(bent.slopes)
        self.kinks, self.start = [float(kink) for kink in bent.kinks], float(bent.start)
        exact = bool(((self.slopes == 0) | (self.slopes.abs() == 1)).all())
        self.rounding = (0.0, 0.0) if exact else (4.0, 0.0)
        self.fixed = abs(self.start) + max(abs(kink) for kink in self.kinks)

    def value(self, z: Tensor) -> Tensor:
        slopes = self.slopes.to(z)
        result = self.start + slopes[0] * (z - self.kinks[0]).clamp(max=0)
        reaches = [b - a for a, b in zip(self.kinks, [*self.kinks[1:], math.inf], strict=True)]
        for slope, kink, reach in zip(slopes[1:], self.kinks, reaches, strict=True):
            result = result + slope * (z - kink).clamp(0, reach)
        return result

    def pieces(self, at: Tensor, low: Tensor, high: Tensor) -> Pieces:
        kinks = [kink - at for kink in self.kinks]
        begins = torch.stack([low, *(torch.maximum(low, kink) for kink in kinks)], 1)
        ends = torch.stack([*(torch.minimum(high, kink) for kink in kinks), high], 1)
        slopes = self.slopes.to(at)[None].expand(len(at), -1, at.shape[1])
        # Each line by its value at a kink that it goes through.
        meets = [self.kinks[0], *self.kinks]
        levels = [self.value(torch.full_like(at, kink)) - slope * (kink - at)
                  for kink, slope in zip(meets, slopes.unbind(1), strict=True)]  # fmt: skip
        offsets = torch.stack(levels, 1) - self.value(at)[:, None]
        around = (begins <= ends) & (begins <= 0) & (ends >= 0)
        tangent = slopes.gather(1, around.int().argmax(1)[:, None])[:, 0]
        sizes = at.abs() + torch.maximum(-low, high) + self.fixed
        band = (8 * ENTRY * slopes.abs().amax(1) * sizes)[:, None].expand_as(slopes)
        return Pieces.of(begins, ends, slopes, offsets, band, tangent, slopes, slopes)


# The least and the largest slope between two places.
Range = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Smooth(Function):
    """``evaluate``, and the slopes over intervals."""

    rounding = 16.0, 16.0

    def __init__(self, evaluate: Callable[[Tensor], Tensor], slopes: Range) -> None:
        self._evaluate, self._slopes = evaluate, slopes

    def value(self, z: Tensor) -> Tensor:
        return self._evaluate(z)

    def pieces(self, at: Tensor, low: Tensor, high: Tensor) -> Pieces:
        # Denser about the sample, where most of a ball is.
        steps = [(k / _CELLS) ** 1.5 for k in range(1, _CELLS + 1)]
        places = [low * share for share in reversed(steps)] + [0 * low]
        grid = torch.stack(places + [high * share for share in steps], 1)
        values = self.value(at[:, None] + grid)
        rises = values - self.value(at)[:, None]
        begins, ends = grid[:, :-1], grid[:, 1:]
        least, largest = self._slopes(at[:, None] + begins, at[:, None] + ends)
        steepest = torch.maximum(least.abs(), largest.abs()).amax(1)
        sizes = values.abs().amax(1) + 1 + steepest * (at.abs() + torch.maximum(-low, high))
        width = ends - begins
        wide = width > 0
        slopes = torch.where(wide, rises.diff(dim=1) / torch.where(wide, width, 1.0), largest)
        # Within the range, whatever cancelled in a narrow cell.
        slopes = torch.minimum(torch.maximum(slopes, least), largest)
        left = begins < 0
        offsets = torch.where(left, rises[:, 1:] - slopes * ends, rises[:, :-1] - slopes * begins)
        band = width * (largest - least) / 4 * (1 + ENTRY) + 64 * ENTRY * sizes[:, None]
        tangent = self._slopes(at, at)[1]
        return Pieces.of(begins, ends, slopes, offsets, band, tangent, least, largest)


def _outward(least: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    slack = 64 * UNIT
    return least - slack * (least.abs() + 1), largest + slack * (largest.abs() + 1)


def _even(slope: Callable[[Tensor], Tensor]) -> Range:
    """Of a slope that is even and falls away from its peak at 0."""

    def between(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        nearest = torch.where((low <= 0) & (high >= 0), 0.0, torch.minimum(low.abs(), high.abs()))
        return _outward(slope(torch.maximum(low.abs(), high.abs())), slope(nearest))

    return between


def _elu(alpha: float) -> Smooth:
    def value(z: Tensor) -> Tensor:
        return torch.where(z > 0, z, alpha * torch.expm1(z.clamp(max=0)))

    def slopes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        left, right = (torch.where(end > 0, 1.0, alpha * torch.exp(end)) for end in (low, high))
        # Where the kink lies between, the slope rises to α before it, and is 1 behind it.
        kink = torch.where((low <= 0) & (high >= 0), alpha, right)
        return _outward(torch.minimum(left, right), torch.maximum(kink, torch.maximum(left, right)))

    return Smooth(value, slopes)


def _bell(z: Tensor) -> Tensor:
    decay = torch.exp(-z.abs())
    return decay / (1 + decay).square()


def function_of(
    node: onnx.NodeProto, values: Sequence[Value | None], shape: tuple[int, ...]
) -> Function | None:
    """The function that a node is, with these inputs where they are constant; None for another."""
    bent, alpha = bent_function(node, values, shape), attributes_of(node).get("alpha", 1.0)
    if bent is not None:
        return Piecewise(bent)
    match node.op_type:
        case "Sigmoid":
            return Smooth(torch.sigmoid, _even(_bell))
        case "Tanh":
            return Smooth(torch.tanh, _even(lambda z: 4 * _bell(2 * z)))
        case "Softplus":
            return Smooth(
                lambda z: z.clamp(min=0) + torch.log1p(torch.exp(-z.abs())),
                lambda low, high: _outward(torch.sigmoid(low), torch.sigmoid(high)),
            )
        case "Elu" if alpha > 0:
            return _elu(alpha)
        case _:
            return None
