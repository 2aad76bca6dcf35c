"""Sound certificates pass; whatever is changed in one is found."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from audit_models import DIGITS, doctored, model, node
from forging import claimed, refit, save

import lipcert
from lipcert.audit import Audit, Effort, Sources, audit
from lipcert.audit.claims import read
from lipcert.certification.attack import nearest
from lipcert.data import load_dataset
from lipcert.errors import CannotCertify, UsageError
from lipcert.report import json_file

QUICK = Effort(restarts=8, steps=25)
Record = dict[str, Any]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Results of digits.onnx: certified, falsified and misclassified samples."""
    folder = tmp_path_factory.mktemp("digits") / "results"
    data = load_dataset("digits")
    chosen = [0, 10, 29, 50, 2, 4]
    np.savez(folder.parent / "some.npz", images=data.images[chosen], labels=data.labels[chosen])
    found = lipcert.load(DIGITS)
    lipcert.certify(
        found, data.images[chosen], data.labels[chosen], ["0.1", "0.5"],
        effort="fast", output=folder, allow_implausible=True,
    )  # fmt: skip
    return folder


def sources(folder: Path, **changes: Any) -> Sources:
    some = {"model": DIGITS, "data": str(folder.parent / "some.npz"), "data_layout": "nchw"}
    return Sources(**some | changes)


def some(home: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(home.parent / "some.npz") as arrays:
        return arrays["images"], arrays["labels"]


def audited(folder: Path, home: Path, **changes: Any) -> Audit:
    """All samples in ``folder``, a copy of ``home`` that may have been changed."""
    return audit(folder, sources=sources(home, **changes), samples="all", effort=QUICK)


def kept(certificate: Record, samples: list[Record], chosen: list[Record]) -> None:
    """Leave only these samples, everything else to fit."""
    samples[:] = chosen
    refit(certificate, samples)


def test_a_sound_certificate_passes(digits):
    found = audited(digits, digits)
    assert found.contradictions == []
    assert (found.reading, found.bound) == ("available", "available")
    assert len(found.samples) == found.of == 6
    assert {s.verdict for s in found.samples} >= {"certified", "falsified"}
    for sample in found.samples:
        if sample.verdict == "certified":
            assert sample.points >= 2 * QUICK.restarts
            assert sample.proven_radius in (None, 0.5)
        if sample.verdict == "misclassified":
            assert sample.outcome == "confirmed"
    # The bound is no decoration: it proves most of what was certified.
    certified = [s for s in found.samples if s.verdict == "certified"]
    assert sum(s.outcome == "confirmed" for s in certified) >= 0.7 * len(certified)
    record = json.loads(found.text())
    jsonschema.validate(record, json_file.schema("audit"))
    assert record["agreement"]


def test_the_same_seed_gives_the_same_subset_and_outcomes(digits):
    first, again, other = (
        audit(digits, sources=sources(digits), samples=2, seed=seed, effort=Effort(2, 2))
        for seed in (5, 5, 6)
    )
    assert [s.index for s in first.samples] == [s.index for s in again.samples]
    assert [s.findings for s in first.samples] == [s.findings for s in again.samples]
    assert [s.index for s in first.samples] != [s.index for s in other.samples]
    assert len(other.samples) == 2


Change = Callable[[Record, list[Record]], object]


def of(verdict: str, samples: list[Record]) -> Record:
    return next(s for s in samples if s["verdict"] == verdict)


def test_a_radius_ten_times_too_large_is_broken_by_an_attack(digits, tmp_path):
    certificate, samples = doctored(digits, tmp_path / "made")
    kept(certificate, samples, [s for s in samples if s["radius"] > 0][:3])
    for sample in samples:
        claimed(sample, certificate, min(10 * sample["radius"], 8.0))
    refit(certificate, samples)
    save(tmp_path / "made", certificate, samples)
    found = audited(tmp_path / "made", digits)
    broken = {s.index for s in found.samples if s.outcome == "contradicted"}
    assert broken == {s["index"] for s in samples if s["radius"] > 0}
    assert all("is not classified as" in str(one) for one in found.contradictions)
    assert not json.loads(found.text())["agreement"]


def test_a_flipped_verdict_is_found_though_all_else_fits(digits, tmp_path):
    certificate, samples = doctored(digits, tmp_path / "made")
    flipped = of("falsified", samples)
    kept(certificate, samples, [of("certified", samples), flipped])
    claimed(flipped, certificate, 0.5)
    refit(certificate, samples)
    save(tmp_path / "made", certificate, samples)
    found = audited(tmp_path / "made", digits)
    assert [c.sample for c in found.contradictions] == [flipped["index"]]


def test_predictions_margins_and_constants_are_checked(digits, tmp_path):
    certificate, samples = doctored(digits, tmp_path / "made")
    kept(certificate, samples, [s for s in samples if s["verdict"] == "certified"][:3])
    first, second, third = samples
    first["margin"] *= 1.001
    second["lipschitz"] = 0.01
    third["prediction"] = third["label"] = (third["label"] + 1) % 10
    refit(certificate, samples)
    save(tmp_path / "made", certificate, samples)
    told = " ".join(str(one) for one in audited(tmp_path / "made", digits).contradictions)
    for words in (
        f"sample {first['index']}: margin", f"sample {second['index']}: Lipschitz",
        f"sample {third['index']}: prediction", f"sample {third['index']}: has the label",
    ):  # fmt: skip
        assert words in told


def test_another_model_is_refused_and_a_forged_digest_does_not_help(digits, tmp_path):
    other = onnx.load(DIGITS)
    for tensor in other.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    file = tmp_path / "digits.onnx"
    onnx.save(other, file)
    with pytest.raises(CannotCertify, match="is not the file that"):
        audited(digits, digits, model=file)
    certificate, samples = doctored(digits, tmp_path / "made")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    certificate["model"]["files"] = {"digits.onnx": digest}
    kept(certificate, samples, samples[:1])
    save(tmp_path / "made", certificate, samples)
    found = audited(tmp_path / "made", digits, model=file)
    assert any("margin" in str(one) for one in found.contradictions)


@pytest.mark.parametrize(
    ("name", "value"),
    [("stripped", "Softmax"), ("stripped", "Sigmoid"), ("classes", 11), ("parameters", 1),
     ("input_shape", [1, 64]), ("output", "nothere")],
)  # fmt: skip
def test_what_is_said_of_a_model_is_what_its_file_is(name, value, digits, tmp_path):
    """A head that is not there would let the audit read another function, or none."""
    certificate, samples = doctored(digits, tmp_path / "made")
    certificate["model"][name] = value
    save(tmp_path / "made", certificate, samples)
    with pytest.raises(CannotCertify, match=rf"{name}"):
        audited(tmp_path / "made", digits)


def test_other_data_are_refused(digits, tmp_path):
    with np.load(digits.parent / "some.npz") as arrays:
        images, labels = arrays["images"].copy(), arrays["labels"]
    images[3, 0, 4, 4] += np.float32(0.001) if images[3, 0, 4, 4] < 0.5 else np.float32(-0.001)
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    with pytest.raises(CannotCertify, match="is not the data"):
        audited(digits, digits, data=str(tmp_path / "other.npz"))
    with pytest.raises(UsageError, match="--data"):
        audited(digits, digits, data=None)


@pytest.mark.parametrize("kind", ["there", "inside", "outside", "shape", "picture"])
def test_counterexamples_are_run(kind, digits, tmp_path):
    certificate, samples = doctored(digits, tmp_path / "made")
    falsified = of("falsified", samples)
    kept(certificate, samples, [falsified])
    save(tmp_path / "made", certificate, samples)
    with np.load(digits.parent / "some.npz") as arrays:
        image = arrays["images"][falsified["index"]]
    found = lipcert.load(DIGITS).on_images((1, 8, 8))
    label = torch.tensor([falsified["label"]])
    near = nearest(found.to(dtype=torch.float32), torch.from_numpy(image[None]), label)
    point = near.points[0].numpy().astype(np.float32)
    saved = {
        "there": point, "inside": image, "outside": image + (point - image) * 3,
        "shape": point[:, :4], "picture": (point.clip(0, 1) * 255).astype(np.uint8),
    }[kind]  # fmt: skip
    np.savez(
        tmp_path / "made" / "counterexamples.npz", index=[falsified["index"]], image=saved[None]
    )
    [one] = audited(tmp_path / "made", digits).samples
    expected = {"there": "confirmed", "picture": "confirmed"}.get(kind, "contradicted")
    assert one.findings[0].outcome == expected
    by = {"inside": "classified rightly", "outside": "lies at", "shape": "of shape"}
    assert by.get(kind, "counterexample") in one.findings[0].by


def test_what_cannot_be_read_is_attacked_at_random_and_said(digits, tmp_path):
    nodes = [
        node("AveragePool", "x", "p", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Flatten", "p", "f"), node("Gemm", "f w", "y"),
    ]  # fmt: skip
    weight = np.random.default_rng(0).normal(size=(16, 10))
    made = model(nodes, (1, 8, 8), w=weight)
    onnx.save(onnx.shape_inference.infer_shapes(made), tmp_path / "pool.onnx")
    data = load_dataset("digits")
    certified = lipcert.certify(
        lipcert.load(tmp_path / "pool.onnx"), data.images[:4], data.labels[:4], 0.01,
        output=tmp_path / "out", allow_implausible=True,
    )  # fmt: skip
    np.savez(tmp_path / "some.npz", images=data.images[:4], labels=data.labels[:4])
    where = Sources(model=tmp_path / "pool.onnx", data=str(tmp_path / "some.npz"),
                    data_layout="nchw")  # fmt: skip
    found = audit(tmp_path / "out", sources=where, effort=QUICK)
    assert "ceil_mode" in found.reading
    assert "ceil_mode" in found.bound
    assert found.contradictions == []
    for sample, whole in zip(found.samples, certified.samples, strict=True):
        if whole.radius:
            assert sample.outcome == "not contradicted"
            assert sample.points > 0


def test_damaged_and_absent_files_are_refused(digits, tmp_path):
    """Every other damage is a test of ``lipcert.records``, which reads them."""
    with pytest.raises(UsageError, match="no such certificate"):
        read(tmp_path)
    certificate, _ = doctored(digits, tmp_path / "made")
    read(tmp_path / "made")
    save(tmp_path / "made", certificate, [{"index": 1}])
    with pytest.raises(CannotCertify, match="line 1: is damaged"):
        read(tmp_path / "made")
    (tmp_path / "made" / "samples.jsonl").unlink()
    with pytest.raises(CannotCertify, match="claims nothing without it"):
        read(tmp_path / "made")
    shutil.copy(digits / "certificate.json", tmp_path / "other.json")
    with pytest.raises(UsageError, match="no such certificate"):
        read(tmp_path / "other.json")


def test_an_estimate_is_not_audited(digits, tmp_path):
    lipcert.certify(
        lipcert.load(DIGITS), *some(digits), "0.1", norms="estimate", output=tmp_path,
        allow_implausible=True, method="local",
    )  # fmt: skip
    with pytest.raises(CannotCertify, match="ESTIMATE"):
        read(tmp_path)


def test_the_audit_loads_none_of_the_code_that_it_audits():
    code = (
        "import sys, lipcert.audit\n"
        "names = {'bounds', 'norms', 'certification', 'api', 'run'}\n"
        "print([m for m in sys.modules if m.split('.')[:1] == ['lipcert']"
        " and names & set(m.split('.')[1:2])])"
    )
    package = Path(lipcert.__file__).parent
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
    for file in (package / "audit").glob("*.py"):
        text = file.read_text()
        for name in ("bounds", "norms", "certification", "network", "rounding"):
            assert f"lipcert.{name}" not in text, file.name
