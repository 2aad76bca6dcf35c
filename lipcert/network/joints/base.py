"""What a bound needs of a joint: a function of one or several values that is neither affine nor
element-wise.

A joint ``f`` of values ``z = (z_1, …, z_p)`` is known over a box around an anchor ``z0`` by a
linear map and what is left of it:

    −below ≤ f(z) − f(z0) − L (z − z0) ≤ above     for every z of the box, element by element,

``L`` about its derivative at the anchor. So whatever passes linear maps on, forwards (tangents) or
backwards (objectives), passes a joint too, and counts what is left as an error that enters behind
it. ``L`` is defined by the numbers that it holds, as these were rounded: what they differ by from
``f'(z0)`` is part of what is left.

Values of one sample have the shapes ``in_shapes``; tensors carry the samples in a leading
dimension, and many vectors of each sample in a second one: ``(B, *shape)`` and ``(B, N, *shape)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lipcert.network.operators.base import Shape, move_tensors
from lipcert.numbers import Box, Outward, largest, outward_of
from lipcert.rounding import Arithmetic

# How far a value may fall below its anchor, and how far rise above it: neither is negative.
Way = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Derivative(ABC):
    """A linear map of several values, another one for each sample, ``(B, …)``.

    ``magnitude`` and ``transpose_magnitude`` bound ``|L| v`` and ``|L|ᵀ v`` for ``v ≥ 0`` from
    above. ``terms`` and ``transposed_terms``: a computed ``L v`` errs by at most ``γ_terms`` times
    the computed magnitude of ``|v|``.
    """

    @property
    @abstractmethod
    def terms(self) -> int: ...

    @property
    @abstractmethod
    def transposed_terms(self) -> int: ...

    @abstractmethod
    def apply(self, parts: Sequence[Tensor]) -> Tensor:
        """``L v`` of vectors ``(B, N, *in_shape)``, one tensor for each input."""

    @abstractmethod
    def magnitude(self, parts: Sequence[Tensor]) -> Tensor: ...

    @abstractmethod
    def transpose(self, form: Tensor) -> tuple[Tensor, ...]:
        """``Lᵀ c`` of objectives ``(B, N, *out_shape)``: one tensor for each input."""

    @abstractmethod
    def transpose_magnitude(self, form: Tensor) -> tuple[Tensor, ...]: ...

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Every tensor changed alike: samples chosen, or a type."""
        return move_tensors(self, change)

    def once(self, parts: Sequence[Tensor]) -> Tensor:
        """``L v`` of one vector for each sample, ``(B, *in_shape)``."""
        return self.apply([part[:, None] for part in parts])[:, 0]

    def magnitude_once(self, parts: Sequence[Tensor]) -> Tensor:
        return self.magnitude([part[:, None] for part in parts])[:, 0]

    def steepness(
        self, shapes: Sequence[Shape], out_shape: Shape, like: Tensor
    ) -> tuple[Tensor, ...]:
        """Upper bounds of ``‖L_p‖₂`` of the part of each input ``p``, ``(B,)`` each, and of that of
        its magnitudes: ``(‖|L_p|‖_1 ‖|L_p|‖_∞)^½``; infinite for a NaN."""
        own = outward_of(like.dtype)
        columns = self.transpose_magnitude(like.new_ones(len(like), 1, *out_shape))
        found = []
        for k, column in enumerate(columns):
            part = [
                like.new_full((len(like), *shape), float(j == k)) for j, shape in enumerate(shapes)
            ]
            rows = self.magnitude_once(part).flatten(1).amax(1).double()
            most = column.flatten(1).amax(1).double()
            norm = own.up(rows.sqrt() * most.sqrt(), self.terms + self.transposed_terms + 3)
            found.append(norm.nan_to_num(torch.inf, torch.inf))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class JointRelaxation:
    """What a joint is to objectives that go back over it, in boxes around N anchors: ``line`` is
    ``L``, and ``below`` and ``above`` ``(N, *out_shape)`` bound what it leaves."""

    line: Derivative
    below: Tensor
    above: Tensor

    @property
    def rest(self) -> Tensor:
        """What is left, on either side."""
        return torch.maximum(self.below, self.above)

    def relaxed(self, form: Tensor, own: Outward) -> tuple[Tensor, Tensor]:
        """The part ``kept`` of an objective ``(N, *out_shape)`` that goes on through ``L``, and by
        how much ``form · (f(z) − f(z0))`` may be below ``kept · L (z − z0)``: ``(N,)``.

        Of a product this is the least value of a quadratic function over a box: with ``L`` the
        derivative, ``A Δa Δb`` is least at one of the four corners.
        """
        side = torch.where(form > 0, self.below, self.above)
        return form, own.sum(own.times(form.abs(), side))


@dataclass(frozen=True, eq=False)
class Joint(ABC):
    """A function of the values of one or several nodes."""

    @property
    @abstractmethod
    def in_shapes(self) -> tuple[Shape, ...]: ...

    @property
    @abstractmethod
    def out_shape(self) -> Shape: ...

    @abstractmethod
    def value(self, *values: Tensor) -> Tensor:
        """``f(z)``, differentiable."""

    @abstractmethod
    def image(self, boxes: Sequence[Box]) -> Box:
        """A box that holds ``f(z)`` for every ``z`` of the boxes, its own rounding included;
        infinite or NaN where nothing is known."""

    @abstractmethod
    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        """``L``, about the derivative at the anchors."""

    @abstractmethod
    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Way]) -> tuple[Tensor, Tensor]:
        """How far ``f(z) − f(z0) − f'(z0) (z − z0)`` may be below 0, and how far above, for
        ``−falls ≤ z − z0 ≤ rises``, but for a share of ``precision`` of it; infinite or NaN where
        nothing is known."""

    @property
    @abstractmethod
    def precision(self) -> float:
        """In units of roundoff: how far the numbers of ``derivative``, the values of ``bend``, and
        the entries of ``L`` that they make may be from the real ones, relatively; twice over."""

    @property
    def products(self) -> int:
        """How many numbers one value of it multiplies, about."""
        return max(math.prod(shape) for shape in (*self.in_shapes, self.out_shape))

    @property
    def additions(self) -> int:
        """How many additions of its own a runtime may do behind a summand that comes after it."""
        return 0

    @abstractmethod
    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        """What a run in this arithmetic adds, ``|f̂(z) − f(z)|`` at most for every ``z`` of the
        boxes, in any order of its sums; infinite where a number could overflow, and where its own
        domain may be left."""

    def remainders(self, anchors: Sequence[Tensor], boxes: Sequence[Box]) -> tuple[Tensor, Tensor]:
        """``below`` and ``above``: ``−below ≤ f(z) − f(z0) − L (z − z0) ≤ above`` for every ``z``
        of the boxes, ``(B, *out_shape)``.

        ``L`` is the ``derivative`` at these anchors, which the boxes need not hold.
        """
        ways = ways_of(anchors, boxes)
        own, far = outward_of(anchors[0].dtype), [largest(way) for way in ways]
        lost = own.error(self.derivative(anchors).magnitude_once(far), self.precision)
        # A box that is one point moves nothing.
        still = torch.stack([(way == 0).flatten(1).all(1) for way in far]).all(0)
        still = still.reshape(-1, *(1,) * (lost.dim() - 1))
        below, above = (
            torch.where(still, 0.0, own.up(side, self.precision) + lost)
            for side in self.bend(anchors, ways)
        )
        return below, above

    def remainder(self, anchors: Sequence[Tensor], boxes: Sequence[Box]) -> Tensor:
        """``r ≥ |f(z) − f(z0) − L (z − z0)|``, the larger of the two."""
        return torch.maximum(*self.remainders(anchors, boxes))

    def relaxation(self, anchors: Sequence[Tensor], boxes: Sequence[Box]) -> JointRelaxation:
        """What it is to objectives that go back over it, for every ``z`` of the boxes."""
        return JointRelaxation(self.derivative(anchors), *self.remainders(anchors, boxes))

    def convert(self, change: Callable[[Tensor], Tensor]) -> Self:
        return move_tensors(self, change)


def ways_of(anchors: Sequence[Tensor], boxes: Sequence[Box]) -> list[Way]:
    """How far the boxes reach below and above the anchors, rounded up; a NaN stays."""
    ways = []
    for anchor, (lower, upper) in zip(anchors, boxes, strict=True):
        own = outward_of(anchor.dtype)
        fall, rise = (anchor - lower).clamp(min=0), (upper - anchor).clamp(min=0)
        ways.append((own.up(fall, 1), own.up(rise, 1)))
    return ways


def finite_or_all(lower: Tensor, upper: Tensor) -> Box:
    """The box, without bounds where one of them is NaN."""
    unknown = lower.isnan() | upper.isnan()
    return torch.where(unknown, -torch.inf, lower), torch.where(unknown, torch.inf, upper)


def rounded(size: Tensor, roundings: float, arithmetic: Arithmetic) -> Tensor:
    """What so many roundings of a run in this arithmetic can change, of numbers whose magnitudes
    add up to ``size``, an upper bound: ``γ`` times that, and what a product may lose."""
    own, run = outward_of(size.dtype), Outward.of(arithmetic)
    return own.add(own.times(size, run.gamma(roundings)), run.tiny)


def guarded(error: Tensor, size: Tensor, arithmetic: Arithmetic) -> Tensor:
    """An error, infinite where a value of this size could overflow, or where either is NaN."""
    safe = (size <= arithmetic.largest / 2) & (error == error)
    return torch.where(safe, error, torch.inf)
