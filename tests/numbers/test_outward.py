"""Laws of numbers that round themselves: no result is below the exact one, at any magnitude."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipcert.network.operators import Dense, Diagonal, Select
from lipcert.numbers import (
    EXACT,
    OUT32,
    OUT64,
    Outward,
    around,
    halves,
    image,
    outward_of,
    sum_box,
    widened,
)
from lipcert.rounding import arithmetic_of

FORMATS = pytest.mark.parametrize(
    ("own", "dtype"), [(OUT64, torch.float64), (OUT32, torch.float32)], ids=["float64", "float32"]
)
law = settings(max_examples=60, deadline=None)
LARGEST = {torch.float64: 1e300, torch.float32: 2.0**120}


def numbers(dtype: torch.dtype, *, signed: bool = False) -> st.SearchStrategy[float]:
    """Of all magnitudes, subnormal ones and 0 among them."""
    width, top = (64, 1e300) if dtype == torch.float64 else (32, LARGEST[dtype])
    low = -top if signed else 0.0
    plain = st.floats(low, top, width=width, allow_subnormal=True)
    # Magnitudes evenly on a logarithmic scale, which hypothesis alone seldom draws.
    least = -1074 if dtype == torch.float64 else -149
    scaled = st.tuples(st.floats(1, 2, width=32), st.integers(least, int(math.log2(top)) - 1))
    made = scaled.map(lambda pair: math.ldexp(*pair))
    if signed:
        made = st.tuples(made, st.sampled_from([1.0, -1.0])).map(math.prod)
    return st.one_of(plain, made, st.just(0.0))


def rows(dtype: torch.dtype, size: int, *, signed: bool = False) -> st.SearchStrategy[Tensor]:
    drawn = st.lists(numbers(dtype, signed=signed), min_size=size, max_size=size)
    return drawn.map(lambda values: torch.tensor([values], dtype=dtype))


def exact(values: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in values.flatten().tolist()]


def holds(found: float, truth: Fraction) -> bool:
    """Whether a computed upper bound is not below the truth; what is no number claims nothing, as
    the product of what overflowed and 0."""
    return not math.isfinite(found) or Fraction(found) >= truth


@FORMATS
@law
@given(data=st.data())
def test_products_sums_roots_and_quotients_are_never_below_the_exact_ones(own, dtype, data):
    one, two, three = (data.draw(rows(dtype, 3)) for _ in range(3))
    pairs = list(zip(exact(one), exact(two), exact(three), strict=True))
    for found, (a, b, c) in zip(own.times(one, two, three).flatten().tolist(), pairs, strict=True):
        assert holds(found, a * b * c)
        assert math.isnan(found) or (found == 0) == (a * b * c == 0)
    for found, (a, b, c) in zip(own.add(one, two, three).flatten().tolist(), pairs, strict=True):
        assert holds(found, a + b + c)
    for found, (a, _, _) in zip(own.root(one).flatten().tolist(), pairs, strict=True):
        assert Fraction(found) ** 2 >= a
    for found, (a, b, _) in zip(own.quotient(one, two).flatten().tolist(), pairs, strict=True):
        assert b == 0 or holds(found, a / b)


@law
@given(one=numbers(torch.float64), two=numbers(torch.float64), values=rows(torch.float32, 3))
def test_python_numbers_are_taken_upwards(one, two, values):
    assert holds(OUT64.times(one, two), Fraction(one) * Fraction(two))
    assert holds(OUT64.add(one, two), Fraction(one) + Fraction(two))
    for by in (1 / 3, one):
        found = OUT32.times(values, by).flatten().tolist()
        for value, truth in zip(found, exact(values), strict=True):
            assert holds(value, truth * Fraction(by))


@FORMATS
@law
@given(data=st.data())
def test_lengths_sums_and_scalar_products_are_never_below_the_exact_ones(own, dtype, data):
    one, two = data.draw(rows(dtype, 5)), data.draw(rows(dtype, 5))
    signed = data.draw(rows(dtype, 5, signed=True))
    (found,) = own.length(signed).tolist()
    assert found == math.inf or Fraction(found) ** 2 >= sum(v * v for v in exact(signed))
    (found,) = own.sum(one).tolist()
    assert holds(found, sum(exact(one)))
    (found,) = own.dot(one, two).tolist()
    assert holds(found, sum(a * b for a, b in zip(exact(one), exact(two), strict=True)))


@FORMATS
@law
@given(data=st.data())
def test_maps_of_operators_are_never_below_the_exact_ones(own, dtype, data):
    weight = torch.cat([data.draw(rows(dtype, 4, signed=True)) for _ in range(3)])
    bias = data.draw(rows(dtype, 3, signed=True))
    values = data.draw(rows(dtype, 4))
    operator = Dense.of(weight, bias[0], (1, 4))
    entries = [exact(row) for row in weight]
    for name, power in (("magnitude", 1), ("squared", 2)):
        found = getattr(own, name)(operator, values).flatten().tolist()
        for value, row in zip(found, entries, strict=True):
            terms = zip(row, exact(values), strict=True)
            assert holds(value, sum(abs(a) ** power * v for a, v in terms))


@FORMATS
@law
@given(data=st.data())
def test_a_computed_image_is_within_its_error(own, dtype, data):
    """For every value within the errors that it came with; at their ends, which are worst."""
    weight = torch.cat([data.draw(rows(dtype, 4, signed=True)) for _ in range(2)])
    bias = data.draw(rows(dtype, 2, signed=True))
    values, errors = data.draw(rows(dtype, 4, signed=True)), data.draw(rows(dtype, 4))
    operator = Dense.of(weight, bias[0], (1, 4))
    for off in (None, errors):
        found, error = own.apply(operator, values, off)
        slips = [Fraction(0)] * 4 if off is None else exact(off)
        for k, row in enumerate(weight):
            value, most = float(found[0, k]), float(error[0, k])
            if not math.isfinite(value) or not math.isfinite(most):
                continue
            truth = sum(a * v for a, v in zip(exact(row), exact(values), strict=True))
            truth += exact(bias)[k]
            spread = sum(abs(a) * e for a, e in zip(exact(row), slips, strict=True))
            assert Fraction(value) + Fraction(most) >= truth + spread
            assert Fraction(value) - Fraction(most) <= truth - spread


@FORMATS
@law
@given(data=st.data())
def test_boxes_hold_what_they_are_made_of(own, dtype, data):
    middle = data.draw(rows(dtype, 3, signed=True))
    radius, other = data.draw(rows(dtype, 3)), data.draw(rows(dtype, 3))
    truth = list(zip(exact(middle), exact(radius), exact(other), strict=True))

    def encloses(box, k, low, high):
        lower, upper = (float(side.flatten()[k]) for side in box)
        below = lower == -math.inf or Fraction(lower) <= low
        return below and (upper == math.inf or Fraction(upper) >= high)

    box = around(middle, radius, own)
    wide, both = widened((middle, middle + radius), other, own), sum_box([box, (middle, middle)])
    both = sum_box([(middle, middle), (-radius, other), (-other, radius)], own)
    for k, (m, r, e) in enumerate(truth):
        assert encloses(box, k, m - r, m + r)
        top = Fraction(float((middle + radius).flatten()[k]))
        assert encloses(wide, k, m - e, top + e)
        assert encloses(both, k, m - r - e, m + r + e)
    centre, half = halves(box, own)
    for k in range(3):
        low, high, at, way = (float(t.flatten()[k]) for t in (*box, centre, half))
        if all(map(math.isfinite, (low, high, at, way))):
            assert max(abs(Fraction(high) - Fraction(at)), abs(Fraction(at) - Fraction(low))) <= way


@FORMATS
@law
@given(data=st.data())
def test_an_image_of_a_box_holds_its_corners(own, dtype, data):
    weight = torch.cat([data.draw(rows(dtype, 3, signed=True)) for _ in range(2)])
    ends = data.draw(rows(dtype, 3, signed=True)), data.draw(rows(dtype, 3, signed=True))
    box = torch.minimum(*ends), torch.maximum(*ends)
    low, high = image(Dense.of(weight, None, (1, 3)), box, own)
    for k, row in enumerate(weight):
        ways = list(zip(exact(row), exact(box[0]), exact(box[1]), strict=True))
        least = sum(min(a * lower, a * upper) for a, lower, upper in ways)
        most = sum(max(a * lower, a * upper) for a, lower, upper in ways)
        for side, truth, sign in ((low, least, -1), (high, most, 1)):
            value = float(side[0, k])
            assert not math.isfinite(value) or sign * (Fraction(value) - truth) >= 0


@FORMATS
@law
@given(data=st.data())
def test_what_is_taken_off_is_taken_off_whole(own, dtype, data):
    value = data.draw(rows(dtype, 3, signed=True))
    first, second = data.draw(rows(dtype, 3)), data.draw(rows(dtype, 3))
    found = own.below(value, first, second).flatten().tolist()
    for k, (v, a, b) in enumerate(zip(exact(value), exact(first), exact(second), strict=True)):
        assert not math.isfinite(found[k]) or Fraction(found[k]) <= v - a - b


@FORMATS
def test_the_factor_makes_up_for_roundings_of_any_number(own, dtype):
    u = Fraction(own.unit)
    for n in (0, 1, 2, 3, 7, 50, 999, 10**4, 10**6):
        factor = float(torch.tensor(own.grown(n), dtype=dtype))
        if math.isfinite(factor):
            # (1 − u)^(n+1) ≤ 1 − (n+1) u + (n+1) n u² / 2, which is not below it.
            above = 1 - (n + 1) * u + Fraction((n + 1) * n, 2) * u * u
            assert Fraction(factor) * above >= 1
    assert own.grown(1 / own.unit) == math.inf


@FORMATS
@law
@given(data=st.data())
def test_lower_bounds_are_never_above_the_exact_ones(own, dtype, data):
    value = data.draw(rows(dtype, 3))
    # Cubes of three factors: two roundings each.
    found = own.down(value * value * value, 2).flatten().tolist()
    error = own.error(value, 5).flatten().tolist()
    for k, v in enumerate(exact(value)):
        assert not math.isfinite(found[k]) or Fraction(found[k]) <= v**3
        # γ_5 = 5u/(1 − 5u), and what one product may lose.
        most = v * 5 * Fraction(own.unit) / (1 - 5 * Fraction(own.unit)) + Fraction(own.tiny) / 2
        assert not math.isfinite(error[k]) or Fraction(error[k]) >= most


@FORMATS
def test_roundings_may_differ_by_number(own, dtype):
    counts = torch.tensor([0.0, 1.0, 50.0, 1e6, 1 / own.unit], dtype=dtype)
    one = torch.ones(5, dtype=dtype)
    each = [own.up(torch.ones((), dtype=dtype), float(n)) for n in counts]
    torch.testing.assert_close(own.up(one, counts), torch.stack(each), rtol=4 * own.unit, atol=0)
    assert float(own.up(one, counts)[-1]) == math.inf
    assert bool((own.down(one, counts) < 1).all())
    assert Outward.of(arithmetic_of(dtype)) == own


@FORMATS
def test_what_is_0_or_only_moved_stays_as_it_is(own, dtype):
    values = torch.tensor([[0.0, 1.0, 3.0]], dtype=dtype)
    move = Select.of(torch.tensor([[2, 0]]), (1, 3))
    assert torch.equal(own.magnitude(move, values), move.apply(values))
    assert float(own.times(values, values)[0, 0]) == 0
    found, error = own.apply(move, values, values)
    assert torch.equal(found, error)
    scale = Diagonal.of(values, None, (1, 3))
    assert float(own.apply(scale, values)[1].max()) < 20 * own.unit * 9


@FORMATS
def test_unknown_numbers_stay_unknown(own, dtype):
    unknown = torch.tensor([[math.nan, 1.0]], dtype=dtype)
    for found in (own.times(unknown, unknown), own.add(unknown, unknown), own.root(unknown)):
        assert bool(found[0, 0].isnan())
    for side in (*around(unknown, unknown, own), *halves((unknown, unknown), own)):
        assert bool(side[0, 0].isnan())
    assert bool(own.length(unknown).isnan())


def test_exact_numbers_charge_nothing_and_can_be_differentiated():
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    operator = Dense.of(weight, torch.tensor([1.0, 2.0], dtype=torch.float64), (1, 2))
    start = torch.tensor([[0.3, 0.7]], dtype=torch.float64, requires_grad=True)

    def value(v: Tensor, own: Outward = EXACT) -> Tensor:
        found, error = own.apply(operator, v, own.times(v, v))
        low, high = image(operator, around(found, error, own), own)
        length = own.length(high - low)
        return own.root(own.squared(operator, v)).sum() + length + own.dot(low.abs(), error)

    assert torch.autograd.gradcheck(value, start)
    charged = value(start.detach(), OUT64)
    assert (
        float(value(start.detach())) < float(charged) < float(value(start.detach())) * (1 + 1e-13)
    )
    nothing = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    (EXACT.root(nothing).sum() + EXACT.length(nothing).sum()).backward()
    assert bool(nothing.grad.isfinite().all())


def test_each_type_has_its_own_numbers():
    assert outward_of(torch.float64) is OUT64
    assert outward_of(torch.float32) is OUT32
