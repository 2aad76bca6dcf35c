"""Networks with joints from pixels to verdicts: radii that no attack breaks, and clear refusals."""

import math
from dataclasses import replace

import pytest
import torch
from attacks import in_ball, smallest_margins
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import normal, places, random_joint_network, seeded, uniform

from lipcert.certificate import Sample
from lipcert.certification import Certifier
from lipcert.errors import CannotCertify
from lipcert.network import Network, NetworkBuilder
from lipcert.network.joints import Curve, InverseLength, MatrixProduct, Product, Quotient
from lipcert.network.operators import Dense, Diagonal, Select
from lipcert.options import Epsilon, Options

OPTIONS = Options(eps=(Epsilon.parse("1e-3"),), effort="fast", seed=3)


def certified(network: Network, x: torch.Tensor, options: Options = OPTIONS) -> list[Sample]:
    labels = network.logits(x).argmax(1)
    return Certifier(network, options, samples=len(x))(x, labels, range(len(x)))


@pytest.mark.parametrize("deployed", ["float32", "real", "bfloat16"])
@pytest.mark.parametrize("seed", range(4))
def test_radii_that_no_attack_breaks(seed: int, deployed: str) -> None:
    network = random_joint_network(seeded(seed), blocks=1 + seed % 3)
    x = uniform((3, *network.in_shape), seeded(seed + 5)).to(torch.bfloat16).double()
    labels = network.logits(x).argmax(1)
    samples = certified(network, x, replace(OPTIONS, deployed=deployed))
    radii = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    if deployed != "bfloat16":
        assert int((radii > 1e-5).sum()) >= 2
    assert all(sample.lipschitz is None and sample.method == "tube" for sample in samples)
    assert bool((smallest_margins(network, x, labels, radii, restarts=2) > 0).all())
    single = network.to(dtype=torch.float32)
    for k in range(20):
        points = in_ball(x, radii, seeded(k))
        assert bool((network.logits(points).argmax(1) == labels).all())
        if deployed == "float32":
            assert bool((single.logits(points.float()).argmax(1) == labels).all())


def test_the_same_run_gives_the_same_radii() -> None:
    network = random_joint_network(seeded(2))
    x = uniform((2, *network.in_shape), seeded(9)).float().double()
    one, two = (certified(network, x) for _ in range(2))
    assert [sample.radius for sample in one] == [sample.radius for sample in two]


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        (replace(OPTIONS, method="local"), "--method auto"),
        (replace(OPTIONS, method="global"), "--method auto"),
        (replace(OPTIONS, norms="deterministic"), "--norms randomised"),
        (replace(OPTIONS, norms="estimate"), "--norms randomised"),
        (replace(OPTIONS, dtype="float32"), "--dtype float64"),
    ],
    ids=["local", "global", "deterministic", "estimate", "float32"],
)
def test_what_has_no_bound_is_refused_with_what_to_do(options: Options, choice: str) -> None:
    network = random_joint_network(seeded(1))
    with pytest.raises(CannotCertify, match=f"joints.*{choice}"):
        Certifier(network, options, samples=1)


def head(builder: NetworkBuilder, node: int, classes: int = 3) -> Network:
    shape = builder.shape(node)
    size = math.prod(shape)
    flat = builder.operator(Select.of(places((1, size)), shape), node, "flatten")
    weight = normal((classes, size), seeded(4))
    return builder.build(builder.operator(Dense.of(weight, None, (1, size)), flat, "head"))


def test_no_ball_that_leaves_a_domain_is_certified() -> None:
    """A root, a logarithm and a quotient whose argument comes within the radius of 0, and a length
    that can be 0."""
    shape = (1, 4)
    x = torch.full((1, *shape), 0.5, dtype=torch.float64)
    for kind in ("root", "logarithm", "quotient", "length"):
        builder = NetworkBuilder(shape)
        shift = torch.tensor([-0.499, 0.0, 0.0, 0.0], dtype=torch.float64)
        near = builder.operator(Diagonal.of(None, shift, shape), 0, "near 0")
        if kind == "root":
            node = builder.joint(Curve(shape, "power", 0.5), [near])
        elif kind == "logarithm":
            node = builder.joint(Curve(shape, "log"), [near])
        elif kind == "quotient":
            node = builder.joint(Quotient(shape, shape), [0, near])
        else:
            still = torch.tensor([0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
            zero = builder.operator(Diagonal.of(still, shift, shape), 0, "nothing")
            near = builder.sum([zero, near], "near")
            small = torch.full(shape, -0.4995, dtype=torch.float64)
            near = builder.operator(Diagonal.of(None, small + torch.tensor(0.0), shape), 0, "small")
            inverse = builder.joint(InverseLength(shape, 0.0, False, False), [near])
            node = builder.joint(Product(shape, (1, 1)), [near, inverse])
        samples = certified(head(builder, node), x)
        assert samples[0].radius is not None
        assert samples[0].radius < 1.01e-3


def test_a_value_that_is_no_number_is_an_error_and_never_certified() -> None:
    builder = NetworkBuilder((1, 4))
    below = torch.full((4,), -2.0, dtype=torch.float64)
    node = builder.operator(Diagonal.of(None, below, (1, 4)), 0, "below 0")
    network = head(builder, builder.joint(Curve((1, 4), "power", 0.5), [node]))
    [sample] = certified(network, torch.full((1, 1, 4), 0.5, dtype=torch.float64))
    assert sample.verdict == "error"
    assert not sample.certified


def test_what_overflows_float32_inside_is_not_certified_there() -> None:
    """``x / √(x²)`` is 1 in real numbers; in float32 a square of 1e25 is infinite."""
    radii = []
    for scale in (1e25, 1e3):
        builder = NetworkBuilder((1, 4))
        factors = scale * torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64)
        node = builder.operator(Diagonal.of(factors, None, (1, 4)), 0, "large")
        inverse = builder.joint(InverseLength((1, 4), 0.0, False, False), [node])
        network = head(builder, builder.joint(Product((1, 4), (1, 1)), [node, inverse]))
        [sample] = certified(network, torch.full((1, 1, 4), 0.5, dtype=torch.float64))
        radii.append(sample.radius)
    assert radii[0] == 0
    assert radii[1] > 1e-4


@settings(max_examples=6, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 3), st.sampled_from(["float32", "float64", "real"]),
    st.booleans(),
)  # fmt: skip
def test_no_certificate_of_a_random_network_is_broken(
    seed: int, blocks: int, deployed: str, pixel_domain: bool
) -> None:
    network = random_joint_network(seeded(seed), blocks=blocks)
    x = uniform((2, *network.in_shape), seeded(seed + 1)).float().double()
    labels = network.logits(x).argmax(1)
    options = replace(OPTIONS, deployed=deployed, pixel_domain=pixel_domain, seed=seed)
    samples = certified(network, x, options)
    radii = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    if not pixel_domain:
        assert bool((smallest_margins(network, x, labels, radii, steps=15, restarts=1) > 0).all())
    run = network.to(dtype=torch.float32 if deployed == "float32" else torch.float64)
    for k in range(10):
        points = in_ball(x, radii, seeded(k))
        points = points.clamp(0, 1) if pixel_domain else points
        inside = (points - x).flatten(1).norm(dim=1) <= radii
        kept = run.logits(points.to(run.anchor.dtype)).argmax(1) == labels
        assert bool((kept | ~inside).all())


def scaled_product(scale: float) -> Network:
    """``(scale⁻¹ W x ∘ scale) (scale⁻¹ V x)``, within the format for every scale."""
    builder = NetworkBuilder((1, 4))
    one = builder.operator(Dense.of(normal((4, 4), seeded(1)) / scale, None, (1, 4)), 0, "up")
    factor = Diagonal.of(torch.full((1, 4), scale).double(), None, (1, 4))
    one = builder.operator(factor, one, "down")
    other = builder.operator(Dense.of(normal((4, 4), seeded(2)) / scale, None, (1, 4)), 0, "up")
    row = builder.operator(Select.of(places((1, 1, 4)), (1, 4)), one, "row")
    column = builder.operator(Select.of(places((1, 4, 1)), (1, 4)), other, "column")
    return head(builder, builder.joint(MatrixProduct((1,), 1, 4, 1), (row, column), "product"))


@pytest.mark.parametrize(("scale", "holds"), [(1.0, True), (2.0**-3, True), (2.0**-7, False)])
def test_a_scale_may_wait_until_after_a_matrix_product(scale: float, holds: bool) -> None:
    # A runtime may compute ``scale (A B)`` for ``(scale A) B``, which then overflows in float16.
    x = uniform((2, 1, 4), seeded(3)).half().double()
    options = replace(OPTIONS, deployed="float16", eps=(Epsilon.parse("0.1"),))
    radii = [sample.radius for sample in certified(scaled_product(scale), x, options)]
    assert all((radius > 0) == holds for radius in radii), radii
