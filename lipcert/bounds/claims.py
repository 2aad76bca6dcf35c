"""Claims of a sketched tube: boxes that one pass with coins of its own expects, and with them the
slopes, remainders and roundings that a proof holds fast.

See ``lipcert.bounds.sketch`` for the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.state import Layer, State, half_diagonal
from lipcert.network.activations import Elementwise, Identity
from lipcert.network.joints import Derivative
from lipcert.numbers import OUT32, OUT64, Box, around
from lipcert.rounding import FLOAT64

# A claim leaves room for what two passes differ by: more where that costs next to nothing, as of a
# neuron that stays on its side of a kink.
_ROOM_WHERE_FREE, _LITTLE = 1.5, 2.0**-8
# Of a joint's inputs, whose errors go with the square of it.
_ROOM_OF_JOINTS = 1.2
# So small a multiplier that the relaxed minimum is that of the remainder alone.
_NO_MULTIPLIER = 1e-200


@dataclass(frozen=True, eq=False)
class Claimed:
    """What is claimed at one activation, ``(B, *shape)`` each in float64.

    ``slope``, ``middle`` and ``rest``: of its remainder; ``half``: all errors that enter at its
    output, but for those ``alone``, of which each goes on as a column of its own;
    ``shift`` and ``width``: its input lies in ``anchor + shift ± width``, and at most ``most`` from
    there; ``own``: what of the width is no projection's, the noise in front of it. ``spread``,
    ``drawn``: the scale that Cauchy numbers and ``eps`` times normal ones are claimed to have at
    its output; ``rounded``, ``slipped``: what either is rounded by in front of it. ``ball``:
    ``eps`` times the 2-norms of its rows, from unit vectors that were sent through these very
    slopes, and all columns, with what they were rounded by since the last activations; None where
    the proof measures them.
    """

    slope: Tensor
    middle: Tensor
    rest: Tensor
    half: Tensor
    alone: Tensor
    shift: Tensor
    width: Tensor
    most: Tensor
    own: Tensor
    spread: Tensor
    drawn: Tensor
    rounded: Tensor
    slipped: Tensor
    ball: Tensor | None


@dataclass(frozen=True, eq=False)
class JointClaimed:
    """What is claimed at a joint: its ``line``, what this leaves over the claimed boxes of its
    inputs, ``middle ± rest``, and at its output ``half``, ``spread`` and ``drawn`` as of
    ``Claimed``."""

    line: Derivative
    middle: Tensor
    rest: Tensor
    half: Tensor
    spread: Tensor
    drawn: Tensor


@dataclass(frozen=True, eq=False)
class Claim:
    """A tube that is to be proven, unless it is only ``guessed``: its places by activations and by
    joints; the ``state`` of the widest boxes that a proof may find, over which roundings were
    found; and the one of the boxes that it is ``expected`` to find, but for few neurons."""

    eps: Tensor
    places: dict[int, Claimed]
    state: State
    expected: State
    joints: dict[int, JointClaimed]
    guessed: bool


@dataclass(frozen=True)
class Rows:
    """How the 2-norms of rows are found: in the proof from as many normal tangents as Cauchy ones,
    or, ``exact``, in the claim from one unit vector for each value of the input, of which the proof
    only takes what they were rounded by. ``columns``: then so many errors, the largest of
    activations that are straight at most neurons, are sent through the claimed slopes as well, each
    by itself, so that their 1-norms are exact too. ``guessed``: by how many projections a claim
    would be made that this one only guesses, not to be proven, with rows from normal tangents; else
    0. ``wider``: by how much more than a claim usually leaves room for."""

    exact: bool = False
    guessed: int = 0
    columns: int = 0
    wider: float = 1.0


def claimed_box(anchor: Tensor, place: Claimed) -> Box:
    """The box of an activation's input that is claimed, and holds the anchor."""
    lower, upper = around(anchor + place.shift, place.width)
    return torch.minimum(lower, anchor), torch.maximum(upper, anchor)


def layer_of(activation: Elementwise, anchor: Tensor, box: Box, drift: Tensor) -> Layer:
    """An activation's layer from its box alone: the ball is the box's half-diagonal."""
    lower, upper = torch.minimum(box[0], anchor), torch.maximum(box[1], anchor)
    flat, steep = activation.secant(lower, upper, anchor)
    varying = (activation.gain(lower, upper) != 0).to(anchor.dtype)
    gain = torch.where(varying != 0, torch.maximum(flat.abs(), steep.abs()), 0)
    way = torch.maximum(upper - anchor, anchor - lower) * varying
    # A difference is rounded.
    radius = OUT64.up(half_diagonal(way, anchor.dtype), 1)
    return Layer(anchor, lower, upper, radius, gain, varying, drift=drift)


def remainder(
    activation: Elementwise, slope: Tensor, anchor: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """``m`` and ``r``: ``|Δσ − c Δz − m| ≤ r`` for every ``z`` of the box."""
    one, small = torch.ones_like(slope), torch.full_like(slope, _NO_MULTIPLIER)
    least = activation.relaxed_minimum(one, slope, small, anchor, lower, upper)
    most = -activation.relaxed_minimum(-one, slope, small, anchor, lower, upper)
    low, high = activation.image(lower, upper)
    here = activation.value(anchor).abs()
    way = torch.maximum(upper - anchor, anchor - lower)
    sizes = low.abs() + high.abs() + here + (slope.abs() + 1) * (way + anchor.abs())
    relative, absolute, scaled = activation.rounding
    charge = FLOAT64 * (64 + 4 * relative) * sizes + FLOAT64 * (4 * absolute + 4 * scaled * sizes)
    half = (most - least) / 2 + charge + _NO_MULTIPLIER * way.square()
    # Where the box is straight nothing remains.
    flat, steep = activation.slopes(lower, upper)
    straight = (flat == steep) & (slope == flat)
    return torch.where(straight, 0.0, (least + most) / 2), torch.where(straight, 0.0, half)


def chord(activation: Elementwise, lower: Tensor, upper: Tensor) -> Tensor:
    """The slope from end to end, exact where the box is straight."""
    flat, steep = activation.slopes(lower, upper)
    wide = upper - lower
    rise = activation.value(upper) - activation.value(lower)
    chord = rise / torch.where(wide > 0, wide, 1)
    return torch.where(
        (flat == steep) | (wide <= 0), flat, torch.minimum(torch.maximum(chord, flat), steep)
    )


def room_of(activation: Elementwise, anchor: Tensor, shift: Tensor, width: Tensor) -> Tensor:
    """By how much wider a claim is: more where next to nothing remains over the wider box."""
    if isinstance(activation, Identity):
        return torch.full_like(width, _ROOM_OF_JOINTS)
    low, high = around(anchor + shift, _ROOM_WHERE_FREE * width)
    low, high = torch.minimum(low, anchor), torch.maximum(high, anchor)
    _, rest = remainder(activation, chord(activation, low, high), anchor, low, high)
    return torch.where(rest <= _LITTLE * width, _ROOM_WHERE_FREE, 1.0)


def alone_of(rest: Tensor, most: int, dtype: torch.dtype) -> Tensor:
    """Which errors go on as columns of this type, at most so many a sample, the largest; no smaller
    as numbers of it, and 0 for all others. Of an activation that is bent at most neurons a few
    columns gain nothing."""
    flat, none = rest.flatten(1), torch.zeros_like(rest)
    half = flat.shape[1] // 2
    count = min(most, half)
    if count <= 0 or bool(((flat > 0).sum(1) > half).any()):
        return none
    values, places = flat.topk(count, dim=1)
    single = OUT32.up(values, 1).to(dtype).double()
    # An infinite one, or one that is as good as 0, is no column.
    single = torch.where((single >= values) & (single < math.inf), single, 0.0)
    found: Tensor = none.flatten(1).scatter(1, places, single)
    return found.reshape(rest.shape)
