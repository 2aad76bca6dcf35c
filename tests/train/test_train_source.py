"""Networks from scratch, weights for them, and where thresholds start."""

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import numpy_helper
from train_models import GRAPHS, SHAPE, graph, recipe, rewritten, run

from lipcert.data import Dataset
from lipcert.errors import CannotCertify, UsageError
from lipcert.loading.architectures import build
from lipcert.network import segments
from lipcert.network.operators import Convolution, Dense
from lipcert.run import Preprocessing
from lipcert.train.objective import Objective
from lipcert.train.source import make_trainable, open_source
from lipcert.train.thresholds import start_thresholds
from lipcert.train.trainable import Trainable


def data(shape=(1, 28, 28), count=40):
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return Dataset("made-up", "train", images, np.arange(count) % 10, 10, "made-up")


# The sizes of the published networks: outputs of the convolutions, inputs of the first dense layer.
PUBLISHED = {
    "4c3f": ((1, 28, 28), [32, 32, 64, 64], 64 * 7 * 7, 3),
    "6c2f": ((3, 32, 32), [32, 32, 32, 64, 64, 64], 64 * 8 * 8, 2),
    "8c2f": ((3, 64, 64), [64, 64, 64, 128, 128, 128, 256, 256], 256 * 6 * 6, 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks(name):
    shape, outputs, inputs, dense = PUBLISHED[name]
    model = build(name, shape, 10, seed=1)
    onnx.checker.check_model(model, full_check=True)
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    found = [size[0] for key, size in weights.items() if "conv" in key and key.endswith("weight")]
    assert found == outputs
    assert weights["dense1.weight"][1] == inputs
    assert sum(key.endswith("weight") for key in weights) == len(outputs) + dense
    x = torch.rand(2, *shape)
    assert run(model, x).shape == (2, 10)
    assert build(name, shape, 10, seed=1) == model != build(name, shape, 10, seed=2)


def test_a_linear_residual_block_is_one_map_whose_norm_is_trained():
    """Between two activations stands ``x + W ∗ x``: no sum, and no norm of its parts."""
    asked = recipe(bound="global", loss="gloro", activation="maxmin", sparsity=0.0, batch_size=8)
    source = open_source(None, None, "liresnet", Preprocessing(), data((3, 32, 32)), 1)
    made, _ = make_trainable(source.model, asked, data((3, 32, 32)))
    network = made.network()
    # The stem, five blocks and the dense layer; none left as a ReLU.
    assert len(network.activations) == 7
    assert sum(binding.parameter.startswith("block") for binding in made.bindings) == 10
    objective = Objective(made, asked)
    # One segment in front of each activation, residual or not; the logits have their rows.
    assert len(objective.norms.whole_vectors) == 7
    pixels, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    loss, _ = objective(pixels, labels, 0.1, 0.0)
    loss.backward()
    assert all(bool(tensor.grad.abs().max() > 0) for tensor in made.tensors)
    # What training believes of a block is what power iteration finds of x + W ∗ x.
    [edge] = segments(network, network.nodes[network.activations[1]].inputs[0])
    by_name = dict(zip(made.names, made.tensors, strict=True))
    with torch.no_grad():
        v = torch.randn(1, 96, 8, 8)
        for _ in range(60):
            weight = by_name["block1.weight"]
            u = v + torch.nn.functional.conv2d(v, weight, padding=1)
            v = u + torch.nn.functional.conv_transpose2d(u, weight, padding=1)
            v = v / v.norm()
        found = float((v + torch.nn.functional.conv2d(v, weight, padding=1)).norm())
        believed = float(objective.norms.eval().whole(edge))
    assert believed == pytest.approx(found, rel=0.03)
    assert believed <= found * (1 + 1e-4)


def test_names_and_images_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="4c3f, 6c2f, 8c2f"):
        build("5c1f", (1, 28, 28), 10, 0)
    with pytest.raises(UsageError, match="too small"):
        build("8c2f", (3, 16, 16), 10, 0)
    with pytest.raises(UsageError, match=r"takes images \(C, H, W\)"):
        build("4c3f", (784,), 10, 0)
    with pytest.raises(UsageError, match="--arch"):
        open_source(None, None, None, Preprocessing(), data(), 0)


def test_weights_for_a_named_architecture(tmp_path):
    made = build("4c3f", (1, 28, 28), 10, seed=5)
    tensors = {t.name: numpy_helper.to_array(t).copy() for t in made.graph.initializer}
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(tensors, path)
    source = open_source(path, None, "4c3f", Preprocessing(), data(), seed=0)
    assert source.pretrained
    x = torch.rand(3, 1, 28, 28)
    found = source.model.loaded.network.logits(x.double())
    assert torch.allclose(found.float(), run(made, x), atol=1e-5)
    assert not open_source(None, None, "4c3f", Preprocessing(), data(), seed=0).pretrained
    del tensors["conv1.bias"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(CannotCertify, match=r"missing: 'conv1\.bias'"):
        open_source(path, None, "4c3f", Preprocessing(), data(), seed=0)
    with pytest.raises(UsageError, match=r"from a \.safetensors file or a state dict"):
        open_source(tmp_path / "model.onnx", None, "4c3f", Preprocessing(), data(), seed=0)
    with pytest.raises(UsageError, match="leave out"):
        open_source(path, path, "4c3f", Preprocessing(), data(), seed=0)
    with pytest.raises(UsageError, match="one output"):
        open_source(path, None, "4c3f", Preprocessing(), data(), 0, "logits")


@pytest.mark.parametrize(
    ("prefix", "key"),
    [("", None), ("module.", "state_dict"), ("model.", "net"), ("module._orig_mod.", "model")],
)
def test_a_state_dict_for_a_named_architecture(tmp_path, prefix, key):
    made = build("4c3f", (1, 8, 8), 10, seed=5)
    numbers = {
        prefix + t.name: torch.from_numpy(numpy_helper.to_array(t) / 2)
        for t in made.graph.initializer
    }
    path = tmp_path / "weights.pt"
    torch.save(numbers if key is None else {key: numbers, "epoch": 3}, path)
    source = open_source(path, None, "4c3f", Preprocessing(), data((1, 8, 8)), seed=0)
    for tensor in made.graph.initializer:
        half = numpy_helper.to_array(tensor) / 2
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    x = torch.rand(2, 1, 8, 8)
    found = source.model.loaded.network.logits(x.double())
    assert torch.allclose(found.float(), run(made, x), atol=1e-5)


def test_preprocessing_is_in_front_and_not_in_the_file():
    source = open_source(None, None, "4c3f", Preprocessing((0.3,), (0.5,)), data(), seed=0)
    made, _ = make_trainable(source.model, recipe(activation="keep"), data())
    pixels = torch.rand(3, 1, 28, 28)
    inputs, logits = made.input_and_logits(pixels)
    assert torch.allclose(inputs.squeeze(1), (pixels - 0.3) / 0.5, atol=1e-6)
    exported = made.exported(made.weights())
    assert torch.allclose(run(exported, (pixels - 0.3) / 0.5), logits, atol=1e-5)
    assert torch.allclose(made(pixels), logits, atol=1e-5)


@pytest.mark.parametrize("sharing", ["neuron", "channel"])
def test_thresholds_start_at_a_percentile_of_the_activations(sharing):
    found = rewritten(GRAPHS["conv"], "clipped", sharing)
    made = Trainable(found.model, "model.onnx", lambda network: network)
    pixels = torch.rand(301, *SHAPE, generator=torch.Generator().manual_seed(1))
    before = made(pixels)
    values = made.template.values(pixels)
    start_thresholds(made, found.thresholds, pixels, 90.0)
    weights = made.weights()
    for binding in made.bindings:
        if binding.parameter not in found.thresholds:
            continue
        seen = values[made.template.nodes[binding.node].inputs[0]].flatten(0, 1)
        theta = weights[binding.parameter]
        above = (seen > theta).float()
        if sharing == "channel" and seen.dim() == 4:
            share = above.mean(dim=(0, 2, 3))
        else:
            share = above.mean(0)
        # Neurons that hardly fire keep a threshold above 0.
        assert bool((theta > 0).all())
        assert bool((share <= 0.105).all())
        assert float(share.max()) >= 0.09
    changed = made(pixels)
    assert not torch.allclose(changed, before)
    start_thresholds(made, (), pixels, 90.0)
    assert torch.equal(made(pixels), changed)
    # Nothing is computed where nothing starts: it does without the network.
    made.template = None
    start_thresholds(made, (), pixels, 90.0)


def test_at_the_highest_percentile_nothing_changes():
    found = rewritten(GRAPHS["residual"], "clipped")
    made = Trainable(found.model, "model.onnx", lambda network: network)
    pixels = torch.rand(100, *SHAPE, generator=torch.Generator().manual_seed(1))
    before = made(pixels)
    start_thresholds(made, found.thresholds, pixels, 100.0)
    assert torch.allclose(made(pixels), before, atol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_from_scratch_start_with_no_large_norm(name):
    """As operators, borders included, by power iteration; dense ones are exactly that large."""
    network = open_source(
        None, None, name, Preprocessing(), data(PUBLISHED[name][0]), seed=2
    ).model.loaded.network
    for node in network.nodes:
        if not isinstance(node.kind, Convolution | Dense):
            continue
        v = torch.randn(1, *node.kind.in_shape, dtype=torch.float64)
        for _ in range(20):
            v = node.kind.transpose(node.kind.apply(v / v.norm()))
        norm = float(v.norm().sqrt())
        assert norm <= 1.5 + 1e-6
        if isinstance(node.kind, Dense):
            assert norm == pytest.approx(1.5, rel=1e-6)


def test_a_network_with_joints_is_refused_before_it_is_trained(tmp_path):
    gate = [
        ("Flatten", "x", "f", {}),
        ("Gemm", "f a.w a.b", "a", {"transB": 1}),
        ("Gemm", "f b.w b.b", "b", {"transB": 1}),
        ("Mul", "a b", "y", {}),
    ]
    tensors = {"a.w": (3, 72), "a.b": (3,), "b.w": (3, 72), "b.b": (3,)}
    onnx.save(graph(gate, tensors, SHAPE), tmp_path / "gate.onnx")
    source = open_source(tmp_path / "gate.onnx", None, None, Preprocessing(), data(SHAPE), 0)
    with pytest.raises(CannotCertify, match=r"gate.onnx: cannot be fine-tuned: .*Product at"):
        make_trainable(source.model, recipe(activation="keep"), data(SHAPE))
