"""What the anchored bounds ask of an element-wise activation: derivative, secants, relaxed minimum.

Each claim is checked at sampled points of random boxes around an anchor: the ends, the kinks, the
anchor and its neighbourhood are always among them.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ACTIVATION_CASES, ACTIVATION_SHAPE, DTYPES, floats_to, normal, seeded, uniform

from lipcert.network.activations import Clip, Elementwise
from lipcert.network.activations.piecewise_linear import PiecewiseLinear

BOXES = 40
EPS = 2.0**-52
seeds = st.integers(0, 2**31)


def _limits_of_one_crossed(dtype, generator):
    upper = torch.tensor([1.0, -0.5, 0.25, 0.0], dtype=dtype)
    return Clip(torch.zeros((), dtype=dtype), upper.reshape(4, 1, 1))


CASES = ACTIVATION_CASES | {"limits of one channel crossed": _limits_of_one_crossed}
BUILT = {name: build(torch.float64, seeded(0)) for name, build in CASES.items()}
ELEMENTWISE = [name for name, built in BUILT.items() if isinstance(built, Elementwise)]
PIECEWISE = [name for name, built in BUILT.items() if isinstance(built, PiecewiseLinear)]

every_case = pytest.mark.parametrize("name", ELEMENTWISE)
piecewise = pytest.mark.parametrize("name", PIECEWISE)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def kinks(activation, dtype=torch.float64):
    """Where the slope jumps, or its own slope changes sign."""
    linear = isinstance(activation, PiecewiseLinear)
    pieces = [p[:2] if linear else (p.start, p.end) for p in activation.pieces()]
    ends = [torch.as_tensor(end, dtype=dtype) for piece in pieces for end in piece]
    return [end for end in ends if bool(end.isfinite().all())]


def some(share, shape, generator):
    return uniform(shape, generator) < share


def anchored_boxes(activation, generator, dtype=torch.float64, count=BOXES, widths=(-9.0, 6.0)):
    """``l ≤ z0 ≤ u`` of all sizes: degenerate, one-sided, with anchors and ends at kinks."""
    shape = (count, *ACTIVATION_SHAPE)

    def scale(low, high):
        exponent = low + (high - low) * uniform((count, 1, 1, 1, 1), generator)
        return (10**exponent).to(dtype)

    anchor = scale(-2.0, 2.0) * normal(shape, generator, dtype)
    for kink in kinks(activation, dtype):
        anchor = torch.where(some(0.1, shape, generator), kink, anchor)
    width = scale(*widths)
    edges = []
    for sign in (-1, 1):
        way = width * uniform(shape, generator, dtype) * ~some(0.15, shape, generator)
        edge = anchor + sign * way
        for kink in kinks(activation, dtype):
            there = some(0.1, shape, generator) & (sign * (kink - anchor) >= 0)
            edge = torch.where(there, kink, edge)
        edges.append(edge)
    return edges[0], anchor, edges[1]


def points_of(activation, lower, anchor, upper, generator):
    """Points of each box along a new first axis."""
    special = [lower, anchor, upper, *kinks(activation, lower.dtype)]
    for _ in range(6):
        special.append(lower + uniform(lower.shape, generator, lower.dtype) * (upper - lower))
    for near in (1e-1, 1e-3, 1e-6):
        special += [anchor + near * (upper - anchor), anchor + near * (lower - anchor)]
    clamped = [torch.minimum(torch.maximum(z, lower), upper) for z in special]
    return torch.stack([z.expand_as(lower) for z in clamped])


def changes(activation, z, anchor):
    """``Δσ`` and ``Δz`` in float64, and a bound of the roundings in ``Δσ``."""
    exact = activation.convert(floats_to(torch.float64))
    z, anchor = z.double(), anchor.double()
    value, at_anchor = exact.value(z), exact.value(anchor)
    relative, absolute, scaled = exact.rounding
    slack = (1 + relative) * (value.abs() + at_anchor.abs()) + 2 * absolute
    slack = slack + scaled * (z.abs() + anchor.abs())
    return value - at_anchor, z - anchor, EPS * slack


# Secants -----------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(seed=seeds)
@dtypes
@every_case
def test_every_secant_lies_in_its_range(name, dtype, seed):
    generator = seeded(seed)
    activation = CASES[name](dtype, generator)
    lower, anchor, upper = anchored_boxes(activation, generator, dtype)
    flat, steep = activation.secant(lower, upper, anchor)
    assert flat.shape == steep.shape == anchor.shape
    assert flat.dtype == steep.dtype == dtype
    assert bool((flat <= steep).all())
    z = points_of(activation, lower, anchor, upper, generator)
    rise, way, slack = changes(activation, z, anchor)
    one, two = flat.double() * way, steep.double() * way
    slack = slack + 2 * EPS * (one.abs() + two.abs())
    assert bool((torch.minimum(one, two) <= rise + slack).all())
    assert bool((rise <= torch.maximum(one, two) + slack).all())


@settings(max_examples=12, deadline=None)
@given(seed=seeds)
@piecewise
def test_piecewise_linear_secants_are_attained(name, seed):
    """The limit at the anchor itself counts, of either side at a kink."""
    generator = seeded(seed)
    activation = CASES[name](torch.float64, generator)
    lower, anchor, upper = anchored_boxes(activation, generator)
    flat, steep = activation.secant(lower, upper, anchor)
    z = points_of(activation, lower, anchor, upper, generator)
    rise, way, _ = changes(activation, z, anchor)
    own = activation.derivative(anchor)
    met = torch.where(way != 0, rise / way.where(way != 0, 1), own)
    assert bool((torch.maximum(met.amax(0), own) >= steep - 1e-9).all())
    assert bool((torch.minimum(met.amin(0), own) <= flat + 1e-9).all())


def test_relu_secants_by_hand():
    activation = BUILT["ReLU"]
    lower, anchor, upper, flat, steep = torch.tensor(
        [
            [-1.0, -0.5, -0.25, 0.0, 0.0],
            [0.5, 1.0, 2.0, 1.0, 1.0],
            [-1.0, 1.0, 1.0, 0.5, 1.0],
            [-3.0, -1.0, 3.0, 0.0, 0.75],
            [-1.0, 0.0, 1.0, 0.0, 1.0],
            [-2.0, -2.0, -2.0, 0.0, 0.0],
        ],
        dtype=torch.float64,
    ).unbind(1)
    low, high = activation.secant(lower, upper, anchor)
    torch.testing.assert_close(low, flat, rtol=0, atol=1e-14)
    torch.testing.assert_close(high, steep, rtol=0, atol=1e-14)


def test_absolute_value_secants_by_hand():
    activation = BUILT["absolute value"]
    lower, anchor, upper, flat, steep = torch.tensor(
        [
            [-2.0, -1.0, -0.5, -1.0, -1.0],
            [0.0, 1.0, 2.0, 1.0, 1.0],
            [-1.0, 1.0, 1.0, 0.0, 1.0],
            [-3.0, -1.0, 3.0, -1.0, 0.5],
            [-1.0, 0.0, 1.0, -1.0, 1.0],
        ],
        dtype=torch.float64,
    ).unbind(1)
    low, high = activation.secant(lower, upper, anchor)
    torch.testing.assert_close(low, flat, rtol=0, atol=1e-14)
    torch.testing.assert_close(high, steep, rtol=0, atol=1e-14)


@dtypes
@every_case
def test_the_derivative_is_a_secant(name, dtype):
    """… the one at the anchor."""
    generator = seeded(1)
    activation = CASES[name](dtype, generator)
    lower, anchor, upper = anchored_boxes(activation, generator, dtype, count=400)
    flat, steep = activation.secant(lower, upper, anchor)
    own = activation.derivative(anchor)
    assert bool(((flat <= own) & (own <= steep)).all())


@every_case
def test_the_derivative_is_a_difference_quotient(name):
    generator = seeded(2)
    activation = CASES[name](torch.float64, generator)
    z = 3 * normal((200, *ACTIVATION_SHAPE), generator)
    step = 1e-6
    clear = torch.ones_like(z, dtype=torch.bool)
    for kink in kinks(activation):
        clear &= (z - kink).abs() > 2 * step
    quotient = (activation.value(z + step) - activation.value(z - step)) / (2 * step)
    slope = activation.derivative(z)
    assert slope.shape == z.shape
    torch.testing.assert_close(slope[clear], quotient[clear], rtol=1e-7, atol=1e-8)


@every_case
def test_infinite_ends_exclude_nothing(name):
    """A NaN excludes nothing either."""
    generator = seeded(4)
    activation = CASES[name](torch.float64, generator)
    lower, anchor, upper = anchored_boxes(activation, generator, widths=(-1.0, 2.0))
    z = points_of(activation, lower, anchor, upper, generator)
    rise, way, slack = changes(activation, z, anchor)
    infinite = torch.full_like(anchor, math.inf)
    coefficient, slope, multiplier = weights(generator)
    term = coefficient * (rise - slope * way) + multiplier * way.square()
    for low, high in ((-infinite, upper), (lower, infinite), (-infinite, infinite)):
        flat, steep = activation.secant(low, high, anchor)
        one, two = flat * way, steep * way
        assert not bool((torch.minimum(one, two) > rise + slack + EPS * one.abs()).any())
        assert not bool((torch.maximum(one, two) < rise - slack - EPS * two.abs()).any())
        least = activation.relaxed_minimum(coefficient, slope, multiplier, anchor, low, high)
        assert not bool((least > term + 1e-9 * (1 + coefficient.abs() * (1 + way.abs()))).any())


# The relaxed minimum -----------------------------------------------------------------------------


def weights(generator, dtype=torch.float64, count=BOXES):
    """Coefficients of both signs and 0, slopes in [−1, 2], and one multiplier a row."""
    shape = (count, *ACTIVATION_SHAPE)
    size = 10 ** (4 * uniform((count, 1, 1, 1, 1), generator) - 2)
    coefficient = size * normal(shape, generator) * ~some(0.1, shape, generator)
    slope = 3 * uniform(shape, generator) - 1
    slope = torch.where(some(0.2, shape, generator), slope.round(), slope)
    multiplier = 10 ** (9 * uniform((count, 1, 1, 1, 1), generator) - 6)
    return coefficient.to(dtype), slope.to(dtype), multiplier.to(dtype)


def rounding(activation, coefficient, slope, multiplier, lower, anchor, upper):
    """A few roundings of each number that enters a neuron's term at its minimum."""
    size, steep = coefficient.abs(), activation.lipschitz + slope.abs()
    way = torch.maximum(upper - anchor, anchor - lower)
    if isinstance(activation, PiecewiseLinear):
        # Further out the parabola is above 0.
        way = torch.minimum(way, size * steep / multiplier)
    kink = sum(kink.abs() for kink in kinks(activation))
    moved = activation.value(anchor).abs() + (1 + steep) * (anchor.abs() + way) + kink
    absolute = activation.rounding[1]
    eps = torch.finfo(coefficient.dtype).eps
    return 32 * eps * (size * (moved + absolute) + multiplier * way.square())


@settings(max_examples=12, deadline=None)
@given(seed=seeds)
@dtypes
@every_case
def test_relaxed_minimum_is_below_every_point(name, dtype, seed):
    generator = seeded(seed)
    activation = CASES[name](dtype, generator)
    lower, anchor, upper = anchored_boxes(activation, generator, dtype)
    coefficient, slope, multiplier = weights(generator, dtype)
    least = activation.relaxed_minimum(coefficient, slope, multiplier, anchor, lower, upper)
    assert least.shape == anchor.shape
    assert least.dtype == dtype
    slack = rounding(activation, coefficient, slope, multiplier, lower, anchor, upper).double()
    assert bool((least <= slack).all())
    z = points_of(activation, lower, anchor, upper, generator)
    rise, way, fuzz = changes(activation, z, anchor)
    bent, tilted = multiplier.double() * way.square(), coefficient.double() * slope.double() * way
    term = coefficient.double() * rise - tilted + bent
    fuzz = coefficient.double().abs() * fuzz + 4 * EPS * (bent + tilted.abs())
    assert bool((least.double() <= term + slack + fuzz).all())


@settings(max_examples=12, deadline=None)
@given(seed=seeds)
@piecewise
def test_relaxed_minimum_is_attained_where_linear(name, seed):
    generator = seeded(seed)
    activation = CASES[name](torch.float64, generator)
    lower, anchor, upper = anchored_boxes(activation, generator)
    coefficient, slope, multiplier = weights(generator)
    least = activation.relaxed_minimum(coefficient, slope, multiplier, anchor, lower, upper)
    z = points_of(activation, lower, anchor, upper, generator)
    # The vertices of all pieces, wherever they lie.
    for _, _, steepness, _ in activation.pieces():
        vertex = anchor - coefficient * (steepness - slope) / (2 * multiplier)
        z = torch.cat([z, torch.minimum(torch.maximum(vertex, lower), upper)[None]])
    rise, way, _ = changes(activation, z, anchor)
    term = coefficient * (rise - slope * way) + multiplier * way.square()
    slack = rounding(activation, coefficient, slope, multiplier, lower, anchor, upper)
    assert bool((least >= term.amin(0) - slack).all())


@every_case
def test_nothing_to_lose(name):
    """No coefficient, or no room: the minimum is 0, at the anchor."""
    generator = seeded(6)
    activation = CASES[name](torch.float64, generator)
    lower, anchor, upper = anchored_boxes(activation, generator)
    coefficient, slope, multiplier = weights(generator)
    zero = torch.zeros_like(coefficient)
    nothing = activation.relaxed_minimum(zero, slope, multiplier, anchor, lower, upper)
    assert bool((nothing == 0).all())
    still = activation.relaxed_minimum(coefficient, slope, multiplier, anchor, anchor, anchor)
    slack = rounding(activation, coefficient, slope, multiplier, anchor, anchor, anchor)
    assert bool((still.abs() <= slack).all())


@piecewise
def test_gradients_of_the_relaxed_minimum(name):
    """Against central differences, wherever no minimum passes from one piece to another."""
    generator = seeded(7)
    activation = CASES[name](torch.float64, generator)
    lower, anchor, upper = anchored_boxes(activation, generator, count=200, widths=(-1.0, 1.0))
    shape = anchor.shape
    arguments = [
        normal(shape, generator),
        3 * uniform(shape, generator) - 1,
        10 ** (2 * uniform(shape, generator) - 1),
    ]

    def least(*weights):
        return activation.relaxed_minimum(*weights, anchor, lower, upper)

    tracked = [argument.clone().requires_grad_(True) for argument in arguments]
    gradients = torch.autograd.grad(least(*tracked).sum(), tracked)
    middle, step = least(*arguments), 1e-6
    for place, gradient in enumerate(gradients):
        sides = []
        for sign in (-1, 1):
            moved = list(arguments)
            moved[place] = moved[place] + sign * step
            sides.append(least(*moved))
        below, above = sides
        scale = 1 + middle.abs() + gradient.abs() + (upper - lower).square()
        even = (above - 2 * middle + below).abs() / step <= 1e-4 * scale
        assert float(even.double().mean()) > 0.99
        found = (above - below) / (2 * step)
        assert bool(((gradient - found).abs() <= 2e-4 * scale)[even].all())


@every_case
def test_gradients_are_finite(name):
    generator = seeded(8)
    activation = CASES[name](torch.float64, generator)
    lower, anchor, upper = anchored_boxes(activation, generator, count=200)
    tracked = [weight.requires_grad_(True) for weight in weights(generator, count=200)]
    least = activation.relaxed_minimum(*tracked, anchor, lower, upper)
    gradients = torch.autograd.grad(least.sum(), tracked)
    for gradient, weight in zip(gradients, tracked, strict=True):
        assert gradient.shape == weight.shape
        assert bool(gradient.isfinite().all())


@every_case
def test_weights_broadcast_against_the_box(name):
    generator = seeded(9)
    activation = CASES[name](torch.float64, generator)
    lower, anchor, upper = anchored_boxes(activation, generator)
    coefficient, slope, multiplier = weights(generator)
    shape = coefficient.shape

    def least(*tensors):
        found = activation.relaxed_minimum(*tensors)
        assert found.shape == shape
        return found

    box = (anchor, lower, upper)
    wide = multiplier.expand(shape).clone()
    assert torch.equal(
        least(coefficient, slope, multiplier, *box), least(coefficient, slope, wide, *box)
    )
    # One slope a row; one row of coefficients for all; one box for all.
    narrow = slope[:, :, :1, :1, :1]
    assert torch.equal(
        least(coefficient, narrow, multiplier, *box),
        least(coefficient, narrow.expand(shape), multiplier, *box),
    )
    assert torch.equal(
        least(coefficient[:1], slope, multiplier, *box),
        least(coefficient[:1].expand(shape), slope, multiplier, *box),
    )
    single = [edge[:1] for edge in box]
    assert torch.equal(
        least(coefficient, slope, multiplier, *single),
        least(coefficient, slope, multiplier, *(edge.expand(shape) for edge in single)),
    )


@settings(max_examples=12, deadline=None)
@given(seed=seeds)
@dtypes
@every_case
def test_crossing_sums_the_relaxed_minima_of_what_varies(name, dtype, seed):
    """One box prepared for many weights is the same bound, with the same gradients."""
    generator = seeded(seed)
    activation = CASES[name](dtype, generator)
    lower, anchor, upper = anchored_boxes(activation, generator, dtype)
    varying = (uniform(anchor.shape, generator) < 0.7).to(dtype)
    cross = activation.relaxation(anchor, lower, upper, varying)
    for _ in range(2):
        coefficient, slope, multiplier = weights(generator, dtype)
        slope = slope * varying
        tracked = [w.clone().requires_grad_(True) for w in (coefficient, slope, multiplier)]
        passed, lost = cross(*tracked)
        apart = [w.clone().requires_grad_(True) for w in (coefficient, slope, multiplier)]
        each = activation.relaxed_minimum(*apart, anchor, lower, upper)
        wanted = torch.where(varying != 0, each, 0)
        assert bool((passed == coefficient * slope).all())
        assert lost.shape == (len(anchor),)
        slack = rounding(activation, coefficient, slope, multiplier, lower, anchor, upper)
        slack = (slack * varying).flatten(1).sum(1) * anchor[0].numel()
        slack = slack + 1e-6 * wanted.detach().abs().flatten(1).sum(1) * (dtype == torch.float32)
        assert bool(((lost - wanted.flatten(1).sum(1)).abs() <= slack).all())
        found = torch.autograd.grad(lost.sum(), tracked, retain_graph=True)
        right = torch.autograd.grad(wanted.sum(), apart)
        for one, other in zip(found, right, strict=True):
            scale = 1 + other.abs() + coefficient.abs() * (1 + (upper - lower).abs())
            near = (one - other).abs() <= 1e-4 * scale + 1e-3 * other.abs()
            # Where two places are as good as each other either gradient will do.
            assert float(near.double().mean()) > 0.99


@piecewise
def test_a_relaxation_and_its_gradient_are_those_of_the_relaxed_minimum(name):
    """The sums of all neurons that vary, whose gradient is written out by hand."""
    activation, generator = BUILT[name], seeded(7)
    lower, anchor, upper = anchored_boxes(activation, generator, widths=(-2.0, 1.0))
    varying = some(0.8, anchor.shape, generator).to(anchor)
    multiplier = 10 ** uniform((len(anchor), 1, 1, 1, 1), generator)
    given_numbers = [normal(anchor.shape, generator), normal(anchor.shape, generator), multiplier]
    relax = activation.relaxation(anchor, lower, upper, varying)
    weight = normal(anchor.shape, generator)

    def by_hand(coefficient, slope, multiplier):
        return relax(coefficient, slope, multiplier)

    def neuron_by_neuron(coefficient, slope, multiplier):
        least = activation.relaxed_minimum(coefficient, slope, multiplier, anchor, lower, upper)
        return coefficient * slope, torch.where(varying != 0, least, 0).flatten(1).sum(1)

    gradients = []
    for function in (by_hand, neuron_by_neuron):
        numbers = [number.clone().requires_grad_() for number in given_numbers]
        passed, least = function(*numbers)
        total = (passed * weight).sum() + (least * torch.arange(len(least))).sum()
        gradients.append([passed, least, *torch.autograd.grad(total, numbers)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@piecewise
def test_a_relaxation_of_what_is_no_number_is_none(name):
    """Whichever part of the box it is on: never a bound."""
    activation, ones = BUILT[name], torch.ones(3, *ACTIVATION_SHAPE, dtype=torch.float64)
    relax = activation.relaxation(0 * ones, math.nan * ones, ones, ones)
    _, least = relax(ones, 0.5 * ones, ones[:, :1, :1, :1, :1])
    assert not (least > -math.inf).any()
    relax = activation.relaxation(0 * ones, -ones, ones, ones)
    for coefficient, slope, multiplier in (
        (math.nan, 0.5, 1.0),
        (1.0, math.nan, 1.0),
        (1, 0.5, math.nan),
    ):
        _, least = relax(coefficient * ones, slope * ones, multiplier * ones[:, :1, :1, :1, :1])
        assert least.isnan().all()
