"""The ends of classifiers: one score a class is left, whatever an exporter put behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lipcert.certification import Certifier
from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import DeployedFile, LoadedModel, cross_check, inspect_operators, load_model
from lipcert.loading.model import affordable
from lipcert.options import Epsilon, Options

CLASSES = 4


def write(
    path: Path, *tail: Any, outputs: Any, classes: int = CLASSES, scale: float = 1.0,
    opset: int = 17, **extra: Any,
) -> Path:  # fmt: skip
    """A layer of 6 inputs whose result is ``z``, then the tail: (operator, inputs, outputs, …)."""
    rng = np.random.default_rng(3)
    weights = {"w": scale * rng.standard_normal((classes, 6)), "b": rng.standard_normal(classes)}
    tensors = {k: v.astype(np.float32) for k, v in weights.items()} | extra
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1)]
    for kind, given, made, *rest in tail:
        attributes = dict(rest[0]) if rest else {}
        domain = attributes.pop("domain", "")
        nodes.append(
            helper.make_node(kind, given.split(), made.split(), domain=domain, **attributes)
        )
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


F, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
ONE = np.array([1])
TAILS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "argmax": ([("ArgMax", "z", "y", {"axis": 1})], [("y", INT, ["N", 1])], {}),
    "argmax of a softmax": (
        [("Softmax", "z", "p"), ("ArgMax", "p", "y", {"axis": -1, "keepdims": 0})],
        [("y", INT, ["N"])], {},
    ),
    "top k": ([("TopK", "z k", "v y")], [("y", INT, ["N", 3])], {"k": np.array([3])}),
    "top k, both": (
        [("TopK", "z k", "v y")], [("v", F, ["N", 1]), ("y", INT, ["N", 1])], {"k": ONE},
    ),
    "the largest alone": ([("TopK", "z k", "v y")], [("v", F, ["N", 1])], {"k": ONE}),
    "names of classes": (
        [("ArgMax", "z", "a", {"axis": 1, "keepdims": 0}), ("Gather", "names a", "y")],
        [("y", INT, ["N"])], {"names": np.arange(CLASSES)},
    ),
    "argmax beside the softmax": (
        [("Softmax", "z", "p"), ("ArgMax", "z", "y", {"axis": 1})],
        [("y", INT, ["N", 1]), ("p", F, ["N", CLASSES])], {},
    ),
    "one-hot": ([("Hardmax", "z", "y", {"axis": 1})], [("y", F, ["N", CLASSES])], {}),
    "marked": (
        [("ReduceMax", "z", "m", {"axes": [1]}), ("Equal", "z m", "y")],
        [("y", BOOL, ["N", CLASSES])], {},
    ),
    "marked, at least": (
        [("ReduceMax", "z", "m", {"axes": [-1]}), ("GreaterOrEqual", "z m", "y")],
        [("y", BOOL, ["N", CLASSES])], {},
    ),
    "class and confidence": (
        [
            ("Softmax", "z", "p"), ("ReduceMax", "p", "v", {"axes": [1], "keepdims": 0}),
            ("ArgMax", "p", "y", {"axis": 1}),
        ],
        [("y", INT, ["N", 1]), ("v", F, ["N"])], {},
    ),
    "logarithm of a softmax": (
        [("Softmax", "z", "p"), ("Log", "p", "y")], [("y", F, ["N", CLASSES])], {},
    ),
    "above one half": (
        [("Softmax", "z", "p"), ("Greater", "p t", "y")],
        [("y", BOOL, ["N", CLASSES])], {"t": np.float32(0.5)},
    ),
    "rounded": (
        [("Sigmoid", "z", "p"), ("Round", "p", "y")], [("y", F, ["N", CLASSES])], {},
    ),
    "scikit-learn": (
        [
            ("Softmax", "z", "p", {"axis": 1}), ("ArgMax", "p", "a", {"axis": 1}),
            ("ArrayFeatureExtractor", "names a", "n", {"domain": "ai.onnx.ml"}),
            ("Reshape", "n minus", "y"),
        ],
        [("y", INT, ["N"]), ("p", F, ["N", CLASSES])],
        {"names": np.arange(CLASSES), "minus": np.array([-1])},
    ),
}  # fmt: skip


def pixels(count: int = 16) -> Any:
    return np.random.default_rng(0).random((count, 6)).astype(np.float32)


@pytest.mark.parametrize("tail", TAILS)
def test_a_decision_at_the_end_is_cut_off(tmp_path: Path, tail: str) -> None:
    nodes, outputs, extra = TAILS[tail]
    model = load_model(write(tmp_path / "m.onnx", *nodes, outputs=outputs, **extra))
    assert model.network.classes == CLASSES
    assert cross_check(model, model.network, pixels()[:, None]).samples == 16
    assert any("cut off" in note for note in model.notes)
    rows = [row for row in inspect_operators(tmp_path / "m.onnx") if "cut off" in row.note]
    assert rows
    assert all(row.supported for row in rows)


def test_a_zip_map_is_cut_off(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx", ("Softmax", "z", "p"),
        ("ZipMap", "p", "y", {"domain": "ai.onnx.ml", "classlabels_int64s": [0, 1, 2, 3]}),
        outputs=[],
    )  # fmt: skip
    whole = onnx.load(path)
    key = helper.make_map_type_proto(INT, helper.make_tensor_type_proto(F, None))
    whole.graph.output.append(
        helper.make_value_info("y", helper.make_sequence_type_proto(key))
    )  # fmt: skip
    onnx.save(whole, path)
    model = load_model(path)
    assert (model.stripped, model.output_name) == ("Softmax", "p")
    assert "ZipMap" in model.notes[0]


HALF = np.float32(0.5)
THIRD = np.float32(0.3)
DECISIONS: dict[str, tuple[Any, Any]] = {
    "above": ([("Sigmoid", "z", "p"), ("Greater", "p t", "y")], {"t": HALF}),
    "at least": ([("Sigmoid", "z", "p"), ("GreaterOrEqual", "p t", "y")], {"t": HALF}),
    "threshold first": ([("Sigmoid", "z", "p"), ("Less", "t p", "y")], {"t": HALF}),
    "cast": (
        [("Sigmoid", "z", "p"), ("Greater", "p t", "c"), ("Cast", "c", "y", {"to": INT})],
        {"t": THIRD},
    ),
    "not below": (
        [("Sigmoid", "z", "p"), ("Less", "p t", "c"), ("Not", "c", "y")], {"t": THIRD},
    ),
    "below": ([("Sigmoid", "z", "p"), ("Less", "p t", "y")], {"t": THIRD}),
    "below, of a logit": ([("LessOrEqual", "z t", "y")], {"t": np.float32(0.2)}),
    "a logit": ([("Greater", "z t", "y")], {"t": np.float32([0.2])}),
    "rounded": ([("Sigmoid", "z", "p"), ("Round", "p", "y")], {}),
    "sign": ([("Sign", "z", "y")], {}),
    "chosen": (
        [("Sigmoid", "z", "p"), ("Greater", "p t", "c"), ("Where", "c one zero", "y")],
        {"t": THIRD, "one": np.int64(1), "zero": np.int64(0)},
    ),
    "chosen the other way": (
        [("Greater", "z t", "c"), ("Where", "c zero one", "y")],
        {"t": np.float32(-0.1), "one": np.int64(1), "zero": np.int64(0)},
    ),
    "chosen names": (
        [("Greater", "z t", "c"), ("Where", "c one zero", "y")],
        {"t": np.float32(-0.1), "one": np.array("spam", object), "zero": np.array("ham", object)},
    ),
    "flat": (
        [("Sigmoid", "z", "p"), ("Reshape", "p s", "q"), ("Greater", "q t", "y")],
        {"t": HALF, "s": np.array([-1])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("decision", DECISIONS)
def test_the_two_classes_are_those_that_the_file_decides_on(tmp_path: Path, decision: str) -> None:
    """The file as it is, run whole, against the classes that are certified."""
    nodes, extra = DECISIONS[decision]
    text = any(np.asarray(value).dtype == object for value in extra.values())
    kind = {"Cast": INT, "Round": F, "Sign": F, "Where": TensorProto.STRING if text else INT}
    output = "y", kind.get(nodes[-1][0], BOOL), ["N"] if decision == "flat" else ["N", 1]
    path = write(tmp_path / "m.onnx", *nodes, classes=1, outputs=[output], **extra)
    model = load_model(path)
    assert model.network.classes == 2
    assert any("cut off" in note for note in model.notes)
    assert any("class 1 where it is" in note for note in model.notes)
    images = 3 * np.random.default_rng(1).standard_normal((200, 6)).astype(np.float32)
    cross_check(model, model.network, images[:16, None])
    ours = model.network.logits(torch.from_numpy(images[:, None]).double()).argmax(1).numpy()
    session = onnxruntime.InferenceSession(path)
    said = session.run(None, {"x": images})[0].reshape(-1)
    high = "spam" if said.dtype == object else max(said)
    assert (ours == (said == high)).all()
    assert set(ours) == {0, 1}
    file = DeployedFile(model, model.network)(images[:, None])
    assert (file.argmax(1) == ours).all()


def test_scores_that_are_marked_one_by_one_are_said_to_be(tmp_path: Path) -> None:
    tail = [("Softmax", "z", "p"), ("Greater", "p t", "y")]
    path = write(tmp_path / "m.onnx", *tail, outputs=[("y", BOOL, ["N", 4])], t=HALF)
    notes = load_model(path).notes
    assert any("not on which side of 0.5" in note for note in notes)
    # Of two classes the larger share is above one half.
    path = write(tmp_path / "m.onnx", *tail, outputs=[("y", BOOL, ["N", 2])], classes=2, t=HALF)
    assert not any("not on which side" in note for note in load_model(path).notes)
    tail = [("Softmax", "z", "p"), ("Less", "p t", "y")]
    path = write(tmp_path / "m.onnx", *tail, outputs=[("y", BOOL, ["N", 4])], t=HALF)
    with pytest.raises(CannotCertify, match="marks scores that are small"):
        load_model(path)


def test_a_maximum_at_the_end_is_a_layer(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx", ("Reshape", "z s", "r"),
        ("ReduceMax", "r", "y", {"axes": [2], "keepdims": 0}),
        outputs=[("y", F, ["N", 2])], s=np.array([-1, 2, 2]),
    )  # fmt: skip
    model = load_model(path)
    assert (model.network.classes, model.notes) == (2, ())


@pytest.mark.parametrize("axis", [0, 2])
def test_a_decision_that_is_not_among_all_classes_is_refused(tmp_path: Path, axis: int) -> None:
    path = write(
        tmp_path / "m.onnx", ("Reshape", "z s", "r"), ("ArgMax", "r", "y", {"axis": axis}),
        outputs=[("y", INT, ["a", "b", "c"])], s=np.array([-1, 2, 2]),
    )  # fmt: skip
    with pytest.raises(CannotCertify, match="ArgMax"):
        load_model(path)


def test_the_smallest_is_not_the_largest(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx", ("ArgMin", "z", "y", {"axis": 1}), outputs=[("y", INT, ["N", 1])]
    )
    with pytest.raises(CannotCertify, match="ArgMin"):
        load_model(path)


def test_one_of_several_outputs_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx", ("Relu", "z", "y"), outputs=[("z", F, ["N", 4]), ("y", F, ["N", 4])]
    )
    with pytest.raises(CannotCertify, match=r"2 outputs \(z, y\).*--output-name"):
        load_model(path)
    assert len(load_model(path, output="z").network.nodes) < len(
        load_model(path, output="y").network.nodes
    )
    with pytest.raises(UsageError, match="no output 'v'; it has z, y"):
        load_model(path, output="v")
    # What an audit runs is the same.
    assert [v.name for v in affordable(onnx.load(path), "m", "y")[0].graph.output] == ["y"]


@pytest.mark.parametrize("opset", [9, 11, 17, 20])
@pytest.mark.parametrize("shape", ["column", "flat"])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_score_becomes_two_classes(
    tmp_path: Path, sigmoid: bool, shape: str, opset: int
) -> None:
    tail: list[Any] = [("Sigmoid", "z", "p")] if sigmoid else [("Identity", "z", "p")]
    extra = {} if shape == "column" else {"s": np.array([-1])}
    tail += [("Reshape", "p s", "y")] if extra else [("Identity", "p", "y")]
    path = write(
        tmp_path / "m.onnx", *tail, outputs=[("y", F, ["N", 1][: 1 if extra else 2])], classes=1,
        opset=opset, **extra,
    )  # fmt: skip
    model = load_model(path)
    assert model.network.classes == 2
    assert model.stripped == ("Sigmoid" if sigmoid else None)
    assert any(f"class 1 where it is above {0.5 if sigmoid else 0}," in n for n in model.notes)
    images = 3 * np.random.default_rng(1).standard_normal((64, 6)).astype(np.float32)
    cross_check(model, model.network, images[:, None])
    values = torch.from_numpy(images[:, None]).double()
    ours = model.network.logits(values).argmax(1).numpy()
    file = DeployedFile(model, model.network)(images[:, None])
    assert (file.argmax(1) == ours).all()
    assert set(ours) == {0, 1}
    if sigmoid:
        assert (file[:, 0] == 0.5).all()


def certified_radius(model: LoadedModel, image: Any, label: int, eps: str) -> float:
    options = Options(eps=(Epsilon.parse(eps),), norms="deterministic")
    certifier = Certifier(
        model.network, options, samples=1, softmax=model.stripped is not None,
        file=DeployedFile(model, model.network),
    )  # fmt: skip
    pixels = torch.from_numpy(image[None, None]).double()
    [sample] = certifier(pixels, torch.tensor([label]), [0])
    assert sample.verdict != "error", sample.message
    return sample.radius


def test_a_tie_of_two_classes_is_not_certified(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", outputs=[("z", F, ["N", 1])], classes=1, scale=0.0)
    whole = onnx.load(path)
    whole.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), "b"))
    onnx.save(whole, path)
    model = load_model(path)
    for label in (0, 1):
        assert certified_radius(model, pixels(1)[0], label, "0.01") == 0


@pytest.mark.parametrize("offset", [0.0, 30.0, -30.0, -120.0])
def test_logits_that_a_sigmoid_makes_ties_of_are_not_certified(
    tmp_path: Path, offset: float
) -> None:
    """Margins of these logits are far above what rounds; the file gives ties all the same."""
    path = write(
        tmp_path / "m.onnx", ("Sum", "z o", "s"), ("Sigmoid", "s", "y"),
        outputs=[("y", F, ["N", CLASSES])], o=np.float32(offset) * np.ones(CLASSES, np.float32),
    )  # fmt: skip
    model = load_model(path)
    assert model.stripped == "Sigmoid"
    image = pixels(1)[0]
    values = model.network.logits(torch.from_numpy(image[None, None]).double())[0]
    label = int(values.argmax())
    top = values.topk(2).values
    assert float(top[0] - top[1]) > 0.3
    radius = certified_radius(model, image, label, "0.01")
    file = DeployedFile(model, model.network)(image[None, None])[0]
    tied = np.sort(file)[-1] - np.sort(file)[-2] < 1e-7
    assert tied == (offset != 0)
    assert (radius > 0) == (offset == 0)


@pytest.mark.parametrize("seed", range(4))
def test_no_tie_of_a_sigmoid_lies_within_a_radius(tmp_path: Path, seed: int) -> None:
    """Near where the sigmoid saturates: points inside the certified radius, run by the file."""
    rng = np.random.default_rng(seed)
    path = write(
        tmp_path / "m.onnx", ("Sum", "z o", "s"), ("Sigmoid", "s", "y"), scale=4.0,
        outputs=[("y", F, ["N", CLASSES])],
        o=(rng.uniform(6, 12) * np.ones(CLASSES)).astype(np.float32),
    )  # fmt: skip
    model = load_model(path)
    file = DeployedFile(model, model.network)
    found = 0
    for image in rng.random((6, 6)).astype(np.float32):
        label = int(file(image[None, None]).argmax())
        radius = certified_radius(model, image, label, "0.2")
        way = rng.standard_normal((400, 6))
        way *= 0.9999 * radius / np.linalg.norm(way, axis=1, keepdims=True)
        answers = file((image + way).astype(np.float32)[:, None])
        others = np.delete(answers, label, axis=1).max(1)
        assert radius == 0 or (answers[:, label] > others).all()
        found += radius > 0
    assert found or seed


def test_the_logits_are_compared_before_a_softmax_hides_them(tmp_path: Path) -> None:
    """A softmax of logits that lie far apart is 0 and 1, whatever they are."""
    path = write(tmp_path / "m.onnx", ("Softmax", "z", "y"), outputs=[("y", F, ["N", 4])],
                 scale=1e4)  # fmt: skip
    model = load_model(path)
    wrong = load_model(
        write(tmp_path / "w.onnx", ("Softmax", "z", "y"), outputs=[("y", F, ["N", 4])], scale=1.1e4)
    )
    cross_check(model, model.network, pixels()[:, None])
    with pytest.raises(CannotCertify, match="the logits differ from onnxruntime's"):
        cross_check(model, wrong.network, pixels()[:, None])


def test_a_scaler_of_scikit_learn_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = write(
        tmp_path / "m.onnx",
        ("Scaler", "z", "y", {"domain": "ai.onnx.ml", "offset": rng.random(4).tolist(),
                              "scale": rng.random(4).tolist()}),
        outputs=[("y", F, ["N", 4])],
    )  # fmt: skip
    model = load_model(path)
    check = cross_check(model, model.network, pixels()[:, None])
    assert check.max_relative_difference < 1e-5
