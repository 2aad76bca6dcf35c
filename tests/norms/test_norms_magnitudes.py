"""Norms from 1e-300 to 1e300: never below the truth, found on a scale where all is well."""

import math

import pytest
import torch
from laws import OPERATOR_CASES, dense_twin, seeded, uniform

import lipcert.norms.bounds as norm_bounds
from lipcert.certification import Certifier
from lipcert.network import Network, NetworkBuilder, Segment
from lipcert.network.activations import relu
from lipcert.network.operators import Dense, Operator
from lipcert.network.operators.base import move_tensors
from lipcert.norms import SegmentNorms, WeightedMap, operator_norm, row_norms, spectral_norm
from lipcert.options import Epsilon, Options

POWERS = (-996, -700, -540, -300, 0, 300, 540, 700, 990)


def scaled(operator: Operator, power: int) -> Operator:
    """The operator times 2^power; indices stay."""
    factor = 2.0**power
    return move_tensors(operator, lambda t: t * factor if t.is_floating_point() else t)


def log2(values: torch.Tensor) -> torch.Tensor:
    return values.double().log2()


def holds(bound: torch.Tensor, truth: torch.Tensor, power: int) -> bool:
    """``bound ≥ truth · 2^power`` but for the rounding of the reference; on a logarithmic scale."""
    return bool((log2(bound) >= log2(truth) + power - 1e-9).all())


@pytest.mark.parametrize("side", [256, 0], ids=["explicit", "matrix-free"])
@pytest.mark.parametrize("name", sorted(OPERATOR_CASES))
def test_no_norm_of_any_size_is_below_the_truth(
    name: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_bounds, "_MATRIX_SIDE", side)
    plain = OPERATOR_CASES[name](torch.float64, seeded(1))
    if plain.entries() is None:
        return
    matrix = dense_twin(plain)
    for power in POWERS:
        operator = scaled(plain, power)
        builder = NetworkBuilder(operator.in_shape)
        segment = Segment(builder.build(builder.operator(operator, 0)), 0, 1)
        truth = torch.linalg.matrix_norm(matrix, ord=2)
        rows = torch.linalg.vector_norm(matrix, dim=1)
        found = row_norms(operator, matrix).flatten()
        assert holds(found, rows, power)
        assert torch.equal(found == 0, rows == 0)
        assert holds(truth.new_tensor(operator_norm(operator)), truth, power)
        assert holds(spectral_norm(matrix[None] * 2.0**power), truth, power)
        norms = SegmentNorms.of(segment, seed=1, call=0, failure_probability=1e-9)
        assert holds(truth.new_tensor(norms.norm.value), truth, power)
        # Close to it, too: nothing is infinite that could be found.
        assert norms.norm.value < math.inf
        for weight in (0, -400, 400):
            gains = uniform((3, *segment.in_shape), seeded(2)) + 0.1
            masks = (uniform((3, *segment.out_shape), seeded(3)) < 0.8).double()
            if abs(power + weight) > 996:
                continue
            mapping = WeightedMap(segment, gains * 2.0**weight, masks)
            dense = masks.flatten(1)[:, :, None] * matrix * gains.flatten(1)[:, None]
            local = torch.linalg.matrix_norm(dense, ord=2)
            bounds = [norms.deterministic(mapping), norms.from_whole(mapping),
                      norms.randomised(mapping, streams=torch.arange(3), seed=1, call=1,
                                       failure_probability=1e-9)]  # fmt: skip
            for bound in bounds:
                assert holds(bound, local, power + weight)


def two_layers(first: float, second: float) -> Network:
    builder = NetworkBuilder((2,))
    weight = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    one = builder.operator(Dense.of(weight * first, None, (2,)), 0)
    last = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    return builder.build(
        builder.operator(Dense.of(last * second, None, (2,)), builder.activation(relu(), one))
    )


@pytest.mark.parametrize("method", ["global", "local", "auto"])
@pytest.mark.parametrize(
    ("first", "second"),
    [(1e-170, 1e-3), (1e-170, 1e170), (1e-200, 1e-100), (1e-290, 1.0), (1e200, 1e-200)],
)
def test_a_network_that_varies_has_no_lipschitz_constant_of_zero(
    method: str, first: float, second: float
) -> None:
    """It is compared with a slope inside the ball, on a scale of logarithms."""
    options = Options((Epsilon.parse("0.1"),), method=method, deployed="real", seed=1)
    certifier = Certifier(two_layers(first, second), options, samples=1)
    (sample,) = certifier(torch.tensor([[0.6, 0.7]]), torch.tensor([0]), [0])
    slope = math.log10(math.sqrt(5)) + math.log10(first) + math.log10(second)
    assert sample.lipschitz is None or math.log10(sample.lipschitz) >= slope
    assert sample.lipschitz != 0.0
    assert math.log10(certifier.product) >= slope
