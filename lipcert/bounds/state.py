"""The state over one ball: box and ball of every activation's input, and how they follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lipcert.numbers import for_samples


@dataclass(frozen=True, eq=False)
class Coupling:
    """What a layer's ball is made of: ``‖M Δz‖² ≤ Σ_j factors_j ‖Δσ_j / w_j‖² + rest``, over the
    activations j before it, ``w_j`` their gains; the ``rest`` is the input's. ``(B,)`` each."""

    factors: dict[int, Tensor]
    rest: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Coupling:
        return Coupling({j: change(g) for j, g in self.factors.items()}, change(self.rest))


@dataclass(frozen=True, eq=False)
class Layer:
    """One activation's input over the ball: values ``anchor`` at the sample, box, and ball
    ``‖M Δz‖₂ ≤ radius``; ``gain`` is ``w``, ``varying`` the mask M of all neurons whose output can
    change, and maybe of some more. The network's input is such a layer too, of gain 1.

    ``coupling``: how the ball follows from other activations; None where only the input counts.

    ``drift``: how far each value of the anchor is from what the layers before make of their own
    anchors, ``|z0 − (W σ(z0') + b)|``, and a run's from what they make of its own, together; for
    the input 0; None where nothing was rounded. ``drift_length`` is its length where that is known
    to be less than what the values come to, ``(B,)``.

    What is one number a sample, the radius and the coupling, is in float64, whatever the type of
    the rest.
    """

    anchor: Tensor
    lower: Tensor
    upper: Tensor
    radius: Tensor
    gain: Tensor
    varying: Tensor
    coupling: Coupling | None = None
    drift: Tensor | None = None
    drift_length: Tensor | None = None

    @property
    def drifted(self) -> Tensor:
        """The length of the drift, rounded up: ``(B,)``."""
        if self.drift is None:
            return torch.zeros_like(self.radius)
        found = half_diagonal(self.drift, self.radius.dtype)
        return found if self.drift_length is None else torch.fmin(found, self.drift_length)

    def map(self, change: Callable[[Tensor], Tensor]) -> Layer:
        """Changes every tensor alike: its rows, or its type."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        coupling = values.pop("coupling")
        drift, far = values.pop("drift"), values.pop("drift_length")
        tensors = {name: change(value) for name, value in values.items()}
        return Layer(
            **tensors,
            coupling=coupling and coupling.map(change),
            drift=None if drift is None else change(drift),
            drift_length=None if far is None else change(far),
        )


# By source: the input, 0, and every activation.
State = dict[int, Layer]


@dataclass(frozen=True, eq=False)
class Noised:
    """How far rounding puts a run off at one node: each value, ``(B, *shape)``, and all of them
    together by their length, ``(B,)``, which may be far less than that of ``each``."""

    each: Tensor
    length: Tensor

    def select(self, rows: Tensor) -> Noised:
        """Some of the samples."""
        return Noised(self.each[rows], self.length[rows])

    def where(self, known: Tensor, instead: float) -> Noised:
        """The same for the samples that are ``known``, ``(B,)``, and another number for others."""
        wide = known.reshape(-1, *(1,) * (self.each.dim() - 1))
        each = torch.where(wide, self.each, instead)
        return Noised(each, torch.where(known, self.length, instead))

    def met(self, other: Noised) -> Noised:
        """What both say."""
        return Noised(torch.fmin(self.each, other.each), torch.fmin(self.length, other.length))


def select(state: State, rows: Tensor | slice) -> State:
    """Takes some rows of a state, in this order."""
    return {i: layer.map(lambda t: t[rows]) for i, layer in state.items()}


def to_dtype(state: State, dtype: torch.dtype) -> State:
    return {i: layer.map(lambda t: t.to(dtype)) for i, layer in state.items()}


def half_diagonal(widths: Tensor, dtype: torch.dtype) -> Tensor:
    """Bounds the half-diagonals of boxes of these half-widths, summed in the type of radii:
    ``(B,)``."""
    return for_samples(dtype).length(widths, dtype)
