"""The zoo: every network loads, passes the cross-check, and is certified soundly and in order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attacks import smallest_margins
from torch import Tensor
from zoo.networks import DYNAMO, ZOO

from lipcert.certification import Certifier
from lipcert.loading import cross_check, load_model
from lipcert.network import Network
from lipcert.options import Effort, Epsilon, Method, Options

pytestmark = pytest.mark.filterwarnings("ignore")
EPS = (Epsilon.parse("0.05"),)
COUNT = 2


def exported(name: str, path: Path, *, dynamo: bool) -> tuple[Path, Tensor]:
    entry = ZOO[name]
    module, generator = entry.module(), torch.Generator().manual_seed(1)
    x = torch.rand((COUNT, *entry.shape), generator=generator)
    with torch.no_grad():
        if dynamo:
            shapes = ({0: torch.export.Dim("batch", min=1)},)
            torch.onnx.export(module, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        else:
            torch.onnx.export(
                module, (x,), path, dynamo=False, opset_version=17, input_names=["x"],
                dynamic_axes={"x": {0: "batch"}},
            )  # fmt: skip
    return path, x


# On these the dearest effort is compared too: one of each family.
COMPARED = (
    "MLP, leaky ReLU", "MLP, tanh", "convolutions", "transposed", "residual", "dense connections",
    "max pooling", "GroupSort of four", "orthogonal, written with ReLU", "linear residual",
    "convex potential", "SDP-based, dense",
)  # fmt: skip
# A search ends so near to the largest radius.
NEAR = 0.998


def radii(
    network: Network, x: Tensor, labels: Tensor, softmax: bool, method: Method, effort: Effort
) -> Tensor:
    given = Options(eps=EPS, method=method, effort=effort, seed=0)
    certifier = Certifier(network, given, samples=COUNT, softmax=softmax)
    samples = certifier(x, labels, range(COUNT))
    return torch.tensor([sample.radius for sample in samples], dtype=torch.float64)


def test_the_zoo_is_large() -> None:
    assert len(ZOO) >= 50


@pytest.mark.parametrize(
    ("name", "dynamo"), [*((name, False) for name in ZOO), *((name, True) for name in DYNAMO)]
)
def test_every_network_is_certified(name: str, dynamo: bool, tmp_path: Path) -> None:
    path, x = exported(name, tmp_path / "model.onnx", dynamo=dynamo)
    model = load_model(path)
    x = x.double()
    cross_check(model, model.network, x.float().numpy())
    network, softmax = model.network, model.stripped is not None
    labels = network.logits(x).argmax(1)

    def found(method: Method, effort: Effort = "fast") -> Tensor:
        return radii(network, x, labels, softmax, method, effort)

    efforts: list[Effort] = ["fast"] if dynamo else ["fast", "standard"]
    efforts += ["max"] if name in COMPARED and not dynamo else []
    autos = [found("auto", effort) for effort in efforts]
    assert all(int((auto > 0).sum()) * 2 > COUNT for auto in autos)
    # What balls and norms say ends at the first joint.
    plain = [] if network.joints else [found("local"), found("global")]
    for auto in autos:
        for one in plain:
            assert bool((auto >= one * NEAR).all())
    best = torch.stack(autos).amax(0).clamp(min=0)
    broken = smallest_margins(network, x, labels, best, steps=10, restarts=1)
    assert bool((broken[best > 0] > 0).all())


@pytest.mark.benchmark
@pytest.mark.parametrize("name", [name for name in ZOO if name not in COMPARED])
def test_the_dearest_effort_is_as_tight(name: str, tmp_path: Path) -> None:
    path, x = exported(name, tmp_path / "model.onnx", dynamo=False)
    model = load_model(path)
    network, softmax, x = model.network, model.stripped is not None, x.double()
    labels = network.logits(x).argmax(1)
    best = radii(network, x, labels, softmax, "auto", "max")
    assert bool((best > 0).all())
    methods: list[Method] = [] if network.joints else ["local", "global"]
    for method in methods:
        assert bool((best >= NEAR * radii(network, x, labels, softmax, method, "max")).all())
