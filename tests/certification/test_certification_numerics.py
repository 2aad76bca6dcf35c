"""Certificates where floating point is at its worst, against exact arithmetic and hostile runs."""

import warnings
from fractions import Fraction
from itertools import combinations, product

import pytest
import torch
from attacks import in_ball
from deployed_runs import DTYPES, ORDERS, deployed_logits
from laws import normal, seeded, uniform
from torch import Tensor

from lipcert.certificate import Sample, summarise
from lipcert.certification import Certifier
from lipcert.errors import CannotCertify
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense, Diagonal
from lipcert.options import Epsilon, Options

METHODS = ["global", "local", "auto"]


def certify(
    network: Network, x: Tensor, labels: Tensor, eps: str = "0.1", **others: str
) -> list[Sample]:
    given = Options(eps=(Epsilon.parse(eps),), **({"effort": "fast"} | others))  # type: ignore[arg-type]
    return Certifier(network, given, samples=len(x))(x, labels, range(len(x)))


def dense(*layers: tuple[Tensor, Tensor | None]) -> Network:
    """Fully connected layers with ReLU between them, float64 inputs of shape ``(1, n)``."""
    builder, node = NetworkBuilder((1, layers[0][0].shape[1])), 0
    for number, (weight, bias) in enumerate(layers):
        node = builder.activation(relu(), node) if number else node
        node = builder.operator(Dense.of(weight, bias, builder.shape(node)), node, f"fc{number}")
    return builder.build(node)


def row(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# Exact arithmetic --------------------------------------------------------------------------------

Line = tuple[Fraction, Fraction, Fraction]  # a, b, c: the half-plane a x + b y + c ≥ 0


def nearest(point: tuple[Fraction, Fraction], lines: list[Line]) -> Fraction | None:
    """The squared distance from a point to an intersection of half-planes; None where empty.

    The nearest point is the point itself, its foot on one line, or where two of them meet.
    """
    x, y = point
    candidates = [point]
    for a, b, c in lines:
        if length := a * a + b * b:
            step = (a * x + b * y + c) / length
            candidates.append((x - step * a, y - step * b))
    for (a, b, c), (d, e, f) in combinations(lines, 2):
        if determinant := a * e - b * d:
            candidates.append(((b * f - c * e) / determinant, (c * d - a * f) / determinant))
    inside = [
        (u - x) ** 2 + (v - y) ** 2
        for u, v in candidates
        if all(a * u + b * v + c >= 0 for a, b, c in lines)
    ]
    return min(inside, default=None)


def exact_square(first: Tensor, bias: Tensor, last: Tensor, x: Tensor, label: int) -> Fraction:
    """The squared distance from ``x`` to the nearest point that is not surely of its class.

    ``last · relu(first · x + bias)`` of two inputs, cell by cell of its activations.
    """
    weights = [[Fraction(float(v)) for v in line] for line in first]
    shifts = [Fraction(float(v)) for v in bias]
    rows = [[Fraction(float(v)) for v in line] for line in last]
    point = (Fraction(float(x[0])), Fraction(float(x[1])))
    best: list[Fraction] = []
    for active in product((False, True), repeat=len(weights)):
        cell: list[Line] = []
        for on, (a, b), c in zip(active, weights, shifts, strict=True):
            cell.append((a, b, c) if on else (-a, -b, -c))
        for other in range(len(rows)):
            if other != label:
                margin = [0, 0, 0]
                for on, (a, b), c, own, its in zip(
                    active, weights, shifts, rows[label], rows[other], strict=True
                ):
                    for k, value in enumerate((a, b, c)):
                        margin[k] += on * (own - its) * value
                a, b, c = margin
                found = nearest(point, [*cell, (-a, -b, -c)])
                best += [] if found is None else [found]
    return min(best, default=Fraction(2**40))


@pytest.mark.parametrize(
    ("deployed", "dtype"), [("real", "float64"), ("float32", "float64"), ("real", "float32")]
)
@pytest.mark.parametrize("seed", range(4))
def test_no_radius_passes_the_exact_one(seed: int, deployed: str, dtype: str) -> None:
    generator = seeded(seed)
    first, bias = (
        torch.randint(-8, 9, shape, generator=generator).double() / 8 for shape in ((4, 2), (4,))
    )
    last = torch.randint(-8, 9, (3, 4), generator=generator).double() / 8
    network, x = dense((first, bias), (last, None)), uniform((5, 1, 2), generator)
    labels = network.logits(x).argmax(1)
    exact = [exact_square(first, bias, last, x[k, 0], int(labels[k])) for k in range(len(labels))]
    for method in METHODS:
        samples = certify(network, x, labels, method=method, deployed=deployed, dtype=dtype)
        for sample, square in zip(samples, exact, strict=True):
            radius = Fraction(sample.radius or 0)
            assert radius == 0 or radius**2 < square
        if method == "auto":
            near = [(s.radius or 0) / float(e) ** 0.5 for s, e in zip(samples, exact, strict=True)
                    if 0 < e < 2]  # fmt: skip
            assert not near or max(near) > 0.5


# Numbers at the ends of their range --------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_constant_and_dead_networks(method: str) -> None:
    """Nothing moves the logits: zero weights, neurons that are off in the whole ball, no layer."""
    x = uniform((2, 1, 3), seeded(0))
    constant = dense((torch.zeros(2, 3).double(), row(1, 0)))
    dead = dense((normal((4, 3), seeded(1)), -100 * torch.ones(4).double()),
                 (normal((2, 4), seeded(2)), row(1, 0)))  # fmt: skip
    for network in (constant, dead):
        for sample in certify(network, x, torch.tensor([0, 1]), method=method):
            right = sample.label == 0
            assert sample.verdict == ("certified" if right else "misclassified")
            assert bool(sample.radius) == right
    # No layer at all: the logits are the pixels.
    network = NetworkBuilder((1, 2)).build(0)
    (sample,) = certify(network, row(0.9, 0.1).reshape(1, 1, 2), torch.tensor([0]), method=method)
    assert sample.radius is not None
    assert 0.8 * 0.8 / 2**0.5 < sample.radius < 0.8 / 2**0.5


@pytest.mark.parametrize("method", METHODS)
def test_ties_are_unknown(method: str) -> None:
    """Equal logits, a class that is there twice, and differences below all normal numbers."""
    x = row(0.5, 0.25).reshape(1, 1, 2)
    twice = row(1, 2, 1, 2, 0, 0).reshape(3, 2)
    equal = dense((torch.zeros(2, 2).double(), row(3, 3)))
    hidden = dense((torch.eye(2).double(), None), (twice, None))
    subnormal = dense((row(3e-310, 0, 0, 1e-310).reshape(2, 2), None))
    for network in (equal, dense((twice, None)), hidden, subnormal):
        for deployed in ("real", "float64", "float32"):
            label = network.logits(x).argmax(1)
            (sample,) = certify(network, x, label, eps="0", method=method, deployed=deployed)
            assert sample.verdict != "certified"
            assert sample.radius == 0


@pytest.mark.parametrize("method", METHODS)
def test_squares_that_overflow(method: str) -> None:
    """Weights whose squares no double holds: refused for float32, never too much for real."""
    network = dense((row(1e200, -1e200, -1e200, 1e200).reshape(2, 2), None))
    x = row(0.75, 0.25).reshape(1, 1, 2)
    with pytest.raises(CannotCertify, match=r"fc0.*1e\+200.*overflows"):
        certify(network, x, torch.tensor([0]), method=method)
    (sample,) = certify(network, x, torch.tensor([0]), method=method, deployed="real")
    assert (sample.radius or 0) < 0.5 / 2**0.5


def test_the_network_that_overflows_is_unknown_throughout() -> None:
    """22 random layers with huge weights, by every bound; no warning on the way."""
    generator = seeded(0)
    layers = [(normal((8, 8), generator) * 1e15, None) for _ in range(21)]
    network = dense(*layers, (normal((3, 8), generator) * 1e15, None))
    x = uniform((3, 1, 8), generator)
    labels = network.logits(x).nan_to_num().argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for deployed in ("float32", "real"):
            for sample in certify(network, x, labels, deployed=deployed):
                assert sample.verdict in ("unknown", "error", "falsified")
                assert not sample.certified
                assert not sample.radius


# The arithmetic that is deployed -----------------------------------------------------------------


def noisy(seed: int, size: float) -> Network:
    """Biases of this size that come in and go out again: float32 logits are rounding noise."""
    generator = seeded(seed)
    weight = normal((6, 4), generator).float().double()
    last = torch.randint(-4, 5, (3, 6), generator=generator).double() / 4
    builder = NetworkBuilder((1, 4))
    node = builder.operator(Dense.of(weight, torch.full((6,), size).double(), (1, 4)), 0)
    node = builder.activation(relu(), node)
    node = builder.operator(Dense.of(last, None, (1, 6)), node)
    away = -(last.sum(1) * size)
    return builder.build(builder.operator(Diagonal.of(None, away, (1, 3)), node))


def flips(network: Network, x: Tensor, labels: Tensor, radius: Tensor, name: str) -> int:
    """How many hostile runs in the balls give another class."""
    found = 0
    for turn, order in enumerate(ORDERS.values()):
        for seed in range(4):
            point = in_ball(x, radius * (1 - 1e-9), seeded(10 * turn + seed))
            run = deployed_logits(network, point, DTYPES[name], order)
            found += int(((run.argmax(1) != labels) & (radius > 0)).sum())
    return found


def test_noise_is_never_certified_in_float32_and_real_says_what_it_leaves_out() -> None:
    broken = 0
    for seed in range(6):
        network = noisy(seed, 10.0 ** (5 + seed % 3))
        x = uniform((6, 1, 4), seeded(seed + 1)).float().double()
        labels = network.logits(x).argmax(1)
        for deployed in ("float32", "real"):
            samples = certify(network, x, labels, method="local", deployed=deployed)
            radius = row(*(sample.radius or 0.0 for sample in samples))
            count = flips(network, x, labels, radius, "float32")
            if deployed == "float32":
                assert count == 0
            broken += count
    # These networks do fool a certificate of real arithmetic.
    assert broken > 0


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("method", ["local", "auto"])
def test_certificates_of_every_format_hold_in_it(name: str, method: str) -> None:
    certified = 0
    for seed in range(2):
        generator = seeded(seed)
        network = dense((normal((5, 4), generator), normal((5,), generator)),
                        (normal((3, 5), generator), normal((3,), generator)))  # fmt: skip
        x = uniform((6, 1, 4), generator)
        labels = network.logits(x).argmax(1)
        samples = certify(network, x, labels, method=method, deployed=name)
        radius = row(*(sample.radius or 0.0 for sample in samples))
        assert flips(network, x, labels, radius, name) == 0
        certified += int((radius > 0).sum())
        assert all(0 < (sample.deployed_error or 0) < float("inf") for sample in samples)
        share = summarise(samples, ["0.1"], estimate=False)["deployed_error"]["median_share"]
        assert share > {"float16": 1e-4, "bfloat16": 1e-3, "float32": 1e-8, "float64": 0}[name]
        assert share < {"float16": 1, "bfloat16": 10, "float32": 1e-4, "float64": 1e-12}[name]
    assert certified > 0


def test_float16_overflows() -> None:
    """Weights beyond the format are refused by name, values beyond it are unknown."""
    x = row(0.875, 0.25).reshape(1, 1, 2)
    heavy = dense((1e5 * torch.eye(2).double(), None))
    with pytest.raises(CannotCertify, match=r"fc0.*65504.*--deployed"):
        certify(heavy, x, torch.tensor([0]), deployed="float16")
    large = dense((6e4 * torch.eye(2).double(), None), (torch.eye(2).double(), None))
    (sample,) = certify(large, x, torch.tensor([0]), deployed="float16", method="local")
    assert sample.verdict == "unknown"
    assert sample.deployed_error == float("inf")
    assert sample.message is not None
    assert "overflow float16" in sample.message
    (sample,) = certify(large, x, torch.tensor([0]), deployed="bfloat16", method="local")
    assert sample.verdict == "certified"


def scaled(kind: str, first: Tensor, bias: Tensor, last: Tensor) -> Network:
    """The same function, through layers of extreme scales that cancel."""
    unit = torch.eye(3).double()
    low, high = 2.0**-600, 2.0**200
    match kind:
        case "down and up":
            steps = [(2.0**-100 * unit, None)] * 3 + [(2.0**100 * unit, None)] * 3
            return dense((first, bias), *steps, (last, None))
        case "up and down":
            steps = [(2.0**100 * unit, None)] * 11 + [(2.0**-100 * unit, None)] * 11
            return dense((first, bias), *steps, (last, None))
        case "tiny first":
            return dense((low * first, low * bias), *[(high * unit, None)] * 2, (high * last, None))
        case "tiny last":
            steps = [(high * unit, None)] * 2
            return dense((high * first, high * bias), *steps, (low * last, None))
        case _:
            small = 2.0**-300
            layers = (small * first, small * bias), (small * unit, None)
            return dense(*layers, (2.0**500 * last, None))


@pytest.mark.parametrize(
    "kind", ["down and up", "up and down", "tiny first", "tiny last", "huge last"]
)
@pytest.mark.parametrize("method", METHODS)
def test_scales_that_cancel(method: str, kind: str) -> None:
    """Weights whose squares, or products of norms, no double holds, in a function that is tame."""
    certified = 0
    for seed in range(2):
        generator = seeded(seed)
        first, bias = (
            torch.randint(-8, 9, shape, generator=generator).double() / 8
            for shape in ((3, 2), (3,))
        )
        last = torch.randint(-8, 9, (3, 3), generator=generator).double() / 8
        x = uniform((4, 1, 2), generator)
        network, plain = scaled(kind, first, bias, last), dense((first, bias), (last, None))
        labels = plain.logits(x).argmax(1)
        exact = [exact_square(first, bias, last, x[k, 0], int(labels[k])) for k in range(4)]
        for sample, square in zip(
            certify(network, x, labels, method=method, deployed="real"), exact, strict=True
        ):
            radius = Fraction(sample.radius or 0)
            assert radius == 0 or radius**2 < square
            certified += int(radius > 0)
    assert (certified > 0) == (kind == "down and up")
