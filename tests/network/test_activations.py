"""Every activation against the three claims that bounds make of it: value, image and gain."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import (
    ACTIVATION_CASES,
    ACTIVATION_SHAPE,
    DTYPES,
    clip,
    floats_to,
    normal,
    pick,
    seeded,
    uniform,
)

from lipcert.network.activations import (
    ACTIVATIONS,
    Clip,
    Elementwise,
    GroupMax,
    MaxMin,
    PReLU,
    Sigmoid,
    Tanh,
    absolute,
    relu,
)

BOXES = 200
UNIT = 2.0**-53
seeds = st.integers(0, 2**31)


@pytest.fixture(params=ACTIVATION_CASES.values(), ids=ACTIVATION_CASES.keys())
def case(request):
    return request.param


@pytest.fixture
def activation(case):
    return case(torch.float64, seeded(0))


def boxes(generator, count=BOXES):
    """Boxes of all widths, 0 among them, around all of the activations' kinks and tails."""
    shape = (count, *ACTIVATION_SHAPE)
    spread = 10 ** (4 * uniform((count, 1, 1, 1, 1), generator) - 2)
    centre = spread * normal(shape, generator)
    width = 10 ** (6 * uniform((count, 1, 1, 1, 1), generator) - 4) * uniform(shape, generator)
    width = width * (uniform(shape, generator) > 0.2)
    # Some ties and some limits exactly at a kink.
    centre = torch.where(uniform(shape, generator) < 0.1, centre.round(), centre)
    return centre - width, centre + width


def points(lower, upper, generator):
    """A point of each box, some of its coordinates at a face."""
    share = uniform(lower.shape, generator)
    share = torch.where(uniform(lower.shape, generator) < 0.3, share.round(), share)
    return torch.minimum(torch.maximum(lower + share * (upper - lower), lower), upper)


def rounding_of(activation, z):
    """By how much a computed value at ``z`` may be off."""
    relative, absolute_part, scaled = activation.rounding
    fuzz = relative * activation.value(z).abs() + absolute_part
    return UNIT * (fuzz + scaled * z.abs() if scaled else fuzz)


def assert_gain_holds(activation, lower, upper, z, other):
    """``σ(z) − σ(z') = diag(w) r`` with ``‖r‖ ≤ ‖M (z − z')‖``, up to roundings of ``σ``."""
    gain, varying = activation.gain(lower, upper), activation.varying(lower, upper)
    assert gain.shape == z.shape[:1] + activation.out_shape(z.shape[1:])
    assert varying.shape == z.shape
    assert varying.dtype == torch.bool
    first, second = activation.value(z), activation.value(other)
    slack = rounding_of(activation, z) + rounding_of(activation, other)
    change = ((first - second).abs() - slack).clamp(min=0)
    assert bool((change[gain == 0] == 0).all())
    moved = change / gain.where(gain > 0, 1)
    length = moved.flatten(1).norm(dim=1)
    allowed = ((z - other) * varying).flatten(1).norm(dim=1)
    assert bool((length <= allowed * (1 + 1e-12)).all())


def test_every_activation_has_a_case():
    built = {type(build(torch.float64, seeded(0))) for build in ACTIVATION_CASES.values()}
    assert built == set(ACTIVATIONS)


def test_shapes_and_types(case):
    for dtype in DTYPES:
        activation = case(dtype, seeded(0))
        for batch in (0, 1, 3):
            lower, upper = (edge.to(dtype) for edge in boxes(seeded(1), batch))
            shape = (batch, *activation.out_shape(ACTIVATION_SHAPE))
            value, image = activation.value(lower), activation.image(lower, upper)
            for out in (value, *image, activation.gain(lower, upper)):
                assert out.shape == shape
                assert out.dtype == dtype


def test_convert_changes_the_type(case, activation):
    converted = activation.convert(floats_to(torch.float32))
    lower, _ = boxes(seeded(2))
    assert converted.value(lower.float()).dtype == torch.float32
    torch.testing.assert_close(
        converted.value(lower.float()).double(), activation.value(lower), rtol=1e-5, atol=1e-5
    )


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
@pytest.mark.parametrize("name", ACTIVATION_CASES)
def test_image_and_gain_hold_on_boxes(name, seed):
    generator = seeded(seed)
    activation = ACTIVATION_CASES[name](torch.float64, generator)
    lower, upper = boxes(generator)
    low, high = activation.image(lower, upper)
    z, other = points(lower, upper, generator), points(lower, upper, generator)
    value = activation.value(z)
    assert bool(((low <= value) & (value <= high)).all())
    assert_gain_holds(activation, lower, upper, z, other)
    # A point moved in one coordinate alone shows the gain of that coordinate.
    single = torch.zeros_like(z, dtype=torch.bool).flatten(1)
    single[:, pick(range(single.shape[1]), generator)] = True
    assert_gain_holds(activation, lower, upper, z, torch.where(single.reshape(z.shape), other, z))


def test_gain_holds_on_the_whole_space(activation):
    """… and nothing is above the Lipschitz constant, which all of the space has."""
    lower, upper = boxes(seeded(3))
    everywhere = torch.full_like(lower, math.inf)
    assert_gain_holds(activation, -everywhere, everywhere, lower, upper)
    slack = 1 + 32 * UNIT
    assert bool((activation.gain(lower, upper) <= activation.lipschitz * slack).all())
    assert bool((activation.gain(-everywhere, everywhere) <= activation.lipschitz * slack).all())
    moved = (activation.value(lower) - activation.value(upper)).flatten(1).norm(dim=1)
    allowed = activation.lipschitz * (lower - upper).flatten(1).norm(dim=1)
    assert bool((moved <= allowed * (1 + 1e-12) + 1e-13).all())


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
@pytest.mark.parametrize("name", ACTIVATION_CASES)
def test_perturbation_bounds_every_small_move(name, seed):
    generator = seeded(seed)
    activation = ACTIVATION_CASES[name](torch.float64, generator)
    lower, upper = boxes(generator)
    error = 10 ** (8 * uniform(lower.shape, generator) - 8)
    error = error * (uniform(lower.shape, generator) > 0.2)
    z = points(lower, upper, generator)
    moved = z + points(-error, error, generator)
    allowed = activation.perturbation(lower, upper, error)
    first, second = activation.value(z), activation.value(moved)
    assert allowed.shape == first.shape
    # z + Δz is rounded too, by half a unit of its own size: no more than this through any slope.
    slack = rounding_of(activation, z) + rounding_of(activation, moved)
    coarse = activation.lipschitz * 2 * UNIT * (z.abs() + error).flatten(1).amax(1)
    slack = slack + coarse.reshape(-1, *(1,) * (slack.dim() - 1))
    assert bool(((first - second).abs() <= allowed * (1 + 1e-12) + slack).all())


@pytest.mark.parametrize("name", ACTIVATION_CASES)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_coefficients_are_pulled_back(name, seed):
    """``c·Δσ = c'·Δz`` for some ``c'`` of the range, of each output and of all together."""
    generator = seeded(seed)
    activation = ACTIVATION_CASES[name](torch.float64, generator)
    lower, upper = boxes(generator)
    z, other = points(lower, upper, generator), points(lower, upper, generator)
    first, second = activation.value(z), activation.value(other)
    coefficient = normal(first.shape, generator) * (uniform(first.shape, generator) < 0.5)
    width = uniform(first.shape, generator) * (uniform(first.shape, generator) < 0.5)
    low, high = coefficient - width, coefficient + width
    chosen = points(low, high, generator)
    least, most = activation.pull_back(lower, upper, low, high)
    assert least.shape == most.shape == z.shape
    change = (chosen * (first - second)).flatten(1).sum(1)
    ends = torch.stack([least * (z - other), most * (z - other)]).flatten(2)
    slack = rounding_of(activation, first) + rounding_of(activation, second)
    sizes = z.abs() + other.abs() + activation.lipschitz
    slack = (high.abs().amax() + 1) * (slack.flatten(1).sum(1) + 1e-13 * sizes.flatten(1).sum(1))
    assert bool((ends.amin(0).sum(1) <= change + slack).all())
    assert bool((ends.amax(0).sum(1) >= change - slack).all())
    # A NaN in the box never makes a coefficient certain.
    nothing = torch.full_like(lower, math.nan)
    unknown = activation.pull_back(nothing, nothing, low, high)
    widest = activation.pull_back(lower - 1e6, upper + 1e6, low, high)
    assert not bool((unknown[0] > widest[0]).any())
    assert not bool((unknown[1] < widest[1]).any())


def test_gain_grows_with_the_box(activation):
    lower, upper = boxes(seeded(4))
    wider = (lower - 0.3, upper + 0.3)
    assert bool((activation.gain(*wider) >= activation.gain(lower, upper)).all())
    assert bool((activation.varying(*wider) >= activation.varying(lower, upper)).all())


def test_a_point_is_its_own_box(activation):
    z, _ = boxes(seeded(5))
    low, high = activation.image(z, z)
    value = activation.value(z)
    assert bool(((low <= value) & (value <= high)).all())
    assert bool((high - low <= 1e-14 + 8 * rounding_of(activation, z)).all())


@pytest.mark.parametrize("ends", ["lower", "upper", "both"])
def test_a_nan_end_counts_as_an_infinite_one(activation, ends):
    generator = seeded(6)
    lower, upper = boxes(generator)
    struck = uniform(lower.shape, generator) < 0.2

    def ending(value):
        return (
            torch.where(struck, -value, lower) if ends in ("lower", "both") else lower,
            torch.where(struck, value, upper) if ends in ("upper", "both") else upper,
        )

    gain, widest = activation.gain(*ending(math.nan)), activation.gain(*ending(math.inf))
    assert bool((gain >= widest * (1 - 32 * UNIT)).all())
    varying, most = activation.varying(*ending(math.nan)), activation.varying(*ending(math.inf))
    assert bool((varying >= most).all())


def test_a_box_of_nan_varies(activation):
    box = torch.full((1, *ACTIVATION_SHAPE), math.nan, dtype=torch.float64)
    assert bool((activation.gain(box, box) > 0).all())
    assert bool(activation.varying(box, box).all())


def test_images_of_infinite_boxes_exclude_nothing(activation):
    """A slope of 0 times an infinite end is NaN, which excludes nothing either."""
    infinite = torch.full((1, *ACTIVATION_SHAPE), math.inf, dtype=torch.float64)
    finite, _ = boxes(seeded(8), 1)
    z = points(finite - 5, finite + 5, seeded(9))
    value = activation.value(z)
    for lower, upper in ((-infinite, infinite), (-infinite, z), (z, infinite)):
        low, high = activation.image(lower, upper)
        assert not bool(((low > value) | (high < value)).any())
        assert bool((low.isnan() == high.isnan()).all())


# The indicators of the paper ---------------------------------------------------------------------

GRID = [-math.inf, -2.0, -1e-300, -0.0, 0.0, 5e-324, 0.5, 1.0, 2.0, math.inf]


def intervals():
    """All boxes between the numbers of the grid."""
    pairs = [(low, high) for low in GRID for high in GRID if low <= high]
    lower, upper = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return lower, upper


def test_relu_varies_unless_never_positive():
    lower, upper = intervals()
    assert torch.equal(relu(lower).varying(lower, upper), ~(upper <= 0))
    assert torch.equal(relu().gain(lower, upper), (~(upper <= 0)).double())


@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_relu_theta_varies_unless_never_between_its_limits(theta):
    lower, upper = intervals()
    varies = ~((upper <= 0) | (lower >= theta))
    assert torch.equal(clip(0.0, theta).varying(lower, upper), varies)
    assert torch.equal(clip(0.0, theta).gain(lower, upper), varies.double())


def test_relu_theta_has_a_limit_a_neuron():
    activation = Clip(torch.zeros(()).double(), torch.tensor([1.0, 3.0]).double())
    z = torch.tensor([[2.0, 2.0]]).double()
    assert activation.value(z).tolist() == [[1.0, 2.0]]
    assert activation.varying(z, z + 0.5).tolist() == [[False, True]]


def test_maxmin_always_varies():
    lower, upper = boxes(seeded(10))
    for axis in (1, 3):
        assert bool((MaxMin(axis).gain(lower, upper) == 1).all())
        assert bool(MaxMin(axis).varying(lower, upper).all())


# Values ------------------------------------------------------------------------------------------


def test_values():
    z = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 7.0]]).double()
    assert relu().value(z).tolist() == [[0, 0, 0, 0.5, 7]]
    assert absolute().value(z).tolist() == [[2, 0.5, 0, 0.5, 7]]
    assert clip(0.0, 6.0).value(z).tolist() == [[0, 0, 0, 0.5, 6]]
    assert clip(None, 0.25).value(z).tolist() == [[-2, -0.5, 0, 0.25, 0.25]]
    assert clip(1.0, -1.0).value(z).tolist() == [[-1] * 5]
    assert PReLU(torch.tensor(0.5).double()).value(z).tolist() == [[-1, -0.25, 0, 0.5, 7]]
    torch.testing.assert_close(Sigmoid().value(z), 1 / (1 + torch.exp(-z)))
    torch.testing.assert_close(Tanh().value(z), 2 / (1 + torch.exp(-2 * z)) - 1)


def test_maxmin_sorts_halves():
    z = torch.tensor([[[1.0, 5.0, 2.0, 5.0], [3.0, -1.0, 2.0, -4.0]]])
    assert MaxMin(1).value(z).tolist() == [[[2, 5, 1, 5], [3, -1, 2, -4]]]
    assert MaxMin(0).value(z).tolist() == [[[3, 5, 2, 5], [1, -1, 2, -4]]]


@pytest.mark.parametrize("axis", [-1, 0, 1, 3])
def test_maxmin_needs_halves_of_a_samples_axis(axis):
    with pytest.raises(ValueError, match="halves"):
        MaxMin(axis).out_shape((1, 3, 4))


def test_group_max_drops_the_axis():
    activation = GroupMax()
    assert activation.out_shape((2, 3, 4)) == (2, 3)
    z = torch.tensor([[[1.0, 5.0, 2.0], [3.0, 3.0, 3.0]]])
    assert activation.value(z).tolist() == [[5, 3]]


def test_group_max_knows_who_cannot_win():
    lower = torch.tensor([[[0.0, 2.0, 1.0], [2.0, 2.0, 1.0], [0.0, 0.0, 0.0]]])
    upper = torch.tensor([[[1.0, 3.0, 2.5], [2.0, 2.0, 2.0], [0.0, 0.0, 0.5]]])
    varying = GroupMax().varying(lower, upper)
    assert varying.tolist() == [[[False, True, True], [False] * 3, [False, False, True]]]
    assert GroupMax().gain(lower, upper).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("activation", [MaxMin(1), GroupMax()], ids=["MaxMin", "GroupMax"])
def test_gain_holds_across_ties(activation):
    """On a grid of whole numbers nearly every comparison is a tie somewhere."""
    generator = seeded(11)
    lower = (3 * normal((500, *ACTIVATION_SHAPE), generator)).round()
    upper = lower + (3 * uniform(lower.shape, generator)).floor()
    z, other = (points(lower, upper, generator).round() for _ in range(2))
    assert_gain_holds(activation, lower, upper, z, other)


def test_smooth_gain_is_the_slope_nearest_to_zero():
    lower, upper = boxes(seeded(12))
    nearest = torch.minimum(torch.maximum(torch.zeros_like(lower), lower), upper)
    for activation, slope in (
        (Sigmoid(), torch.sigmoid(nearest) * torch.sigmoid(-nearest)),
        (Tanh(), 1 / torch.cosh(nearest).square()),
    ):
        gain = activation.gain(lower, upper)
        torch.testing.assert_close(gain, slope, rtol=1e-12, atol=1e-300)
        assert bool((gain > 0).all())


def test_elementwise_inputs_vary_with_their_outputs():
    lower, upper = boxes(seeded(13))
    built = [build(torch.float64, seeded(0)) for build in ACTIVATION_CASES.values()]
    for activation in (one for one in built if isinstance(one, Elementwise)):
        assert torch.equal(activation.varying(lower, upper), activation.gain(lower, upper) > 0)
