"""What a softmax inside a network is to tangents and objectives: its derivative, and the least that
an objective on a whole row of shares can be over a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.joints.base import Derivative, JointRelaxation, Way
from lipcert.numbers import Outward, outward_of


@dataclass(frozen=True, eq=False)
class Shares(Derivative):
    """``p ∘ (v − (p·v))``: symmetric."""

    p: Tensor

    @property
    def terms(self) -> int:
        return int(self.p.shape[-1]) + 4

    @property
    def transposed_terms(self) -> int:
        return self.terms

    def apply(self, parts: Sequence[Tensor]) -> Tensor:
        (v,) = parts
        p = self.p[:, None]
        return p * (v - (p * v).sum(-1, keepdim=True))

    def magnitude(self, parts: Sequence[Tensor]) -> Tensor:
        (v,) = parts
        p = self.p[:, None]
        return p * (v + (p * v).sum(-1, keepdim=True))

    def transpose(self, form: Tensor) -> tuple[Tensor, ...]:
        p = self.p[:, None]
        through = p * form
        return (through - p * through.sum(-1, keepdim=True),)

    def transpose_magnitude(self, form: Tensor) -> tuple[Tensor, ...]:
        return (self.magnitude([form]),)


@dataclass(frozen=True, eq=False)
class SoftmaxRelaxation(JointRelaxation):
    """Objectives ``c`` on rows of shares ``p(s)``, in one of three ways for each row.

    - Value by value. As shares add up to 1 their remainders add up to 0: any number may be taken
      off ``c``, here the mean ``c·p0``.
    - By curvature. Along a way ``Δ`` the second derivative of ``c·p`` is
      ``Σ p_i (c_i − c̄)(Δ_i − Δ̄)² ≥ −(c̄ − min c) Var(Δ)``, means by ``p``: the remainder is at least
      ``−½ max (c̄ − min c) max Var(Δ)``. Both maxima are bounded by the largest shares, and by
      ``c̄ ≤ max c`` and ``Var(Δ) ≤ (max Δ − min Δ)²/4`` (Popoviciu).
    - By thresholds. ``p_i (c_i − c̄)`` is the slope along ``s_i``: where ``c·p`` is least over a box
      every ``s_i`` is at its upper end if ``c_i < c̄`` and at its lower one if ``c_i > c̄``. So the
      minimum is at one of ``n + 1`` corners, and nothing goes on through ``L``.

    ``below`` and ``above`` are what the derivative itself leaves, ``slip`` what ``line`` is rounded
    by. ``kept``: as of ``Softmax``, 0 or 1. ``weights``: the exponentials of the least and the
    largest ``s``, over one number for each row, made with ``roundings``, ``(N, …, 1)``. ``most``
    and ``here``: the largest shares on all ways into the box, and at the anchor. ``way``: how far
    ``s`` may fall and rise.
    """

    slip: Tensor
    kept: Tensor
    weights: Way
    most: Tensor
    here: Tensor
    way: Way
    roundings: Tensor

    @property
    def rest(self) -> Tensor:
        own = outward_of(self.slip.dtype)
        return own.add(torch.maximum(self.below, self.above), self.slip)

    def relaxed(self, form: Tensor, own: Outward) -> tuple[Tensor, Tensor]:
        bent = torch.minimum(self._by_values(form, own), self._by_curvature(form, own))
        # The part of ``L`` that is rounding knows nothing of what shares add up to.
        bent = own.add(bent, own.times(form.abs(), self.slip).sum(-1, keepdim=True))
        bent = own.up(bent, self.slip.shape[-1])
        fallen = self._by_thresholds(form, own)
        whole = fallen < bent
        lost = torch.where(whole, fallen, bent)
        return torch.where(whole, 0.0, form), own.sum(lost)

    def _by_values(self, form: Tensor, own: Outward) -> Tensor:
        assert isinstance(self.line, Shares)
        off = form - (self.line.p * form).sum(-1, keepdim=True)
        side = torch.where(off > 0, self.below, self.above)
        # Any number may be taken off, but each difference is rounded.
        off = off.abs() + 2 * own.unit * (off.abs() + form.abs())
        return own.up(own.times(off, side).sum(-1, keepdim=True), off.shape[-1] + 2)

    def _by_curvature(self, form: Tensor, own: Outward) -> Tensor:
        least, most = self._ends(form)
        count, (fall, rise) = form.shape[-1], self.way
        steep = own.times((form - least) * self.kept, self.most).sum(-1, keepdim=True)
        steep = torch.minimum(own.up(steep, count + 2), own.up(most - least, 1))
        far = own.times(torch.maximum(fall, rise), torch.maximum(fall, rise))
        spread = own.up(own.times(self.most, far).sum(-1, keepdim=True), count)
        reach = own.add(fall.amax(-1, keepdim=True), rise.amax(-1, keepdim=True))
        spread = torch.minimum(spread, own.times(reach, reach) / 4)
        return own.times(steep, spread) / 2

    def _by_thresholds(self, form: Tensor, own: Outward) -> Tensor:
        """How far ``c·p`` may be below its value at the anchor, with ``min c`` taken off ``c``, so
        that all terms are numbers that are 0 or more."""
        least, _ = self._ends(form)
        order = torch.where(self.kept != 0, form, torch.inf).argsort(-1)
        above = ((form - least) * self.kept).gather(-1, order)
        low, high = ((self.kept * end).expand_as(form).gather(-1, order) for end in self.weights)
        under, over = _running(high), _running(low.flip(-1)).flip(-1)
        top, rest = _running(above * high), _running((above * low).flip(-1)).flip(-1)
        # What underflows below counts in full, and nothing above.
        lost = form.shape[-1] * own.tiny
        values = (top + rest) / (under + over + lost)
        value = own.down(values.nan_to_num(0.0).amin(-1, keepdim=True), self.roundings)
        here = own.times((form - least) * self.kept, self.here).sum(-1, keepdim=True)
        here = own.up(here, form.shape[-1] + 2)
        return (here - value + 2 * own.unit * (here + value)).clamp(min=0)

    def _ends(self, form: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest ``c`` of what is kept: ``(N, …, 1)`` each."""
        out = (self.kept == 0).expand_as(form)
        least = form.masked_fill(out, torch.inf).amin(-1, keepdim=True)
        return least, form.masked_fill(out, -torch.inf).amax(-1, keepdim=True)


def _running(values: Tensor) -> Tensor:
    """Sums of the first 0, 1, …, n values of each row."""
    return torch.nn.functional.pad(values.cumsum(-1), (1, 0))
