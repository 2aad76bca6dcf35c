"""Models from torch: both exporters, weights from safetensors, factories."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lipcert
from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import LoadedModel, cross_check, load_model
from lipcert.network import Network, simplify

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (2, 8, 8)


class MaxMin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


class Net(nn.Module):
    """A residual block with MaxMin, batch norm, pooling of both kinds, and clipped ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 4, 5)
        self.sort = MaxMin()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.sort(self.norm(self.first(x)))
        y = y + nn.functional.relu6(self.second(y))
        y = nn.functional.max_pool2d(y, 2, ceil_mode=True)
        y = nn.functional.adaptive_avg_pool2d(y, 2)
        y = nn.functional.leaky_relu(y).clamp(-0.5, 1.5)
        return self.head(self.drop(y.flatten(1)))


def seeded(factory: Any) -> Any:
    torch.manual_seed(0)
    net = factory()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def exported(net: nn.Module, path: Path, *, dynamo: bool, **options: Any) -> Path:
    torch.onnx.export(net, (torch.zeros(1, *SHAPE),), path, dynamo=dynamo, verbose=False, **options)
    return path


def assert_same(model: LoadedModel, net: nn.Module) -> Network:
    x = torch.rand(6, *SHAPE)
    with torch.no_grad():
        expected = net(x).double()
    for network in (model.network, simplify(model.network)):
        assert (network.logits(x.double()) - expected).abs().max() < 1e-5
    assert cross_check(model, model.network, x.numpy()[:, None]).max_relative_difference < 1e-5
    return simplify(model.network)


EXPORTERS: dict[str, dict[str, Any]] = {
    "dynamo": {"dynamo": True},
    "dynamo-external": {"dynamo": True, "external_data": True},
    "legacy": {"dynamo": False, "opset_version": 17},
    "legacy-old": {"dynamo": False, "opset_version": 11},
    "legacy-batch": {
        "dynamo": False, "opset_version": 17,
        "input_names": ["x"], "dynamic_axes": {"x": {0: "N"}},
    },
}  # fmt: skip


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_torch_exports_is_read(exporter: str, tmp_path: Path) -> None:
    net = seeded(Net)
    path = exported(net, tmp_path / "net.onnx", **EXPORTERS[exporter])
    simple = assert_same(load_model(path), net)
    kinds = [type(node.kind).__name__ for node in simple.nodes]
    assert kinds.count("MaxMin") == 1
    # The residual sum alone: MaxMin's parts have become whole.
    assert kinds.count("Sum") == 1


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    net = seeded(Net)
    path = exported(net, tmp_path / "net.onnx", dynamo=True)
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="net.data", size_threshold=0
    )
    model = load_model(path)
    assert set(model.files) == {"net.onnx", "net.data"}
    assert_same(model, net)
    (tmp_path / "net.data").write_bytes(b"short")
    with pytest.raises(CannotCertify, match=r"'net\.data' ends before its data"):
        load_model(path)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def test_module_paths_are_told(tmp_path: Path) -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(8, 8), Sine())

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x).flatten(1)  # type: ignore[no-any-return]

    path = exported(seeded(Bad), tmp_path / "bad.onnx", dynamo=True)
    with pytest.raises(CannotCertify, match=r"Sin-7 at block\.1 / node_sin: "):
        load_model(path)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Linear(128, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(x.flatten(1)).relu())  # type: ignore[no-any-return]


def test_what_the_exporter_leaves_unoptimised_is_read(tmp_path: Path) -> None:
    net = seeded(Small)
    path = exported(net, tmp_path / "net.onnx", dynamo=True, optimize=False)
    assert_same(load_model(path), net)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return exported(seeded(Small), tmp_path / "small.onnx", dynamo=True)


def other() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return dict(Small().state_dict())


def saved(tensors: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def test_weights_replace_those_of_the_file(small: Path, tmp_path: Path) -> None:
    net = Small().eval()
    net.load_state_dict(other())
    counter = {"norm.num_batches_tracked": torch.tensor(3)}
    model = load_model(small, weights=saved(other() | counter, tmp_path))
    assert_same(model, net)
    assert set(model.files) == {"small.onnx", "small.onnx.data", "weights.safetensors"}
    assert len(model.files["weights.safetensors"]) == 64


def test_weights_that_do_not_fit_are_all_listed(small: Path, tmp_path: Path) -> None:
    tensors = other()
    del tensors["flat.bias"]
    tensors["head.weight"] = torch.zeros(3, 7)
    tensors["head.bias"] = tensors["head.bias"].double()
    tensors["extra"] = torch.zeros(2)
    with pytest.raises(CannotCertify) as refusal:
        load_model(small, weights=saved(tensors, tmp_path))
    told = str(refusal.value)
    assert told.startswith("weights.safetensors does not fit small.onnx: ")
    assert told.count("; ") == 4
    assert "\n" not in told
    assert "missing: 'flat.bias' [6]" in told
    assert "not a parameter of the model: 'extra' [2]" in told
    assert "'head.weight' is [3, 7], expected [3, 6]" in told
    assert "'head.bias' has type torch.float64, expected torch.float32" in told


def test_weights_that_are_not_finite_are_refused(small: Path, tmp_path: Path) -> None:
    tensors = other()
    tensors["head.bias"][1] = torch.inf
    with pytest.raises(CannotCertify, match=r"'head\.bias' has values that are not finite"):
        load_model(small, weights=saved(tensors, tmp_path))


def header(content: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        struct.pack("<Q", 2**60) + b"{}",
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}, b"1234"),
    ],
)
def test_lying_weights_are_refused(small: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(CannotCertify, match=r"weights\.safetensors: not a safetensors file"):
        load_model(small, weights=path)


FACTORY = """
import torch
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )

def broken():
    raise KeyError("no such layer")

def leaves():
    raise SystemExit(0)

def number():
    return 3
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with a module of factories and the weights of one."""
    (tmp_path / "own_factories.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_factories", raising=False)
    spec = importlib.util.spec_from_file_location("factories", tmp_path / "own_factories.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return saved(seeded(module.build).state_dict(), tmp_path)


def test_a_factory_gives_the_model(factory: Path) -> None:
    model = load_model(factory, arch="own_factories:build", input_shape=SHAPE)
    net = sys.modules["own_factories"].build().eval()
    net.load_state_dict(load_file(factory))
    assert_same(model, net)
    assert model.format == "safetensors+arch"
    assert set(model.files) == {"weights.safetensors"}
    assert str(Path.cwd()) not in sys.path


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("own_factories:broken", "own_factories:broken: KeyError: 'no such layer'"),
        ("own_factories:leaves", "own_factories:leaves: SystemExit"),
        ("own_factories:number", "returns a int, not a torch.nn.Module"),
        ("own_factories:absent", "AttributeError"),
        ("no_such_module:build", "ModuleNotFoundError"),
        ("own_factories", "expected package.module:factory"),
        (":build", "expected package.module:factory"),
    ],
)
def test_what_goes_wrong_in_a_factory_is_told(factory: Path, arch: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_model(factory, arch=arch, input_shape=SHAPE)


def test_a_factory_whose_weights_differ_is_refused(factory: Path) -> None:
    saved({"0.weight": torch.zeros(1), "other": torch.zeros(1)}, factory.parent)
    with pytest.raises(CannotCertify) as refusal:
        load_model(factory, arch="own_factories:build", input_shape=SHAPE)
    told = str(refusal.value)
    assert "'0.weight' is [1], expected [4, 2, 3, 3]" in told
    assert "missing: '4.bias' [3]" in told
    assert "'other'" in told


def test_an_export_that_differs_from_the_module_is_refused(
    factory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = torch.onnx.export

    def wrong(module: nn.Module, *args: Any, **options: Any) -> Any:
        with torch.no_grad():
            module[0].bias += 1  # type: ignore[index,operator]
        program = export(module, *args, **options)
        with torch.no_grad():
            module[0].bias -= 1  # type: ignore[index,operator]
        return program

    monkeypatch.setattr(torch.onnx, "export", wrong)
    with pytest.raises(CannotCertify, match="the exported model differs from the module"):
        load_model(factory, arch="own_factories:build", input_shape=SHAPE)


def test_options_that_do_not_fit_are_wrong_use(factory: Path, small: Path) -> None:
    with pytest.raises(UsageError, match="add the factory"):
        load_model(factory)
    with pytest.raises(UsageError, match="add the factory"):
        load_model(factory, arch="own_factories:build")
    with pytest.raises(UsageError, match=r"goes with a \.safetensors file"):
        load_model(small, arch="own_factories:build", input_shape=SHAPE)
    with pytest.raises(UsageError, match="holds the weights already"):
        load_model(factory, weights=factory, arch="own_factories:build", input_shape=SHAPE)
    with pytest.raises(UsageError, match=r"does not take \[1, 3, 8, 8\]"):
        load_model(factory, arch="own_factories:build", input_shape=(3, 8, 8))
    with pytest.raises(UsageError, match="no such file"):
        load_model(small, weights=small.parent / "none.safetensors")


def test_logits_agree_in_float64_to_the_last_digits(small: Path) -> None:
    """The weights of the file arrive unrounded: float64 against float64."""
    net = seeded(Small).double()
    x = torch.rand(5, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        difference = load_model(small).network.logits(x) - net(x)
    assert float(np.abs(difference.numpy()).max()) < 1e-14


def test_a_module_is_loaded_as_it_is_and_left_so():
    net = seeded(Net)
    net.train()
    model = lipcert.load(net, example_input=torch.zeros(1, *SHAPE, requires_grad=True))
    assert net.training
    assert model.name == "Net"
    assert re.fullmatch(r"[0-9a-f]{64}", model.loaded.files["Net"])
    net.eval()
    x = torch.rand(3, *SHAPE)
    with torch.no_grad():
        expected = net(x).double()
    found = model.loaded.network.logits(x[:, None].double())
    assert torch.allclose(found.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        ({}, "example_input: give one .*torch.zeros"),
        ({"example_input": torch.zeros(*SHAPE)}, "example_input: has the shape .*batch axis"),
        ({"example_input": torch.zeros(1, 3, 8, 8)}, "does not take"),
        ({"example_input": torch.zeros(1, *SHAPE), "arch": "a:b"}, "arch: goes with a file"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_told_by_its_argument(arguments, fix):
    with pytest.raises(UsageError, match=fix):
        lipcert.load(seeded(Net), **arguments)


def test_a_module_of_another_type_and_an_example_without_one_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"float64; give module\.float\(\)"):
        lipcert.load(seeded(Net).double(), example_input=torch.zeros(1, *SHAPE))
    with pytest.raises(UsageError, match="example_input: goes with a"):
        lipcert.load("model.onnx", example_input=torch.zeros(1, *SHAPE))
