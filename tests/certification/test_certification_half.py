"""Certificates for 16 bits, attacked in 16 bits: in every order of the sums, by torch, and for
float16 by onnxruntime at two levels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from assault import Outcome, assault
from deployed_runs import DTYPES, ORDERS, deployed_logits
from fuzz import Evaluate, exported, samples_of
from laws import normal, seeded, uniform
from onnx import TensorProto, numpy_helper
from onnx_graphs import session
from threats import radii
from torch import Tensor

from lipcert.certification import Certifier
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense
from lipcert.options import Epsilon, Options

METHODS = (("global", "fast"), ("local", "fast"), ("auto", "fast"), ("auto", "standard"))


def shallow(generator: torch.Generator) -> tuple[Network, Tensor, Tensor]:
    """A network whose margins exceed what 8 bits of precision can do to them, and samples; a third
    of these are near a boundary."""
    builder, node = NetworkBuilder((1, 6)), 0
    for before, after in ((6, 8), (8, 3)):
        operator = Dense.of(normal((after, before), generator), None, (1, before))
        node = builder.operator(operator, node)
        node = builder.activation(relu(), node) if after > 3 else node
    network = builder.build(node).to(dtype=torch.float32).to(dtype=torch.float64)
    x, labels = samples_of(network, generator, 12)
    more = uniform((24, *network.in_shape), generator).float().double()
    return network, torch.cat([x, more]), torch.cat([labels, network.logits(more).argmax(1)])


def as_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The file with every float in float16."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


def evaluations(network: Network, name: str) -> dict[str, Evaluate]:
    dtype = DTYPES[name]
    own = network.to(dtype=dtype)
    # Products of 16 bits, summed in float32, which is what certificates cover.
    ways: dict[str, Evaluate] = {
        key: lambda x, order=order: deployed_logits(network, x.double(), dtype, order)
        for key, order in ORDERS.items()
    }
    ways["torch"] = lambda x: own.logits(x.to(dtype))
    if name == "float16":
        for optimised in (False, True):
            runtime = session(as_half(exported(network)), optimised=optimised)

            def run(x: Tensor, runtime=runtime) -> Tensor:
                (logits,) = runtime.run(None, {"x": x.flatten(1).to(torch.float16).numpy()})
                return torch.from_numpy(logits.astype(np.float64))

            ways[f"onnxruntime, {optimised=}"] = run
    return ways


def attacked(seed: int, name: str, *, deployed: str) -> tuple[Outcome, int]:
    """What becomes of certificates for ``deployed`` in the type ``name``, and of how many samples
    they are."""
    generator = seeded(seed)
    network, x, labels = shallow(generator)
    method, effort = METHODS[seed % len(METHODS)]
    options = Options(
        (Epsilon.parse("1e-3"),), method=method, effort=effort, deployed=deployed,  # type: ignore[arg-type]
    )  # fmt: skip
    radius = radii(Certifier(network, options, samples=len(x))(x, labels, range(len(x))))
    sure = radius > 0
    outcome = assault(
        network, evaluations(network, name), x[sure], labels[sure], radius[sure], generator,
        steps=6,
    )  # fmt: skip
    return outcome, int(sure.sum())


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("seed", range(4))
def test_no_certificate_breaks_in_its_own_type(seed: int, name: str) -> None:
    outcome, count = attacked(seed, name, deployed=name)
    assert count >= 5
    assert not outcome.broken.any()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_certificates_for_float32_do_break_in_16_bits(name: str) -> None:
    """So these attacks can tell: near a boundary 16 bits fall on its other side."""
    outcome, _ = attacked(3, name, deployed="float32")
    assert outcome.broken.any()
