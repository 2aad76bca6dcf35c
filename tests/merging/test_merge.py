"""Shards of a real run, certified side by side, and what becomes of them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from forging import digest_of, opened

from lipcert.cli.main import main
from lipcert.records import read

DIGITS = Path(__file__).parents[2] / "examples" / "digits.onnx"
RUN = ("certify", str(DIGITS), "--data", "digits", "--eps", "0.3,0.7", "--effort", "fast",
       "--limit", "14", "--workers", "1", "--quiet")  # fmt: skip
KEEP = ("--save-counterexamples", "--save-proofs")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three shards with coins of their own, in folders of their own; and the whole at once."""
    folder = tmp_path_factory.mktemp("made")
    for number in (1, 2, 3):
        shard = ("--shard", f"{number}/3", "--output", str(folder / f"shard-{number}"))
        assert main([*RUN, *KEEP, *shard]) == 0
    assert main([*RUN, *KEEP, "--output", str(folder / "whole")]) == 0
    assert merged(folder, "--quiet") == 0
    return folder


@pytest.fixture
def shards(made, tmp_path) -> Path:
    for number in (1, 2, 3):
        shutil.copytree(made / f"shard-{number}", tmp_path / f"shard-{number}")
    return tmp_path


def merged(folder: Path, *options: str, numbers=(1, 2, 3)) -> int:
    named = [str(folder / f"shard-{number}") for number in numbers]
    return main(["merge", *named, "--output", str(folder / "merged"), *options])


def shard(folder: Path, number: int) -> tuple[Path, Path]:
    end = f"{number}-of-3"
    there = folder / f"shard-{number}"
    return there / f"certificate.{end}.json", there / f"samples.{end}.jsonl"


def change(folder: Path, number: int, edit) -> None:
    """Edit certificate and samples of a shard, and let its digest fit."""
    paths = shard(folder, number)
    certificate = json.loads(paths[0].read_text())
    samples = [json.loads(line) for line in paths[1].read_text().splitlines()]
    edit(certificate, samples)
    paths[1].write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    certificate["samples_sha256"] = digest_of(samples)
    paths[0].write_text(json.dumps(certificate))


def test_the_merged_certificate_is_that_of_the_whole_run(made):
    """Coins, seconds and shards apart."""
    found, whole = read(made / "merged"), read(made / "whole")
    assert [s["index"] for s in found.samples] == [s["index"] for s in whole.samples]
    for one, other in zip(found.samples, whole.samples, strict=True):
        assert (one["prediction"], one["label"]) == (other["prediction"], other["label"])
    for name in ("lipcert", "options", "options_digest", "threat_model", "data"):
        assert found.certificate[name] == whole.certificate[name]
    assert found.certificate["summary"]["n"] == 14
    assert [one["shard"] for one in found.certificate["shards"]] == ["1/3", "2/3", "3/3"]
    assert len({one["coins"]["seed"] for one in found.certificate["shards"]}) == 3
    assert "seed" not in found.certificate["coins"]
    assert found.certificate["coins"]["source"] == "system"


def test_samples_are_those_of_the_shards(made):
    _, samples = opened(made / "merged")
    for number in (1, 2, 3):
        lines = shard(made, number)[1].read_text().splitlines()
        assert samples[number - 1 :: 3] == [json.loads(line) for line in lines]


def test_failure_probabilities_add_up_to_no_more_than_was_asked_for(made):
    certificate = read(made / "merged").certificate
    stated = [one["failure_probability"] for one in certificate["shards"]]
    assert certificate["assurance"]["failure_probability"] == pytest.approx(sum(stated), rel=1e-9)
    # Each shard's coins are its own: had each the whole of what norms that all samples share may
    # fail with, three of them would spend more than the run may.
    assert all(0 < one < 1e-9 / 2 for one in stated)
    assert sum(stated) <= 1e-9


def test_what_lies_beside_the_certificates_goes_along(made):
    def arrays(folder, name):
        with np.load(folder / f"{name}.npz") as archive:
            return dict(archive)

    for name in ("counterexamples", "proofs"):
        found = arrays(made / "merged", name)
        parts = [arrays(made / f"shard-{n}", f"{name}.{n}-of-3") for n in (1, 2, 3)]
        assert found["index"].tolist() == [i for part in parts for i in part["index"].tolist()]
        assert len(found["index"])
    assert arrays(made / "merged", "thumbnails").keys() == {"index", "image"}


def test_every_command_takes_it(made, tmp_path, capsys):
    results = str(made / "merged")
    assert main(["gate", results, "--min-clean", "0.5"]) == 0
    assert main(["gate", results, "--min-clean", "1", "--quiet"]) == 1
    assert main(["report", results, "--format", "markdown"]) == 0
    assert "of 3 shards" in capsys.readouterr().out
    assert main(["report", results, "--to", str(tmp_path / "report.html")]) == 0
    assert main(["compare", str(made / "whole"), results]) == 0
    audit = ("audit", results, "--model", str(DIGITS), "--samples", "all", "--restarts", "2")
    assert main([*audit, "--proofs", "--quiet", "--strict"]) in (0, 1)
    found = json.loads((made / "merged" / "audit.json").read_text())
    assert found["agreement"]
    assert found["counts"]["confirmed"] == 14


def missing(folder):
    shutil.rmtree(folder / "shard-2")
    (folder / "shard-2").mkdir()


def copied(folder):
    for path in (folder / "shard-1").iterdir():
        shutil.copy(path, folder / "shard-3" / path.name)


def edited(number, edit):
    return lambda folder: change(folder, number, edit)


def torn(folder):
    _, samples = shard(folder, 2)
    samples.write_bytes(samples.read_bytes()[:-10])


def swapped(folder):
    _, samples = shard(folder, 2)
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(reversed(lines)))


def first_twice(certificate, samples):
    samples[1] = samples[0]


def reordered(certificate, samples):
    samples.reverse()


def more_certified(certificate, samples):
    certificate["summary"]["certified_count"]["0.3"] += 1


def spends(probability):
    return lambda c, s: c["assurance"].update(failure_probability=probability)


@pytest.mark.parametrize(
    ("harm", "said"),
    {
        "a shard is missing": (missing, "shard-2: holds no certificate of a shard"),
        "a shard is there twice": (copied, "is shard 1/3, and so is"),
        "another model": (
            edited(2, lambda c, s: c["model"]["files"].update({"digits.onnx": "0" * 64})),
            r"another model than .*\$\.model\.files\.digits.onnx differs",
        ),
        "other data": (
            edited(2, lambda c, s: c["data"].update(sha256="0" * 64)), r"\$\.data\.sha256 differs"
        ),
        "other options": (
            edited(3, lambda c, s: c["options"].update(effort="max")), r"\$\.options\.effort"
        ),
        "another version": (edited(3, lambda c, s: c.update(lipcert="9.9")), "version of lipcert"),
        "a torn line": (torn, "line 5: is damaged: it is cut off"),
        "another file of samples": (swapped, "its sha256 is not samples_sha256"),
        "a sample twice": (edited(1, first_twice), "shard-1.*cannot be|are not those"),
        "samples in another order": (edited(1, reordered), "not those that were chosen"),
        "a summary of its own": (edited(2, more_certified), "certified_count.0.3 is"),
        "too few samples": (edited(1, lambda c, s: s.pop()), "has 4 samples, and 5 were chosen"),
        "more than was asked for": (edited(2, spends(9e-10)), "above the 1e-09 that was asked for"),
        "an edited sample": (
            edited(2, lambda c, s: s[0].update(radius=9.0)), "line 1: sample 1 cannot be"
        ),
    }.values(),
)  # fmt: skip
def test_what_is_not_whole_or_not_of_one_run_is_refused_by_name(shards, capsys, harm, said):
    harm(shards)
    code = merged(shards)
    shown = " ".join(capsys.readouterr().err.split())
    assert code in (2, 3), shown
    assert re.search(said, shown), shown
    assert not (shards / "merged" / "certificate.json").exists()


def test_missing_shards_are_named(shards, capsys):
    assert merged(shards, numbers=(1, 3)) == 3
    assert "1 of 3 shards are missing: 2/3" in capsys.readouterr().err


def test_results_are_replaced_only_where_that_is_asked_for(shards, capsys):
    assert merged(shards, "--quiet") == 0
    before = (shards / "merged" / "certificate.json").read_bytes()
    assert merged(shards) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert merged(shards, "--quiet", "--overwrite") == 0
    assert (shards / "merged" / "certificate.json").read_bytes() == before
    # What is there is not lost to shards that cannot be merged.
    assert merged(shards, "--quiet", "--overwrite", numbers=(1, 3)) == 3
    assert (shards / "merged" / "certificate.json").read_bytes() == before
    assert main(["merge", str(shards / "merged"), "--output", str(shards / "again")]) == 2


def test_a_sample_that_failed_inside_counts_as_such(shards, capsys):
    """As after a run: exit code 4, and all files are there."""

    def fail(certificate, samples):
        samples[0].update(verdict="error", radius=0.0, certified=[], message="no memory", rungs={})
        for name in ("attack_radius", "decided_by", "eliminated", "rungs"):
            samples[0].pop(name, None)
        from forging import Sample, cascade, summarise

        found = [Sample.from_json(sample) for sample in samples]
        certificate["summary"] = summarise(found, certificate["options"]["eps"], estimate=False)
        certificate["cascade"] = cascade(found)

    change(shards, 2, fail)
    assert merged(shards, "--quiet") == 4
    assert "1 of 14 samples failed inside lipcert" in capsys.readouterr().err
    certificate = read(shards / "merged").certificate
    assert certificate["notes"][0].startswith("1 sample failed inside lipcert")
