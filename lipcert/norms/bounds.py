"""Upper bounds of the norms of a network's affine segments, each with its assurance.

For one segment ``A``: its norm once for the whole run, and the norms of ``diag(w) A diag(d)`` for
each sample. Of the bounds that are at hand the smallest is taken:

* exact: a matrix small enough to write down (``norms.matrix``), or one entry a row at most;
* structural: products along paths and sums over branches of the operators' own norms;
* written out: the Gram matrix of a segment of moderate size, where structure loses
  (``norms.written``), for whoever takes no coins;
* Schur test: ``‖M‖² ≤ max_o (|M||M|ᵀq)_o/q_o`` for any ``q > 0``;
* randomised: ``norms.krylov.chebyshev_bound``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lipcert.network import Segment
from lipcert.norms.budget import PROBES, NormCoins
from lipcert.norms.krylov import chebyshev_bound, degree_for, lanczos
from lipcert.norms.matrix import spectral_norm
from lipcert.norms.scaling import divided, exponents, lifted, product
from lipcert.norms.structure import Sizes, is_known_exactly, structural_norm
from lipcert.norms.weighted import GramMap, WeightedMap
from lipcert.norms.written import WRITTEN_SIDE, rough_norm, written_norm
from lipcert.numbers import OUT64
from lipcert.rounding import FLOAT64, FLOAT64_TINY, gamma, rounded_up

# A matrix with a side up to this is written down, and its norms are found from its entries.
MATRIX_SIDE = 128
_MATRIX_SIZE = 2**22
_BATCH_SIZE = 2**25
_FLOOR = 1e-4
# How far above the truth a randomised norm aims to be: shared ones can afford more steps.
_EXCESS_SHARED = 0.001
_EXCESS_SAMPLE = 0.01
# A deterministic norm this near the truth is not sought once more.
_NEAR = 1.004


@dataclass(frozen=True)
class Norm:
    """An upper bound of an operator norm, with what it rests on."""

    value: float
    assurance: str


@dataclass(frozen=True, eq=False)
class SegmentNorms:
    """The norms of one segment. ``norm`` is that of the whole ``A``, shared by all samples.

    A matrix with a side up to ``matrix_side`` is written down; any other one is only swept.
    """

    segment: Segment
    norm: Norm
    matrix_side: int = MATRIX_SIDE

    @classmethod
    def of(
        cls, segment: Segment, coins: NormCoins | None = None, *, matrix_side: int = MATRIX_SIDE
    ) -> SegmentNorms:
        """``coins``: for a randomised bound, where one may be of use; None leaves it out."""
        bare = cls(segment, Norm(math.inf, "unknown"), matrix_side)
        if bare.is_exact:
            ones = bare.unweighted()
            return replace(bare, norm=Norm(float(bare.exact(ones)[0]), "deterministic"))
        value = min(structural_norm(segment), bare.absolute) + bare.fusion_slack
        norm = Norm(value, "deterministic")
        if coins is not None and bare.takes_coins:
            found = bare.randomised(bare.unweighted(), coins, excess=_EXCESS_SHARED, steps=60)
            if float(found[0]) < value:
                norm = Norm(float(found[0]), "randomised")
        elif bare.may_be_written and rough_norm(bare.unweighted()) * _NEAR < value:
            like = bare.segment.network.anchor
            absolute = like.new_tensor([bare.absolute], dtype=torch.float64)
            written = written_norm(bare.unweighted(), absolute) + bare.fusion_slack
            norm = Norm(min(value, written), "deterministic")
        return replace(bare, norm=norm)

    def unweighted(self) -> WeightedMap:
        """The segment itself, as a batch of one."""
        like = self.segment.network.anchor
        ones = (
            like.new_ones(1, *shape) for shape in (self.segment.in_shape, self.segment.out_shape)
        )
        return WeightedMap(self.segment, *ones)

    def weighted(self, inner: Tensor, outer: Tensor) -> WeightedMap:
        return WeightedMap(self.segment, inner, outer)

    @property
    def is_exact(self) -> bool:
        """Whether its norms, weighted or not, are found without coins, exact but for rounding."""
        return self.segment.is_monomial or self._is_small

    @property
    def may_be_written(self) -> bool:
        """Whether its Gram matrix is small enough to be written out once."""
        return self.takes_coins and _smaller_side(self.segment) <= WRITTEN_SIDE

    @property
    def takes_coins(self) -> bool:
        """Whether its own norm is found by coins: what structure knows exactly these cannot
        improve, only fail."""
        return not self.is_exact and not is_known_exactly(self.segment)

    @property
    def _is_small(self) -> bool:
        outputs, inputs = math.prod(self.segment.out_shape), math.prod(self.segment.in_shape)
        return min(outputs, inputs) <= self.matrix_side and outputs * inputs <= _MATRIX_SIZE

    @cached_property
    def matrix(self) -> Tensor:
        """``A`` as ``(out, in)``, of a small one."""
        outputs, inputs = math.prod(self.segment.out_shape), math.prod(self.segment.in_shape)
        if outputs <= inputs:
            return self.segment.rows().flatten(1)
        like = self.segment.network.anchor
        unit = torch.eye(inputs, dtype=like.dtype, device=like.device)
        return self.segment.apply(unit.reshape(inputs, *self.segment.in_shape)).flatten(1).mT

    @cached_property
    def absolute(self) -> float:
        """An upper bound of ``‖ |A| ‖₂`` by the Schur test with a few steps towards its best
        weights."""
        return float(schur_bound(self.unweighted())[0])

    @cached_property
    def fusion_slack(self) -> float:
        """What rounding in the network's own entries can add: a few roundings of each."""
        return 16 * FLOAT64 * self.absolute + (FLOAT64_TINY if self.absolute > 0 else 0.0)

    def exact(self, mapping: WeightedMap) -> Tensor:
        """The norms, but for rounding, of a small or monomial segment: ``(B,)``."""
        inner, outer = mapping.inner.flatten(1), mapping.outer.flatten(1)
        slack = product(inner.amax(1), outer.amax(1), _number(self.fusion_slack, inner))
        if self.segment.is_monomial:
            # The Gram matrix is diagonal, and its diagonal what it makes of a vector of ones.
            unit, by = mapping.normalised()
            rows = self.segment.magnitude(unit.inner) * unit.outer
            columns = self.segment.transpose_magnitude(rows * unit.outer) * unit.inner
            top = OUT64.up(columns.flatten(1).amax(1).double(), unit.terms + 4)
            return lifted(OUT64.root(OUT64.add(top, unit.underflow)), by) + slack
        matrix = self.matrix
        # Each side and the matrix are brought to 1, so that no product underflows that counts.
        by = exponents(matrix.abs().amax()) if matrix.numel() else exponents(matrix.new_zeros(()))
        matrix, sides, total = divided(matrix, by), [], by
        for side in (outer, inner):
            own = exponents(side.amax(1))
            sides.append(divided(side, own[:, None]))
            total = total + own
        chunk = max(1, _BATCH_SIZE // matrix.numel())
        parts = [
            spectral_norm(rows[:, :, None] * matrix * columns[:, None, :])
            for rows, columns in zip(*(torch.split(side, chunk) for side in sides), strict=True)
        ]
        # The entries come out of a sweep, and are weighted: a few roundings each, and underflow.
        relative = gamma(self.segment.terms + self.segment.transposed_terms + 4)
        sizes = Sizes.of(self.segment)
        lost = max(sizes.lost, sizes.lost_back) * math.sqrt(matrix.numel())
        found = lifted(torch.cat(parts) + 4 * FLOAT64_TINY * math.sqrt(matrix.numel()), total)
        swept = _number(relative * self.absolute + lost, inner)
        return found + product(inner.amax(1), outer.amax(1), swept) + slack

    def from_whole(self, mapping: WeightedMap) -> Tensor:
        """The whole segment's norm times the largest weights: ``(B,)``."""
        inner, outer = mapping.inner.flatten(1), mapping.outer.flatten(1)
        found = product(_number(self.norm.value, inner), inner.amax(1), outer.amax(1))
        return rounded_up(found, inner.dtype)

    def deterministic(self, mapping: WeightedMap) -> Tensor:
        """An upper bound without coins: ``(B,)``."""
        if self.is_exact:
            return self.exact(mapping)
        inner, outer = mapping.inner.flatten(1), mapping.outer.flatten(1)
        slack = product(inner.amax(1), outer.amax(1), _number(self.fusion_slack, inner))
        return torch.minimum(self.from_whole(mapping), schur_bound(mapping) + slack)

    def randomised(
        self,
        mapping: WeightedMap,
        coins: NormCoins,
        *,
        excess: float = _EXCESS_SAMPLE,
        steps: int = 24,
        rough: GramMap | None = None,
    ) -> Tensor:
        """An upper bound that fails with the probability of its coins for each sample: ``(B,)``.

        The other arguments are those of ``randomised_norm``.
        """
        if self.is_exact:
            return self.exact(mapping)
        most = mapping.inner.flatten(1).amax(1), mapping.outer.flatten(1).amax(1)
        absolute = product(*most, _number(self.absolute, most[0]))
        slack = product(*most, _number(self.fusion_slack, most[0]))
        found = randomised_norm(
            mapping, coins, absolute=absolute, excess=excess, steps=steps, rough=rough
        )
        return torch.minimum(found + slack, self.from_whole(mapping))


def _smaller_side(segment: Segment) -> int:
    return min(math.prod(segment.in_shape), math.prod(segment.out_shape))


def randomised_norm(
    mapping: GramMap,
    coins: NormCoins,
    *,
    absolute: Tensor,
    excess: float = _EXCESS_SAMPLE,
    steps: int = 24,
    rough: GramMap | None = None,
) -> Tensor:
    """``chebyshev_bound`` with its own scale and probes: ``(B,)``, infinite where it fails.

    ``absolute`` bounds ``‖ |M| ‖₂``.
    ``excess`` is how far above the truth to aim; ``rough`` the same map in lower precision, good
    enough for choosing the scale by ``steps`` of Lanczos.
    """
    mapping, by = mapping.normalised()
    absolute, support = lifted(absolute, -by), mapping.support
    start = coins.start(support)
    lower = mapping if rough is None else rough.scaled(-by)
    estimate = lanczos(lower, start.to(lower.support.dtype), steps).to(support.dtype)
    # A Ritz value lies a little below the norm, and the bound is best a little above it.
    # Where rounding outgrows what is left of a probe, a polynomial of a lower degree, for a larger
    # scale, may still do; whether it does the same probes may tell.
    risk, probes = coins.probability, coins.probes(support)
    found = torch.full_like(estimate, math.inf, dtype=torch.float64)
    for wider in (excess, 16 * excess, 256 * excess):
        bound = chebyshev_bound(
            mapping,
            probes,
            (estimate * (1 + wider / 2)).square(),
            failure_probability=risk,
            degree=degree_for(wider, risk, PROBES, support[0].numel()),
            absolute=absolute,
        )
        found = torch.minimum(found, bound)
        if bool(found.isfinite().all()):
            break
    return lifted(found, by)


def schur_bound(mapping: GramMap, steps: int = 8) -> Tensor:
    """The Schur test for ``|G|``: ``λ_max(G) ≤ max_o (|G| q)_o / q_o`` for any ``q > 0``, moved a
    few steps towards the best one. Bounds ``‖M‖₂``, and ``‖ |M| ‖₂`` too: ``(B,)``.

    It is found for the map scaled to about 1, and what underflows is charged: of no value of
    ``|G| q`` more than ``mapping.underflow (1 + ‖q‖)``.
    """
    mapping, by = mapping.normalised()
    where = mapping.support != 0
    q = where.to(mapping.support.dtype)
    best = torch.full((mapping.batch,), math.inf, dtype=q.dtype, device=q.device)
    for _ in range(steps):
        rows = mapping.absolute_gram(q)
        ratio = torch.where(where, rows / torch.where(where, q, 1), 0).flatten(1).amax(1)
        best = torch.minimum(best, torch.where(ratio.isnan(), math.inf, ratio))
        # Floored, so that no weight is 0 where a neuron counts.
        top = rows.flatten(1).amax(1).reshape(-1, *(1,) * (rows.dim() - 1))
        q = torch.where(where, (rows / torch.where(top > 0, top, 1)).clamp(min=_FLOOR), 0)
    lost = mapping.underflow * (2 + math.sqrt(q[0].numel())) / _FLOOR
    return lifted(OUT64.root(OUT64.up((best + lost).double(), mapping.terms + 4)), by)


def _number(value: float, like: Tensor) -> Tensor:
    """In float64, wherever ``like`` is: a norm may be beyond the numbers of a rough copy."""
    return torch.full((), value, dtype=torch.float64, device=like.device)
