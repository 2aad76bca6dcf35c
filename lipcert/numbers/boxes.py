"""Boxes ``l ≤ v ≤ u`` that are rounded outwards.

A box is a pair of tensors. A NaN on either side means "unknown" and stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.numbers.outward import OUT64, Linear, Outward

Box = tuple[Tensor, Tensor]


def around(middle: Tensor, radius: Tensor, own: Outward = OUT64) -> Box:
    """``middle ± radius``.

    Either side is rounded by at most ``u (|m| + r)``. What is taken is ``r (1 + 4u) + 2u|m|``: its
    own roundings, at most three of either part, leave more than ``r (1 + u/2) + 3/2 u |m|``.
    """
    if own.unit:
        radius = radius * own.grown(1) + 2 * own.unit * middle.abs()
    return middle - radius, middle + radius


def widened(box: Box, error: Tensor, own: Outward = OUT64) -> Box:
    """A box that is larger by this on every side; charged as in ``around``."""
    if not own.unit:
        return box[0] - error, box[1] + error
    error = error * own.grown(1)
    low, high = box
    return (
        low - (error + 2 * own.unit * low.abs()),
        high + (error + 2 * own.unit * high.abs()),
    )


def moved(box: Box, value: Tensor, error: Tensor, own: Outward = OUT64) -> Box:
    """The box of ``v − v0`` for a ``v0`` that is within this error of ``value``: two differences on
    either side, each rounded by ``u`` times what it comes to, for which ``4u`` are taken."""
    low, high = box[0] - value, box[1] - value
    if not own.unit:
        return low - error, high + error
    error = error * own.grown(1)
    return (
        low - (error + 4 * own.unit * low.abs()),
        high + (error + 4 * own.unit * high.abs()),
    )


def sum_box(parts: list[Box], own: Outward = OUT64) -> Box:
    """The sums of ``n`` boxes: ``n − 1`` roundings, each of at most the sum of magnitudes, and two
    more for taking the charge off."""
    lower = torch.stack([low for low, _ in parts])
    upper = torch.stack([high for _, high in parts])
    low, high = lower.sum(0), upper.sum(0)
    if not own.unit:
        return low, high
    slack = own.gamma(len(parts) + 2)
    return low - slack * lower.abs().sum(0), high + slack * upper.abs().sum(0)


def meet(one: Box, other: Box) -> Box:
    """Both at once."""
    return torch.maximum(one[0], other[0]), torch.minimum(one[1], other[1])


def largest(box: Box) -> Tensor:
    """The largest magnitude in the box."""
    return torch.maximum(box[0].abs(), box[1].abs())


def halves(box: Box, own: Outward) -> Box:
    """Middle and half-width of a box: ``|v − middle| ≤ half`` for all of it, wherever rounding put
    the middle; a difference takes one rounding."""
    lower, upper = box
    middle = (lower + upper) / 2
    half = torch.maximum(upper - middle, middle - lower)
    return middle, half * own.grown(1) if own.unit else half


def image(operator: Linear, box: Box, own: Outward) -> Box:
    """``A v + b`` for all ``v`` of the box.

    With ``m ± r`` the box, ``r`` is an error of ``m`` like any other (``Outward.apply``): one
    product with ``|A|`` serves the width of the box and what its middle is rounded by.
    """
    middle, half = halves(box, own)
    centre, width = own.apply(operator, middle, half)
    return around(centre, width, own)
