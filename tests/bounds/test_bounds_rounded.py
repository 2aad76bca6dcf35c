"""What one operation rounds: never less than formats do, and infinite where they could overflow."""

import math

import pytest
import torch

from lipcert.bounds.rounded import grown, holds, of_activation, of_storing, times
from lipcert.network.activations import Clip, PReLU, relu
from lipcert.rounding import FORMATS, HALF, SINGLE

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@pytest.mark.parametrize("name", DTYPES)
def test_a_stored_value_is_off_by_no_more(name):
    own = FORMATS[name]
    values = torch.logspace(-30, 4, 999, dtype=torch.float64) * torch.pi
    moved = (values.to(DTYPES[name]).double() - values).abs()
    assert bool((moved <= of_storing(own, values)).all())
    assert of_storing(own, torch.tensor([own.largest]).double()).isinf().all()
    assert not of_storing(None, values).any()


@pytest.mark.parametrize("name", DTYPES)
def test_limits_and_slopes_that_a_format_has_not_are_charged(name):
    own = FORMATS[name]
    size = torch.tensor([0.5, 2.0]).double()
    odd, even = torch.tensor(1 / 3, dtype=torch.float64), torch.tensor(0.25).double()
    assert holds(own, Clip(even, None))
    assert not holds(own, Clip(odd, None))
    assert not of_activation(own, relu(), size, size).any()
    assert bool((of_activation(own, Clip(odd, None), size, size) >= own.unit * size).all())
    more, less = (of_activation(own, PReLU(s), size, size) for s in (odd, even))
    assert bool((more > less).all())


def test_errors_grow_with_what_is_rounded_after_them():
    made = torch.full((3,), 1e-6, dtype=torch.float64)
    whole = torch.tensor([1.0, 1.0, 1e38]).double()
    found = grown(SINGLE, made, 2.0, torch.tensor([0.0, 1e6, 0.0]).double(), whole, whole)
    assert float(found[0]) >= 1e-6 * math.exp(2 * SINGLE.unit)
    assert float(found[1]) >= 1e-6 * math.exp(1e6 * SINGLE.unit)
    assert grown(HALF, made, 2.0, made, 1e5 * whole, whole)[0].isinf()


def test_an_infinite_length_times_nothing_is_unknown():
    found = times(torch.tensor([torch.inf, 2.0]).double(), torch.tensor([0.0, 3.0]).double())
    assert found[0].isinf()
    assert float(found[1]) >= 6
