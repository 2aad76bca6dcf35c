"""Piecewise linear functions that are written with comparisons: Softshrink, Threshold, leaky ReLU.

A formula (``formulas``) of one value that is made of comparisons, choices, signs, clips and
straight lines is a function with breakpoints, straight between them. It is found exactly, in
rational numbers of the file's own constants, with its values at the breakpoints. Where it is
continuous it becomes clips of the value; where it jumps nothing bounds it, and it is refused.

What a run rounds is what it rounds on its branch of straight lines. The clips that stand for it
carry each slope and constant once, so they are charged at least as much.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch

from lipcert.loading.assembler import Assembler, Variable, number
from lipcert.loading.polynomial import Function, Polynomial
from lipcert.loading.reasons import JUMPS
from lipcert.loading.value import Unsupported
from lipcert.network.activations import Clip, PReLU

# A straight line: slope and intercept.
Line = tuple[Fraction, Fraction]
_ZERO, _ONE = Fraction(0), Fraction(1)
# Of one function: what is spelled by comparisons has a handful; a table of values is no activation.
_MOST_PIECES = 16


class _Bent(Exception):
    """No piecewise linear function of few pieces."""


@dataclass(frozen=True)
class Pieces:
    """Straight ``lines`` between the ``breaks``, one more than these, and the values ``at`` them.
    Truth values are 0 and 1."""

    breaks: tuple[Fraction, ...]
    lines: tuple[Line, ...]
    at: tuple[Fraction, ...]

    @classmethod
    def line(cls, slope: Fraction, intercept: Fraction) -> Pieces:
        return cls((), ((slope, intercept),), ())

    def split(self, breaks: tuple[Fraction, ...]) -> Pieces:
        """The same with more breakpoints."""
        every = tuple(sorted({*self.breaks, *breaks}))
        if len(every) > _MOST_PIECES:
            raise _Bent
        lines = tuple(self._line(low, high) for low, high in _gaps(every))
        return Pieces(every, lines, tuple(self._value(b) for b in every))

    def _line(self, low: Fraction | None, high: Fraction | None) -> Line:
        place = sum(b <= low for b in self.breaks) if low is not None else 0
        return self.lines[place]

    def _value(self, b: Fraction) -> Fraction:
        if b in self.breaks:
            return self.at[self.breaks.index(b)]
        slope, intercept = self.lines[sum(x < b for x in self.breaks)]
        return slope * b + intercept

    @property
    def jumps(self) -> list[Fraction]:
        """Where it is not continuous."""
        found = []
        for k, b in enumerate(self.breaks):
            sides = {slope * b + intercept for slope, intercept in self.lines[k : k + 2]}
            if sides != {self.at[k]}:
                found.append(b)
        return found

    @property
    def merged(self) -> Pieces:
        """Without breakpoints at which nothing happens."""
        kept = [
            k
            for k in range(len(self.breaks))
            if self.lines[k] != self.lines[k + 1] or self.breaks[k] in self.jumps
        ]
        lines = (self.lines[0], *(self.lines[k + 1] for k in kept))
        return Pieces(tuple(self.breaks[k] for k in kept), lines, tuple(self.at[k] for k in kept))


def _gaps(breaks: tuple[Fraction, ...]) -> list[tuple[Fraction | None, Fraction | None]]:
    ends = [None, *breaks, None]
    return list(itertools.pairwise(ends))


def _together(
    parts: list[Pieces], line: Callable[[list[Line]], Line],
    value: Callable[[list[Fraction]], Fraction],
) -> Pieces:  # fmt: skip
    """A function of functions, straight where these are."""
    every = tuple(sorted({b for part in parts for b in part.breaks}))
    split = [part.split(every) for part in parts]
    lines = [line([part.lines[k] for part in split]) for k in range(len(every) + 1)]
    at = [value([part.at[k] for part in split]) for k in range(len(every))]
    return Pieces(every, tuple(lines), tuple(at))


def _sum(parts: list[Pieces]) -> Pieces:
    return _together(
        parts, lambda lines: (sum((a for a, _ in lines), _ZERO), sum((b for _, b in lines), _ZERO)),
        lambda values: sum(values, _ZERO),
    )  # fmt: skip


def _product(one: Pieces, other: Pieces) -> Pieces:
    def line(lines: list[Line]) -> Line:
        (a, b), (c, d) = lines
        if a and c:
            raise _Bent
        return a * d + c * b, b * d

    return _together([one, other], line, lambda values: values[0] * values[1])


def _crossed(part: Pieces) -> Pieces:
    """With a breakpoint wherever it is 0."""
    zeros = []
    for (slope, intercept), (low, high) in zip(part.lines, _gaps(part.breaks), strict=True):
        if slope:
            zero = -intercept / slope
            if (low is None or low < zero) and (high is None or zero < high):
                zeros.append(zero)
    return part.split(tuple(zeros))


def _by_sign(part: Pieces, of: Callable[[int], int]) -> Pieces:
    """A number for each sign of a function."""
    part = _crossed(part)
    lines = []
    for (slope, intercept), (low, high) in zip(part.lines, _gaps(part.breaks), strict=True):
        lines.append((_ZERO, Fraction(of(_sign(slope * _inside(low, high) + intercept)))))
    return Pieces(part.breaks, tuple(lines), tuple(Fraction(of(_sign(v))) for v in part.at))


def _inside(low: Fraction | None, high: Fraction | None) -> Fraction:
    if low is not None and high is not None:
        return (low + high) / 2
    return low + 1 if low is not None else high - 1 if high is not None else _ZERO


def _sign(value: Fraction) -> int:
    return (value > 0) - (value < 0)


def _where(parts: list[Pieces]) -> Pieces:
    return _together(
        parts, lambda lines: lines[1] if lines[0][1] else lines[2],
        lambda values: values[1] if values[0] else values[2],
    )  # fmt: skip


_COMPARED: dict[str, Callable[[int], int]] = {
    "greater": lambda sign: int(sign > 0), "less": lambda sign: int(sign < 0),
    "greaterorequal": lambda sign: int(sign >= 0), "lessorequal": lambda sign: int(sign <= 0),
    "equal": lambda sign: int(sign == 0),
}  # fmt: skip


def _applied(function: Function) -> Pieces:
    parts = [_pieces(argument) for argument in function.arguments]
    match function.name:
        case name if name in _COMPARED:
            one, other = parts
            return _by_sign(_sum([one, _product(other, _constant(-1))]), _COMPARED[name])
        case "sign":
            return _by_sign(parts[0], lambda sign: sign)
        case "not":
            return _sum([_constant(1), _product(parts[0], _constant(-1))])
        case "and":
            return _product(*parts)
        case "or":
            return _by_sign(_sum(parts), lambda sign: int(sign > 0))
        case "where":
            return _where(parts)
        case "clip":
            return _clipped(parts[0], *(function.constants))
        case "prelu":
            above = _by_sign(parts[0], lambda sign: int(sign >= 0))
            below = _product(parts[0], Pieces.line(_ZERO, Fraction(function.constants[0])))
            return _where([above, parts[0], below])
    raise _Bent


def _clipped(part: Pieces, low: float, high: float) -> Pieces:
    for limit, sign in ((low, 1), (high, -1)):
        if limit in (float("inf"), -float("inf")):
            continue
        edge = Pieces.line(_ZERO, Fraction(limit))
        above = _sum([part, _product(edge, _constant(-1))])
        beyond = _by_sign(_product(above, _constant(sign)), _COMPARED["less"])
        part = _where([beyond, edge, part])
    return part


def _constant(value: int) -> Pieces:
    return Pieces.line(_ZERO, Fraction(value))


def _pieces(polynomial: Polynomial) -> Pieces:
    total = [_constant(0)]
    for monomial, factor in polynomial.terms:
        product = Pieces.line(_ZERO, Fraction(factor))
        for function, power in monomial:
            part = Pieces.line(_ONE, _ZERO) if function is None else _applied(function)
            for _ in range(power):
                product = _product(product, part)
        total.append(product)
    return _sum(total)


def piecewise(polynomial: Polynomial, base: Variable, assembler: Assembler) -> Variable | None:
    """What a formula of comparisons and straight lines is, of its ``base``; None for another one.

    Raises ``Unsupported`` where the function jumps.
    """
    try:
        found = _pieces(polynomial).merged
    except (_Bent, RecursionError, OverflowError, ValueError):
        return None
    if jumps := found.jumps:
        places = ", ".join(f"{float(b):g}" for b in jumps)
        raise Unsupported(
            f"a piecewise linear function that {JUMPS}: at {places}, as Hardshrink and Threshold "
            "do; use an activation without a jump, such as Softshrink or ReLU"
        )
    return _built(found, base, assembler)


def _built(found: Pieces, x: Variable, assembler: Assembler) -> Variable:
    """Straight, a leaky ReLU, or a line and clips."""

    def line(slope: Fraction, intercept: Fraction, y: Variable) -> Variable:
        scale = None if slope == 1 else number(float(slope))
        return assembler.diagonal(y, scale, number(float(intercept)) if intercept else None)

    breaks, slopes = found.breaks, [slope for slope, _ in found.lines]
    if not breaks:
        return line(*found.lines[0], x)
    if len(breaks) == 1 and slopes[0] and slopes[1]:
        moved = line(_ONE, -breaks[0], x)
        y = assembler.activation(PReLU(number(float(slopes[0] / slopes[1]))), moved)
        return line(slopes[1], found.at[0], y)
    parts, constant = [], _ZERO
    rest = slopes[0]
    clips: list[tuple[Fraction, Fraction, Fraction | None]]
    if len(breaks) == 2 and slopes[0] == slopes[2]:
        clips = [(slopes[1] - rest, breaks[0], breaks[1])]
    else:
        clips = [
            (after - before, b, None)
            for before, after, b in zip(slopes, slopes[1:], breaks, strict=False)
        ]
    if rest:
        parts.append(line(rest, _ZERO, x))
    for slope, low, high in clips:
        limits = (None if b is None else _limit(b) for b in (low, high))
        clip = assembler.activation(Clip(*limits), x)
        parts.append(line(slope, _ZERO, clip))
        constant -= slope * low
    first_slope, first = found.lines[0]
    constant += first_slope * breaks[0] + first - rest * breaks[0]
    total = assembler.sum(parts)
    return line(_ONE, constant, total)


def _limit(value: Fraction) -> torch.Tensor:
    return number(float(value))
