"""Masks of attention, as they are written: what is left out has no share, and no part in any
bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from attacks import smallest_margins
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional

from lipcert.certification import Certifier
from lipcert.errors import CannotCertify
from lipcert.loading import cross_check, load_model
from lipcert.loading.model import LoadedModel
from lipcert.network.joints import Softmax
from lipcert.options import Epsilon, Options

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE, WIDTH = 4, 6
LATER = torch.ones(SIZE, SIZE).triu(1) > 0
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = (t[:, None] for t in (q, k, v))
    return functional.scaled_dot_product_attention(*parts, is_causal=True)[:, 0]


def allowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = (t[:, None] for t in (q, k, v))
    return functional.scaled_dot_product_attention(*parts, attn_mask=~LATER)[:, 0]


def filled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(1, 2) / WIDTH**0.5).masked_fill(LATER, -torch.inf)
    return scores.softmax(-1) @ v


def added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.zeros(SIZE, SIZE).masked_fill(LATER, -torch.inf)
    return (q @ k.transpose(1, 2) / WIDTH**0.5 + mask).softmax(-1) @ v


def turned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys by queries, shared out along the first of both axes."""
    mask = torch.zeros(SIZE, SIZE).masked_fill(LATER.T, -torch.inf)
    scores = k @ q.transpose(1, 2) / WIDTH**0.5 + mask
    return scores.softmax(1).transpose(1, 2) @ v


def by(number: float) -> Mix:
    """With a mask of this number."""

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.zeros(SIZE, SIZE).masked_fill(LATER, number)
        return (q @ k.transpose(1, 2) / WIDTH**0.5 + mask).softmax(-1) @ v

    return mix


MIXES: dict[str, Mix] = {f.__name__: f for f in (causal, allowed, filled, added, turned)}


class Net(nn.Module):
    def __init__(self, mix: Mix) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.all = mix, nn.Linear(WIDTH, 3 * WIDTH)
        self.last = nn.Linear(SIZE * WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x + self.mix(*self.all(x).chunk(3, 2))).flatten(1))


def loaded(mix: Mix, path: Path, *, dynamo: bool = False) -> LoadedModel:
    net, x = Net(mix).eval(), torch.randn(3, SIZE, WIDTH)
    if dynamo:
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        torch.onnx.export(net, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        torch.onnx.export(
            net, (x,), path, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
    model = load_model(path)
    cross_check(model, model.network, x.numpy())
    with torch.no_grad():
        assert torch.allclose(model.network.logits(x.double()).float(), net(x), atol=1e-5)
    return model


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.parametrize("name", MIXES)
def test_masks_are_read(name: str, dynamo: bool, tmp_path: Path) -> None:
    network = loaded(MIXES[name], tmp_path / "m.onnx", dynamo=dynamo).network
    kinds = [network.nodes[i].kind for i in network.joints]
    [softmax] = [kind for kind in kinds if isinstance(kind, Softmax)]
    if softmax.kept is not None:
        assert int((softmax.kept == 0).sum()) == SIZE * (SIZE - 1) // 2


def radii(model: LoadedModel, x: Tensor) -> Tensor:
    labels = model.network.logits(x).argmax(1)
    options = Options(eps=(Epsilon.parse("1e-3"),), effort="fast", seed=0)
    samples = Certifier(model.network, options, samples=len(x))(x, labels, range(len(x)))
    found = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    broken = smallest_margins(model.network, x, labels, found, steps=15, restarts=1)
    assert bool((broken > 0).all())
    return found


def test_masked_attention_is_certified_as_its_finite_twins(tmp_path: Path) -> None:
    """Of moderate size, of which some shares are too small for float32, and of its least number."""
    x = torch.randn(2, SIZE, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    found = radii(loaded(added, tmp_path / "a.onnx"), x)
    assert bool((found > 1e-3).all())
    for number in (-20.0, -200.0, -1e4, torch.finfo(torch.float32).min):
        twin = radii(loaded(by(number), tmp_path / "b.onnx"), x)
        assert torch.allclose(found, twin, rtol=0.1)


def nothing_left(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.zeros(SIZE, SIZE)
    mask[1] = -torch.inf
    return (q @ k.transpose(1, 2) + mask).softmax(-1) @ v


def used_otherwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(1, 2)).masked_fill(LATER, -torch.inf)
    return torch.sigmoid(scores) @ v


@pytest.mark.parametrize(
    ("mix", "told"), [(nothing_left, "no score of a row"), (used_otherwise, "another use")]
)
def test_other_masks_are_refused(mix: Mix, told: str, tmp_path: Path) -> None:
    net, x = Net(mix).eval(), torch.randn(1, SIZE, WIDTH)
    torch.onnx.export(net, (x,), tmp_path / "m.onnx", dynamo=False, opset_version=17)
    with pytest.raises(CannotCertify, match=told):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"scale": 0.7}, {}])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_masks_of_opset_23(mask: str | None, attributes: dict[str, float]) -> None:
    """Against ONNX's own definition."""
    shape = [1, 3, SIZE, 5]
    left = np.random.default_rng(0).random((SIZE, SIZE)) > 0.4
    left |= np.eye(SIZE, dtype=bool)
    inits = []
    if mask == "bool":
        inits = [onnx.numpy_helper.from_array(left, "m")]
    if mask == "float":
        values = np.where(left, 0.25, -np.inf).astype(np.float32)
        inits = [onnx.numpy_helper.from_array(values, "m")]
    node = helper.make_node("Attention", ["x", "x", "x", *["m"] * len(inits)], ["y"], **attributes)
    given, result = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy")
    graph = helper.make_graph([node], "g", [given], [result], inits)
    opsets = [helper.make_opsetid("", 23)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    [theirs] = ReferenceEvaluator(model).run(None, {"x": x})
    from load_models import network

    ours = network(model).values(torch.from_numpy(x).double())[-1].numpy()
    np.testing.assert_allclose(ours.reshape(shape), theirs, atol=1e-5)
