"""Smooth activations: their derivatives, their pieces, and how tight what follows from them is."""

import math
from itertools import pairwise

import mpmath
import pytest
import torch
from laws import ACTIVATION_CASES, seeded, uniform

from lipcert.network.activations import (
    Elu,
    Erf,
    Gelu,
    GeluTanh,
    HardSwish,
    Mish,
    Sigmoid,
    Silu,
    Smooth,
    Softplus,
    Tanh,
)

BUILT = {name: build(torch.float64, seeded(0)) for name, build in ACTIVATION_CASES.items()}
SMOOTH = {name: built for name, built in BUILT.items() if isinstance(built, Smooth)}
every = pytest.mark.parametrize("activation", SMOOTH.values(), ids=SMOOTH.keys())
UNIT = 2.0**-53


def logistic(z):
    return 1 / (1 + mpmath.exp(-z))


def exact(activation):
    """The same function in any precision."""
    if isinstance(activation, Elu):
        return lambda z: z if z >= 0 else mpmath.mpf(activation.alpha) * mpmath.expm1(z)
    cubic = mpmath.mpf("0.044715")
    return {
        Sigmoid: logistic,
        Tanh: mpmath.tanh,
        Erf: mpmath.erf,
        Softplus: lambda z: mpmath.log1p(mpmath.exp(z)),
        Silu: lambda z: z * logistic(z),
        Gelu: lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2,
        GeluTanh: lambda z: z * logistic(mpmath.sqrt(8 / mpmath.pi) * (z + cubic * z**3)),
        Mish: lambda z: z * mpmath.tanh(mpmath.log1p(mpmath.exp(z))),
        HardSwish: lambda z: z * min(max(z / 6 + mpmath.mpf("0.5"), 0), 1),
    }[type(activation)]


def spread(count, generator):
    """Numbers of all sizes and both signs."""
    size = 10 ** (5 * uniform((count,), generator) - 3)
    return size * (2 * uniform((count,), generator) - 1).sign()


def grid(start, end, count):
    return torch.linspace(start, end, count, dtype=torch.float64)


@every
def test_values_and_derivatives_in_forty_digits(activation):
    """… are off by no more than is claimed."""
    z = spread(40, seeded(0))
    jet, value = activation.jet(z), activation.value(z)
    relative, absolute, scaled = activation.rounding
    share, floor = activation.slope_rounding
    with mpmath.workdps(40):
        function = exact(activation)
        for k, place in enumerate(mpmath.mpf(float(place)) for place in z):
            at, slope, bend = (mpmath.diff(function, place, order) for order in range(3))
            allowed = UNIT * (relative * abs(at) + absolute + scaled * abs(place))
            for found in (value[k], jet[0][k]):
                assert abs(float(found) - at) <= allowed
            assert abs(float(jet[1][k]) - slope) <= UNIT * (share * abs(slope) + floor) + 1e-30
            assert abs(float(jet[2][k]) - bend) <= 64 * UNIT


LIBRARY = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "softplus": torch.nn.functional.softplus,
    "ELU": torch.nn.functional.elu,
    "ELU, flat": lambda z: torch.nn.functional.elu(z, 0.3),
    "SiLU": torch.nn.functional.silu,
    "GELU": torch.nn.functional.gelu,
    "GELU, tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    "Mish": torch.nn.functional.mish,
    "hard swish": torch.nn.functional.hardswish,
    "GELU as written": lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))),
    "SiLU as written": lambda z: z * torch.sigmoid(z),
    "Mish as written": lambda z: z * torch.tanh(torch.nn.functional.softplus(z)),
    "ELU as written": lambda z: torch.where(z > 0, z, z.exp() - 1),
    "softplus as written": lambda z: torch.where(z > 20, z, torch.log(1 + z.exp())),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_single_precision_is_within_the_claimed_rounding(name):
    z = torch.cat([spread(100_000, seeded(1)), grid(-20, 20, 100_000)]).float()
    activation = SMOOTH[name.removesuffix(" as written")]
    value = activation.value(z.double())
    relative, absolute, scaled = activation.rounding
    allowed = 2.0**-24 * (relative * value.abs() + absolute + scaled * z.double().abs())
    assert bool(((LIBRARY[name](z).double() - value).abs() <= allowed).all())


@every
def test_pieces_bend_one_way_with_one_peak(activation):
    pieces = activation.pieces()
    assert pieces[0].start == -math.inf
    assert pieces[-1].end == math.inf
    for before, after in pairwise(pieces):
        assert before.end == after.start
    for piece in pieces:
        z = grid(max(piece.start, -40.0), min(piece.end, 40.0), 20_001)
        bend = piece.jet(z)[2]
        if piece.linear:
            assert bool((bend == 0).all())
            continue
        assert bool((bend >= -1e-15).all() if piece.convex else (bend <= 1e-15).all())
        rises = z[1:] <= piece.peak
        steps = bend.abs().diff()
        assert bool((steps[rises] >= -1e-15).all())
        assert bool((steps[z[:-1] >= piece.peak] <= 1e-15).all())


@every
def test_turns_are_all_there(activation):
    turns = torch.tensor([-math.inf, *activation.turns, math.inf]).double()
    z = grid(-40, 40, 160_001)
    for start, end in pairwise(turns):
        steps = activation.value(z[(z >= start) & (z <= end)]).diff()
        assert bool((steps >= -1e-14).all() or (steps <= 1e-14).all())


# How tight ---------------------------------------------------------------------------------------

COUNT, GRID = 200, 2001


def scene(activation, seed=3):
    """Boxes of middling size around anchors, with a dense grid of each."""
    generator = seeded(seed)
    anchor = 10 ** (1.5 * uniform((COUNT,), generator) - 0.7)
    anchor = anchor * (2 * uniform((COUNT,), generator) - 1).sign()
    lower = anchor - 10 ** (3 * uniform((COUNT,), generator) - 2)
    upper = anchor + 10 ** (3 * uniform((COUNT,), generator) - 2)
    share = grid(0, 1, GRID)
    z = torch.cat([lower + share[:, None] * (upper - lower), anchor[None]])
    rise = activation.value(z) - activation.value(anchor)
    return generator, lower, anchor, upper, z, rise


@every
def test_slopes_are_those_of_the_box(activation):
    _, lower, _, upper, z, _ = scene(activation)
    low, high = activation.slopes(lower, upper)
    slope = activation.derivative(z)
    assert bool(((low <= slope) & (slope <= high)).all())
    step = 2 * (upper - lower) / GRID * max(abs(bend) for bend in activation.bending)
    clear = torch.ones(COUNT, dtype=torch.bool)
    for kink in activation.kinks:
        # The grid may miss the slope of a side that is shorter than a step.
        one_step = (upper - lower) / GRID
        clear &= ((lower - kink).abs() > one_step) & ((upper - kink).abs() > one_step)
    assert bool((slope.amin(0) - low <= step + 1e-9)[clear].all())
    assert bool((high - slope.amax(0) <= step + 1e-9)[clear].all())
    assert bool((activation.gain(lower, upper) == torch.maximum(low.abs(), high.abs())).all())


@every
def test_secants_are_nearly_attained(activation):
    _, lower, anchor, upper, z, rise = scene(activation)
    flat, steep = activation.secant(lower, upper, anchor)
    way = z - anchor
    clear = way.abs() > 1e-6
    met = torch.where(clear, rise / torch.where(clear, way, 1), activation.derivative(anchor))
    assert bool((met >= flat - 1e-9).all())
    assert bool((met <= steep + 1e-9).all())
    assert bool((met.amin(0) - flat <= 5e-3).all())
    assert bool((steep - met.amax(0) <= 5e-3).all())


def parabola(tilt, bend, low, high):
    """``min of a d + b d²`` over ``low ≤ d ≤ high``, for either sign of b."""
    ends = torch.minimum(tilt * low + bend * low.square(), tilt * high + bend * high.square())
    convex = bend > 0
    vertex = -tilt / (2 * torch.where(convex, bend, 1))
    inside = torch.minimum(torch.maximum(vertex, low), high)
    return torch.where(convex, torch.minimum(tilt * inside + bend * inside.square(), ends), ends)


@every
def test_relaxed_minimum_is_nearly_attained(activation):
    """Within a hundredth of the slopes' range on average; and no looser than the cone of the
    secants or, without kinks, the bent tangent at the anchor."""
    generator, lower, anchor, upper, z, rise = scene(activation)
    coefficient = 4 * uniform((COUNT,), generator) - 2
    multiplier = 10 ** (4 * uniform((COUNT,), generator) - 3)
    slope = activation.derivative(anchor) + 0.6 * uniform((COUNT,), generator) - 0.3
    least = activation.relaxed_minimum(coefficient, slope, multiplier, anchor, lower, upper)
    way = z - anchor
    size = coefficient.abs()
    true = (coefficient * (rise - slope * way) + multiplier * way.square()).amin(0)
    assert bool((least <= true + 1e-12).all())
    assert float(((true - least) / size).mean()) < 0.01
    low, high = lower - anchor, upper - anchor
    flat, steep = activation.secant(lower, upper, anchor)
    one, two = coefficient * (flat - slope), coefficient * (steep - slope)
    cone = torch.minimum(
        parabola(torch.minimum(one, two), multiplier, torch.zeros_like(high), high),
        parabola(torch.maximum(one, two), multiplier, low, torch.zeros_like(low)),
    )
    assert bool((least >= cone - 0.01 * cone.abs() - 1e-9).all())
    if not activation.kinks:
        tilt = coefficient * (activation.derivative(anchor) - slope)
        bend = multiplier - size * max(abs(bend) for bend in activation.bending) / 2
        tangent = parabola(tilt, bend, low, high)
        assert bool((least >= tangent - 0.01 * tangent.abs() - 1e-9).all())


@every
def test_relaxed_minimum_is_exact_where_the_multiplier_is_large(activation):
    generator, lower, anchor, upper, z, rise = scene(activation, seed=4)
    coefficient = 4 * uniform((COUNT,), generator) - 2
    multiplier = 1.5 * coefficient.abs() * max(abs(bend) for bend in activation.bending)
    slope = activation.derivative(anchor) + 0.2 * uniform((COUNT,), generator) - 0.1
    least = activation.relaxed_minimum(coefficient, slope, multiplier, anchor, lower, upper)
    way = z - anchor
    true = (coefficient * (rise - slope * way) + multiplier * way.square()).amin(0)
    missed = multiplier * ((upper - lower) / GRID).square()
    assert bool((true - least <= missed + 0.01 * true.abs() + 1e-8).all())


def test_the_steepest_slopes():
    """GELU and SiLU leave [0, 1] on both sides."""
    everywhere = torch.tensor([math.inf]).double()
    for activation, low, high in (
        (Gelu(), -0.12890414518, 1.12890414519),
        (Silu(), -0.09983932013, 1.09983932013),
        (Softplus(), 0.0, 1.0),
        (Elu(1.5), 0.0, 1.5),
        (HardSwish(), -0.5, 1.5),
    ):
        flat, steep = activation.slopes(-everywhere, everywhere)
        torch.testing.assert_close(
            flat, torch.tensor([low], dtype=torch.float64), rtol=0, atol=1e-10
        )
        torch.testing.assert_close(
            steep, torch.tensor([high], dtype=torch.float64), rtol=0, atol=1e-10
        )


def test_the_minimum_lies_in_the_image():
    lower, upper = torch.tensor([-4.0, 0.5]).double(), torch.tensor([2.0, 2.0]).double()
    for activation, least in ((Gelu(), -0.16997120748), (Silu(), -0.27846454276)):
        low, _ = activation.image(lower, upper)
        assert low[0].item() == pytest.approx(least, abs=1e-11)
        assert low[1].item() == pytest.approx(activation.value(lower)[1].item(), abs=1e-13)


def test_hard_swish_is_constant_below_and_straight_above():
    activation = HardSwish()
    lower = torch.tensor([-9.0, 3.5, -9.0]).double()
    upper = torch.tensor([-3.5, 8.0, -2.0]).double()
    assert activation.gain(lower, upper)[:2].tolist() == [0.0, 1.0]
    flat, steep = activation.secant(lower, upper, torch.tensor([-5.0, 5.0, -5.0]).double())
    assert flat[:2].tolist() == steep[:2].tolist() == [0.0, 1.0]
    assert flat[2] < 0


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_elu_refuses_other_than_positive_alpha(alpha):
    with pytest.raises(ValueError, match="alpha"):
        Elu(alpha)
