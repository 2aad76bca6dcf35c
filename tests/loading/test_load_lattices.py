"""Nested maxima and minima: order statistics become one comparison, everything else stays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.bounds import GlobalBound, Layers
from lipcert.loading import load_model
from lipcert.loading.lattices import grouped
from lipcert.network import Network, NetworkBuilder, simplify
from lipcert.network.activations import GroupMax, GroupSort, MaxMin
from lipcert.network.joints import Product
from lipcert.network.operators import Dense, Select
from lipcert.norms import SegmentNorms

pytestmark = pytest.mark.filterwarnings("ignore")
Write = Callable[[Tensor], Tensor]


def compared(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.max(a, b), torch.min(a, b)


def sorted_four(z: Tensor) -> Tensor:
    a, b, c, d = z.chunk(4, 1)
    (a, b), (c, d) = compared(a, b), compared(c, d)
    (a, c), (b, d) = compared(a, c), compared(b, d)
    b, c = compared(b, c)
    return torch.cat([a, b, c, d], 1)


def largest(z: Tensor) -> Tensor:
    a, b, c, d = z.chunk(4, 1)
    return torch.max(torch.max(a, b), torch.max(c, d))


def one_by_one(z: Tensor) -> Tensor:
    a, b, c, d = z.chunk(4, 1)
    return -torch.maximum(torch.maximum(torch.maximum(-a, -b), -c), -d)


def median(z: Tensor) -> Tensor:
    a, b, c, d = z.chunk(4, 1)
    return torch.cat([torch.max(torch.min(a, b), torch.min(torch.max(a, b), c)), d], 1)


def by_reductions(z: Tensor) -> Tensor:
    v = z.reshape(z.shape[0], 2, 2, -1)
    return v.amax(1).amin(1)


# What each is: its kinds of activation, and a bound of its constant.
KINDS: dict[str, tuple[Write, set[type], float]] = {
    "four sorted": (sorted_four, {GroupSort}, 1.0),
    "largest of four": (largest, {GroupMax}, 1.0),
    "smallest of four": (one_by_one, {GroupMax}, 1.0),
    "median of three": (median, {GroupSort}, 2.0),
}


def loaded(write: Write, path: Path, *, dynamo: bool = False, images: bool = False) -> Network:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return write(x).flatten(1)

    x = torch.randn(2, 8, 1, 2) if images else torch.randn(2, 8)
    if dynamo:
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        torch.onnx.export(
            Net().eval(), (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    else:
        torch.onnx.export(
            Net().eval(), (x,), path, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
    network = load_model(path).network
    z = torch.randn(50, *x.shape[1:], generator=torch.Generator().manual_seed(3)).double()
    assert torch.equal(network.logits(z), write(z).flatten(1))
    return network


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.parametrize("images", [False, True], ids=["vectors", "images"])
@pytest.mark.parametrize("name", KINDS)
def test_order_statistics_are_one_comparison(
    name: str, images: bool, dynamo: bool, tmp_path: Path
) -> None:
    write, kinds, constant = KINDS[name]
    network = loaded(write, tmp_path / "m.onnx", dynamo=dynamo, images=images)
    found = [type(network.nodes[i].kind) for i in network.activations]
    assert set(found) == kinds
    assert len(found) == 1
    layers = Layers.of(simplify(network))
    norms = {(edge.source, edge.sink): SegmentNorms.of(edge) for edge in layers.edges}
    assert GlobalBound.of(layers, norms).product <= constant * 1.0001


def test_what_is_no_order_statistic_stays(tmp_path: Path) -> None:
    """``min(max(a, c), max(b, d))`` is monotone, and its table has no count of ones."""
    network = loaded(by_reductions, tmp_path / "m.onnx")
    assert len(network.activations) > 1


def by_tables(pairs: list[tuple[int, int]], size: int) -> bool:
    """Whether comparisons of these places sort: by all inputs of 0 and 1."""
    for bits in itertools.product((0, 1), repeat=size):
        values = list(bits)
        for i, j in pairs:
            values[i], values[j] = max(values[i], values[j]), min(values[i], values[j])
        if values != sorted(values, reverse=True):
            return False
    return True


@pytest.mark.parametrize("seed", range(12))
def test_random_comparisons_keep_their_function(seed: int) -> None:
    """Of 3 to 7 values: one GroupSort exactly where they sort, and always the same values."""
    generator = torch.Generator().manual_seed(seed)
    size = 3 + seed % 5
    builder = NetworkBuilder((1, size))
    places = [builder.operator(Select.of(torch.tensor([[k]]), (1, size)), 0) for k in range(size)]
    pairs: list[tuple[int, int]] = []
    every = list(itertools.combinations(range(size), 2))
    while len(pairs) < 4 * size and not by_tables(pairs, size):
        pairs.append(every[int(torch.randint(len(every), (1,), generator=generator))])
    if seed % 3 == 0:
        pairs = pairs[:-1]
    for i, j in pairs:
        both = builder.operator(Select.of(torch.tensor([[0], [-1]]), (1, 1)), places[i])
        other = builder.operator(Select.of(torch.tensor([[-1], [0]]), (1, 1)), places[j])
        found = builder.activation(MaxMin(0), builder.sum([both, other]))
        places[i], places[j] = (
            builder.operator(Select.of(torch.tensor([[k]]), (2, 1)), found) for k in (0, 1)
        )
    parts = []
    for k, place in enumerate(places):
        index = torch.full((1, size), -1)
        index[0, k] = 0
        parts.append(builder.operator(Select.of(index, (1, 1)), place))
    rows = torch.eye(size, dtype=torch.float64)
    last = builder.operator(Dense.of(rows, None, (1, size)), builder.sum(parts))
    network = builder.build(last)
    changed = grouped(network)
    x = torch.randn(200, 1, size, generator=generator, dtype=torch.float64)
    x[::2] = x[::2].round()
    assert torch.equal(network.logits(x), changed.logits(x))
    kinds = [type(changed.nodes[i].kind) for i in changed.activations]
    if by_tables(pairs, size) and size <= 6:
        assert kinds == [GroupSort]


class Gated(nn.Module):
    """Sorting that is written out, nested maxima, and a gate of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        d = F.relu(a - b)
        y = torch.cat([b + d, a - d], 1)
        return sorted_four(y) * torch.sigmoid(self.gate(x))


def test_a_network_with_joints_is_read_so_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(2, 8)
    torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=False, opset_version=17)
    network = load_model(tmp_path / "m.onnx").network
    kinds = [type(network.nodes[i].kind) for i in (*network.activations, *network.joints)]
    assert {MaxMin, GroupSort, Product} <= set(kinds)
    with torch.no_grad():
        assert torch.allclose(network.logits(x.double()).float(), model(x), atol=1e-6)
