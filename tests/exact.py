"""The exact robust L2 radius of a tiny piecewise linear network, by its linear regions.

On a region, the points with one piece chosen at every activation, the network is affine and the
region is a polyhedron. Regions are grown piece by piece, nearest first: the distance of a partial
choice is that of its polyhedron, a lower bound for all regions in it, so the first complete choice
that also holds ``f_y − f_j ≤ 0`` is the nearest point of all that is not classified as ``y``.

Distances to polyhedra are least distance programs, solved as non-negative least squares (Lawson and
Hanson, *Solving Least Squares Problems*, chapter 23). Nothing here comes from the bounds.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from laws import dense_twin
from numpy.typing import NDArray
from scipy.optimize import nnls

from lipcert.network import Input, Network, Sum
from lipcert.network.activations import Clip, GroupMax, MaxMin, PReLU
from lipcert.network.operators import Operator

Array = NDArray[np.float64]
# Rows (matrix, offset) of an affine function of the displacement u = x − x0.
Affine = tuple[Array, Array]
# A piece: the rows that must be ≤ 0 for it to be chosen, and the values that it gives.
Piece = tuple[Affine, Affine]
# (distance, point) of a polyhedron.
Found = tuple[float, Array]

_FEASIBLE = 1e-9


def exact_radius(network: Network, x: torch.Tensor, label: int) -> tuple[float, torch.Tensor]:
    """The distance from one sample ``x`` to the nearest point where some class reaches the label's
    logit, and that point; infinity and ``x`` where there is none.

    ``network``: operators, sums, ``Clip``, ``PReLU``, ``MaxMin`` and ``GroupMax``, in float64.
    """
    start = x.double().reshape(-1).numpy()
    search = _Regions(network, start, label)
    distance, step = search.nearest()
    return distance, torch.from_numpy(start + step).reshape(x.shape)


class _Regions:
    """Best-first search: an entry is the polyhedron so far, and the pieces chosen so far."""

    def __init__(self, network: Network, start: Array, label: int) -> None:
        self.network, self.start, self.label = network, start, label
        self.twins = {
            i: (dense_twin(node.kind).numpy(), _offset(node.kind))
            for i, node in enumerate(network.nodes)
            if isinstance(node.kind, Operator)
        }

    def nearest(self) -> Found:
        size = len(self.start)
        none = (np.zeros((0, size)), np.zeros(0))
        number = itertools.count()
        heap: list[tuple[float, int, Array, Affine, tuple[Affine, ...], bool]] = []
        heapq.heappush(heap, (0.0, 0, np.zeros(size), none, (), False))
        while heap:
            distance, _, step, region, chosen, complete = heapq.heappop(heap)
            if complete:
                return distance, step
            for piece, done in self.choices(chosen):
                grown = _joined(region, piece[0])
                found = _distance(grown) if len(piece[0][1]) else (distance, step)
                if found is not None:
                    # Of equal distances the latest first: straight down to a complete choice.
                    rest = chosen if done else (*chosen, piece[1])
                    entry = (max(distance, found[0]), -next(number), found[1], grown, rest, done)
                    heapq.heappush(heap, entry)
        return math.inf, np.zeros(size)

    def choices(self, chosen: tuple[Affine, ...]) -> Iterator[tuple[Piece, bool]]:
        """The pieces of the first neuron or group that has none yet, or the classes that could
        win, and whether the choice is then complete."""
        given = iter(chosen)
        size = len(self.start)
        values: list[Affine] = []
        for i, node in enumerate(self.network.nodes):
            parts = [values[j] for j in node.inputs]
            kind = node.kind
            if isinstance(kind, Input):
                values.append((np.eye(size), self.start))
            elif isinstance(kind, Sum):
                values.append((sum(p[0] for p in parts), sum(p[1] for p in parts)))
            elif isinstance(kind, Operator):
                twin, bias = self.twins[i]
                values.append((twin @ parts[0][0], twin @ parts[0][1] + bias))
            else:
                outputs: dict[int, Affine] = {}
                for places, pieces in _pieces(kind, parts[0], self.network.nodes[node.inputs[0]]):
                    value = next(given, None)
                    if value is None:
                        for piece in pieces:
                            yield piece, False
                        return
                    for row, place in enumerate(places):
                        outputs[place] = value[0][row], value[1][row]
                order = sorted(outputs)
                values.append((np.stack([outputs[k][0] for k in order]),
                               np.stack([outputs[k][1] for k in order])))  # fmt: skip
        matrix, offset = values[-1]
        for other in range(len(offset)):
            if other != self.label:
                rows = matrix[[self.label]] - matrix[[other]], offset[[self.label]] - offset[other]
                yield (rows, rows), True


def _pieces(kind, before: Affine, source) -> Iterator[tuple[list[int], list[Piece]]]:
    """For every neuron or group: the places of its outputs, and its pieces."""
    matrix, offset = before
    shape = source.shape

    def row(place: int) -> Affine:
        return matrix[[place]], offset[[place]]

    if isinstance(kind, PReLU):
        slopes = kind.slope.expand(1, *shape).reshape(-1).tolist()
        for k, slope in enumerate(slopes):
            z = row(k)
            yield [k], [(z, _scaled(z, slope)), (_scaled(z, -1), z)]
    elif isinstance(kind, Clip):
        low = _limits(kind.lower, shape, -math.inf)
        high = _limits(kind.upper, shape, math.inf)
        for k, (bottom, top) in enumerate(zip(low, high, strict=True)):
            # Of limits that cross, the upper one is the value everywhere.
            yield [k], list(_clipped(row(k), min(bottom, top), top))
    elif isinstance(kind, MaxMin):
        halves = torch.arange(math.prod(shape)).reshape(shape).chunk(2, dim=kind.axis)
        for first, second in zip(*(half.flatten().tolist() for half in halves), strict=True):
            one, two = row(first), row(second)
            below = _joined(one, _scaled(two, -1))
            apart = below[0].sum(0, keepdims=True), below[1].sum(keepdims=True)
            # (max, min) stand in the places of (first, second).
            yield [first, second], [(apart, _joined(two, one)),
                                    (_scaled(apart, -1), _joined(one, two))]  # fmt: skip
    elif isinstance(kind, GroupMax):
        groups = torch.arange(math.prod(shape)).reshape(-1, shape[-1]).tolist()
        for place, members in enumerate(groups):
            pieces = []
            for winner in members:
                rest = [k for k in members if k != winner]
                below = matrix[rest] - matrix[winner], offset[rest] - offset[winner]
                pieces.append((below, row(winner)))
            yield [place], pieces
    else:
        raise TypeError(f"{type(kind).__name__} is not piecewise linear")


def _clipped(z: Affine, low: float, high: float) -> Iterator[Piece]:
    flat = np.zeros_like(z[0])
    inside: Affine = (np.zeros((0, flat.shape[1])), np.zeros(0))
    if low > -math.inf:
        yield (z[0], z[1] - low), (flat, np.array([low]))
        inside = _joined(inside, (-z[0], low - z[1]))
    if high < math.inf:
        yield (-z[0], high - z[1]), (flat, np.array([high]))
        inside = _joined(inside, (z[0], z[1] - high))
    yield inside, z


def _limits(limit: torch.Tensor | None, shape, instead: float) -> list[float]:
    if limit is None:
        return [instead] * math.prod(shape)
    return limit.expand(1, *shape).reshape(-1).tolist()


def _offset(operator: Operator) -> Array:
    return operator.forward(torch.zeros(1, *operator.in_shape).double()).flatten().numpy()


def _scaled(rows: Affine, factor: float) -> Affine:
    return rows[0] * factor, rows[1] * factor


def _joined(one: Affine, two: Affine) -> Affine:
    return np.concatenate([one[0], two[0]]), np.concatenate([one[1], two[1]])


def _distance(region: Affine) -> Found | None:
    """The least ``‖u‖`` with ``matrix u + offset ≤ 0`` and where; None if there is no such ``u``.

    With ``G = −matrix``, ``h = offset``, the ``y ≥ 0`` that minimises the length of the residual
    ``r = [Gᵀ; hᵀ] y − (0, …, 0, 1)``: no such ``u`` if ``r = 0``, else ``u = −r_k / r_last``.
    """
    matrix, offset = region
    length = np.linalg.norm(matrix, axis=1)
    flat = length == 0
    if (offset[flat] > 0).any():
        return None
    matrix, offset = matrix[~flat] / length[~flat, None], offset[~flat] / length[~flat]
    if not (offset > 0).any():
        return 0.0, np.zeros(matrix.shape[1])
    system = np.concatenate([-matrix.T, offset[None]])
    aim = np.zeros(len(system))
    aim[-1] = 1.0
    weights, _ = nnls(system, aim, maxiter=100 * len(offset))
    residual = system @ weights - aim
    if residual @ residual < 1e-20:
        return None
    step = -residual[:-1] / residual[-1]
    if not (matrix @ step + offset <= _FEASIBLE * (1 + np.abs(offset))).all():
        return None
    return float(np.linalg.norm(step)), step
