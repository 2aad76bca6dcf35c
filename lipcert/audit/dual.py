"""A lower bound of linear functions of a network's values over a ball: the Lagrangian dual.

With ``A`` the row at a bent function's result, ``d`` the change of its input and any slopes ``c``,
``A·Δσ = (A∘c)·d + Σ A_k e_k(d_k)``, ``e_k(d) = σ(z_k + d) − σ(z_k) − c_k d``, and for any ``λ > 0``

    Σ A_k e_k ≥ Σ_k min_{d_k in the box} ( A_k e_k(d_k) + λ d_k² ) − λ ‖d‖²max,

exact neuron by neuron at the vertices of a few parabolas. The row then goes on as ``A∘c``, through
the matrices, down to the pixels, where ``−eps ‖A‖₂`` is left. Slopes and multipliers come from
gradient ascent in float64, and nothing rests on them: the last evaluation is done in the longest
floating type of numpy, and what its own rounding may have added is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.audit.arithmetic import Arithmetic
from lipcert.audit.matrix import ENTRY
from lipcert.audit.program import Affine, Bend, Program
from lipcert.audit.reach import (
    LONG,
    UNIT,
    Norms,
    Reach,
    deployed_errors,
    reach_of_input,
    rounding,
    through_affine,
    through_bent,
)

Array = NDArray[Any]
Choice = Mapping[int, Any]

# Steps for the slopes of one sample's dual: more of them tighten it, and cost as much each. Rows
# of objectives at once: memory.
_STEPS = 60
_CHUNK = 256
# Multipliers that are tried for boxes, times ‖A‖ / radius.
_TRIED = (0.1, 0.4, 1.6)


@dataclass(frozen=True, eq=False)
class Terms:
    """What the dual needs of one bent function around a sample, in numpy or in torch."""

    low: Any
    high: Any
    begins: Any  # (p, n): where each piece begins and ends, as changes of the input
    ends: Any
    slopes: Any
    offsets: Any
    ball: float
    doubt: Any  # per unit of |A|
    reach: Any  # per unit of |A| (steepest + |c|)
    steepest: Any


class Dual:
    """Bounds around one sample ``x`` (flat pixels) and one ``eps``; value ``k`` as in the program.

    ``reaches``: one a value. Boxes of the inputs of bent functions are those of ``reach``, improved
    by the dual itself where ``refine`` says so.
    """

    def __init__(
        self, program: Program, x: Array, eps: float, norms: Norms, *, pixel_domain: bool = False
    ) -> None:
        self.program, self.eps = program, eps
        self.reaches = [reach_of_input(x, eps, pixel_domain=pixel_domain)]
        self._terms: dict[int, tuple[Terms, Terms]] = {}
        for step in program.steps:
            if isinstance(step, Affine):
                self.reaches.append(through_affine(step, self.reaches, norms))
                continue
            if self._terms:
                self.reaches[step.input] = self._refined(step.input)
            z = self.reaches[step.input]
            value = len(self.reaches)
            self._terms[value] = (_terms(step, z, LONG), _as_torch(_terms(step, z, np.float64)))
            self.reaches.append(through_bent(step, z))

    def _refined(self, value: int) -> Reach:
        """The box of a value that a bent function reads, where its pieces are not known yet."""
        reach = self.reaches[value]
        n = len(reach.low)
        low, high = reach.low.copy(), reach.high.copy()
        at = reach.centre.astype(np.float64)
        kinks = [
            step.function.kinks
            for step in self.program.steps
            if isinstance(step, Bend) and step.input == value
        ]
        bent = [(at + low < kink) & (kink < at + high) for kink in np.concatenate(kinks)]
        rows = np.flatnonzero(np.any(bent, axis=0))
        for part in np.array_split(rows, -(-len(rows) // _CHUNK)) if len(rows) else []:
            units = torch.zeros(len(part), n, dtype=torch.float64)
            units[torch.arange(len(part)), torch.from_numpy(part)] = 1
            low[part] = np.maximum(low[part], self._least(value, units))
            high[part] = np.minimum(high[part], -self._least(value, -units))
        return reach.tightened(np.minimum(low, 0), np.maximum(high, 0))

    @torch.no_grad()
    def _least(self, value: int, rows: Tensor) -> Array:
        found = [
            self._bound(value, rows, self._tangents(), None, share)[0].numpy() for share in _TRIED
        ]
        best: Array = np.max([np.where(np.isnan(f), -np.inf, f) for f in found], axis=0)
        return best

    def _tangents(self) -> dict[int, Tensor]:
        """The slopes at the sample."""
        slopes = {}
        for value, (_, t) in self._terms.items():
            inside = (t.begins <= 0) & (t.ends >= 0)
            piece = inside.to(torch.int64).argmax(0)
            wide = t.slopes.expand(inside.shape)
            slopes[value] = wide.gather(0, piece[None])
        return slopes

    def margins(
        self, label: int, arithmetic: Arithmetic, *, softmax: bool = False, enough: float = 0.0
    ) -> Array:
        """Lower bounds of ``f_label − f_j`` over the ball, as deployed: ``(K,)``, ∞ at the label.

        NaN where nothing is known. ``softmax``: less what a Softmax behind them could tie. Nothing
        above ``enough`` is sought.
        """
        top = self.program.output
        centre, error = self.reaches[top].centre, self.reaches[top].error
        others = np.delete(np.arange(len(centre)), label)
        at = centre[label] - centre[others]
        spent = deployed_errors(self.program, self.reaches, arithmetic, label, others)
        spent = spent + error[label] + error[others] + (arithmetic.tie if softmax else 0)
        rows = np.zeros((len(others), len(centre)))
        rows[np.arange(len(others)), others] = -1
        rows[:, label] = 1
        needed = np.asarray(spent - at + enough, dtype=np.float64)
        change = self._ascended(top, rows, needed)
        result = np.full(len(centre), np.inf)
        result[others] = at + change - spent - UNIT * np.abs(at)
        return result

    def _ascended(self, top: int, rows: Array, needed: Array) -> Array:
        """Slopes and multipliers by Adam; stops where every bound exceeds what is needed."""
        target, given = torch.from_numpy(needed), torch.from_numpy(rows)
        slopes = {
            value: slope.expand(len(rows), -1).clone().requires_grad_()
            for value, slope in self._tangents().items()
        }
        with torch.no_grad():
            first, multipliers = self._bound(top, given, slopes, None, 0.3)
        logs = {value: m.log().requires_grad_() for value, m in multipliers.items()}
        best, kept = first.clone(), (self._copied(slopes), self._copied(logs))
        adam = torch.optim.Adam([
            {"params": list(slopes.values()), "lr": 0.05},
            {"params": list(logs.values()), "lr": 0.1},
        ])  # fmt: skip
        for _ in range(_STEPS if slopes else 0):
            powers = {value: log.exp() for value, log in logs.items()}
            found, _ = self._bound(top, given, slopes, powers, 0.0)
            better = (found > best) | best.isnan()
            best = torch.where(better, found.detach(), best)
            for old, new in zip(kept, (slopes, logs), strict=True):
                for value, tensor in new.items():
                    old[value][better] = tensor.detach()[better]
            if bool((best > target).all()):
                break
            adam.zero_grad()
            (-found).nansum().backward()
            adam.step()
        final = [{value: t.numpy().astype(LONG) for value, t in part.items()} for part in kept]
        powers = {value: np.exp(log) for value, log in final[1].items()}
        result: Array = self._bound(top, rows.astype(LONG), final[0], powers, 0.0)[0]
        return result

    @staticmethod
    def _copied(tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {value: tensor.detach().clone() for value, tensor in tensors.items()}

    def _bound(
        self, top: int, rows: Any, slopes: Choice, multipliers: Choice | None, share: float
    ) -> tuple[Any, dict[int, Any]]:
        """Lower bounds ``(R,)`` of ``rows · Δv``, ``v`` the value ``top``; numpy or torch alike.

        Where no multipliers ``(R, 1)`` are given, they are ``share · ‖A‖ / radius``. Returns those
        used as well.
        """
        exact = isinstance(rows, np.ndarray)
        xp: Any = np if exact else torch
        unit = float(np.finfo(LONG).eps) if exact else 2 * UNIT
        adjoint, used, total = {top: rows}, {}, 0.0
        for value in range(top, 0, -1):
            a = adjoint.pop(value, None)
            if a is None:
                continue
            step = self.program.steps[value - 1]
            if isinstance(step, Affine):
                size = np.zeros(len(step.bias))
                for m, i in zip(step.matrices, step.inputs, strict=True):
                    size = size + m.magnitude @ self.reaches[i].amplitude
                n = len(size) + sum(m.longest for m in step.matrices)
                loss = rounding(n, unit) * size
                total = total - (abs(a) * (loss if exact else torch.from_numpy(loss))).sum(-1)
                for i, m, linear in zip(step.inputs, step.matrices, step.maps, strict=True):
                    down = m.transpose @ a if exact else linear.back(a)
                    adjoint[i] = adjoint[i] + down if i in adjoint else down
                continue
            t, c = self._terms[value][0 if exact else 1], slopes[value]
            if multipliers is None:
                length = (a * a).sum(-1)[:, None] ** 0.5
                power = share * length / max(t.ball, 1e-300) + 1e-30
            else:
                power = multipliers[value]
            used[value] = power
            total = total + _least_error(xp, a, c, power, t, unit)
            down = a * c
            i = step.input
            adjoint[i] = adjoint[i] + down if i in adjoint else down
        a = adjoint[0]
        length = (a * a).sum(-1) ** 0.5
        total = total - self.eps * length * (1 + rounding(a.shape[-1], unit))
        return total - rounding(len(self.program.steps), unit) * abs(total), used


def _least_error(xp: Any, a: Any, c: Any, power: Any, t: Terms, unit: float) -> Any:
    """``Σ min (A e(d) + λ d²) − λ ball²``, less what rounding may have added: ``(R,)``."""
    least = None
    for begins, ends, slopes, offsets in zip(t.begins, t.ends, t.slopes, t.offsets, strict=True):
        tilt = a * (slopes - c)
        d = xp.minimum(xp.maximum(-tilt / (2 * power), begins), ends)
        error = (tilt + power * d) * d + a * offsets
        error = xp.where(begins <= ends, error, np.inf)
        least = error if least is None else xp.minimum(least, error)
    lost = abs(a) * (t.doubt + 8 * rounding(len(t.low), unit) * (t.steepest + abs(c)) * t.reach)
    box = (t.reach * t.reach).sum()
    loose = rounding(len(t.low), unit) * (t.ball**2 + box)
    return (least - lost).sum(-1) - power[:, 0] * (t.ball**2 + 8 * loose)


def _terms(step: Bend, z: Reach, kind: Any) -> Terms:
    bent, at = step.function, z.centre.astype(kind)
    n = len(at)
    places = [np.full(n, -np.inf), *(kink - at for kink in bent.kinks), np.full(n, np.inf)]
    begins = np.stack([np.maximum(place, z.low) for place in places[:-1]])
    ends = np.stack([np.minimum(place, z.high) for place in places[1:]])
    slopes = bent.slopes.astype(kind)
    # Each piece as a line, by its value at the kink it begins or ends with.
    lines, height = [], np.full(bent.slopes.shape[1], bent.start, dtype=kind)
    for piece, slope in enumerate(slopes):
        kink = bent.kinks[max(piece - 1, 0)]
        if piece > 1:
            height = height + slopes[piece - 1] * (kink - bent.kinks[piece - 2])
        lines.append(height + slope * (at - kink))
    offsets = np.stack(lines) - bent.values(at)
    unknown = z.error + ENTRY * (np.abs(at).astype(np.float64) + abs(bent.start) + z.amplitude)
    return Terms(
        low=z.low, high=z.high, begins=begins, ends=ends, slopes=slopes, offsets=offsets,
        ball=z.ball, doubt=8 * bent.steepest * unknown, reach=z.amplitude, steepest=bent.steepest,
    )  # fmt: skip


def _as_torch(terms: Terms) -> Terms:
    arrays: dict[str, Any] = {
        name: torch.from_numpy(np.ascontiguousarray(value))
        for name, value in vars(terms).items()
        if isinstance(value, np.ndarray)
    }
    return replace(terms, **arrays)
