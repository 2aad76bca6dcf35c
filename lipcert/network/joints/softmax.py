"""Softmax inside a network, along the last axis.

Over a box, with ``p_i = 1 / (1 + Σ_{j≠i} e^{s_j − s_i})``, the extremes are at opposite corners:

    p_i ∈ [1/(1 + Σ_{j≠i} e^{u_j − l_i}),  1/(1 + Σ_{j≠i} e^{l_j − u_i})].

The derivative is ``diag p − p pᵀ``. As adding one number to all inputs changes nothing, write
``δ_j = Δ_j − Σ_k p_k Δ_k``, ``φ(x) = eˣ − 1 − x`` and ``Z = Σ_j p_j e^{δ_j} = 1 + Σ_j p_j φ(δ_j)``:

    p_i(s + Δ) − p_i − p_i δ_i = p_i (φ(δ_i) − (Z − 1)(1 + δ_i)) / Z,

the remainder, where ``Z ≥ 1`` and, as long as ``|δ_i| ≤ 1``, both terms are at least 0: the first
is as far as it rises, the second as far as it falls; else it is at most their sum.

For an objective on all of a row together more is known (``lipcert.network.joints.shares``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.joints.base import (
    Derivative,
    Joint,
    JointRelaxation,
    Way,
    finite_or_all,
    guarded,
    ways_of,
)
from lipcert.network.joints.shares import Shares, SoftmaxRelaxation
from lipcert.network.operators.base import Shape
from lipcert.numbers import Box, Outward, largest, outward_of
from lipcert.rounding import Arithmetic

# An exponential errs by at most so many units, relatively, as torch's and other libraries' do.
_EXPONENTIAL = 8.0
# A mask of this or less leaves a value out, as long as no other one comes near it.
NEVER = -(2.0**100)


@dataclass(frozen=True, eq=False)
class Softmax(Joint):
    """``e^{s_i} / Σ_j e^{s_j}`` along the last axis.

    ``kept``, of this shape, is 0 where a mask of −∞, or of ``NEVER``, leaves a value out: its share
    is 0, and no other one knows it. Of every row something is kept. (With a mask of ``NEVER`` the
    share is below ``e^(NEVER/2 / 2)``, far below the smallest number that is charged everywhere.)
    """

    shape: Shape
    kept: Tensor | None = None

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        return (self.shape,)

    @property
    def out_shape(self) -> Shape:
        return self.shape

    @property
    def size(self) -> int:
        return self.shape[-1]

    def value(self, *values: Tensor) -> Tensor:
        (s,) = values
        if self.kept is not None:
            s = s.masked_fill(self.kept == 0, -torch.inf)
        return torch.softmax(s, dim=-1)

    def _known(self, values: Tensor) -> Tensor:
        """The values, at what is left out that of the least that is kept: of no account there, and
        no larger than others."""
        if self.kept is None:
            return values
        out = self.kept == 0
        least = values.masked_fill(out, torch.inf).amin(-1, keepdim=True)
        return torch.where(out, least, values)

    def _is_far(self, least: Tensor) -> Tensor:
        """Whether all values of a row are far above what a mask leaves out: ``(…, 1)``."""
        if self.kept is None:
            return torch.ones_like(least[..., :1]) > 0
        return (least > NEVER / 2).all(-1, keepdim=True)

    def _weights(self, like: Tensor) -> Tensor:
        """1 at what is kept, else 0."""
        return torch.ones_like(like) if self.kept is None else (self.kept != 0).to(like)

    def image(self, boxes: Sequence[Box]) -> Box:
        lower, upper = (self._known(end) for end in boxes[0])
        own, kept = outward_of(lower.dtype), self._weights(boxes[0][0])
        least, most = _corner(lower, upper, kept), _corner(upper, lower, kept)
        roundings = self._roundings((lower, upper))
        low = (own.down(least, roundings) - own.tiny * self.size).clamp(min=0)
        high = (own.up(most, roundings) + own.tiny * self.size).clamp(max=1)
        usual = own.grown(roundings) < 1.25
        return finite_or_all(torch.where(usual, low, 0.0), torch.where(usual, high, 1.0))

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        return Shares(self.value(*anchors))

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Way]) -> tuple[Tensor, Tensor]:
        way, p = largest(ways[0]), self.value(*anchors)
        (below, above), far = self._bend(anchors[0], way), self._turned(p, way)
        # What p itself may be off by, where an exponent is large.
        slip = self._slip(anchors[0], p, far)
        return below + slip, above + slip

    def _turned(self, p: Tensor, way: Tensor) -> Tensor:
        """``|δ_i|`` at most, of ``δ_i = (1 − p_i) Δ_i − Σ_{k≠i} p_k Δ_k``."""
        way = way * self._weights(way)
        far = _others(p) * way + _others(p * way)
        return outward_of(way.dtype).up(far, 4 * self.size + 13)

    def _slip(self, anchor: Tensor, p: Tensor, far: Tensor) -> Tensor:
        return outward_of(far.dtype).gamma(8) * self._fall(anchor) * p * far

    def _fall(self, anchor: Tensor) -> Tensor:
        known = self._known(anchor)
        return known.amax(-1, keepdim=True) - known

    def _bend(self, anchor: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
        """What the derivative itself leaves, but for a share of ``precision`` of it."""
        p = self.value(anchor)
        far, own = self._turned(p, way), outward_of(way.dtype)
        turn = _bent(far)
        common = (p * turn).sum(-1, keepdim=True) * (1 + far)
        known = self._known(anchor)
        # No two values of p_i are further than 1 apart.
        crude = 1 + 2 * p * far
        sides = []
        for side in (common, turn):
            found = p * torch.where(far <= 1, side, turn + common)
            found = own.up(found, 8 * self._fall(anchor))
            found = torch.where(far == far, torch.fmin(found, crude), torch.nan)
            sides.append(torch.where(self._is_far(known - way), found, torch.inf))
        return sides[0], sides[1]

    def relaxation(self, anchors: Sequence[Tensor], boxes: Sequence[Box]) -> JointRelaxation:
        (anchor,), ((lower, upper),) = anchors, boxes
        [(fall, rise)] = ways_of(anchors, boxes)
        own, p, kept = outward_of(anchor.dtype), self.value(anchor), self._weights(anchor)
        way, line = torch.maximum(fall, rise), Shares(p)
        below, above = (own.up(side, self.precision) for side in self._bend(anchor, way))
        slip = own.up(self._slip(anchor, p, self._turned(p, way)), self.precision)
        slip = slip + own.error(line.magnitude_once([way]), self.precision)
        hull = torch.minimum(lower, anchor), torch.maximum(upper, anchor)
        low, high = (self._known(end) for end in boxes[0])
        top = high.amax(-1, keepdim=True)
        # Where a mask may be reached nothing is known of a row.
        far = self._is_far(self._known(anchor) - way)
        return SoftmaxRelaxation(
            line, below, above,
            slip=torch.where(far, slip, torch.inf),
            kept=kept,
            weights=((low - top).exp(), (high - top).exp()),
            most=self.image([hull])[1],
            here=torch.where(far, self.image([(anchor, anchor)])[1], torch.inf),
            way=(fall * kept, rise * kept),
            roundings=self._roundings((low, high)) + 4 * self.size + 16,
        )  # fmt: skip

    def _roundings(self, box: Box) -> Tensor:
        """On the way of what is made of exponentials of differences within the box, which are
        rounded themselves, relatively by as much as exponents are: ``(…, 1)``."""
        lower, upper = box
        spread = upper.amax(-1, keepdim=True) - lower.amin(-1, keepdim=True)
        return 2 * self.size + 4 * _EXPONENTIAL + 8 * spread.abs()

    @property
    def precision(self) -> float:
        return 6.0 * self.size + 128.0

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        """With the largest input subtracted: ``s_i − max s`` and its exponential are rounded, and
        so is their sum, in any order."""
        lower, upper = (self._known(end) for end in boxes[0])
        fall = (upper.amax(-1, keepdim=True) - lower).clamp(min=0)
        # Exponentials of what lies far below count as little as they are themselves.
        deepest = torch.minimum(fall.amax(-1, keepdim=True), fall.new_tensor(self.size / 2.7))
        units = fall + deepest + self.size + 2 * _EXPONENTIAL + 8
        run, own = Outward.of(arithmetic), outward_of(lower.dtype)
        relative = torch.expm1(run.up(run.unit * units, 13))
        size = self.image(boxes)[1]
        error = own.up(relative * size, 5)
        error = error + 2 * arithmetic.tiny * (self.size + 2)
        most = torch.maximum(lower.abs(), upper.abs()).amax(-1, keepdim=True)
        most = most.clamp(min=2.0 * self.size).expand_as(error)
        # Beyond this the sums above were not meant.
        error = torch.where((relative < 0.25) & self._is_far(lower), error, torch.inf)
        return guarded(error, 2 * most, arithmetic)


def _corner(own: Tensor, others: Tensor, kept: Tensor) -> Tensor:
    """``p_i`` with this value of ``s_i`` and these of all others that are kept."""
    top = torch.maximum(own, others).amax(-1, keepdim=True)
    above, below = (own - top).exp(), (others - top).exp()
    return kept * above / (above + _others(kept * below))


def _others(values: Tensor) -> Tensor:
    """The sum of all others along the last axis, which cancels nothing."""
    return _before(values) + _before(values.flip(-1)).flip(-1)


def _before(values: Tensor) -> Tensor:
    """The sum of all values before each along the last axis."""
    return torch.nn.functional.pad(values.cumsum(-1)[..., :-1], (1, 0))


def _bent(x: Tensor) -> Tensor:
    """``eˣ − 1 − x`` for ``x ≥ 0``, from above: ``x²/2`` times at most ``eˣ``, near 0
    ``1 + x/3 + x²/4`` for ``x ≤ 1``."""
    near = x.square() / 2 * (1 + x / 3 + x.square() / 4)
    return outward_of(x.dtype).up(torch.where(x <= 1, near, torch.expm1(x) - x), 13)
