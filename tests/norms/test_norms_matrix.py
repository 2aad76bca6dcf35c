"""Deterministic norms of explicit matrices, against the singular values in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import normal, seeded

from lipcert.norms import largest_eigenvalue, spectral_norm


def exact(matrices: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(matrices, ord=2)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.integers(-120, 120))
def test_never_below_the_singular_value_and_hardly_above(
    seed: int, rows: int, columns: int, power: int
) -> None:
    matrices = normal((3, rows, columns), seeded(seed)) * 10.0**power
    bound, truth = spectral_norm(matrices), exact(matrices)
    # The reference itself is right to a few roundings.
    assert (bound >= truth * (1 - 1e-13)).all()
    assert (bound <= truth * (1 + 1e-9)).all()


def test_a_cluster_of_singular_values_is_bounded_too() -> None:
    # Power iteration needs thousands of steps to tell these values apart.
    q, _ = torch.linalg.qr(normal((40, 40), seeded(1)))
    values = 1 - torch.linspace(0, 1e-6, 40, dtype=torch.float64)
    matrix = (q * values) @ q.mT
    assert 1 - 1e-13 <= float(spectral_norm(matrix[None])[0]) <= 1 + 1e-9


@pytest.mark.parametrize("matrix", [torch.zeros(2, 3), torch.zeros(4, 1)])
def test_zero(matrix: torch.Tensor) -> None:
    assert 0 <= float(spectral_norm(matrix.double()[None])[0]) <= 1e-150


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_unbounded(bad: float) -> None:
    matrices = normal((2, 3, 3), seeded(2))
    matrices[1, 0, 2] = bad
    bound = spectral_norm(matrices)
    assert torch.isfinite(bound[0])
    assert bound[1] == torch.inf


def test_huge_and_tiny_entries_neither_overflow_nor_vanish() -> None:
    for scale in (1e300, 1e-300):
        matrix = normal((1, 5, 7), seeded(3)) * scale
        bound, truth = spectral_norm(matrix), exact(matrix / scale) * scale
        assert torch.isfinite(bound).all()
        assert (bound >= truth * (1 - 1e-13)).all()
        assert (bound <= truth * (1 + 1e-9)).all()


def test_a_wrong_eigenvalue_routine_cannot_lower_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    gram = normal((4, 6, 9), seeded(4))
    gram = gram @ gram.mT
    truth = torch.linalg.eigvalsh(gram)[:, -1]
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda m: m.new_full((len(m), 1), 1e-3))
    assert (largest_eigenvalue(gram) >= truth).all()
