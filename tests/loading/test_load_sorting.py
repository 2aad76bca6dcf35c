"""Sorting is one comparison, however it is written, and what the writing rounds is charged."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from loading.sorting import SORTINGS, Sorting
from torch import Tensor, nn

from lipcert.bounds import GlobalBound, Layers
from lipcert.certification import Certifier
from lipcert.certification.deployed import Deployment
from lipcert.errors import CannotCertify
from lipcert.loading import load_model
from lipcert.loading.forms import Forms
from lipcert.loading.spellings import respelled
from lipcert.network import Network, NetworkBuilder, lower, simplify
from lipcert.network.activations import Clip, GroupSort, MaxMin, PReLU, relu
from lipcert.network.operators import Dense, Diagonal, Select
from lipcert.norms import SegmentNorms
from lipcert.options import Epsilon, Options
from lipcert.rounding import BFLOAT16, HALF, SINGLE, Arithmetic

pytestmark = pytest.mark.filterwarnings("ignore")


class Sorted(nn.Module):
    """Orthogonal layers, so that nothing expands, with a way of sorting behind each."""

    def __init__(self, ways: list[Sorting], *, images: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ways, self.images = ways, images
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 1) if images else nn.Linear(8, 8) for _ in ways)
        for layer in self.layers:
            weight = torch.linalg.qr(torch.randn(8, 8))[0]
            layer.weight = nn.Parameter(weight.reshape(layer.weight.shape))
        self.last = nn.Linear(8 * 9 if images else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer, way in zip(self.layers, self.ways, strict=True):
            x = way(layer(x))
        return self.last(x.flatten(1))


def exported(model: nn.Module, x: Tensor, path: Path, *, dynamo: bool) -> Path:
    model.eval()
    if dynamo:
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        torch.onnx.export(
            model, (x,), path, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
    return path


def product(network: Network) -> float:
    layers = Layers.of(simplify(network))
    norms = {(edge.source, edge.sink): SegmentNorms.of(edge) for edge in layers.edges}
    return GlobalBound.of(layers, norms).product


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.parametrize("images", [False, True], ids=["vectors", "images"])
def test_every_way_costs_what_sorting_costs(images: bool, dynamo: bool, tmp_path: Path) -> None:
    """One network of all ways: its constant is that of its last layer, and nothing but comparisons
    is left between its layers."""
    model = Sorted(list(SORTINGS.values()), images=images)
    x = torch.randn(2, 8, 3, 3) if images else torch.randn(2, 8)
    network = load_model(exported(model, x, tmp_path / "m.onnx", dynamo=dynamo)).network
    kinds = [type(network.nodes[i].kind) for i in network.activations]
    assert kinds == [MaxMin] * len(SORTINGS)
    own = float(torch.linalg.matrix_norm(model.last.weight, 2))
    assert product(network) <= own * 1.0001
    with torch.no_grad():
        assert torch.allclose(network.logits(x.double()).float(), model(x), atol=1e-4)


@pytest.mark.parametrize("way", SORTINGS)
def test_what_a_way_rounds_is_within_what_is_charged(way: str, tmp_path: Path) -> None:
    """At values that are near, far apart, of one size, and of opposite signs."""
    model = Sorted([SORTINGS[way]], images=False)
    path = exported(model, torch.randn(1, 8), tmp_path / "m.onnx", dynamo=False)
    [i] = load_model(path).network.activations
    kind = load_model(path).network.nodes[i].kind
    assert isinstance(kind, MaxMin)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20000, 8, generator=generator)
    z[::4, 4:] = z[::4, :4] * (1 + 2e-7 * torch.randn(5000, 4, generator=generator))
    z[1::4] *= 10.0 ** torch.randint(-6, 7, (5000, 8), generator=generator)
    z[2::4, 4:] = -z[2::4, :4]
    exact = SORTINGS[way](z.double())
    off = (SORTINGS[way](z).double() - exact).abs()
    # The values of a pair are those that sorting puts into its place: at most the row's largest.
    size = z.double().abs()
    first, second = size.chunk(2, 1)
    far = torch.maximum(first, second)
    near = size.reshape(-1, 4, 2).amax(2)
    most = torch.cat([far, far], 1)
    most = torch.maximum(most, torch.cat([near, near], 1))
    most = torch.maximum(most, near.repeat_interleave(2, 1))
    assert bool((off <= kind.spelling * SINGLE.unit * most).all())


def test_a_comparison_rounds_nothing_and_arithmetic_does(tmp_path: Path) -> None:
    for way, rounds in (("strided", False), ("where_less", False), ("relu_once", True)):
        model = Sorted([SORTINGS[way]], images=False)
        path = exported(model, torch.randn(1, 8), tmp_path / f"{way}.onnx", dynamo=False)
        network = load_model(path).network
        [kind] = [network.nodes[i].kind for i in network.activations]
        assert isinstance(kind, MaxMin)
        assert (kind.spelling > 0) == rounds


class Groups(nn.Module):
    """GroupSort of several sizes, and of all."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 3, 4).sort(2)[0].reshape(-1, 12)
        x = x.reshape(-1, 4, 3).sort(2, descending=True)[0].reshape(-1, 12)
        x = x.reshape(-1, 6, 2).sort(1)[0].reshape(-1, 12)
        return x.sort(1)[0]


@pytest.mark.parametrize("dynamo", [False, True])
def test_groups_of_any_size_are_sorted(dynamo: bool, tmp_path: Path) -> None:
    x = torch.randn(3, 12)
    network = load_model(exported(Groups(), x, tmp_path / "m.onnx", dynamo=dynamo)).network
    kinds = {type(network.nodes[i].kind) for i in network.activations}
    assert kinds == {GroupSort}
    assert product(network) <= 1.0001
    assert torch.equal(network.logits(x.double()), Groups()(x.double()))


def pair_network(first: Tensor, join: Tensor, kind: Clip | PReLU, skip: float = 1.0) -> Network:
    """``b skip + join σ(first (a, b))`` on four pairs: what is nearly a maximum."""
    builder = NetworkBuilder((1, 8))
    a = builder.operator(Select.of(torch.arange(4)[None], (1, 8)), 0)
    b = builder.operator(Select.of(torch.arange(4, 8)[None], (1, 8)), 0)
    parts = [
        builder.operator(Diagonal.of(scale, None, (1, 4)), node)
        for scale, node in zip(first, (a, b), strict=True)
    ]
    node = builder.activation(kind, builder.sum(parts))
    node = builder.operator(Diagonal.of(join, None, (1, 4)), node)
    other = builder.operator(Diagonal.of(torch.tensor(skip).double(), None, (1, 4)), b)
    node = builder.sum([other, node])
    rows = torch.eye(4, dtype=torch.float64)
    return builder.build(builder.operator(Dense.of(rows, None, (1, 4)), node))


ONE = torch.tensor(1.0, dtype=torch.float64)
BY_A_HAIR = ONE * (1 + 2.0**-50)


def test_what_is_nearly_a_maximum_is_none() -> None:
    right = pair_network(torch.stack([ONE, -ONE]), ONE, relu())
    assert [type(respelled(right).nodes[i].kind) for i in respelled(right).activations] == [MaxMin]
    for network in (
        pair_network(torch.stack([ONE, -BY_A_HAIR]), ONE, relu()),
        pair_network(torch.stack([BY_A_HAIR, -ONE]), ONE, relu()),
        pair_network(torch.stack([ONE, ONE]), ONE, relu()),
        pair_network(torch.stack([ONE, -ONE]), BY_A_HAIR, relu()),
        pair_network(torch.stack([ONE, -ONE]), -ONE, relu()),
        pair_network(torch.stack([ONE, -ONE]), ONE, relu(), skip=1 + 2.0**-20),
        pair_network(torch.stack([ONE, -ONE]), ONE, PReLU(torch.tensor(0.01).double())),
        pair_network(torch.stack([ONE, -ONE]), ONE, Clip(ONE * 0.01, None)),
        pair_network(torch.stack([ONE, -ONE]), ONE, Clip(ONE * 0, ONE * 9)),
    ):
        assert respelled(network) is network


@pytest.mark.parametrize("deployed", [SINGLE, HALF, BFLOAT16])
def test_a_deployment_is_charged_for_the_writing(deployed: Arithmetic) -> None:
    """Both where errors are passed on and where they are noise; and no number is known where a
    partial result could overflow."""
    network = respelled(pair_network(torch.stack([ONE, -ONE]), ONE, relu()))
    plain = Network(
        tuple(
            node if not isinstance(node.kind, MaxMin)
            else type(node)(MaxMin(0), node.inputs, node.shape, node.origin)
            for node in network.nodes
        )
    )  # fmt: skip
    [spelling] = [node.kind.spelling for node in network.nodes if isinstance(node.kind, MaxMin)]
    x, eps = torch.ones(1, 8, dtype=torch.float64), torch.tensor([1e-3], dtype=torch.float64)
    labels = torch.zeros(1, dtype=torch.int64)
    errors = []
    for one in (network, plain):
        deployment = Deployment.of(one, arithmetic=deployed, softmax=False)
        errors.append(deployment.pair_errors(deployment.centre(x), labels, eps)[0, 1])
        assert deployment.noise(simplify(lower(simplify(one)))) is not None
    assert float(errors[0] - errors[1]) >= 2 * deployed.unit * spelling
    large = x * (deployed.largest / 12)
    deployment = Deployment.of(network, arithmetic=deployed, softmax=False)
    found = deployment.pair_errors(deployment.centre(large), labels, eps)
    assert math.isinf(float(found[0, 1]))


class Nested(nn.Module):
    """Four values sorted by comparisons that are written out with ReLU, in three rounds; then
    halved, which rounds nothing but is not to hide what the comparisons round."""

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = x.chunk(4, 1)
        (a, b), (c, d) = by_relu(a, b), by_relu(c, d)
        (a, c), (b, d) = by_relu(a, c), by_relu(b, d)
        b, c = by_relu(b, c)
        return torch.cat([a, b, c, d], 1) * 0.5


def by_relu(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    d = torch.relu(a - b)
    return b + d, a - d


Compare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def by_maximum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.max(a, b), torch.min(a, b)


def by_magnitude(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    s, d = (a + b) / 2, (a - b).abs() / 2
    return s + d, s - d


def one_by_one(z: Tensor, compare: Compare) -> Tensor:
    """Seven values, sorted by neighbours; the last is left alone."""
    parts = list(z.chunk(8, 1))
    for start in range(7):
        for i in range(start % 2, 6, 2):
            parts[i], parts[i + 1] = compare(parts[i], parts[i + 1])
    return torch.cat(parts, 1)


def in_two_stages(z: Tensor, compare: Compare) -> Tensor:
    """No sorting: pairs, then pairs of neighbours of these, past the first and the last."""
    z = torch.stack(compare(z[:, ::2], z[:, 1::2]), 2).flatten(1, 2)
    inner = torch.stack(compare(z[:, 1:-1:2], z[:, 2:-1:2]), 2).flatten(1, 2)
    return torch.cat([z[:, :1], inner, z[:, -1:]], 1)


@pytest.mark.parametrize("compare", [by_relu, by_magnitude, by_maximum])
@pytest.mark.parametrize("network", [one_by_one, in_two_stages])
def test_stages_of_comparisons_cost_what_sorting_costs(
    network: Callable[[Tensor, Compare], Tensor], compare: Compare, tmp_path: Path
) -> None:
    """However they are written, and whether or not they sort: each is an isometry in pieces."""

    def way(z: Tensor) -> Tensor:
        return network(z, compare)

    model = Sorted([way, way], images=False)
    path = exported(model, torch.randn(1, 8), tmp_path / "m.onnx", dynamo=False)
    found = load_model(path).network
    assert {type(found.nodes[i].kind) for i in found.activations} <= {MaxMin, GroupSort}
    own = float(torch.linalg.matrix_norm(model.last.weight, 2))
    assert product(found) <= own * 1.0001
    assert product(lower(simplify(found))) <= own * 1.0001
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(found.logits(x.double()).float(), model(x), atol=1e-5)


def test_a_value_that_is_compared_and_read_again_stays_a_branch(tmp_path: Path) -> None:
    """Joined to what it was compared to it would cost √2 of both."""

    class Beside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x.chunk(2, 1)
            return torch.cat([1000 * torch.max(a, b), a], 1)

    path = exported(Beside(), torch.randn(1, 8), tmp_path / "m.onnx", dynamo=False)
    network = load_model(path).network
    assert all(getattr(network.nodes[i].kind, "passing", 0) == 0 for i in network.activations)
    assert product(network) <= 1001.1


class Through(nn.Module):
    def __init__(self, way: Sorting) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.first = way, nn.Linear(8, 8)
        self.first.weight = nn.Parameter(torch.linalg.qr(torch.randn(8, 8))[0])
        self.last = nn.Linear(way(torch.zeros(1, 8)).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.way(self.first(x)))


def positive_and_negative(z: Tensor) -> Tensor:
    return torch.cat([torch.relu(z), torch.relu(-z)], 1)


def above_and_below(z: Tensor) -> Tensor:
    return torch.cat([z.clamp(min=0), z.clamp(max=0)], 1)


def both_at_once(z: Tensor) -> Tensor:
    return torch.relu(torch.cat([z, -z], 1))


def sum_and_distance(z: Tensor) -> Tensor:
    a, b = z.chunk(2, 1)
    return torch.cat([(a + b) / math.sqrt(2), (a - b).abs() / math.sqrt(2)], 1)


def distance_first(z: Tensor) -> Tensor:
    a, b = z[:, ::2] * math.sqrt(0.5), z[:, 1::2] * math.sqrt(0.5)
    return torch.stack([torch.relu(b - a) + torch.relu(a - b), a + b], 2).flatten(1, 2)


@pytest.mark.parametrize(
    "way",
    [positive_and_negative, above_and_below, both_at_once, sum_and_distance, distance_first],
)
def test_what_sorting_makes_costs_what_sorting_costs(way: Sorting, tmp_path: Path) -> None:
    """Both parts of a value, and the sum and the distance of two, move as far as what they are of;
    and what they round is charged."""
    model = Through(way).eval()
    path = exported(model, torch.randn(1, 8), tmp_path / "m.onnx", dynamo=False)
    network = load_model(path).network
    [kind] = [network.nodes[i].kind for i in network.activations]
    assert isinstance(kind, MaxMin)
    own = float(torch.linalg.matrix_norm(model.last.weight, 2))
    assert product(network) <= own * 1.0001
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(network.logits(x.double()).float(), model(x), atol=1e-5)
    z = x * 10.0 ** torch.randint(-6, 7, x.shape, generator=torch.Generator().manual_seed(2))
    off = (way(z).double() - way(z.double())).abs().amax(1)
    assert bool((off <= 2 * kind.spelling * SINGLE.unit * z.double().abs().amax(1)).all())


def test_one_bend_alone_is_no_sorting() -> None:
    """``relu(a)``, ``|a − b|`` and ``2 |a|`` beside ``3 |a|`` are no two parts of a pair."""
    for names, kind in (((0,), relu()), ((0, 0), PReLU(-ONE))):
        builder = NetworkBuilder((1, 4))
        bent = builder.activation(kind, 0)
        parts = []
        for k, _ in enumerate(names):
            index = torch.full((1, 4 * len(names)), -1)
            index[0, 4 * k : 4 * k + 4] = torch.arange(4)
            scale = Diagonal.of(ONE * (2 + k), None, (1, 4))
            moved = Select.of(index, (1, 4))
            parts.append(builder.operator(moved, builder.operator(scale, bent)))
        rows = torch.eye(4 * len(names), dtype=torch.float64)
        last = builder.operator(Dense.of(rows, None, tuple(rows[:1].shape)), builder.sum(parts))
        network = builder.build(last)
        assert respelled(network) is network


def test_comparisons_of_what_was_compared(tmp_path: Path) -> None:
    x = torch.randn(3, 8)
    network = load_model(exported(Nested(), x, tmp_path / "m.onnx", dynamo=False)).network
    kinds = [network.nodes[i].kind for i in network.activations]
    assert all(isinstance(kind, MaxMin) and kind.spelling >= 5 for kind in kinds)
    found = network.logits(x.double())
    sorts = x.double().reshape(3, 4, 2).sort(1, descending=True)[0].reshape(3, 8) / 2
    assert torch.allclose(found, sorts)


def test_what_cancels_is_not_forgotten() -> None:
    """A maximum with a third value added and taken off again, or beside a value that another was:
    what they round is as large as the third one, which no pair knows."""
    builder = NetworkBuilder((1, 6))
    a, b, c = (
        builder.operator(Select.of(torch.tensor([[2 * k, 2 * k + 1]]), (1, 6)), 0) for k in range(3)
    )
    minus = Diagonal.of(-ONE, None, (1, 2))
    without = builder.operator(minus, c)
    difference = builder.sum([a, builder.operator(minus, b)])
    largest = builder.sum([b, builder.activation(relu(), difference)])
    around = builder.sum([builder.sum([largest, c]), without])
    for node in (around, builder.sum([around, builder.operator(minus, a), a])):
        rows = torch.eye(2, dtype=torch.float64)
        last = builder.operator(Dense.of(rows, None, (1, 2)), node)
        network = builder.build(last)
        found = respelled(network)
        kinds = [found.nodes[i].kind for i in found.activations]
        # The maximum itself may be one; the sums with the third value stay.
        assert sum(len(node.inputs) == 2 for node in found.nodes) >= 2
        assert all(isinstance(kind, MaxMin | Clip) for kind in kinds)


def test_a_magnitude_that_cancels_is_not_forgotten() -> None:
    """``max(a, b) + |c − d| − |c − d|`` is ``max(a, b)``, and rounds as much as ``|c − d|`` is."""
    builder = NetworkBuilder((1, 8))
    a, b, c, d = (
        builder.operator(Select.of(torch.tensor([[2 * k, 2 * k + 1]]), (1, 8)), 0) for k in range(4)
    )
    minus = Diagonal.of(-ONE, None, (1, 2))
    difference = builder.sum([a, builder.operator(minus, b)])
    largest = builder.sum([b, builder.activation(relu(), difference)])
    far = builder.sum([c, builder.operator(minus, d)])
    size = builder.activation(PReLU(-ONE), far)
    around = builder.sum([builder.sum([largest, size]), builder.operator(minus, size)])
    rows = torch.eye(2, dtype=torch.float64)
    network = builder.build(builder.operator(Dense.of(rows, None, (1, 2)), around))
    found = respelled(network)
    # The sums with the magnitude stay, so that what they round is charged.
    assert sum(isinstance(found.nodes[i].kind, PReLU) for i in found.activations) == 1


def chained(scale: float, count: int) -> Network:
    """A maximum whose first value comes by many additions to many times itself, scaled back."""
    builder = NetworkBuilder((1, 4))
    a, b = (
        builder.operator(Select.of(torch.tensor([[2 * k, 2 * k + 1]]), (1, 4)), 0) for k in range(2)
    )
    part = builder.operator(Diagonal.of(ONE * scale, None, (1, 2)), a)
    total = part
    for _ in range(count - 1):
        total = builder.sum([total, part])
    rest = builder.operator(Diagonal.of(ONE * (1 - scale * count), None, (1, 2)), a)
    whole = builder.sum([total, rest])
    minus = builder.operator(Diagonal.of(-ONE, None, (1, 2)), b)
    largest = builder.sum([b, builder.activation(relu(), builder.sum([whole, minus]))])
    rows = torch.eye(2, dtype=torch.float64)
    return builder.build(builder.operator(Dense.of(rows, None, (1, 2)), largest))


def test_deep_ways_of_writing_are_left_as_they_are() -> None:
    """What errors of errors add is known up to a depth: of fewer additions one comparison is made,
    which says how many there are behind it; of more none."""
    few, many = (respelled(chained(2.0**-12, count)) for count in (8, 80))
    [kind] = [few.nodes[i].kind for i in few.activations]
    assert isinstance(kind, MaxMin)
    assert kind.additions >= 1
    assert respelled(many) is many
    assert not any(isinstance(many.nodes[i].kind, MaxMin) for i in many.activations)


def test_a_network_whose_layers_mix_much_is_passed_by(monkeypatch) -> None:
    """Looking for spellings goes through every value: no network pays for it that has none."""
    builder, node = NetworkBuilder((1, 6)), 0
    dense = Dense.of(torch.ones(6, 6), torch.ones(6), (1, 6))
    for _ in range(3):
        node = builder.activation(MaxMin(1), builder.operator(dense, node))
        # As files have it: the halves apart, and put together again.
        halves = [torch.arange(6).reshape(1, 6).clone() for _ in range(2)]
        halves[0][:, 3:], halves[1][:, :3] = -1, -1
        node = builder.sum([builder.operator(Select.of(half, (1, 6)), node) for half in halves])
    network = builder.build(builder.operator(dense, node))

    def asked(self: Forms, i: int) -> bool:
        raise AssertionError(f"the form of node {i} was asked for")

    monkeypatch.setattr(Forms, "is_transparent", asked)
    assert respelled(network) is network


class Assigned(nn.Module):
    """Sorting by assignment to every other channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight = torch.linalg.qr(torch.randn(8, 8))[0]
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.first.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        out = torch.zeros_like(z)
        out[:, ::2] = torch.max(z[:, ::2], z[:, 1::2])
        out[:, 1::2] = torch.min(z[:, ::2], z[:, 1::2])
        return self.last(out)


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
def test_sorting_by_assignment_costs_what_sorting_costs(dynamo: bool, tmp_path: Path) -> None:
    model, x, path = Assigned().eval(), torch.randn(1, 8), tmp_path / "m.onnx"
    if dynamo:
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    else:
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17)
    network = load_model(path).network
    assert [type(network.nodes[i].kind) for i in network.activations] == [MaxMin]
    own = float(torch.linalg.matrix_norm(model.last.weight, 2))
    assert product(network) <= own * 1.0001
    with torch.no_grad():
        assert torch.allclose(network.logits(x.double()).float(), model(x), atol=1e-5)


def scattering(indices: list[int], reduction: str = "none") -> onnx.ModelProto:
    """``y = x`` with the first values of ``x`` at these places."""
    helper, numbers = onnx.helper, onnx.numpy_helper
    at = np.array([[[0, i] for i in indices]], dtype=np.int64)
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["x", "start", "stop", "axis"], ["first"]),
            helper.make_node("ScatterND", ["x", "at", "first"], ["y"], reduction=reduction),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 6])],
        [
            numbers.from_array(at, "at"),
            *(
                numbers.from_array(np.array([n]), name)
                for name, n in (("start", 0), ("stop", len(indices)), ("axis", 1))
            ),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)


def test_values_that_are_put_into_places_are_where_the_file_puts_them(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(scattering([5, 2]), path)
    x = torch.arange(6, dtype=torch.float64)[None]
    assert load_model(path).network.logits(x).tolist() == [[0, 1, 1, 3, 4, 0]]


@pytest.mark.parametrize(
    ("model", "why"),
    [(scattering([5, 5]), "two values for one place"), (scattering([5, 2], "add"), "reduction")],
    ids=["twice", "added"],
)
def test_values_that_are_put_anywhere_else_are_refused(
    model: onnx.ModelProto, why: str, tmp_path: Path
) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(CannotCertify, match=why):
        load_model(tmp_path / "m.onnx")


def gathered(z: Tensor) -> Tensor:
    return z.gather(1, z.argsort(1))


def gathered_in_groups(z: Tensor) -> Tensor:
    v = z.reshape(z.shape[0], -1, 4)
    return v.gather(2, v.argsort(2, descending=True)).reshape(z.shape)


def largest_by_places(z: Tensor) -> Tensor:
    v = z.reshape(z.shape[0], 2, -1)
    return v.gather(1, v.topk(2, 1)[1][:, :1]).flatten(1)


def of_other_values(z: Tensor) -> Tensor:
    return z.flip(1).gather(1, z.argsort(1))


def of_other_groups(z: Tensor) -> Tensor:
    v = z.reshape(z.shape[0], -1, 4)
    return v.gather(2, v.argsort(2).flip(1)).reshape(z.shape)


def weighed_by_places(z: Tensor) -> Tensor:
    return z * z.argsort(1)


@pytest.mark.parametrize("way", [gathered, gathered_in_groups, largest_by_places])
def test_values_taken_by_the_places_of_sorted_ones_are_sorted(way: Sorting, tmp_path: Path) -> None:
    model = Through(way).eval()
    path = exported(model, torch.randn(1, 8), tmp_path / "m.onnx", dynamo=False)
    network = load_model(path).network
    assert len(network.activations) == 1
    own = float(torch.linalg.matrix_norm(model.last.weight, 2))
    assert product(network) <= own * 1.0001
    # Some of them equal.
    x = torch.randint(-2, 3, (50, 8), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        assert torch.allclose(network.logits(x.double()).float(), model(x), atol=1e-5)


@pytest.mark.parametrize("way", [of_other_values, of_other_groups, weighed_by_places])
def test_what_else_is_read_by_places_is_refused(way: Sorting, tmp_path: Path) -> None:
    path = exported(Through(way), torch.randn(1, 8), tmp_path / "m.onnx", dynamo=False)
    with pytest.raises(CannotCertify, match="reads by the places of sorted values: it jumps"):
        load_model(path)


def below_a_limit(limit: float) -> Sorting:
    def way(z: Tensor) -> Tensor:
        a, b = z.chunk(2, 1)
        d = nn.functional.hardtanh(a - b, 0, limit)
        return torch.cat([d + b, a - d], 1)

    return way


def test_limits_far_out_hide_no_sorting_and_hold_where_they_are(tmp_path: Path) -> None:
    """Nothing is known of values that could pass half of such a limit; a nearer one is a limit."""
    model = Through(below_a_limit(2e12)).eval()
    path = exported(model, torch.randn(1, 8), tmp_path / "m.onnx", dynamo=False)
    network = load_model(path).network
    [kind] = [network.nodes[i].kind for i in network.activations]
    assert isinstance(kind, MaxMin)
    labels, eps = torch.zeros(1, dtype=torch.int64), torch.tensor([1e-3], dtype=torch.float64)
    for size, known in ((1.0, True), (1e11, True), (1e13, False)):
        x = torch.full((1, 8), size, dtype=torch.float64)
        x[:, 4:] = -size
        for arithmetic in (SINGLE, None):
            deployment = Deployment.of(network, arithmetic=arithmetic, softmax=False)
            errors = deployment.pair_errors(deployment.centre(x), labels, eps)
            assert math.isfinite(float(errors[0, 1])) == known, (size, arithmetic)
    model = Through(below_a_limit(9e11)).eval()
    path = exported(model, torch.randn(1, 8), tmp_path / "near.onnx", dynamo=False)
    assert any(
        isinstance(node.kind, Clip) and node.kind.upper is not None
        for node in load_model(path).network.nodes
    )


def test_two_ways_of_one_maximum_are_not_told_apart_for_free(tmp_path: Path) -> None:
    """A file whose logits are what two writings of a maximum differ by: 0, but for rounding, which
    stays charged though both become one comparison."""

    class Difference(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x.chunk(2, 1)
            one, other = torch.relu(a - b) + b, a + torch.relu(b - a)
            return 1e6 * (one - other)[:, :2] + torch.tensor([0.1, 0.0])

    path = exported(Difference(), torch.randn(1, 8), tmp_path / "m.onnx", dynamo=False)
    network = load_model(path).network
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) / 3
    with torch.no_grad():
        off = (Difference()(x).double() - torch.tensor([0.1, 0.0]).double()).abs().amax()
    assert float(off) > 0.05
    labels = torch.zeros(1, dtype=torch.int64)
    options = Options((Epsilon.parse("0.001"),), seed=0)
    [sample] = Certifier(network, options, samples=1)(x[:1].double(), labels, [0])
    assert not sample.radius


def twice_less_itself(z: Tensor) -> Tensor:
    return 2 * torch.relu(z) - z


def of_either_sign(z: Tensor) -> Tensor:
    return torch.relu(z) + torch.relu(-z)


def larger_of_both_signs(z: Tensor) -> Tensor:
    return torch.max(z, -z)


def leaky_by_parts(z: Tensor) -> Tensor:
    return torch.relu(z) - 0.25 * torch.relu(-z)


@pytest.mark.parametrize(
    ("way", "slope"),
    [(twice_less_itself, -1), (of_either_sign, -1), (larger_of_both_signs, -1),
     (leaky_by_parts, 0.25)],
)  # fmt: skip
def test_bends_that_are_written_out_cost_what_they_bend(
    way: Sorting, slope: float, tmp_path: Path
) -> None:
    """And what their writing rounds is charged in front of them."""
    model = Through(way).eval()
    path = exported(model, torch.randn(1, 8), tmp_path / "m.onnx", dynamo=False)
    network = load_model(path).network
    [i] = network.activations
    kind = network.nodes[i].kind
    assert isinstance(kind, PReLU)
    assert bool((kind.slope == slope).all())
    own = float(torch.linalg.matrix_norm(model.last.weight, 2))
    assert product(network) <= own * 1.0001
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(network.logits(x.double()).float(), model(x), atol=1e-5)
    off = ((way(x).double() - way(x.double())).abs() / way(x.double()).abs()).max()
    products = sum(
        isinstance(node.kind, Diagonal) and node.kind.scale is not None
        and float(node.kind.scale.abs().flatten()[0]) in (8.0, 0.125)
        for node in network.nodes
    )  # fmt: skip
    assert float(off) <= 4 * products * SINGLE.unit


def test_what_passes_a_comparison_is_still_the_sum_that_it_was() -> None:
    """A large value that is added behind it may be what its 64 products are added to."""
    builder = NetworkBuilder((1, 64))
    rows = torch.full((3, 64), 0.01, dtype=torch.float64)
    sums = builder.operator(Dense.of(rows, None, (1, 64)), 0)
    past = builder.activation(MaxMin(1, passing=1), sums)
    large = builder.operator(Select.of(torch.tensor([[-1, -1, 0]]), (1, 64)), 0)
    large = builder.operator(Diagonal.of(ONE * 1024, None, (1, 3)), large)
    network = builder.build(builder.sum([past, large]))
    x, eps = torch.ones(1, 64, dtype=torch.float64), torch.tensor([1e-6], dtype=torch.float64)
    deployment = Deployment.of(network, arithmetic=SINGLE, softmax=False)
    labels = torch.full((1,), 2)
    errors = deployment.pair_errors(deployment.centre(x), labels, eps)
    assert float(errors[0, 0]) >= 64 * 1024 * SINGLE.unit
