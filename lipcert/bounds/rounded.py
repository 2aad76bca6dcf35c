"""What one operation of a deployed run rounds, in one format: None for real numbers."""

from __future__ import annotations

from dataclasses import fields
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lipcert.network.activations import Activation, MaxMin
from lipcert.numbers import OUT64
from lipcert.rounding import Arithmetic

# Comparisons are written out with no value larger than so many times what they compare.
_WRITTEN_OUT = 8.0
# Gates are multiplied out with at most so many times their input.
_MULTIPLES = 8.0


def of_comparison(own: Arithmetic | None, activation: MaxMin, most: Tensor) -> Tensor:
    """A comparison that is written out with arithmetic, of numbers up to ``most``; infinite where
    that could overflow."""
    if own is None:
        return torch.zeros_like(most)
    rounded = (own.unit + 4 * own.unit**2) * activation.spelling * most
    rounded = rounded + own.tiny * (2 * activation.spelling + 8)
    return torch.where(_WRITTEN_OUT * most <= own.largest / 2, rounded, torch.inf)


def of_activation(
    own: Arithmetic | None, activation: Activation, size: Tensor, inputs: Tensor
) -> Tensor:
    """Its own rounding, and that of its limits and slopes where the format has others; infinite
    where its value, or a few of its input, could overflow."""
    if own is None:
        return torch.zeros_like(size)
    relative, absolute, scaled = activation.rounding
    lost: Tensor | float = own.tiny
    if not holds(own, activation):
        relative += 1
        # A slope that is too small for the format is lost, whatever it multiplies.
        lost = own.tiny * (inputs + 1)
    if not (relative or absolute or scaled):
        return torch.zeros_like(size)
    rounded: Tensor = relative * size + absolute + scaled * inputs
    fresh = (own.unit + 4 * own.unit**2) * rounded + lost
    reach = size + (_MULTIPLES * inputs if scaled else 0.0)
    return torch.where(reach <= own.largest / 2, fresh, torch.inf)


def of_storing(own: Arithmetic | None, size: Tensor) -> Tensor:
    """A value rounded to the file's own format; infinite where it could overflow there."""
    if own is None:
        return torch.zeros_like(size)
    return torch.where(size <= own.largest / 2, own.unit * size + own.tiny, torch.inf)


def grown(
    own: Arithmetic, made: Tensor, stored: Tensor | float, added: Tensor, result: Tensor,
    whole: Tensor,
) -> Tensor:  # fmt: skip
    """Errors that are made, with what later roundings add to them: so many of the format, and of
    its sums. Infinite where a partial sum, at most ``whole``, or the result could overflow."""
    sums = own.accumulator
    exponent = OUT64.up(stored * own.unit + added * sums.unit, 3)
    # An exponential is right to a few units.
    growth = OUT64.up(torch.exp(exponent), 8)
    fresh = growth * (made + own.tiny * (stored + added))
    safe = (whole * growth <= sums.largest / 2) & (result * growth <= own.largest / 2)
    return torch.where(safe, fresh, torch.inf)


# By activation, what was found of it, as long as there is it.
_HELD: WeakKeyDictionary[Activation, dict[Arithmetic, bool]] = WeakKeyDictionary()


def holds(own: Arithmetic, activation: Activation) -> bool:
    """Whether a format has the limits and slopes of an activation."""
    known = _HELD.setdefault(activation, {})
    if own not in known:
        held = [getattr(activation, field.name) for field in fields(activation)]
        known[own] = all(represented(value, own) for value in held if isinstance(value, Tensor))
    return known[own]


def represented(values: Tensor, own: Arithmetic) -> bool:
    """Whether a format has these numbers; infinite ones it has."""
    size = values.abs()
    kept = (size == 0) | size.isinf() | ((size >= own.tiny) & (size <= own.largest))
    return bool((kept & ((torch.frexp(values).mantissa / own.unit) % 1 == 0)).all())


def times(values: Tensor, factor: Tensor | float) -> Tensor:
    """A product in which ``∞ · 0`` is unknown, so infinite."""
    return torch.nan_to_num(OUT64.times(values, factor), nan=torch.inf, posinf=torch.inf)
