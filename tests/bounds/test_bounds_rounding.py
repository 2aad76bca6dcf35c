"""What a deployed run rounds is asked of every operator, and what nobody says is refused."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch
from laws import OPERATOR_CASES, normal, seeded, uniform
from torch import Tensor

from lipcert.bounds import Propagation, node_constants
from lipcert.bounds.accumulated import accumulated
from lipcert.bounds.roundoff import Roundoff
from lipcert.network import NetworkBuilder
from lipcert.network.operators import Dense, Operator
from lipcert.rounding import SINGLE


@dataclass(frozen=True, eq=False, repr=False)
class Careless(Dense):
    """A dense layer whose runtime rounds every product a hundred times."""

    @property
    def roundings(self) -> tuple[float, float]:
        return 1.0, 100.0


def error(operator: Operator) -> Tensor:
    """What a run of one layer in float32 rounds there, over small balls."""
    builder = NetworkBuilder(operator.in_shape)
    network = builder.build(builder.operator(operator, 0))
    propagation = Propagation.of(network, node_constants(network, {}))
    x, eps = uniform((2, *operator.in_shape), seeded(1)), torch.full((2,), 0.1).double()
    centre = propagation.centre(x)
    found = accumulated(Roundoff.of(network), centre, eps, propagation.boxes(centre, eps), SINGLE)
    return found.fresh[-1]


def test_an_operator_says_how_often_its_terms_are_rounded():
    plain = Dense.of(normal((3, 4), seeded(0)), None, (1, 4))
    careless = Careless(**{f.name: getattr(plain, f.name) for f in fields(plain)})
    assert (error(careless) > 4 * error(plain)).all()
    assert error(careless).isfinite().all()


def test_an_operator_that_does_not_say_so_is_none():
    class Silent(Operator):
        def entries(self) -> None: ...
        def _forward(self, v: Tensor, entries: Tensor | None) -> Tensor: ...
        def _backward(self, v: Tensor, entries: Tensor | None) -> Tensor: ...

        terms = transposed_terms = 1

    with pytest.raises(TypeError, match="roundings"):
        Silent((1, 2), (1, 2), None)


@pytest.mark.parametrize("case", OPERATOR_CASES)
def test_only_what_moves_values_rounds_nothing(case):
    operator = OPERATOR_CASES[case](torch.float64, seeded(2))
    rounds = (error(operator) > 0).any()
    assert bool(rounds) == (not operator.is_move and not operator.is_identity)
    assert operator.is_move == (operator.roundings == (0.0, 0.0))
