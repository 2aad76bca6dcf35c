"""Genuine files pass everywhere; forged and damaged ones nowhere.

Every row of the tables is a small change of what a real run wrote. Where the change is of samples,
everything that follows from them is made to fit, as a careful forger would.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forging import claimed, opened, options_digest, refit, save, text_of

from lipcert.cli.main import main
from lipcert.data import load_dataset
from lipcert.errors import CannotCertify
from lipcert.records import read
from lipcert.records.strict_json import parse
from lipcert.run.journal_lines import sealed

Record = dict[str, Any]
Change = Callable[[Record, list[Record]], object]

DIGITS = Path(__file__).parents[2] / "examples" / "digits.onnx"
CHOSEN = [0, 10, 29, 50, 2, 1]
RUN = ("--data", "some.npz", "--eps", "0.1,0.5", "--effort", "fast", "--allow-implausible",
       "--data-layout", "nchw", "--quiet", "--workers", "1")  # fmt: skip


@pytest.fixture(scope="module")
def genuine(tmp_path_factory) -> Path:
    """Certified, falsified and misclassified samples of the digits, and a shard of them."""
    folder = tmp_path_factory.mktemp("genuine")
    data = load_dataset("digits")
    np.savez(folder / "some.npz", images=data.images[CHOSEN], labels=data.labels[CHOSEN])
    shutil.copy(DIGITS, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["certify", "digits.onnx", *RUN, "--output", "results"]) == 0
        assert main(["certify", "digits.onnx", *RUN, "--output", "shard", "--shard", "1/2"]) == 0
        assert main(["certify", "digits.onnx", *RUN, "--output", "estimate", "--norms", "estimate",
                     "--method", "local"]) == 0  # fmt: skip
    _, samples = opened(folder / "results")
    assert {"certified", "falsified", "misclassified"} <= {one["verdict"] for one in samples}
    return folder


@pytest.fixture
def here(genuine, monkeypatch) -> Path:
    monkeypatch.chdir(genuine)
    return genuine


def commands(folder: Path) -> dict[str, list[str]]:
    """Everything that reads a certificate."""
    one, gates = str(folder), ["--min-clean", "0"]
    return {
        "audit": ["audit", one, "--data", "some.npz", "--data-layout", "nchw", "--restarts", "2",
                  "--to", str(folder.parent / "audit.json"), "--quiet"],
        "gate": ["gate", one, *gates],
        "report": ["report", one, "--format", "csv"],
        "compare": ["compare", "results", one],
        "compared": ["compare", one, "results"],
        "baseline": ["gate", "results", "--baseline", one, "--max-drop", "100pp"],
    }  # fmt: skip


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What each command says, one line; none of them ends otherwise than with exit code 3."""
    said = {}
    for name, arguments in commands(folder).items():
        code = main(arguments)
        told = capsys.readouterr()
        assert code == 3, (name, code, told)
        assert told.out == ""
        assert told.err.count("\n") == 1, told.err
        assert str(folder) in told.err
        said[name] = told.err
    return said


def of(verdict: str, samples: list[Record]) -> Record:
    return next(sample for sample in samples if sample["verdict"] == verdict)


def certified(**fields: Any) -> Change:
    return lambda c, s: of("certified", s).update(fields)


def falsified(**fields: Any) -> Change:
    return lambda c, s: of("falsified", s).update(fields)


def wrong(**fields: Any) -> Change:
    return lambda c, s: of("misclassified", s).update(fields)


def dropped(name: str) -> Change:
    return lambda c, s: s[0].pop(name)


def every(**fields: Any) -> Change:
    return lambda c, s: [one.update(fields) for one in s]


def with_options(**fields: Any) -> Change:
    def change(certificate: Record, samples: list[Record]) -> None:
        certificate["options"] |= fields

    return change


# By name: the change, and what is said of it. All of these change samples alone, so that they are
# tried on journals too.
SAMPLES: dict[str, tuple[Change, str]] = {
    "an index below 0": (lambda c, s: s[0].update(index=-1), r"\$\.index: -1 is less"),
    "indices all below 0": (
        lambda c, s: [one.update(index=-1 - one["index"]) for one in s], r"\$\.index",
    ),
    "an index beyond the data": (lambda c, s: s[0].update(index=6), "outside the 6 samples"),
    "an index that is true": (lambda c, s: s[1].update(index=True), r"\$\.index: True is not of"),
    "an index of 1.0": (lambda c, s: s[1].update(index=1.0), r"\$\.index: 1.0 is not of type"),
    "an index as text": (lambda c, s: s[1].update(index="1"), r"\$\.index: '1' is not of type"),
    "a huge index": (lambda c, s: s[1].update(index=2**70), r"\$\.index"),
    "a label below 0": (certified(label=-1, prediction=-1), r"\$\.label"),
    "a label beyond the classes": (certified(label=10, prediction=10), "label 10 is no class"),
    "a prediction of nothing": (certified(prediction=-1), "without a prediction"),
    "a prediction beyond the classes": (wrong(prediction=10), "prediction 10 is none of the 10"),
    "a verdict of its own": (certified(verdict="robust"), r"\$\.verdict"),
    "an estimated verdict": (certified(verdict="estimated"), "estimated"),
    "certified, though broken": (falsified(verdict="certified"), "is certified; by its other"),
    "unknown, though broken": (
        lambda c, s: [of("falsified", s).pop("decided_by"), of("falsified", s).update(
            verdict="unknown")], "is unknown; by its other fields it is falsified",
    ),
    "falsified without an attack": (
        lambda c, s: of("falsified", s).pop("attack_radius"), "is falsified; by its other",
    ),
    "falsified beyond the largest eps": (falsified(attack_radius=0.51), "is falsified; by its"),
    "out of time without a limit": (certified(verdict="timeout"), "is timeout; by its other"),
    "an error that is certified": (certified(verdict="error", message="x"), "is error, yet radius"),
    "a misclassified one called right": (
        lambda c, s: of("misclassified", s).update(verdict="certified"), "by its other fields",
    ),
    "a right one called misclassified": (
        lambda c, s: of("falsified", s).update(verdict="misclassified"), "is falsified",
    ),
    "eps listed for a misclassified one": (
        lambda c, s: of("misclassified", s).update(certified=["0.1", "0.5"]),
        "certified at .*, with a radius of 0.0",
    ),
    "a radius of a misclassified one": (wrong(radius=0.05), "is misclassified, yet radius"),
    "an attack on a misclassified one": (wrong(attack_radius=0.3), "yet was attacked"),
    "an eps beyond the radius": (certified(radius=0.3), "with a radius of 0.3"),
    "a radius of 0 with eps": (certified(radius=0), "with a radius of 0"),
    "an eps left out": (lambda c, s: of("certified", s)["certified"].pop(), "with a radius of"),
    "eps in another order": (certified(certified=["0.5", "0.1"]), "certified at"),
    "an eps twice": (certified(certified=["0.1", "0.1", "0.5"]), r"\$\.certified"),
    "an eps not asked for": (certified(certified=["0.1", "0.5", "0.9"]), "certified at"),
    "an eps written otherwise": (certified(certified=["0.10", "0.5"]), "certified at"),
    "eps that are numbers": (certified(certified=[0.1, 0.5]), r"\$\.certified\[[01]\]"),
    "a radius below 0": (falsified(radius=-0.1), r"\$\.radius"),
    "a radius of null": (certified(radius=None), "radius is null"),
    "a radius as text": (certified(radius="0.5"), r"\$\.radius"),
    "a radius beyond the domain": (
        lambda c, s: claimed(of("certified", s), c, 8.1), "outside the domain",
    ),
    "a radius beyond the attack": (
        lambda c, s: of("falsified", s).update(
            radius=of("falsified", s)["attack_radius"] * 1.01
        ), "an attack at|with a radius of",
    ),
    "a radius of the attack": (
        lambda c, s: of("certified", s).update(attack_radius=of("certified", s)["radius"]),
        "and an attack at",
    ),
    "a margin below 0": (certified(margin=-1.0), "margin -1.0"),
    "no margin": (certified(margin=None), "is certified without a margin"),
    "a tie": (certified(margin=0.0), "at a tie"),
    "a constant below 0": (certified(lipschitz=-1.0), r"\$\.lipschitz"),
    "a constant as text": (certified(lipschitz="inf"), r"\$\.lipschitz"),
    "a probability below 0": (certified(failure_probability=-1e-12), r"\$\.failure_probability"),
    "a probability of 1": (certified(failure_probability=1), r"\$\.failure_probability"),
    "a probability above the run's": (certified(failure_probability=1e-8), "failure probability"),
    "a rounding error below 0": (certified(deployed_error=-1e-9), r"\$\.deployed_error"),
    "seconds below 0": (certified(seconds=-1), r"\$\.seconds"),
    "seconds that are others": (certified(seconds=1e6), "seconds, while its rungs took"),
    "a rung's seconds below 0": (
        lambda c, s: of("certified", s)["rungs"].update(local=-1.0), r"\$\.rungs\.local",
    ),
    "decided by another rung": (certified(decided_by="magic"), "decided by magic"),
    "decided by none": (
        lambda c, s: of("certified", s).pop("decided_by"), "is certified, decided by None",
    ),
    "a method of another rung": (certified(method="magic"), "radius by magic"),
    "an attack that was not made": (
        lambda c, s: [
            of("certified", s)["rungs"].pop("attack"),
            of("certified", s).update(
                attack_radius=1e9, seconds=math.fsum(of("certified", s)["rungs"].values())
            ),
        ], "an attack radius without an attack",
    ),
    "an eliminated neuron below 0": (certified(eliminated=[-1]), r"\$\.eliminated\[0\]"),
    "a field of its own": (certified(approved=True), "'approved' was unexpected"),
    "a line that is an estimate": (certified(assurance="ESTIMATE"), "should not be valid"),
    "a message that is none": (certified(message=7), r"\$\.message"),
    **{f"no {name}": (dropped(name), f"'{name}' is missing") for name in (
        "index", "label", "prediction", "verdict", "margin", "radius", "lipschitz", "certified",
        "method", "seconds", "failure_probability",
    )},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(genuine, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("forged") / "made"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_forged_sample_passes_nowhere(name, here, made, capsys):
    change, _ = SAMPLES[name]
    certificate, samples = opened(here / "results")
    change(certificate, samples)
    # What cannot be summed up stands as it is; the digest of the samples is right all the same.
    with contextlib.suppress(TypeError, KeyError, ValueError, OverflowError):
        refit(certificate, samples)
    save(made, certificate, samples)
    refused(made, capsys)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_place_of_a_forged_sample_is_told(name, here, made):
    change, message = SAMPLES[name]
    certificate, samples = opened(here / "results")
    whole = [json.dumps(sample) for sample in samples]
    change(certificate, samples)
    forged = [json.dumps(sample) for sample in samples]
    line = next(
        k for k, pair in enumerate(zip(whole, forged, strict=True), 1) if len(set(pair)) > 1
    )
    save(made, certificate, samples)
    with pytest.raises(CannotCertify, match=rf"samples\.jsonl: line {line}: .*(?:{message})"):
        read(made)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_forged_journal_is_not_resumed(name, here, tmp_path, capsys):
    """Its lines have the digests that lipcert would have given them."""
    certificate, samples = opened(here / "results")
    SAMPLES[name][0](certificate, samples)
    header = json.loads((here / "results" / "journal.jsonl").read_text().splitlines()[0])
    lines = [sealed(sample, header["sha256"]) for sample in samples]
    (tmp_path / "journal.jsonl").write_text(text_of([header, *lines]))
    assert main(["certify", "digits.onnx", *RUN, "--output", str(tmp_path), "--resume"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path / 'journal.jsonl'}: line " in said
    assert "--overwrite" in said


def test_a_genuine_journal_is_resumed(here, tmp_path, capsys):
    lines = (here / "results" / "journal.jsonl").read_text().splitlines(keepends=True)
    for kept in (lines, lines[:4], [*lines[:3], lines[3][:40]], lines[:1]):
        (tmp_path / "journal.jsonl").write_text("".join(kept))
        assert main(["certify", "digits.onnx", *RUN, "--output", str(tmp_path), "--resume"]) == 0
        assert len(read(tmp_path).samples) == 6


def repeated(certificate: Record, samples: list[Record]) -> None:
    samples[1] = dict(samples[0])


def only_the_best(certificate: Record, samples: list[Record]) -> None:
    samples[:] = [of("certified", samples)]


def spent(certificate: Record, samples: list[Record]) -> None:
    samples[0]["failure_probability"] = samples[1]["failure_probability"] = 6e-10
    certificate["assurance"]["failure_probability"] = 1e-9


# Changes of either file after which figures, digests, or both no longer fit.
WHOLES: dict[str, tuple[Change, bool, str]] = {
    # By name: the change, whether the rest is made to fit, and what is said.
    "a sample dropped": (lambda c, s: s.pop(), False, "5 samples are listed, and 6 were chosen"),
    "samples dropped with their count": (
        lambda c, s: [s.pop(), c["data"].update(chosen=5), c["summary"].update(n=5)],
        False, "indices_sha256",
    ),
    "a sample twice": (repeated, True, "sample 0 is listed 2 times"),
    "no samples": (lambda c, s: s.clear(), False, "0 samples are listed"),
    "samples in another order": (lambda c, s: s.reverse(), False, "indices_sha256"),
    "a count": (lambda c, s: c["summary"]["certified_count"].update({"0.5": 6}), False,
                "certified_count.0.5 is 6"),
    "a count of another eps": (
        lambda c, s: c["summary"]["certified_count"].update({"0.9": 6}), False, "0.9",
    ),
    "an accuracy": (
        lambda c, s: c["summary"]["certified_accuracy"].update({"0.5": 1}), False,
        "certified_accuracy",
    ),
    "a clean accuracy": (lambda c, s: c["summary"].update(clean_accuracy=0.99), False, "clean_acc"),
    "a clean count": (lambda c, s: c["summary"].update(clean_correct=6), False, "clean_correct"),
    "n": (lambda c, s: c["summary"].update(n=60), False, "summary.n is 60"),
    "n of 0": (lambda c, s: c["summary"].update(n=0), False, "summary.n is 0"),
    "n below 0": (lambda c, s: c["summary"].update(n=-6), False, r"\$\.summary\.n"),
    "a mean radius": (lambda c, s: c["summary"]["radius"].update(mean=1.0), False, "radius.mean"),
    "a median radius": (lambda c, s: c["summary"]["radius"].update(median=None), False, "median"),
    "verdicts": (lambda c, s: c["summary"].update(verdicts={"certified": 6}), False, "verdicts"),
    "an upper count": (
        lambda c, s: c["summary"]["upper_count"].update({"0.5": 6}), False, "upper_count",
    ),
    "no upper count": (lambda c, s: c["summary"].pop("upper_count"), False, "upper_count"),
    "a rounding error": (
        lambda c, s: c["summary"]["deployed_error"].update(median=0), False, "deployed_error",
    ),
    "no radius": (lambda c, s: c["summary"].pop("radius"), False, "'radius' is missing"),
    "a rung": (lambda c, s: c["cascade"][0].update(decided=99), False, "decided is 99"),
    "a rung twice": (lambda c, s: c["cascade"].append(c["cascade"][0]), False, "listed twice"),
    "a rung of its own": (
        lambda c, s: c["cascade"].append(c["cascade"][0] | {"rung": "magic"}), False, "magic",
    ),
    "a layer's share": (lambda c, s: c["layers"][0].update(eliminated=1), False, "eliminated is 1"),
    "a layer's norm below 0": (lambda c, s: c["layers"][0].update(value=-1), False, "layers"),
    "more neurons eliminated than there are": (
        certified(eliminated=[10**6]), True, "neurons of layer 0 are|layers.0..eliminated",
    ),
    "neurons of no layer": (certified(eliminated=[1] * 99), True, "more layers than there are"),
    "other options": (with_options(deployed="real"), False, "options_digest"),
    "another eps": (with_options(eps=["0.1", "5"]), False, r"certified at|digest"),
    "an eps without end": (with_options(eps=["1" * 90]), False, "certified at|options"),
    "an eps beyond a double": (with_options(eps=["1e999"]), False, r"\$\.options"),
    "an eps that divides by 0": (with_options(eps=["1/0"]), False, r"\$\.options"),
    "an eps with a line break": (with_options(eps=["0.1\n", "0.5"]), False, r"\$\.options\.eps"),
    "an eps twice in the options": (with_options(eps=["0.1", "0.10"]), False, r"\$\.options"),
    "no norms": (with_options(norms="none"), False, r"\$\.options\.norms"),
    "an option of its own": (with_options(trust="me"), False, r"\$\.options"),
    "options digest": (lambda c, s: c.update(options_digest="0" * 64), False, "options_digest"),
    "a larger probability": (
        lambda c, s: c["assurance"].update(failure_probability=0.5), False, "above the 1e-09",
    ),
    "probabilities that sum to more": (spent, True, "above the 1e-09 stated"),
    "a probability below 0": (
        lambda c, s: c["assurance"].update(failure_probability=-1), False, r"\$\.assurance",
    ),
    "deterministic, by name": (
        lambda c, s: c["assurance"].update(kind="deterministic"), False, "deterministic",
    ),
    "deterministic, with nothing spent": (
        lambda c, s: c["assurance"].update(kind="deterministic", failure_probability=0.0),
        False, "layers|above the 0.0 stated",
    ),
    "an estimate, by name": (
        lambda c, s: c["assurance"].update(kind="estimate"), False, "estimated_count|ESTIMATE",
    ),
    "another threat model": (
        lambda c, s: c["threat_model"].update(norm="linf"), False, r"\$\.threat_model\.norm",
    ),
    "a domain that was not asked for": (
        lambda c, s: c["threat_model"].update(domain="images [0,1]"), False, "threat_model",
    ),
    "another unit": (
        lambda c, s: c["threat_model"].update(space="the data's own unit"), False, "with no reach",
    ),
    "a unit of its own": (
        lambda c, s: c["threat_model"].update(space="metres"), False, r"\$\.threat_model\.space",
    ),
    "a reach of pixels": (lambda c, s: c["data"].update(reach=1e9), False, "with a reach"),
    "a reach without end": (lambda c, s: c["data"].update(reach=-1), False, r"\$\.data\.reach"),
    "pixels of a table": (
        lambda c, s: c["data"].update(reading={"layout": "nf"}), False, "layout nf are in the data",
    ),
    "a range of nothing": (
        lambda c, s: c["data"].update(reading={"value_range": [1, 0]}), False, "no range",
    ),
    "labels of no class": (
        lambda c, s: c["data"].update(reading={"labels": {"0": 10}}), False, "of 6 classes",
    ),
    "labels that are none": (
        lambda c, s: c["data"].update(reading={"labels": {"-1": 0}}), False, r"\$\.data\.reading",
    ),
    "a reading of its own": (
        lambda c, s: c["data"].update(reading={"pickle": True}), False, r"\$\.data\.reading",
    ),
    "names that are none": (
        lambda c, s: c["data"].update(class_names=[0]), False, r"\$\.data\.class_names",
    ),
    "channels that are none": (
        lambda c, s: c["model"]["preprocessing"].update(channels="gbr"), False, "channels",
    ),
    "more chosen than there are": (
        lambda c, s: c["data"].update(chosen=7), False, "7 samples were chosen of 6",
    ),
    "fewer classes": (lambda c, s: c["data"].update(classes=1), False, "is no class"),
    "fewer outputs": (lambda c, s: c["model"].update(classes=1), False, "is no class|none of"),
    "an input of nothing": (
        lambda c, s: c["model"].update(input_shape=[0]), False, r"\$\.model\.input_shape",
    ),
    "a huge input": (
        lambda c, s: c["model"].update(input_shape=[10**30]), False, r"\$\.model\.input_shape",
    ),
    "a shard that is the whole": (lambda c, s: c["data"].update(shard="1/2"), False, "shard"),
    "a shard of none": (lambda c, s: c["data"].update(shard="3/2"), False, "shard"),
    "no model": (lambda c, s: c.pop("model"), False, "'model' is missing"),
    "a model without files": (lambda c, s: c["model"].update(files={}), False, r"model\.files"),
    "a digest that is none": (
        lambda c, s: c["data"].update(sha256="0" * 63 + "\n"), False, r"\$\.data\.sha256",
    ),
    "an older schema": (lambda c, s: c.update(schema="…/certificate/0"), False, "another version"),
    "no schema": (lambda c, s: c.pop("schema"), False, "'schema' is missing"),
    "a field of its own": (lambda c, s: c.update(signed_by="me"), False, "'signed_by'"),
    "a figure of its own": (lambda c, s: c["summary"].update(score=1), False, "'score'"),
    "a version that is a number": (lambda c, s: c.update(lipcert=1.0), False, r"\$\.lipcert"),
    "another version": (lambda c, s: c.update(lipcert="9.9.9"), False, "in an environment with"),
    "a version of a package": (
        lambda c, s: c["environment"].update(torch=2), False, r"\$\.environment\.torch",
    ),
    "threads that are none": (
        lambda c, s: c["environment"].update(threads=0), False, r"\$\.environment\.threads",
    ),
    "seconds as text": (lambda c, s: c.update(seconds="1.5"), False, r"\$\.seconds"),
    "seconds below 0": (lambda c, s: c.update(seconds=-1.5), False, r"\$\.seconds"),
    "notes that are none": (lambda c, s: c.update(notes="all is well"), False, r"\$\.notes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLES)
def test_a_forged_certificate_passes_nowhere(name, here, made, capsys):
    change, fits, message = WHOLES[name]
    certificate, samples = opened(here / "results")
    change(certificate, samples)
    if fits:
        refit(certificate, samples)
    save(made, certificate, samples)
    refused(made, capsys)
    with pytest.raises(CannotCertify, match=message):
        read(made)


def test_other_options_with_their_digest_do_not_fit_the_samples(here, made, capsys):
    certificate, samples = opened(here / "results")
    for changed in ({"eps": ["0.1"]}, {"norms": "deterministic"}, {"failure_probability": 1e-12},
                    {"pixel_domain": True}, {"norms": "estimate"}):  # fmt: skip
        options = certificate["options"] | changed
        forged = certificate | {"options": options, "options_digest": options_digest(options)}
        refused(save(made, forged, samples), capsys)


def replaced(before: str, after: str, *, at: str = "samples.jsonl") -> Callable[[Path], None]:
    """Text of a file, exchanged where it stands first."""

    def change(folder: Path) -> None:
        text = (folder / at).read_text()
        assert before in text
        write(folder, at, text.replace(before, after, 1).encode("utf-8", "surrogatepass"))

    return change


def write(folder: Path, name: str, content: bytes) -> None:
    """With the digest that the certificate has of its samples."""
    (folder / name).write_bytes(content)
    if name == "samples.jsonl":
        certificate = json.loads((folder / "certificate.json").read_text())
        certificate["samples_sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "certificate.json").write_text(json.dumps(certificate))


def rewritten(name: str, how: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: write(folder, name, how((folder / name).read_bytes()))


CERTIFICATE = "certificate.json"
DEEP = "[" * 100_000 + "]" * 100_000
# Changes of bytes: what a JSON reader may let pass.
BYTES: dict[str, Callable[[Path], object]] = {
    "no samples.jsonl": lambda folder: (folder / "samples.jsonl").unlink(),
    "samples of another run": lambda folder: (folder / "samples.jsonl").write_bytes(
        (folder / "samples.jsonl").read_bytes().replace(b'"seconds": ', b'"seconds":  ')
    ),
    "another digest of the samples": replaced(
        '"samples_sha256": "', '"samples_sha256": "00', at=CERTIFICATE
    ),
    "NaN in a sample": replaced('"margin": ', '"margin": NaN, "x": '),
    "Infinity in a sample": replaced('"lipschitz": ', '"lipschitz": Infinity, "x": '),
    "a number beyond a double": replaced('"lipschitz": ', '"lipschitz": 1e999, "x": '),
    "a digit too many": replaced('"seconds": ', '"seconds": ' + "9" * 5000),
    "whole digits without end": replaced('"label": ', '"label": ' + "1" * 5000 + ', "x": '),
    "a key twice": replaced('"index": 0', '"index": 0, "index": 0'),
    "a key twice in a certificate": replaced('{', '{"seconds": 1, ', at=CERTIFICATE),
    "a count twice": replaced('"certified_count": {', '"certified_count": {"0.1": 0, ',
                              at=CERTIFICATE),
    "brackets without end": replaced('{', '{"x": ' + DEEP + ', '),
    "brackets without end in a certificate": replaced('{', '{"x": ' + DEEP + ', ', at=CERTIFICATE),
    "more levels than it has": replaced('{', '{"x": ' + "[" * 40 + "]" * 40 + ', ', at=CERTIFICATE),
    "half of a surrogate pair": replaced('"name": "digits', '"name": "\\ud800digits',
                                         at=CERTIFICATE),
    "no UTF-8": rewritten(CERTIFICATE, lambda b: b.replace(b"digits", b"dig\xff", 1)),
    "UTF-16": rewritten(CERTIFICATE, lambda b: b.decode().encode("utf-16")),
    "UTF-16 samples": rewritten("samples.jsonl", lambda b: b.decode().encode("utf-16-le")),
    "a byte order mark": rewritten(CERTIFICATE, lambda b: b"\xef\xbb\xbf" + b),
    "a comment": rewritten(CERTIFICATE, lambda b: b"// true\n" + b),
    "a list": rewritten(CERTIFICATE, lambda b: b"[" + b + b"]"),
    "null": rewritten(CERTIFICATE, lambda b: b"null"),
    "nothing": rewritten(CERTIFICATE, lambda b: b""),
    "half a certificate": rewritten(CERTIFICATE, lambda b: b[: len(b) // 2]),
    "more after the certificate": rewritten(CERTIFICATE, lambda b: b + b"{}"),
    "a cut last line": rewritten("samples.jsonl", lambda b: b[:-20]),
    "no last line break": rewritten("samples.jsonl", lambda b: b[:-1]),
    "an empty line": rewritten("samples.jsonl", lambda b: b + b"\n"),
    "a line of nothing but null": rewritten("samples.jsonl", lambda b: b + b"null\n"),
    "two samples on a line": rewritten("samples.jsonl", lambda b: b.replace(b"}\n", b"}", 1)),
    "a NUL": rewritten("samples.jsonl", lambda b: b"\0" + b),
    "samples as one list": rewritten(
        "samples.jsonl", lambda b: b"[" + b.strip().replace(b"\n", b",") + b"]\n"
    ),
    "a folder for samples": lambda folder: [
        (folder / "samples.jsonl").unlink(), (folder / "samples.jsonl").mkdir(),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
def test_damaged_files_pass_nowhere(name, here, tmp_path, capsys):
    folder = tmp_path / "made"
    save(folder, *opened(here / "results"))
    BYTES[name](folder)
    refused(folder, capsys)


def test_genuine_files_pass_everywhere(here, capsys):
    for folder in ("results", "shard"):
        file = here / folder
        if folder == "shard":
            file /= "certificate.1-of-2.json"
        for name, arguments in commands(file).items():
            if folder == "shard" and name in ("compare", "compared", "baseline"):
                continue
            assert main(arguments) == 0, capsys.readouterr().err
    assert main(["report", "estimate"]) == 0
    copied = save(here / "copied", *opened(here / "results"))
    assert read(copied).samples == read(here / "results").samples


def test_a_shard_is_what_its_name_says(here, tmp_path, capsys):
    for name in ("certificate.1-of-2.json", "samples.1-of-2.jsonl"):
        shutil.copy(here / "shard" / name, tmp_path / name.replace("1-of-2", "2-of-2"))
        shutil.copy(here / "shard" / name, tmp_path / name.replace(".1-of-2", ""))
    for name in ("certificate.2-of-2.json", "certificate.json"):
        assert main(["gate", str(tmp_path / name), "--min-clean", "0"]) == 3
        assert "is named as another shard" in capsys.readouterr().err


def test_a_consistent_forgery_is_for_the_audit(here, tmp_path, capsys):
    """What could be true no reader can refuse; an attack does."""
    certificate, samples = opened(here / "results")
    claimed(of("falsified", samples), certificate, 0.6)
    folder = save(tmp_path / "made", refit(certificate, samples), samples)
    assert main(commands(folder)["gate"]) == 0
    assert main([*commands(folder)["audit"], "--samples", "all"]) == 4
    assert "CONTRADICTED" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ['{"a": 1}', '{"a": [1, -2.5e3, null, true, "\\u00e4"], "b": {"c": {}}}', " {} \n"]
)
def test_json_that_is_read_is_what_any_reader_reads(text):
    assert parse(text.encode(), "here") == json.loads(text)
