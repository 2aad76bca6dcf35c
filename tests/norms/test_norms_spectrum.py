"""The frequency bound of convolutions, against the singular values of the dense twin."""

import math

import pytest
import torch
from laws import OPERATOR_CASES, dense_twin, normal, seeded

from lipcert.network.operators import Convolution
from lipcert.norms import convolution_norm, operator_norm, ready_norm
from lipcert.norms.spectrum import symbol_work, unfolded_norm

# One case reads nothing but padding: its norm is 0, and no ratio to it is finite.
CONVOLUTIONS = [
    name for name in OPERATOR_CASES if name.startswith("conv") and "padding only" not in name
]


@pytest.mark.parametrize("name", sorted(OPERATOR_CASES))
def test_every_operator_has_a_norm_that_is_never_below_the_truth(name: str) -> None:
    operator = OPERATOR_CASES[name](torch.float64, seeded(5))
    truth = float(torch.linalg.matrix_norm(dense_twin(operator), ord=2))
    assert operator_norm(operator) >= truth * (1 - 1e-13)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_it_is_within_its_looseness_of_the_truth(name: str) -> None:
    operator = OPERATOR_CASES[name](torch.float64, seeded(6))
    assert isinstance(operator, Convolution)
    truth = float(torch.linalg.matrix_norm(dense_twin(operator), ord=2))
    bound = convolution_norm(operator)
    assert bound is not None
    # Tiny images make the padded circle loosest; a wrong phase or group would show as far more.
    assert bound <= 1.6 * truth


@pytest.mark.parametrize("name", [name for name in OPERATOR_CASES if name.startswith("conv")])
def test_the_kernel_alone_bounds_the_norm(name: str) -> None:
    operator = OPERATOR_CASES[name](torch.float64, seeded(8))
    assert isinstance(operator, Convolution)
    truth = float(torch.linalg.matrix_norm(dense_twin(operator), ord=2))
    taps = math.prod(operator.weight.shape[2:])
    assert truth * (1 - 1e-13) <= unfolded_norm(operator)
    # A tap alone is a part of the whole, but where padding takes it.
    each = operator.weight.flatten(2).unbind(2)
    most = sum(float(torch.linalg.matrix_norm(tap, ord=2)) for tap in each)
    assert unfolded_norm(operator) <= math.sqrt(taps * operator.groups) * most * (1 + 1e-9)


def test_what_takes_long_is_bounded_by_its_kernel() -> None:
    """256 channels of 24 × 24 would take a minute by their symbols."""
    weight = normal((256, 256, 3, 3), seeded(9)) / 48
    operator = Convolution.of(weight, None, (1, 256, 24, 24), padding=((1, 1), (1, 1)))
    assert symbol_work(operator) > 1e10
    x = normal((1, *operator.in_shape), seeded(10))
    for _ in range(4):
        x = operator.transpose(operator.apply(x))
        x /= x.norm()
    below = float(operator.forward(x).norm())
    assert below <= ready_norm(operator) <= 4 * below
    small = Convolution.of(weight[:8, :8], None, (1, 8, 6, 6), padding=((1, 1), (1, 1)))
    assert ready_norm(small) == operator_norm(small)


def test_it_is_tight_on_larger_images() -> None:
    weight = normal((6, 3, 4, 4), seeded(7))
    operator = Convolution.of(weight, None, (1, 3, 16, 16), stride=(2, 2), padding=((1, 1), (1, 1)))
    truth = float(torch.linalg.matrix_norm(dense_twin(operator), ord=2))
    bound = convolution_norm(operator)
    assert bound is not None
    assert truth <= bound <= 1.04 * truth


def test_symbols_too_large_to_be_worth_it_are_declined() -> None:
    operator = Convolution.of(torch.ones(600, 1, 1, 1), None, (1, 1, 2, 2))
    assert convolution_norm(operator) is None
    # The magnitudes of the entries say enough.
    assert 600**0.5 <= operator_norm(operator) <= 600**0.5 * (1 + 1e-3)
