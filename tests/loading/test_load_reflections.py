"""Householder activations are read as what they are, charged for how they are written, and nothing
that jumps is read with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from attacks import smallest_margins
from torch import Tensor, nn

from lipcert.bounds import GlobalBound, Layers
from lipcert.certification import Certifier
from lipcert.errors import CannotCertify
from lipcert.loading import load_model
from lipcert.network import Network, simplify
from lipcert.network.activations import MaxMin
from lipcert.norms import SegmentNorms
from lipcert.options import Epsilon, Options
from lipcert.rounding import SINGLE

pytestmark = pytest.mark.filterwarnings("ignore")
ANGLES = torch.tensor([math.pi / 2, 0.2, 1.1, 2.8])
Write = Callable[[Tensor, Tensor, Tensor], Tensor]


def parts(a: Tensor, b: Tensor, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The selector, and the reflected halves."""
    selector = a * torch.sin(0.5 * angle) - b * torch.cos(0.5 * angle)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return selector, a * cos + b * sin, a * sin - b * cos


def masked(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    selector, c, d = parts(a, b, angle)
    first = a * (selector <= 0) + c * (selector > 0)
    return torch.cat([first, b * (selector <= 0) + d * (selector > 0)], 1)


def chosen(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    selector, c, d = parts(a, b, angle)
    return torch.cat([torch.where(selector <= 0, a, c), torch.where(selector > 0, d, b)], 1)


def stacked(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    selector, c, d = parts(a, b, angle)
    both = torch.where(selector >= 0, c, a), torch.where(selector >= 0, d, b)
    return torch.stack(both, 2).flatten(1, 2)


def with_relu(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    """``z − 2 n relu(n·z)``, without a choice."""
    sin, cos = torch.sin(0.5 * angle), torch.cos(0.5 * angle)
    over = F.relu(a * sin - b * cos)
    return torch.cat([a - 2 * sin * over, b + 2 * cos * over], 1)


def with_magnitude(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    sin, cos = torch.sin(0.5 * angle), torch.cos(0.5 * angle)
    selector = a * sin - b * cos
    twice = selector + selector.abs()
    return torch.stack([a - sin * twice, b + cos * twice], 2).flatten(1, 2)


WRITES = (masked, chosen, stacked, with_relu, with_magnitude)
WAYS: dict[str, Write] = {f.__name__: f for f in WRITES}


def on_the_other_side(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    selector, c, d = parts(a, b, angle)
    return torch.cat([torch.where(selector <= 0, c, a), torch.where(selector <= 0, d, b)], 1)


# What a way may be loaded by; the first of them are the same function.
LOADED = WAYS | {on_the_other_side.__name__: on_the_other_side}


class Net(nn.Module):
    """Orthogonal layers with a reflection of pairs between them."""

    def __init__(self, write: Write, angles: Tensor = ANGLES, *, images: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write, self.angles = write, angles.reshape(1, -1, *(1, 1) * images)
        self.first = nn.Conv2d(8, 8, 1) if images else nn.Linear(8, 8)
        weight = torch.linalg.qr(torch.randn(8, 8))[0]
        self.first.weight = nn.Parameter(weight.reshape(self.first.weight.shape))
        self.last = nn.Linear(32 if images else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        return self.last(self.write(a, b, self.angles).flatten(1))


def loaded(model: nn.Module, x: Tensor, path: Path, *, dynamo: bool = False) -> Network:
    model.eval()
    if dynamo:
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        torch.onnx.export(
            model, (x,), path, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
    return load_model(path).network


def compared(network: Network) -> list[MaxMin]:
    kinds = [network.nodes[i].kind for i in network.activations]
    assert all(isinstance(kind, MaxMin) for kind in kinds)
    return [kind for kind in kinds if isinstance(kind, MaxMin)]


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.parametrize("images", [False, True], ids=["vectors", "images"])
@pytest.mark.parametrize("way", LOADED)
def test_a_reflection_moves_no_two_points_apart(
    way: str, images: bool, dynamo: bool, tmp_path: Path
) -> None:
    model = Net(LOADED[way], images=images)
    x = torch.randn(5, 8, 2, 2) if images else torch.randn(5, 8)
    network = loaded(model, x, tmp_path / "m.onnx", dynamo=dynamo)
    assert len(compared(network)) == 1
    layers = Layers.of(simplify(network))
    norms = {(edge.source, edge.sink): SegmentNorms.of(edge) for edge in layers.edges}
    own = float(torch.linalg.matrix_norm(model.last.weight, 2))
    assert GlobalBound.of(layers, norms).product <= own * 1.0001
    with torch.no_grad():
        assert torch.allclose(network.logits(x.double()).float(), model(x), atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_way_rounds_is_within_what_is_charged(way: str, tmp_path: Path) -> None:
    """The file in float32 beside the model in float64, of random pairs, of pairs of many sizes, and
    of such as lie where the selector changes its sign."""
    for k, angle in enumerate((*ANGLES, torch.tensor(1e-3), torch.tensor(3.0))):
        angles = angle.repeat(4)
        network = loaded(Net(WAYS[way], angles), torch.randn(1, 8), tmp_path / f"{k}.onnx")
        [kind] = compared(network)
        generator = torch.Generator().manual_seed(k)
        z = torch.randn(30000, 2, generator=generator)
        z[::3] *= 10.0 ** torch.randint(-6, 7, (10000, 2), generator=generator)
        along = torch.stack([torch.cos(angle / 2), torch.sin(angle / 2)])
        near = torch.randn(10000, 1, generator=generator) * along
        z[1::3] = near * (1 + 1e-7 * torch.randn(10000, 2, generator=generator))
        a, b = z[:, :1], z[:, 1:]
        found = WAYS[way](a, b, angle).double()
        half = float(angle.double()) / 2
        normal = torch.tensor([math.sin(half), -math.cos(half)], dtype=torch.float64)
        over = (z.double() @ normal).clamp(min=0)
        exact = z.double() - 2 * over[:, None] * normal
        # What is charged is at least that of the larger of the pair, divided by √2.
        off = (found - exact).abs().amax(1)
        most = z.double().abs().amax(1) / math.sqrt(2)
        assert bool((off <= kind.spelling * SINGLE.unit * most).all())
        assert float((off / most).max()) > SINGLE.unit


def scaled(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    """What jumps by a thousandth of the values."""
    selector, c, d = parts(a, b, angle)
    return torch.cat([torch.where(selector <= 0, a, 1.001 * c), torch.where(selector > 0, d, b)], 1)


def turned_round(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    selector, c, d = parts(a, b, angle)
    return torch.cat([torch.where(selector <= 0, a, -c), torch.where(selector > 0, -d, b)], 1)


def too_far(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    """No reflection: it goes further than the mirror, and expands."""
    sin, cos = torch.sin(0.5 * angle), torch.cos(0.5 * angle)
    over = F.relu(a * sin - b * cos)
    return torch.cat([a - 2.01 * sin * over, b + 2.01 * cos * over], 1)


def half_of_it(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    sin, cos = torch.sin(0.5 * angle), torch.cos(0.5 * angle)
    return torch.cat([a - 2 * sin * F.relu(a * sin - b * cos), b], 1)


@pytest.mark.parametrize("write", [too_far, half_of_it])
def test_what_is_no_reflection_stays_as_it_is_written(write: Write, tmp_path: Path) -> None:
    network = loaded(Net(write), torch.randn(1, 8), tmp_path / "m.onnx")
    assert not any(isinstance(network.nodes[i].kind, MaxMin) for i in network.activations)


def apart(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    """Chosen by two selectors."""
    selector, c, d = parts(a, b, angle)
    other, _, _ = parts(a, b, angle + 0.01)
    return torch.cat([torch.where(selector <= 0, a, c), torch.where(other > 0, d, b)], 1)


def one_alone(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    selector, c, _ = parts(a, b, angle)
    return torch.cat([torch.where(selector <= 0, a, c), b], 1)


def shifted(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    selector, c, d = parts(a + 0.01, b, angle)
    return torch.cat([torch.where(selector <= 0, a, c), torch.where(selector > 0, d, b)], 1)


@pytest.mark.parametrize("write", [scaled, turned_round, apart, one_alone, shifted])
def test_what_jumps_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(CannotCertify, match=r"may jump|does not depend"):
        loaded(Net(write), torch.randn(1, 8), tmp_path / "m.onnx")


@pytest.mark.parametrize("write", [masked, with_relu, on_the_other_side])
def test_certificates_of_reflections_hold_and_reach_their_own(write: Write, tmp_path: Path) -> None:
    """As far as the margins over ``‖w_y − w_j‖``, which the construction promises, and no attack
    gets there."""
    model = Net(write)
    x = torch.rand(6, 8, generator=torch.Generator().manual_seed(2))
    network = loaded(model, x, tmp_path / "m.onnx")
    x = x.double()
    logits = network.logits(x)
    labels = logits.argmax(1)
    certifier = Certifier(network, Options(eps=(Epsilon.parse("0.05"),), seed=0), samples=6)
    radii = torch.tensor([s.radius for s in certifier(x, labels, range(6))], dtype=torch.float64)
    weight = model.last.weight.double()
    margins = logits.gather(1, labels[:, None]) - logits
    lengths = (weight[labels][:, None] - weight[None]).norm(dim=2)
    own = (margins / lengths).nan_to_num(math.inf).amin(1)
    assert bool((radii >= 0.97 * own).all())
    assert bool((smallest_margins(network, x, labels, radii, steps=30, restarts=3) > 0).all())
