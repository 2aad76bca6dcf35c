"""How far every value of a network can move while its input stays in a ball.

For each value ``v``, with ``c = v(x)`` at the sample: a box, ``low ≤ v(x') − c ≤ high``, and a
ball, ``v(x') − c = scale ∘ w`` with ``‖w‖₂ ≤ radius``. Boxes are intervals through the matrices,
intersected with ``± radius · ‖row‖``; balls grow by ``‖M diag(scale)‖₂``, whose largest eigenvalue
comes from LAPACK. All of it is float64 rounded outwards, around a centre in the longest floating
type that numpy has here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcert.audit.arithmetic import Arithmetic
from lipcert.audit.matrix import ENTRY, Matrix
from lipcert.audit.program import Affine, Bend, Program

Array = NDArray[Any]

LONG = np.longdouble
UNIT = 2.0**-53
# Larger matrices are bounded by their Frobenius norm and the Schur test.
_LARGEST_GRAM = 3072
_FADED = 1e-9


@dataclass(frozen=True, eq=False)
class Reach:
    """One value: centre and its error, box and ball of the change, as at the top of the module.

    ``offsets`` ``(p, n)``: for the input of a bent function, how far each piece, prolonged, lies
    above the function's value at the centre.
    """

    centre: Array
    error: Array
    low: Array
    high: Array
    scale: Array
    radius: float

    @property
    def amplitude(self) -> Array:
        found: Array = np.maximum(-self.low, self.high)
        return found

    @property
    def ball(self) -> float:
        """An upper bound of the length of the whole change."""
        byball = self.radius * float(self.scale.max(initial=0.0))
        bybox = float(np.linalg.norm(self.amplitude))
        return min(byball, bybox) * (1 + rounding(len(self.low)))

    def tightened(self, low: Array, high: Array) -> Reach:
        """Within another box as well."""
        return Reach(
            self.centre, self.error, np.maximum(self.low, low), np.minimum(self.high, high),
            self.scale, self.radius,
        )  # fmt: skip


def rounding(n: int, unit: float = UNIT) -> float:
    """Relative error of a sum of ``n`` products of one sign, generously, entries included."""
    return (n + 16) * 2 * unit + ENTRY


class Norms:
    """Upper bounds of ``‖M diag(scale)‖₂``; those of unscaled matrices are kept."""

    def __init__(self) -> None:
        self._known: dict[int, float] = {}

    def __call__(self, matrix: Matrix, scale: Array) -> float:
        if not (scale == 1).all():
            return _norm(matrix, scale)
        if id(matrix) not in self._known:
            self._known[id(matrix)] = _norm(matrix, scale)
        return self._known[id(matrix)]


def _norm(matrix: Matrix, scale: Array) -> float:
    """From eigenvalues, or from above by simpler means where the matrix is large.

    LAPACK's eigenvalues err by ``p(n) u ‖G‖₂`` with a modest ``p`` (LAPACK Users' Guide, §4.7);
    ``p = 16 n`` is charged, and ``γ_m ‖M‖_F²`` for the product ``G``. Columns that have all but
    faded are added by their Frobenius norm.
    """
    if not np.isfinite(scale).all():
        return float("inf")
    squares = matrix.transpose.squared @ np.ones(matrix.shape[0]) * scale**2
    frobenius = float(squares.sum()) * (1 + rounding(matrix.longest * matrix.shape[1]))
    columns = np.flatnonzero(scale > _FADED)
    rest = float(np.sqrt(squares[scale <= _FADED].sum())) * (1 + rounding(matrix.shape[1]))
    small = min(len(columns), matrix.shape[0])
    if small > _LARGEST_GRAM:
        return min(float(np.sqrt(frobenius)), _schur(matrix, scale)) * (1 + ENTRY)
    if small == 0:
        return rest
    dense = matrix.dense(columns, scale)
    gram = dense.T @ dense if len(columns) == small else dense @ dense.T
    largest = float(np.linalg.eigvalsh(gram)[-1])
    inner = sum(dense.shape) - small
    square = largest * (1 + 16 * small * UNIT) + rounding(inner) * frobenius
    return float(np.sqrt(square)) * (1 + ENTRY) + rest


def _schur(matrix: Matrix, scale: Array) -> float:
    """``‖M‖² ≤ max (|M| p)/q · max (|M|ᵀ q)/p``, for any positive weights."""
    magnitude, back = matrix.magnitude, matrix.magnitude.transpose
    p = np.ones(matrix.shape[1])
    for _ in range(20):
        q = magnitude @ (scale * p) + 1e-300
        p = scale * (back @ q)
        p = p / max(float(p.max()), 1e-300) + 1e-12
    q = magnitude @ (scale * p) + 1e-300
    columns = (scale * (back @ q) / p).max()
    return float(np.sqrt(columns)) * (1 + rounding(2 * matrix.longest))


def reach_of_input(x: Array, eps: float, *, pixel_domain: bool) -> Reach:
    """Around flat pixels, exact ones; with ``pixel_domain`` only images in [0, 1] count."""
    n, centre = len(x), x.astype(np.float64)
    low, high = np.full(n, -eps), np.full(n, eps)
    if pixel_domain:
        # A difference of two floats rounds by half a unit at most.
        low = np.maximum(low, -centre * (1 + ENTRY))
        high = np.minimum(high, (1 - centre) * (1 + ENTRY))
    return Reach(x.astype(LONG), np.zeros(n), low, high, np.ones(n), eps)


def through_affine(step: Affine, reaches: list[Reach], norms: Norms) -> Reach:
    """The reach of ``Σ M_i v_i + bias``."""
    inputs = [reaches[i] for i in step.inputs]
    pairs = list(zip(step.matrices, inputs, strict=True))
    n = sum(matrix.longest for matrix in step.matrices)
    outward = 1 + rounding(n)
    centre = sum((m @ r.centre for m, r in pairs), step.bias.astype(LONG))
    size = sum((m.magnitude @ np.abs(r.centre).astype(np.float64) for m, r in pairs), step.size)
    error = sum((m.magnitude @ r.error for m, r in pairs), np.zeros(len(step.bias)))
    error = (error + rounding(n, float(np.finfo(LONG).eps)) * size) * outward
    low = sum(m.positive @ r.low + m.negative @ r.high for m, r in pairs) * outward
    high = sum(m.positive @ r.high + m.negative @ r.low for m, r in pairs) * outward
    half = sum(r.radius * m.row_norms(r.scale) for m, r in pairs) * outward
    low, high = np.maximum(low, -half), np.minimum(high, half)
    radius = sum(norms(m, r.scale) * r.radius for m, r in pairs) * outward
    box = float(np.linalg.norm(np.maximum(-low, high))) * (1 + rounding(len(low)))
    return Reach(centre, error, low, high, np.ones(len(low)), min(radius, box))


def through_bent(step: Bend, z: Reach) -> Reach:
    """The reach of ``σ(v)``: extremes and secants of a piecewise linear function lie at the ends
    of its pieces. What the centre is not known to moves either by ``4 max|σ'|`` times that."""
    bent = step.function
    centre = bent.values(z.centre)
    at = z.centre.astype(np.float64)
    ends = [z.low, z.high, *(np.clip(kink - at, z.low, z.high) for kink in bent.kinks)]
    moved = np.stack([bent.values(at + end) - bent.values(at) for end in ends])
    doubt = 4 * bent.steepest * (z.error + ENTRY * (np.abs(at) + z.amplitude + abs(bent.start)))
    low, high = np.minimum(moved.min(0) - doubt, 0), np.maximum(moved.max(0) + doubt, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        secants = np.stack([
            (np.abs(change) + doubt) / np.abs(end) for change, end in zip(moved, ends, strict=True)
        ])  # fmt: skip
    # An end at the centre itself says nothing of its secants: the slope there may be any.
    secants = np.where(np.isfinite(secants), secants, np.inf)
    scale = np.minimum(secants.max(0) * (1 + ENTRY), bent.steepest)
    error = bent.steepest * z.error + ENTRY * np.abs(centre).astype(np.float64)
    return Reach(centre, error, low, high, scale * z.scale, z.radius)


def deployed_errors(
    program: Program, reaches: list[Reach], arithmetic: Arithmetic, label: int, others: Array
) -> Array:
    """How far each deployed ``f_label − f_j`` can be from the real one, anywhere in the ball.

    For any order of summation, with ``n`` products a sum: ``e ← |M| e + γ_n (|M| |v| + |bias|)``
    and for underflow ``(n + 1)`` times the smallest normal number, times the largest value since
    the last bent function, as weights underflow as well, and scales may be merged with them. In the
    last step, where rows are subtracted, what two of them share cancels. Infinite where a sum might
    overflow, in whatever order scales and weights are multiplied; nothing in real arithmetic.
    """
    unit, tiny, most = arithmetic.unit, arithmetic.tiny, arithmetic.most
    if unit == 0:
        return np.zeros(len(others))
    errors = [np.zeros(len(reaches[0].low))]
    # Of every value: the largest since the last bent function, and the product of row sums.
    peaks, swells = [1 + float(_largest(reaches[0]).max())], [2.0]
    for step in program.steps:
        if isinstance(step, Bend):
            largest = _largest(reaches[len(errors)]) + step.function.steepest * errors[step.input]
            largest = np.where(largest < most, largest, np.inf)
            errors.append(step.function.steepest * errors[step.input] + 4 * unit * largest)
            peaks.append(1 + float(largest.max()))
            swells.append(2.0)
            continue
        n = sum(matrix.longest for matrix in step.matrices) + len(step.matrices)
        fresh, inherited = step.size.copy(), np.zeros(len(step.bias))
        for matrix, i in zip(step.matrices, step.inputs, strict=True):
            fresh = fresh + matrix.magnitude @ (_largest(reaches[i]) + errors[i])
            inherited = inherited + matrix.magnitude @ errors[i]
        sums = sum(m.magnitude @ np.ones(m.shape[1]) for m in step.matrices)
        swells.append(max(swells[i] for i in step.inputs) * max(1.0, float(np.max(sums))))
        peak = max(peaks[i] for i in step.inputs) + float(step.size.max())
        safe = peak * swells[-1] < most
        peaks.append(max(peak, float(fresh.max())))
        fresh = np.where((fresh < most) & safe, fresh, np.inf)
        gamma = (n + 16) * unit / (1 - (n + 16) * unit) if (n + 16) * unit < 1 else np.inf
        fresh = ((gamma + ENTRY) * fresh + (n + 1) * tiny * peak) * (1 + rounding(n))
        errors.append(inherited * (1 + rounding(n)) + fresh)
    total: Array = errors[-1]
    last = program.steps[-1]
    if isinstance(last, Bend) or program.output != len(program.steps):
        total = errors[program.output]
        whole: Array = total[label] + total[others]
        return whole
    pairs = fresh[label] + fresh[others]
    for matrix, i in zip(last.matrices, last.inputs, strict=True):
        rows = matrix.dense(np.arange(matrix.shape[1]), np.ones(matrix.shape[1]))
        pairs = pairs + np.abs(rows[label] - rows[others]) @ errors[i] * (1 + rounding(n))
    smaller: Array = np.minimum(pairs, total[label] + total[others])
    return smaller


def _largest(reach: Reach) -> Array:
    found: Array = np.abs(reach.centre).astype(np.float64) + reach.amplitude
    return found
