"""Certified radii of tiny networks against their exact robust radii, region by region."""

import math

import pytest
import torch
from attacks import smallest_margins
from exact import exact_radius
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import normal, pick, places, seeded, uniform

from lipcert.certification import Certifier
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import Activation, Clip, GroupMax, MaxMin, PReLU, absolute, relu
from lipcert.network.operators import Dense, Diagonal, Select
from lipcert.options import Epsilon, Options

# Method, effort, deployed format, and the type of the analysis.
METHODS = [
    ("global", "standard", "real", "float64"),
    ("local", "standard", "real", "float64"),
    ("auto", "fast", "real", "float64"),
    ("auto", "standard", "float32", "float64"),
    ("auto", "max", "real", "float64"),
    ("global", "standard", "real", "float32"),
    ("local", "standard", "real", "float32"),
    ("auto", "fast", "real", "float32"),
    ("auto", "max", "float32", "float32"),
]


ACTIVATIONS: dict[str, Activation] = {
    "ReLU": relu(),
    "clipped ReLU": Clip(torch.tensor(0.0).double(), torch.tensor(0.5).double()),
    "leaky ReLU": PReLU(torch.tensor(0.1).double()),
    "abs": absolute(),
    "MaxMin": MaxMin(1),
}
KINDS = (*ACTIVATIONS, "max-pool", "mixed")


def tiny_network(seed: int, kind: str, *, inputs: int, hidden: int, residual: bool) -> Network:
    """``inputs`` numbers, ``hidden`` layers of 4 neurons, 3 classes; later layers may be residual
    branches. Weights that float32 holds; no class wins everywhere."""
    generator = seeded(seed)
    builder = NetworkBuilder((1, inputs))

    def dense(node: int, outputs: int) -> int:
        size = builder.shape(node)[-1]
        weight = normal((outputs, size), generator) * (1.5 / math.sqrt(size))
        bias = 0.5 * normal((outputs,), generator)
        return builder.operator(Dense.of(single(weight), single(bias), (1, size)), node)

    node = 0
    for layer in range(hidden):
        own = pick(KINDS[:-1], generator) if kind == "mixed" else kind
        before = node
        if own == "max-pool":
            node = dense(node, 8)
            pairs = Select.of(places((1, 8)).reshape(1, 4, 2), (1, 8))
            node = builder.activation(GroupMax(), builder.operator(pairs, node))
        else:
            node = builder.activation(ACTIVATIONS[own], dense(node, 4))
        if residual and layer:
            node = builder.sum([node, before])
    node = dense(node, 3)
    inside = uniform((50, 1, inputs), generator)
    mean = builder.build(node).logits(inside).mean(0, keepdim=True)
    return builder.build(builder.operator(Diagonal.of(None, single(-mean), (1, 3)), node))


def single(values: torch.Tensor) -> torch.Tensor:
    """Rounded to what float32 holds."""
    return values.float().double()


def samples_of(network: Network, seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = single(uniform((count, *network.in_shape), seeded(seed)))
    return x, network.logits(x).argmax(1)


def exact_radii(
    network: Network, x: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    found = [exact_radius(network, x[row], int(labels[row])) for row in range(len(x))]
    distances = torch.tensor([distance for distance, _ in found], dtype=torch.float64)
    return distances, torch.stack([point for _, point in found])


shapes = st.fixed_dictionaries(
    {"inputs": st.integers(2, 4), "hidden": st.integers(1, 3), "residual": st.booleans()}
)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(KINDS), shapes)
def test_exact_radii_are_exact(seed: int, kind: str, shape: dict[str, int]) -> None:
    """A tie at the point found, no misclassified point nearer, and a flip right behind it."""
    network = tiny_network(seed, kind, **shape)
    x, labels = samples_of(network, seed, 2)
    radii, points = exact_radii(network, x, labels)
    for row in range(len(x)):
        label, one = labels[row : row + 1], x[row : row + 1]
        reach = radii[row : row + 1]
        if math.isfinite(reach):
            margin = smallest_margins(network, points[row : row + 1], label, 0 * reach, steps=1)
            assert float(margin.min()) <= 1e-8
            assert float((points[row] - x[row]).norm()) == pytest.approx(float(reach), rel=1e-12)
        inside = reach.clamp(max=50.0) * (1 - 1e-6)
        assert (smallest_margins(network, one, label, inside, steps=30, restarts=3) > -1e-9).all()


@settings(max_examples=16, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(KINDS), shapes, st.sampled_from(METHODS))
def test_no_certified_radius_passes_the_exact_one(
    seed: int, kind: str, shape: dict[str, int], how: tuple[str, str, str, str]
) -> None:
    network = tiny_network(seed, kind, **shape)
    x, labels = samples_of(network, seed, 4)
    radii, _ = exact_radii(network, x, labels)
    method, effort, deployed, dtype = how
    eps = (Epsilon.parse("0.05"), Epsilon.parse("0.3"))
    options = Options(
        eps,
        method=method,
        effort=effort,
        deployed=deployed,
        dtype=dtype,  # type: ignore[arg-type]
    )
    samples = Certifier(network, options, samples=len(x))(x, labels, range(len(x)))
    for sample, exact in zip(samples, radii.tolist(), strict=True):
        assert sample.radius is not None
        assert sample.radius <= exact * (1 + 1e-9)
        assert all(float(text) < exact for text in sample.certified)
        if sample.attack_radius is not None:
            assert sample.attack_radius >= exact * (1 - 1e-6)


def test_slopes_found_above_a_radius_do_not_forget_what_falls_silent_below_it() -> None:
    """Once certified beyond the exact radius: its chains were prepared where more neurons vary."""
    network = tiny_network(1, "clipped ReLU", inputs=3, hidden=2, residual=True)
    x, labels = (part[8:9] for part in samples_of(network, 1, 16))
    exact, _ = exact_radii(network, x, labels)
    options = Options((Epsilon.parse("0.1"),), effort="fast")
    (sample,) = Certifier(network, options, samples=1)(x, labels, [8])
    assert sample.radius is not None
    assert sample.radius <= float(exact)
