"""Scales merged with weights: no value and no weight is larger than is said."""

import math

import torch
from laws import normal, seeded, uniform

from lipcert.bounds.scaled import Scaled
from lipcert.network.operators import Dense, Diagonal
from lipcert.norms import row_norms
from lipcert.rounding import FORMATS


def chain(size: float) -> tuple[Scaled, Diagonal, Dense, torch.Tensor]:
    """A scale, then a dense operator, behind values of at most this size."""
    generator = seeded(0)
    scale = Diagonal.of(size * normal((1, 6), generator), None, (1, 6))
    dense = Dense.of(normal((4, 6), generator), normal((4,), generator), (1, 6))
    values = uniform((3, 1, 6), generator)
    like, found, inside = torch.zeros(1, dtype=torch.float64), Scaled.start(values), values
    assert not found.merges
    for operator in (scale, dense):
        found = found.through(operator, row_norms(operator, like), inside.abs())
        inside = operator.forward(inside)
    return found, scale, dense, values


def test_values_and_weights_stay_within_what_is_said_in_either_order() -> None:
    found, scale, dense, values = chain(3.0)
    assert found.merges
    weights = dense.entries() * scale.entries().reshape(1, 6)
    assert float(weights.abs().max()) <= found.weight
    for way in (scale.forward(values), dense.forward(scale.forward(values))):
        assert (way.flatten(1).abs().amax(1) <= found.most).all()
    merged = values.flatten(1) @ weights.mT
    assert (merged.abs().amax(1) <= found.most).all()
    assert (values.flatten(1).amax(1) <= found.source).all()


def test_without_a_scale_or_weights_nothing_is_merged() -> None:
    generator, like = seeded(1), torch.zeros(1, dtype=torch.float64)
    dense = Dense.of(normal((4, 6), generator), None, (1, 6))
    values = uniform((2, 1, 6), generator)
    once = Scaled.start(values).through(dense, row_norms(dense, like), values)
    assert not once.merges
    assert (once.scales, once.weights) == (0, 1)


def test_what_could_overflow_is_lost_and_little_else() -> None:
    half = FORMATS["float16"]
    assert 0 < float(chain(3.0)[0].lost(half).max()) < 1e-5
    assert float(chain(1e6)[0].lost(half).min()) == math.inf
    assert float(chain(1e6)[0].lost(FORMATS["float32"]).max()) < 1e-30
