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

import torch
from torch import Tensor

from lipcert.audit.matrix import ENTRY
from lipcert.audit.operators import Attributes
from lipcert.audit.program import Bent

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
    """Continuous and piecewise linear; see ``program.Bent``."""

    def __init__(self, bent: Bent) -> None:
        self.slopes = torch.from_numpy(bent.slopes)
        self.kinks, self.start = [float(kink) for kink in bent.kinks], float(bent.start)
        exact = bool(((self.slopes == 0) | (self.slopes.abs() == 1)).all())
        self.rounding = (0.0, 0.0) if exact else (4.0, 0.0)
        self.fixed = abs(self.start) + max(abs(kink) for kink in self.kinks)

    def value(self, z: Tensor) -> Tensor:
        slopes = self.slopes.to(z)
        result = self.start + slopes[0] * (z - self.kinks[0]).clamp(max=0)
        for k, kink in enumerate(self.kinks):
            last = k + 1 == len(self.kinks)
            reach = math.inf if last else self.kinks[k + 1] - kink
            result = result + slopes[k + 1] * (z - kink).clamp(0, reach)
        return result

    def pieces(self, at: Tensor, low: Tensor, high: Tensor) -> Pieces:
        kinks = [kink - at for kink in self.kinks]
        begins = torch.stack([low, *(torch.maximum(low, kink) for kink in kinks)], 1)
        ends = torch.stack([*(torch.minimum(high, kink) for kink in kinks), high], 1)
        slopes = self.slopes.to(at)[None].expand(len(at), -1, at.shape[1])
        # Each line by its value at a kink that it goes through.
        here, lines = self.value(at), []
        for piece, slope in enumerate(slopes.unbind(1)):
            kink = self.kinks[max(piece - 1, 0)]
            level = self.value(torch.full_like(at, kink))
            lines.append(level + slope * (at - kink) - here)
        offsets = torch.stack(lines, 1)
        there = begins <= ends
        tangent = slopes.gather(1, (there & (begins <= 0) & (ends >= 0)).int().argmax(1)[:, None])
        reach = torch.maximum(-low, high)
        most = torch.where(there, slopes.abs(), 0.0).amax(1)
        sizes = at.abs() + reach + self.fixed
        band = (8 * ENTRY * self.slopes.abs().amax(0).to(at) * sizes)[:, None].expand_as(slopes)
        return _with_secants(
            begins, ends, slopes, offsets, band, tangent[:, 0],
            torch.where(there, slopes, math.inf).amin(1),
            torch.where(there, slopes, -math.inf).amax(1), most,
        )  # fmt: skip


def _with_secants(
    begins: Tensor, ends: Tensor, slopes: Tensor, offsets: Tensor, band: Tensor, tangent: Tensor,
    least: Tensor, largest: Tensor, most: Tensor,
) -> Pieces:  # fmt: skip
    """Secants from the sample are extreme at the ends of pieces; the piece around it has its slope.

    ``least`` and ``largest`` slopes of the box bound them too.
    """
    there, around = begins <= ends, (begins <= 0) & (ends >= 0)
    flat = torch.where(there & around, slopes, math.inf).amin(1)
    steep = torch.where(there & around, slopes, -math.inf).amax(1)
    for end in (begins, ends):
        counts = there & (end != 0)
        length = torch.where(counts, end, 1.0)
        secant, doubt = slopes + offsets / length, band / length.abs()
        flat = torch.minimum(flat, torch.where(counts, secant - doubt, math.inf).amin(1))
        steep = torch.maximum(steep, torch.where(counts, secant + doubt, -math.inf).amax(1))
    flat, steep = torch.maximum(flat, least), torch.minimum(steep, largest)
    return Pieces(begins, ends, slopes, offsets, band, tangent, flat, steep, most)


# The least and the largest slope between two places.
Range = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Smooth(Function):
    """``evaluate``; the slopes over intervals, as a ``Range``; ``kinks``: where slopes jump."""

    rounding = 16.0, 16.0

    def __init__(
        self, evaluate: Callable[[Tensor], Tensor], slopes: Range, kinks: Sequence[float] = ()
    ) -> None:
        self._evaluate, self._slopes, self._kinks = evaluate, slopes, kinks

    def value(self, z: Tensor) -> Tensor:
        return self._evaluate(z)

    def pieces(self, at: Tensor, low: Tensor, high: Tensor) -> Pieces:
        # Denser about the sample, where most of a ball is.
        steps = [(k / _CELLS) ** 1.5 for k in range(1, _CELLS + 1)]
        places = [low * share for share in reversed(steps)] + [0 * low]
        places += [high * share for share in steps]
        grid = torch.stack(places, 1)
        values = self.value(at[:, None] + grid)
        rises = values - self.value(at)[:, None]
        begins, ends = grid[:, :-1], grid[:, 1:]
        least, largest = self._slopes(at[:, None] + begins, at[:, None] + ends)
        steepest = torch.maximum(least.abs(), largest.abs()).amax(1)
        sizes = values.abs().amax(1) + 1 + steepest * (at.abs() + torch.maximum(-low, high))
        doubt = 64 * ENTRY * sizes
        width = ends - begins
        wide = width > 0
        slopes = torch.where(wide, rises.diff(dim=1) / torch.where(wide, width, 1.0), largest)
        # Within the range, whatever cancelled in a narrow cell.
        slopes = torch.minimum(torch.maximum(slopes, least), largest)
        left = begins < 0
        offsets = torch.where(left, rises[:, 1:] - slopes * ends, rises[:, :-1] - slopes * begins)
        band = width * (largest - least) / 4 * (1 + ENTRY) + doubt[:, None]
        tangent = self._slopes(at, at)[1]
        flat, steep = self._secants(grid, rises, least, largest, doubt)
        return Pieces(begins, ends, slopes, offsets, band, tangent, flat, steep, steepest)

    def _secants(
        self, grid: Tensor, rises: Tensor, least: Tensor, largest: Tensor, doubt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """On a cell that begins at ``a``, seen from the sample, ``(σ(d) − σ(0)) / d`` lies between
        its value at ``a`` and what slopes of the cell can make of it until the far end."""
        flat, steep = least.amin(1), largest.amax(1)
        low, high = torch.full_like(flat, math.inf), torch.full_like(steep, -math.inf)
        for cell in range(2 * _CELLS):
            near, far = (cell, cell + 1) if cell >= _CELLS else (cell + 1, cell)
            start, end = grid[:, near], grid[:, far]
            known = (end != 0) & (cell not in (_CELLS - 1, _CELLS)) & (start != 0)
            safe, there = torch.where(known, start, 1.0), torch.where(known, end, 1.0)
            doubts = doubt / safe.abs()
            here = rises[:, near] / safe
            way = end - start
            bottom = torch.minimum(here, (rises[:, near] + way * least[:, cell]) / there)
            top = torch.maximum(here, (rises[:, near] + way * largest[:, cell]) / there)
            low = torch.minimum(low, torch.where(known, bottom - doubts, least[:, cell]))
            high = torch.maximum(high, torch.where(known, top + doubts, largest[:, cell]))
        return torch.maximum(low, flat), torch.minimum(high, steep)


def _outward(least: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    slack = 64 * UNIT
    return least - slack * (least.abs() + 1), largest + slack * (largest.abs() + 1)


def _even(slope: Callable[[Tensor], Tensor]) -> Range:
    """Of a slope that is even and falls away from its peak at 0."""

    def between(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        nearest = torch.where((low <= 0) & (high >= 0), 0.0, torch.minimum(low.abs(), high.abs()))
        return _outward(slope(torch.maximum(low.abs(), high.abs())), slope(nearest))

    return between


def _rising(slope: Callable[[Tensor], Tensor]) -> Range:
    """Of a slope that rises all along."""
    return lambda low, high: _outward(slope(low), slope(high))


def _elu(alpha: float) -> Smooth:
    def value(z: Tensor) -> Tensor:
        return torch.where(z > 0, z, alpha * torch.expm1(z.clamp(max=0)))

    def slopes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        left, right = (alpha * torch.exp(end.clamp(max=0)) for end in (low, high))
        one = torch.ones_like(left)
        least = torch.where(low > 0, one, torch.where(high < 0, left, torch.minimum(left, one)))
        largest = torch.where(low > 0, one, torch.where(high < 0, right, torch.maximum(right, one)))
        return _outward(least, largest)

    return Smooth(value, slopes)


def _bell(z: Tensor) -> Tensor:
    decay = torch.exp(-z.abs())
    return decay / (1 + decay).square()


def smooth_function(operator: str, attributes: Attributes) -> Function | None:
    """A smooth operator of ONNX; None for any other."""
    match operator:
        case "Sigmoid":
            return Smooth(torch.sigmoid, _even(_bell))
        case "Tanh":
            return Smooth(torch.tanh, _even(lambda z: 4 * _bell(2 * z)))
        case "Softplus":
            return Smooth(
                lambda z: z.clamp(min=0) + torch.log1p(torch.exp(-z.abs())),
                _rising(torch.sigmoid),
            )
        case "Elu" if attributes.get("alpha", 1.0) > 0:
            return _elu(attributes.get("alpha", 1.0))
        case _:
            return None
