"""The K best, some of the classes, probabilities: from the command line to an audit and a gate."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from cli.test_cli_end_to_end import save_model
from forging import claimed, opened, refit, save
from onnx import TensorProto, helper, numpy_helper

import lipcert
from lipcert.cli.main import main
from lipcert.data import load_dataset
from lipcert.errors import CannotCertify, UsageError
from lipcert.records import read

Record = dict[str, Any]
DIGITS = Path(__file__).parents[2] / "examples" / "digits.onnx"
CHOSEN = [0, 10, 29, 50, 2, 1, 5, 8]
RUN = ("--data", "some.npz", "--data-layout", "nchw", "--effort", "fast", "--allow-implausible",
       "--workers", "1", "--quiet")  # fmt: skip
HEADS = {
    "plain": ["--eps", "0.1,0.7"],
    "top": ["--eps", "0.1,0.7", "--top-k", "3"],
    "only": ["--eps", "0.1,0.7", "--only-classes", "0,2-4,8"],
    "margin": ["--eps", "0.1,0.7", "--margin", "0.6"],
}
CLAIMS = {
    "top": "the label stays among the 3 best",
    "only": "the label stays the best of the 5 classes 0, 2, 3, 4, 8, the only ones",
    "margin": "a softmax probability of more than 0.6 above every other one",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A run with each head, and one of each on a file that ends in a Softmax."""
    folder = tmp_path_factory.mktemp("heads")
    data = load_dataset("digits")
    np.savez(folder / "some.npz", images=data.images[CHOSEN], labels=data.labels[CHOSEN])
    shutil.copy(DIGITS, folder)
    save_model(folder / "soft.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, head in HEADS.items():
            run = [*RUN, *head, "--save-counterexamples"]
            assert main(["certify", "digits.onnx", *run, "--output", name]) == 0
            assert main(["certify", "soft.onnx", *RUN, *head, "--output", f"soft-{name}"]) == 0
    return folder


@pytest.fixture
def here(results, monkeypatch) -> Path:
    monkeypatch.chdir(results)
    return results


def audit(folder: str, model: str = "digits.onnx") -> list[str]:
    return ["audit", folder, "--model", model, "--data", "some.npz", "--data-layout", "nchw",
            "--samples", "all", "--restarts", "8", "--quiet", "--json"]  # fmt: skip


@pytest.mark.parametrize("name", ["top", "only", "margin"])
def test_each_head_is_certified_audited_and_said(here, capsys, name) -> None:
    certificate, samples = opened(here / name)
    verdicts = {sample["verdict"] for sample in samples}
    assert "certified" in verdicts
    assert main(audit(name)) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["reading"], found["bound"]) == ("available", "available")
    proven = [s for s in found["samples"] if s["verdict"] == "certified" and s["proven_radius"]]
    assert proven
    for form in ("markdown", "html", "model-card", "csv"):
        assert main(["report", name, "--format", form]) == 0
        said = re.sub(r"\s+", " ", capsys.readouterr().out).replace("\\", "")
        assert form in ("model-card", "csv") or CLAIMS[name] in said
    for form, word in (("model-card", "accuracy"), ("badge", "accuracy")):
        assert main(["report", name, "--format", form]) == 0
        said = capsys.readouterr().out
        expected = {"top": "top-3 accuracy", "only": "accuracy (5 classes)",
                    "margin": "accuracy (margin 0.6)"}[name]  # fmt: skip
        assert f"ertified {expected}" in said
        assert word in said
    assert main(["gate", name, "--min-certified", "0.1=0.01"]) == 0
    assert f"certified {expected} at eps 0.1" in capsys.readouterr().out
    assert certificate["options"].keys() - opened(here / "plain")[0]["options"].keys() == {
        {"top": "top_k", "only": "only_classes", "margin": "margin"}[name]
    }


def test_the_best_of_few_are_compared_by_their_places(here) -> None:
    """Against onnxruntime alone: who is right, who is certified, what counterexamples do."""
    session = onnxruntime.InferenceSession(str(here / "digits.onnx"))
    with np.load("some.npz") as data:
        images = data["images"]
        labels = data["labels"]
    plain = {s["index"]: s for s in opened(here / "plain")[1]}

    def logits(image: np.ndarray) -> np.ndarray:
        return session.run(None, {session.get_inputs()[0].name: image[None]})[0][0]

    _, top = opened(here / "top")
    for sample in top:
        index, label = sample["index"], int(labels[sample["index"]])
        found = logits(images[index])
        assert sample["top"] == np.argsort(-found)[:3].tolist()
        rivals = int((np.delete(found, label) >= found[label]).sum())
        assert (sample["verdict"] != "misclassified") == (rivals < 3)
        assert (sample["margin"] > 0) == (rivals < 3)
        assert sample["radius"] >= 0.99 * plain[index]["radius"]
    with np.load("top/counterexamples.npz") as kept:
        for index, point in zip(kept["index"], kept["image"], strict=True):
            found, label = logits(point), int(labels[index])
            assert int((found > found[label]).sum()) >= 3
    _, margin = opened(here / "margin")
    assert {s["index"] for s in margin} == set(plain)
    for sample in margin:
        assert sample["radius"] <= plain[sample["index"]]["radius"] * 1.01
    # A sample whose own probabilities are nearer is its own counterexample.
    found = np.stack([logits(image) for image in images])
    terms = np.exp(found - found.max(1, keepdims=True))
    terms /= terms.sum(1, keepdims=True)
    first, second = np.sort(terms, 1)[:, :-3:-1].T
    for sample in margin:
        index = sample["index"]
        if sample["verdict"] != "misclassified" and first[index] - second[index] < 0.6:
            assert (sample["verdict"], sample["attack_radius"]) == ("falsified", 0.0)


def test_a_subset_takes_its_samples_alone(here) -> None:
    certificate, samples = opened(here / "only")
    with np.load("some.npz") as data:
        kept = [int(label) for label in data["labels"] if label in (0, 2, 3, 4, 8)]
    assert [sample["label"] for sample in samples] == kept
    assert len(kept) < len(CHOSEN)
    assert any("--only-classes does not name are left out" in n for n in certificate["notes"])
    assert {s["prediction"] for s in samples} <= {0, 2, 3, 4, 8}


@pytest.mark.parametrize("name", list(HEADS))
def test_a_softmax_at_the_end_is_covered_too(here, capsys, name) -> None:
    """Its outputs are what an audit attacks; below the greatest its own bound says nothing."""
    _, samples = opened(here / f"soft-{name}")
    assert any(sample["radius"] > 0 for sample in samples) or name == "margin"
    assert main(audit(f"soft-{name}", "soft.onnx")) == 0
    found = json.loads(capsys.readouterr().out)
    assert ("not available" in found["bound"]) == (name != "plain")
    session = onnxruntime.InferenceSession("soft.onnx")
    with np.load("some.npz") as data:
        images = data["images"]
    assert images.dtype == np.float32
    random = np.random.default_rng(0)
    with np.load("some.npz") as data:
        inside = np.isin(data["labels"], (0, 2, 3, 4, 8)) if name == "only" else slice(None)
    for sample, image in zip(samples, images[inside], strict=True):
        for _ in range(40 if sample["radius"] > 0 else 0):
            way = random.normal(size=image.shape)
            point = image + 0.999 * sample["radius"] * way / np.linalg.norm(way)
            out = session.run(None, {session.get_inputs()[0].name: point[None].astype(np.float32)})
            p, own = out[0][0], out[0][0][sample["label"]]
            rivals = np.delete(p, sample["label"])
            if name == "only":
                rivals = p[[c for c in (0, 2, 3, 4, 8) if c != sample["label"]]]
            if name == "margin":
                assert own - rivals.max() > 0.6
            else:
                assert int((rivals >= own).sum()) < (3 if name == "top" else 1)


def test_other_claims_do_not_compare(here, capsys) -> None:
    for one, other in (("plain", "top"), ("margin", "plain")):
        assert main(["compare", one, other]) == 2
        assert "another claim (--top-k, --only-classes, --margin)" in capsys.readouterr().err
        assert main(["gate", one, "--baseline", other, "--max-drop", "100pp"]) == 2
        assert "another claim" in capsys.readouterr().err
    assert main(["compare", "top", "top"]) == 0


def test_shards_of_a_head_are_merged(here, capsys) -> None:
    run = ["certify", "digits.onnx", *RUN, *HEADS["top"], "--seed", "5", "--output", "shards"]
    for part in ("1/2", "2/2"):
        assert main([*run, "--shard", part]) == 0
    assert main(["merge", "shards", "--output", "merged"]) == 0
    merged, samples = opened(here / "merged")
    assert merged["options"]["top_k"] == 3
    assert [s["top"] for s in samples] == [s["top"] for s in opened(here / "top")[1]]
    assert main(["merge", "shards/certificate.1-of-2.json", "--output", "half"]) != 0
    capsys.readouterr()
    # And an interrupted run goes on with the same head alone.
    folder = ["--output", "again", "--seed", "5"]
    assert main(["certify", "digits.onnx", *RUN, *HEADS["top"], *folder]) == 0
    assert main(["certify", "digits.onnx", *RUN, *HEADS["plain"], *folder, "--resume"]) != 0
    assert "top-k" in capsys.readouterr().err.replace("_", "-")
    assert main(["certify", "digits.onnx", *RUN, *HEADS["top"], *folder, "--resume"]) == 0


FORGED: dict[str, tuple[str, Callable[[Record, list[Record]], object], str]] = {
    "best classes left out": (
        "top", lambda c, s: [one.pop("top") for one in s], "its 3 best classes are"),
    "too many of them": ("top", lambda c, s: s[0]["top"].append(9), "its 3 best classes are"),
    "one twice": ("top", lambda c, s: s[0]["top"].__setitem__(2, s[0]["top"][1]), "3 best"),
    "no class": ("top", lambda c, s: s[0]["top"].__setitem__(2, 77), "is none of the 10 classes"),
    "another first": ("top", lambda c, s: s[0]["top"].reverse(), "its 3 best classes are"),
    "the label added": (
        "top", lambda c, s: missed(s).update(top=[missed(s)["prediction"], missed(s)["label"], 0]),
        "margin"),
    "best classes of a plain run": (
        "plain", lambda c, s: s[0].update(top=[s[0]["prediction"], 9, 7]), "lists the best"),
    "the claim taken away": ("top", lambda c, s: c["options"].pop("top_k"), "it lists the best"),
    "a class that does not compete": (
        "only", lambda c, s: s[0].update(prediction=9), "does not compete"),
    "the margin lowered": ("margin", lambda c, s: c["options"].update(margin=0.1), "digest"),
}  # fmt: skip


def missed(samples: list[Record]) -> Record:
    return next(one for one in samples if one["verdict"] == "misclassified")


@pytest.mark.parametrize("name", list(FORGED))
def test_what_no_run_writes_of_a_head_is_refused(results, tmp_path, name) -> None:
    run, change, said = FORGED[name]
    shutil.copytree(results / run, tmp_path / "forged")
    certificate, samples = opened(tmp_path / "forged")
    change(certificate, samples)
    if "digest" not in said:
        refit(certificate, samples)
    save(tmp_path / "forged", certificate, samples)
    with pytest.raises(CannotCertify, match=said):
        read(tmp_path / "forged" / "certificate.json")


@pytest.mark.parametrize("run", ["top", "only", "margin"])
def test_an_audit_finds_a_radius_that_is_too_large(here, tmp_path, capsys, run) -> None:
    certificate, samples = opened(here / run)
    chosen = [s for s in samples if s["radius"] > 0][:2]
    for sample in chosen:
        claimed(sample, certificate, 2.5)
    refit(certificate, samples)
    shutil.copytree(here / run, tmp_path / "forged")
    save(tmp_path / "forged", certificate, samples)
    assert main(audit(str(tmp_path / "forged"))) == 4
    found = json.loads(capsys.readouterr().out)
    wrong = {s["index"] for s in found["samples"] if "contradicted" in str(s["findings"])}
    assert {sample["index"] for sample in chosen} <= wrong
    assert "the claim does not hold" in str(found["samples"])


def test_what_cannot_be_is_refused_before_anything_is_read(here, capsys) -> None:
    run = ["certify", "digits.onnx", *RUN, "--eps", "0.1"]
    for head, code, said in (
        (["--top-k", "0"], 2, "--top-k 0: give a whole number of at least 1"),
        (["--top-k", "10"], 2, "every label is among the 10 best"),
        (["--only-classes", "3"], 2, "at least two classes"),
        (["--only-classes", "cats"], 2, "give classes by their numbers, such as 0,3,10-19"),
        (["--only-classes", "0,10"], 2, "names class 10, the network has the classes 0 to 9"),
        (["--only-classes", "6,7"], 2, "no sample has a label that --only-classes speaks of"),
        (["--margin", "1.5"], 2, "--margin 1.5: give a probability from 0 to below 1"),
        (["--margin", "0.1", "--top-k", "2"], 2, "leave --top-k and --only-classes out"),
        (["--top-k", "2", "--save-proofs", "--output", "no"], 2, "--save-proofs: proofs say that"),
    ):
        assert main([*run, *head]) == code
        assert said in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_classes_are_read_from_a_file_too(here) -> None:
    for text in ("0\n2-4\n8\n", "[0, 2, 3, 4, 8]", "0,2 3, 4-4\n8"):
        Path("classes.txt").write_text(text)
        out = ["--output", "listed", "--overwrite", "--method", "global"]
        given = ["--eps", "0.1,0.7", "--only-classes", "classes.txt"]
        assert main(["certify", "digits.onnx", *RUN, *given, *out]) == 0
        assert opened(here / "listed")[0]["options"]["only_classes"] == [0, 2, 3, 4, 8]


def test_the_library_takes_the_same(here) -> None:
    with np.load("some.npz") as data:
        images, labels = data["images"], data["labels"]
    model = lipcert.load("digits.onnx")
    given: dict[str, Any] = {"effort": "fast", "allow_implausible": True}
    found = lipcert.certify(model, images, labels, ["0.1", "0.7"], top_k=3, **given)
    assert [sample.top for sample in found.samples] == [
        tuple(sample["top"]) for sample in opened(here / "top")[1]
    ]
    assert found.certificate.options["top_k"] == 3
    assert "top-3 accuracy" in repr(found)
    assert not found.audit("digits.onnx", "some.npz", samples=2).contradictions
    some = lipcert.certify(model, images, labels, "0.1", only_classes=[0, 2, 8], **given)
    assert {sample.label for sample in some.samples} <= {0, 2, 8}
    assert lipcert.certify(model, images, labels, "0.1", margin=0.6, **given).samples
    with pytest.raises(UsageError, match="at least two classes"):
        lipcert.certify(model, images, labels, "0.1", only_classes=[1])


def test_a_probability_of_one_class_has_no_margin_of_a_softmax(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    weights = {"W": random.normal(size=(1, 4)), "b": random.normal(size=1) / 9}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "W", "b"], ["z"], transB=1),
            helper.make_node("Sigmoid", ["z"], ["p"]),
        ],
        "one score",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), "one.onnx")
    x = random.normal(size=(8, 4)).astype(np.float32)
    labels = (x @ weights["W"].T + weights["b"] > 0).astype(int)[:, 0]
    np.savez("two.npz", x=x, y=labels)
    run = ["certify", "one.onnx", "--data", "two.npz", "--eps", "0.01", "--quiet"]
    assert main(run) == 0
    assert main([*run, "--margin", "0.1"]) == 3
    assert "its one output is compared with 0.5" in capsys.readouterr().err
