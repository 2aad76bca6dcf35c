"""What a format adds to the margins: never less than what it does, in any order of the sums."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from attacks import in_ball
from deployed_runs import DTYPES, ORDERS, deployed_logits
from laws import clip, normal, places, random_network, seeded, uniform
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from lipcert.bounds import Propagation, node_constants
from lipcert.bounds.roundoff import Roundoff
from lipcert.certification.deployed import SOFTMAX_TIE, Deployment
from lipcert.loading import load_model
from lipcert.network import Network, NetworkBuilder, lower, simplify
from lipcert.network.activations import MaxMin
from lipcert.network.operators import Convolution, Dense, Diagonal, Select
from lipcert.norms import convolution_norm
from lipcert.rounding import DOUBLE, FORMATS, SINGLE


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.double().gather(1, labels[:, None]) - logits.double()


def case(seed: int, batch: int = 3) -> tuple[Network, Tensor, Tensor, Tensor]:
    """A network, samples with labels, and radii from tiny to large."""
    network = random_network(seeded(seed))
    x = uniform((batch, *network.in_shape), seeded(seed + 1))
    eps = torch.tensor([1e-6, 0.05, 0.5], dtype=torch.float64)[:batch]
    return network, x, network.logits(x).argmax(1), eps


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(8))
def test_no_run_leaves_the_pair_errors(seed: int, name: str) -> None:
    network, x, labels, eps = case(seed)
    deployment = Deployment.of(network, arithmetic=FORMATS[name], softmax=False)
    allowed = deployment.pair_errors(deployment.centre(x), labels, eps)
    generator = seeded(seed)
    for order in ORDERS.values():
        point = in_ball(x, eps * 0.999, generator)
        run = deployed_logits(network, point, DTYPES[name], order)
        gap = (margins(run, labels) - margins(network.logits(point), labels)).abs()
        assert (gap <= allowed).all()


@pytest.mark.parametrize("simplified", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_torch_in_float32_stays_within_the_pair_errors(seed: int, simplified: bool) -> None:
    network, x, labels, eps = case(seed)
    network = simplify(network) if simplified else network
    deployment = Deployment.of(network, arithmetic=SINGLE, softmax=False)
    centre, generator = deployment.centre(x), seeded(seed)
    allowed = deployment.pair_errors(centre, labels, eps)
    single = network.to(dtype=torch.float32)
    for _ in range(10):
        point = in_ball(x, eps * 0.999, generator)
        gap = margins(single.logits(point.float()), labels)
        gap = gap - margins(network.logits(point), labels)
        assert (gap.abs() <= allowed).all()


@pytest.mark.parametrize("seed", range(6))
def test_pairs_are_tighter_than_two_logits(seed: int) -> None:
    network, x, labels, eps = case(seed)
    deployment = Deployment.of(network, arithmetic=SINGLE, softmax=False)
    centre = deployment.centre(x)
    every = deployment.pair_errors(centre, labels, eps)
    # Where margins are so large, or are no numbers, or small, the answers serve alike.
    rough = deployment.pair_errors(centre, labels, eps, margins=torch.full_like(every, torch.inf))
    assert (every <= rough).all()
    for margins_ in (every / 2, 2 * every, torch.full_like(every, torch.nan), 2 * rough):
        some = deployment.pair_errors(centre, labels, eps, margins=margins_)
        assert ((margins_ > some) == (margins_ > every)).all()
    nobody = labels[:0]
    none = deployment.pair_errors(deployment.centre(x[:0]), nobody, eps[:0])
    assert none.shape == (0, network.classes)


def test_errors_grow_with_the_ball_and_the_unit() -> None:
    network, x, labels, eps = case(2)
    found = {}
    for name, arithmetic in [*FORMATS.items(), ("real", None)]:
        deployment = Deployment.of(network, arithmetic=arithmetic, softmax=False)
        centre = deployment.centre(x)
        found[name] = deployment.pair_errors(centre, labels, eps)
        larger = deployment.pair_errors(centre, labels, 2 * eps)
        assert (larger >= found[name] * (1 - 1e-9)).all()
    order = ["real", "float64", "float32", "float16", "bfloat16"]
    for less, more in pairwise(order):
        assert (found[less] <= found[more]).all()
    assert (found["real"].amax(1) > 0).all()
    assert (found["float64"] < 1e-6 * found["float32"]).sum() == found["real"].numel() - len(x)


def test_a_stripped_softmax() -> None:
    network, x, labels, eps = case(3)
    for arithmetic in (*FORMATS.values(), None):
        plain, soft = (
            Deployment.of(network, arithmetic=arithmetic, softmax=softmax)
            for softmax in (False, True)
        )
        error = plain.pair_errors(plain.centre(x), labels, eps)
        tie = 2 * SOFTMAX_TIE * (arithmetic or DOUBLE).unit
        assert (soft.pair_errors(soft.centre(x), labels, eps) >= error + tie * (1 - 1e-9)).all()


def test_overflow_is_an_infinite_error() -> None:
    network, x, labels, _ = case(5)
    eps = torch.full((3,), 1e38, dtype=torch.float64)
    for name in ("float32", "bfloat16", "float16"):
        deployment = Deployment.of(network, arithmetic=FORMATS[name], softmax=False)
        errors = deployment.pair_errors(deployment.centre(x * 1e38), labels, eps)
        own = torch.nn.functional.one_hot(labels, errors.shape[1]).bool()
        assert (errors.isinf() | own).all()
    deployment = Deployment.of(network, arithmetic=FORMATS["float16"], softmax=False)
    assert not deployment.pair_errors(deployment.centre(x), labels, eps * 1e-38).isinf().all()


def test_merged_biases_are_covered() -> None:
    """A large bias that a later one takes away again: summed first, it swallows the products."""
    builder = NetworkBuilder((1, 8))
    weight = torch.full((2, 8), 0.1, dtype=torch.float64)
    weight[1] *= -1
    node = builder.operator(Dense.of(weight, None, (1, 8)), 0)
    large = torch.full((1, 2), 3e4, dtype=torch.float64)
    node = builder.operator(Diagonal.of(None, large, (1, 2)), node)
    network = builder.build(builder.operator(Diagonal.of(None, -large, (1, 2)), node))
    x = uniform((4, 1, 8), seeded(0))
    labels, eps = network.logits(x).argmax(1), torch.full((4,), 0.01, dtype=torch.float64)
    deployment = Deployment.of(network, arithmetic=SINGLE, softmax=False)
    allowed = deployment.pair_errors(deployment.centre(x), labels, eps)
    # The bias is where the sum starts, and every product is added to it.
    total = large.float().expand(4, 2)
    for term in (x.float() * weight.float()).unbind(-1):
        total = total + term
    gap = margins(total - large.float(), labels) - margins(network.logits(x), labels)
    assert gap.abs().max() > 1e-3
    assert (gap.abs() <= allowed).all()


def swapped() -> Network:
    """Halves that are swapped after an activation, and come to be swapped before it."""
    builder = NetworkBuilder((1, 4))
    node = builder.activation(clip(0.0, None), 0)
    index = torch.tensor([[2, 3, -1, -1], [-1, -1, 0, 1]])
    parts = [builder.operator(Select.of(one[None], (1, 4)), node) for one in index]
    node = builder.sum(parts)
    weight = torch.arange(8, dtype=torch.float64).reshape(2, 4)
    return builder.build(builder.operator(Dense.of(weight, None, (1, 4)), node))


def clipped_maxmin(seed: int, layers: int = 3, width: int = 12) -> Network:
    """As files spell it: halves cut out, their maximum and minimum clipped, and put together."""
    generator = seeded(seed)
    builder, node = NetworkBuilder((1, width)), 0
    half, nowhere = torch.arange(width // 2), torch.full((width // 2,), -1)
    first, second = torch.cat([half, nowhere]), torch.cat([nowhere, half])
    for _ in range(layers):
        weight = torch.linalg.qr(normal((width, width), generator))[0]
        node = builder.operator(
            Dense.of(weight, 0.1 * normal((width,), generator), (1, width)), node
        )
        halves = [
            builder.operator(Select.of((half + k)[None], (1, width)), node) for k in (0, width // 2)
        ]
        stacked = [
            builder.operator(Select.of(place.reshape(2, 1, -1), (1, width // 2)), one)
            for place, one in zip((first, second), halves, strict=True)
        ]
        pair = builder.activation(MaxMin(0), builder.sum(stacked))
        shape, placed = builder.shape(pair), []
        for k, (limits, place) in enumerate((((None, 0.5), first), ((-0.5, None), second))):
            picked = Select.of((half + k * width // 2)[None], shape)
            part = builder.activation(clip(*limits), builder.operator(picked, pair))
            placed.append(builder.operator(Select.of(place[None], (1, width // 2)), part))
        node = builder.sum(placed)
    weight = normal((3, width), generator) / width**0.5
    return builder.build(builder.operator(Dense.of(weight, None, (1, width)), node))


def test_boxes_of_a_rearranged_network_are_not_taken_for_its_own() -> None:
    network = swapped()
    simple = simplify(network)
    x = uniform((3, 1, 4), seeded(0))
    before = [network.nodes[i].inputs[0] for i in network.activations]
    after = [simple.nodes[i].inputs[0] for i in simple.activations]
    assert len(before) == len(after) == 1
    assert not torch.equal(network.values(x)[before[0]], simple.values(x)[after[0]])
    roundoff = Roundoff.of(network)
    propagation = Propagation.of(network, node_constants(network, {}))
    as_loaded = Deployment(propagation, roundoff, SINGLE, softmax=False)
    assert as_loaded.noise(simple) is None
    assert as_loaded.noise(network) is not None


@pytest.mark.parametrize("seed", range(30))
def test_activations_that_match_read_the_same_values(seed: int) -> None:
    """Also where both networks were rewritten: boxes of the one hold for the other."""
    network = (random_network, clipped_maxmin)[seed % 2](seeded(seed) if seed % 2 == 0 else seed)
    network = swapped() if seed == 0 else network
    simple = simplify(lower(simplify(network)))
    noise = Deployment.of(network, arithmetic=SINGLE, softmax=False).noise(simple)
    assert noise is not None
    own, x = noise.roundoff.network, uniform((3, *network.in_shape), seeded(seed + 1))
    values, others = own.values(x), simple.values(x)
    for i, j in noise.partners.items():
        if i:
            torch.testing.assert_close(
                values[own.nodes[i].inputs[0]], others[simple.nodes[j].inputs[0]]
            )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(6))
def test_no_run_of_a_clipped_maxmin_leaves_the_pair_errors(seed: int, name: str) -> None:
    """The run is of the nodes as loaded, with the boxes of the deployment and with tighter ones."""
    network = clipped_maxmin(seed)
    x = uniform((3, *network.in_shape), seeded(seed + 1))
    eps = torch.tensor([1e-6, 0.05, 1.5], dtype=torch.float64)
    labels = network.logits(x).argmax(1)
    deployment = Deployment.of(network, arithmetic=FORMATS[name], softmax=False)
    allowed = deployment.pair_errors(deployment.centre(x), labels, eps)
    generator = seeded(seed)
    for order in ORDERS.values():
        for _ in range(4):
            point = in_ball(x, eps * 0.999, generator)
            run = deployed_logits(network, point, DTYPES[name], order)
            gap = (margins(run, labels) - margins(network.logits(point), labels)).abs()
            assert (gap <= allowed).all()
    # Orthogonal layers pass errors on as they are, however many there are.
    deep = clipped_maxmin(seed, layers=8)
    deployment = Deployment.of(deep, arithmetic=FORMATS[name], softmax=False)
    labels = deep.logits(x).argmax(1)
    more = deployment.pair_errors(deployment.centre(x), labels, eps)
    assert more.amax() <= 10 * allowed.amax()


@pytest.mark.parametrize("seed", range(20))
def test_one_long_sum_in_every_order(seed: int) -> None:
    generator = seeded(seed)
    spread = 10 ** (2 * uniform((2, 200), generator) - 1)
    weight = spread * (uniform((2, 200), generator) - 0.5 + 0.5 * (seed % 2))
    builder = NetworkBuilder((1, 200))
    network = builder.build(builder.operator(Dense.of(weight, None, (1, 200)), 0))
    x = uniform((1, 1, 200), generator).float().double()
    labels, eps = network.logits(x).argmax(1), torch.zeros(1, dtype=torch.float64)
    for name in ("float32", "float16", "bfloat16"):
        deployment = Deployment.of(network, arithmetic=FORMATS[name], softmax=False)
        allowed = deployment.pair_errors(deployment.centre(x), labels, eps)
        gaps = [
            margins(deployed_logits(network, x, DTYPES[name], order), labels)
            - margins(network.logits(x), labels)
            for order in ORDERS.values()
        ]
        assert (torch.stack(gaps).abs() <= allowed).all()


def test_the_bound_of_a_sum_is_reached() -> None:
    """Terms just below half a unit in the last place of the first one are lost, one and all."""
    name, unit, terms = "float32", SINGLE.unit, 100
    weight = torch.zeros(2, terms, dtype=torch.float64)
    weight[0] = unit * (1 - 2 * unit)
    weight[0, 0] = 1
    builder = NetworkBuilder((1, terms))
    network = builder.build(builder.operator(Dense.of(weight, None, (1, terms)), 0))
    x = torch.ones(1, 1, terms, dtype=torch.float64)
    labels, eps = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    deployment = Deployment.of(network, arithmetic=FORMATS[name], softmax=False)
    allowed = float(deployment.pair_errors(deployment.centre(x), labels, eps)[0, 1])
    run = deployed_logits(network, x, DTYPES[name], ORDERS["largest first"])
    gap = float((margins(run, labels) - margins(network.logits(x), labels)).abs()[0, 1])
    assert 0.4 * allowed < gap <= allowed


def test_constants_that_cancel_still_round(tmp_path: Path) -> None:
    """``x + 1e8 − 1e8`` in one Sum is not ``x`` in float32."""
    numbers = {"up": 1e8, "down": -1e8}
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "weight")
    graph = helper.make_graph(
        [
            helper.make_node("Sum", ["x", "up", "down"], ["shifted"]),
            helper.make_node("MatMul", ["shifted", "weight"], ["y"]),
        ],
        "cancelling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [weight, *(numpy_helper.from_array(np.float32(v), name) for name, v in numbers.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "cancelling.onnx"
    onnx.save(model, path)
    network = load_model(path).network
    x, labels = torch.tensor([[[0.75, 0.25]]], dtype=torch.float64), torch.tensor([0])
    deployment = Deployment.of(network, arithmetic=SINGLE, softmax=False)
    eps = torch.zeros(1, dtype=torch.float64)
    error = float(deployment.pair_errors(deployment.centre(x), labels, eps)[0, 1])
    shifted = (x.float() + 1e8) - 1e8
    assert float(shifted[0, 0, 0] - shifted[0, 0, 1]) == 0
    assert error > 0.5


@pytest.mark.parametrize("seed", range(12))
def test_folded_batch_norm_is_covered(seed: int) -> None:
    """Layers followed by a shift, a scale and a shift, of any size: run folded, and as they are."""
    generator = seeded(seed)
    builder, node = NetworkBuilder((1, 2, 4, 4)), 0
    for channels in (3, 2):
        shape = builder.shape(node)
        weight = normal((channels, shape[1], 3, 3), generator)
        bias = normal((channels,), generator) if seed % 2 else None
        node = builder.operator(Convolution.of(weight, bias, shape), node)
        shape, size = builder.shape(node), 10.0 ** (seed % 4)
        mean, scale, shift = (normal((channels, 1, 1), generator) for _ in range(3))
        node = builder.operator(Diagonal.of(None, size * mean, shape), node)
        node = builder.operator(Diagonal.of(scale, -size * (scale * mean + shift), shape), node)
        node = builder.activation(clip(0.0, None), node) if channels == 3 else node
        if channels == 3:
            padding = torch.nn.functional.pad(places(builder.shape(node)), (1, 1, 1, 1), value=-1)
            node = builder.operator(Select.of(padding, builder.shape(node)), node)
    flat = places(builder.shape(node)).reshape(1, -1)[:, :4]
    network = builder.build(builder.operator(Select.of(flat, builder.shape(node)), node))
    folded = simplify(network)
    assert len(folded.nodes) < len(network.nodes)
    x, eps = uniform((3, 1, 2, 4, 4), generator), torch.full((3,), 0.01, dtype=torch.float64)
    labels = network.logits(x).argmax(1)
    for name in ("float32", "bfloat16", "float64"):
        deployment = Deployment.of(network, arithmetic=FORMATS[name], softmax=False)
        allowed = deployment.pair_errors(deployment.centre(x), labels, eps)
        real = Deployment.of(network, arithmetic=None, softmax=False)
        analysed = real.pair_errors(real.centre(x), labels, eps)
        for order in ORDERS.values():
            point = in_ball(x, eps * 0.999, generator)
            exact = margins(network.logits(point), labels)
            for deployed in (network, folded):
                run = deployed_logits(deployed, point, DTYPES[name], order)
                assert ((margins(run, labels) - exact).abs() <= allowed + analysed).all()


def test_wide_convolutions_are_certified_too() -> None:
    """Whose norm over all frequencies is not worth its price."""
    generator = seeded(0)
    weight = normal((2, 600, 1, 1), generator) / 600
    builder = NetworkBuilder((1, 600, 1, 1))
    node = builder.operator(Convolution.of(weight, None, (1, 600, 1, 1)), 0)
    network = builder.build(node)
    assert convolution_norm(network.nodes[1].kind) is None
    x = uniform((2, 1, 600, 1, 1), generator)
    labels, eps = network.logits(x).argmax(1), torch.full((2,), 0.1, dtype=torch.float64)
    for arithmetic in (SINGLE, None):
        deployment = Deployment.of(network, arithmetic=arithmetic, softmax=False)
        assert (deployment.pair_errors(deployment.centre(x), labels, eps) < 1e-3).all()
