"""The randomised bound under rounding errors as large, and as badly placed, as it allows for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from laws import normal, seeded
from torch import Tensor

from lipcert.network import Network
from lipcert.norms import GramMap, chebyshev_bound
from lipcert.rounding import gamma


@dataclass(frozen=True, eq=False)
class Hostile(GramMap):
    """Diagonal Gram maps ``(B, n)``, top eigenvalue first, whose every product errs by all that
    ``terms`` allow for: along the top eigenvector, always against what is there."""

    eigenvalues: Tensor
    roundings: int

    @property
    def terms(self) -> int:
        return self.roundings

    @property
    def support(self) -> Tensor:
        return torch.ones_like(self.eigenvalues)

    @property
    def underflow(self) -> Tensor:
        return torch.zeros(len(self.eigenvalues), dtype=torch.float64)

    def gram(self, v: Tensor) -> Tensor:
        found = v * self.eigenvalues
        # Towards 0, in each step: the recurrence's own signs are those of its top component.
        allowed = gamma(self.terms) * self.eigenvalues[:, 0] * v.norm(dim=1)
        found[:, 0] -= torch.where(v[:, 0] >= 0, allowed, -allowed)
        return found

    def absolute_gram(self, v: Tensor) -> Tensor:
        return v * self.eigenvalues

    def scaled(self, by: Tensor) -> Hostile:
        return Hostile(self.eigenvalues * torch.exp2(2.0 * by)[:, None], self.roundings)

    def over(self, network: Network) -> Hostile:
        return self


def test_errors_of_exactly_the_allowed_size_leave_no_bound_below_the_truth() -> None:
    """20,000 small cases: few eigenvalues, probes with little along the top one but no less than
    ``τ``, and so many roundings that they count for more than the component that is left."""
    failure, below = 1e-3, 0
    for case in range(200):
        generator, batch = seeded(case), 100
        size = 2 + case % 4
        tau = failure * math.sqrt(math.pi / (2 * size))
        values = torch.rand((batch, size), generator=generator, dtype=torch.float64)
        values[:, 0] = 1.0
        degree = 2 + case % 23
        # From a scale well met to one far too small, where errors grow most.
        scale = (
            torch.rand(batch, generator=generator, dtype=torch.float64)
            .mul(-2.5)
            .mul(math.log(10))
            .exp()
        )
        share = math.exp(-14 * float(torch.rand((), generator=generator)))
        terms = max(1, int(share * tau / gamma(1)))
        probes = normal((batch, size), generator)
        probes[:, 1:] *= (1 - tau**2) ** 0.5 / probes[:, 1:].norm(dim=1, keepdim=True)
        probes[:, 0] = tau * (1 + 1e-9)
        mapping = Hostile(values, terms)
        bound = chebyshev_bound(
            mapping, probes, scale, failure_probability=failure, degree=degree,
            absolute=torch.ones(batch, dtype=torch.float64),
        )  # fmt: skip
        below += int((bound < 1 - 1e-12).sum())
    assert below == 0


def test_probes_that_are_asked_again_fail_no_more_often_than_is_stated() -> None:
    """The least of the bounds at several scales and degrees, from the same probes, over 20,000
    small maps with eigenvalues close to the top one and far below it."""
    failure, count, below = 0.2, 20000, 0
    for size in (2, 3, 5):
        generator = seeded(size)
        values = torch.rand((count, size), generator=generator, dtype=torch.float64) ** 3
        values[:, 0] = 1.0
        mapping = Hostile(values, 0)
        least = torch.full((count,), math.inf, dtype=torch.float64)
        probes = normal((count, size), generator)
        probes = probes / probes.norm(dim=1, keepdim=True)
        for scale, degree in ((1.0, 12), (0.9, 20), (0.5, 8), (2.0, 3)):
            bound = chebyshev_bound(
                mapping, probes, torch.full((count,), scale, dtype=torch.float64),
                failure_probability=failure, degree=degree,
                absolute=torch.ones(count, dtype=torch.float64),
            )  # fmt: skip
            least = torch.minimum(least, bound)
        wrong = int((least < 1 - 1e-12).sum())
        assert wrong <= failure * count + 4 * math.sqrt(count * failure * (1 - failure))
        below += wrong
    # Some do fail, so that a bound which fails too often would be seen.
    assert below > 0
