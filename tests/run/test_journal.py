import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from lipcert.certificate import Sample
from lipcert.errors import CannotCertify, UsageError
from lipcert.options import Epsilon, Options
from lipcert.records import Frame
from lipcert.run.folder import check_output, recorded_coins
from lipcert.run.job import Execution, Shard
from lipcert.run.journal import Journal

FRAME = Frame(Options((Epsilon.parse("0.1"), Epsilon.parse("0.3"))), 10, 10, 100, 64)
HEADER = {"options": "aa", "model": {"m.onnx": "bb"}, "samples": "cc"}


def sample(index: int, verdict: str = "certified", margin: float = 1.5) -> Sample:
    """Of a radius that fits the verdict."""
    if verdict == "error":
        return Sample(index, 3, -1, verdict, math.nan, 0.0, None, "local", 0.1, message="bad")
    radius, eps = (0.35, ("0.1", "0.3")) if verdict == "certified" else (0.25, ("0.1",))
    attacked = 0.29 if verdict == "falsified" else None
    return Sample(
        index, 3, 3, verdict, margin, radius, 2.0, "local", 0.1, eps, attack_radius=attacked
    )


def write(folder: Path, samples: list[Sample], shard: Shard | None = None) -> Path:
    with Journal(Execution(output=folder, shard=shard), HEADER, FRAME) as journal:
        journal.add(samples)
    assert journal.path is not None
    return journal.path


def resume(folder: Path, header: dict = HEADER, shard: Shard | None = None) -> dict[int, Sample]:
    execution = Execution(output=folder, resume=True, shard=shard)
    check_output(execution)
    with Journal(execution, header, FRAME) as journal:
        return journal.finished


def test_what_was_added_is_there_after_resuming(tmp_path):
    samples = [sample(4), sample(2, "unknown")]
    write(tmp_path, samples)
    assert resume(tmp_path) == {4: samples[0], 2: samples[1]}


def test_errors_are_tried_again(tmp_path):
    write(tmp_path, [sample(0), sample(1, "error")])
    assert set(resume(tmp_path)) == {0}


@pytest.mark.parametrize("cut", range(1, 40))
def test_an_unfinished_last_line_is_dropped_for_good(tmp_path, cut):
    path = write(tmp_path, [sample(0), sample(1)])
    path.write_bytes(path.read_bytes()[:-cut])
    assert set(resume(tmp_path)) == {0}
    with Journal(Execution(output=tmp_path, resume=True), HEADER, FRAME) as journal:
        journal.add([sample(1)])
    assert set(resume(tmp_path)) == {0, 1}


def test_a_journal_killed_within_its_header_starts_anew(tmp_path):
    path = write(tmp_path, [])
    path.write_bytes(path.read_bytes()[:10])
    assert resume(tmp_path) == {}
    header = json.loads(path.read_text())
    assert len(header.pop("sha256")) == 64
    assert header == HEADER


def test_a_damaged_line_is_refused_with_its_number(tmp_path):
    path = write(tmp_path, [sample(0), sample(1)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-20], lines[2], ""]))
    with pytest.raises(CannotCertify, match=r"line 2: is damaged.*remove that line.*--overwrite"):
        resume(tmp_path)
    path.write_text("\n".join([lines[0], lines[2], ""]))
    assert set(resume(tmp_path)) == {1}


def test_every_byte_of_a_journal_counts(tmp_path):
    """Whichever is changed, it is refused, or the sample on its line is as it was."""
    path = write(tmp_path, [sample(0), sample(1)])
    content = path.read_bytes()
    before = resume(tmp_path)
    for place in range(len(content)):
        changed = bytes([content[place] ^ 1])
        path.write_bytes(content[:place] + changed + content[place + 1 :])
        try:
            found = resume(tmp_path)
        except (CannotCertify, UsageError):
            continue
        assert found.items() <= before.items(), place


def test_a_line_of_another_run_is_refused(tmp_path):
    path = write(tmp_path, [sample(0)])
    with Journal(Execution(output=tmp_path / "other"), HEADER | {"data": "dd"}, FRAME) as other:
        other.add([sample(1)])
    line = (tmp_path / "other" / "journal.jsonl").read_text().splitlines()[1]
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(CannotCertify, match="line 3: is damaged: it has not the sha256"):
        resume(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"index": 100}, {"label": 10, "prediction": 10}, {"radius": 0.05}, {"radius": 9.0},
        {"margin": -1.0}, {"margin": math.nan}, {"prediction": 4}, {"certified": ()},
        {"verdict": "unknown"}, {"verdict": "estimated"}, {"attack_radius": 0.2},
        {"failure_probability": 0.5}, {"lipschitz": -1.0}, {"verdict": "timeout"},
    ],
    ids=str,
)  # fmt: skip
def test_a_sample_that_could_not_be_is_refused_though_its_line_is_whole(tmp_path, change):
    write(tmp_path, [sample(0), dataclasses.replace(sample(1), **change)])
    with pytest.raises(CannotCertify, match="line 3"):
        resume(tmp_path)


def test_a_sample_of_no_run_or_finished_twice_is_refused(tmp_path):
    path = write(tmp_path, [sample(0), sample(1, "error"), sample(1)])
    assert set(resume(tmp_path)) == {0, 1}
    of_run = dataclasses.replace(FRAME, labels={0: 3, 1: 4})
    with pytest.raises(CannotCertify, match="line 3: sample 1 cannot be: label 3, not 4"):
        Journal(Execution(output=tmp_path, resume=True), HEADER, of_run)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1], ""]))
    with pytest.raises(CannotCertify, match="line 5: sample 0 was finished before"):
        resume(tmp_path)


def test_a_damaged_counterexample_is_refused_with_its_line(tmp_path):
    execution = Execution(output=tmp_path, save_counterexamples=True)
    with Journal(execution, HEADER, FRAME) as journal:
        journal.points[1] = np.ones((1, 2, 2), np.float32)
        journal.add([sample(0), sample(1, "falsified")])
    again = Execution(output=tmp_path, save_counterexamples=True, resume=True)
    with Journal(again, HEADER, FRAME) as journal:
        assert set(journal.finished) == {0, 1}
        assert journal.points[1].tolist() == [[[1, 1], [1, 1]]]
    # Whoever does not ask for it does not read it.
    with Journal(Execution(output=tmp_path, resume=True), HEADER, FRAME) as journal:
        assert (set(journal.finished), journal.points) == ({0, 1}, {})
    good = (tmp_path / "journal.jsonl").read_text()
    start = good.index('"counterexample": "') + len('"counterexample": "')
    end = good.index('"', start)
    for damage in ("AAAA", "*", ""):
        (tmp_path / "journal.jsonl").write_text(good[:start] + damage + good[end:])
        with pytest.raises(CannotCertify, match=r"line 3: is damaged.*--overwrite"):
            Journal(again, HEADER, FRAME)


@pytest.mark.parametrize("name", HEADER)
def test_another_header_is_refused_naming_the_field(tmp_path, name):
    write(tmp_path, [sample(0)])
    word = {"samples": "choice of samples .--limit", "data": "data set", "model": "model file"}
    with pytest.raises(UsageError, match=f"another (--)?{word.get(name, name)}"):
        resume(tmp_path, HEADER | {name: "other"})


def test_options_that_differ_are_told_by_their_names(tmp_path):
    before = HEADER | {"options": "1", "settings": {"effort": "fast", "pixel_domain": False}}
    after = HEADER | {"options": "2", "settings": {"effort": "max", "pixel_domain": True}}
    with Journal(Execution(output=tmp_path), before, FRAME) as journal:
        journal.add([sample(0)])
    said = r"another --effort \(fast, now max\), another --pixel-domain \(off, now on\);"
    with pytest.raises(UsageError, match=said):
        resume(tmp_path, after)
    # The words alone refuse nothing.
    resume(tmp_path, before | {"settings": {}})


def test_a_journal_without_a_sample_holds_nobody_to_its_options(tmp_path):
    with Journal(Execution(output=tmp_path), HEADER, FRAME):
        pass
    assert resume(tmp_path, HEADER | {"options": "other"}) == {}
    with Journal(
        Execution(output=tmp_path, resume=True), HEADER | {"options": "other"}, FRAME
    ) as journal:
        journal.add([sample(0)])
    with pytest.raises(UsageError, match="another"):
        resume(tmp_path)


def test_an_earlier_run_is_not_written_over(tmp_path):
    write(tmp_path, [sample(0)])
    with pytest.raises(UsageError, match=r"journal\.jsonl.*--resume or.*--overwrite"):
        check_output(Execution(output=tmp_path))


def test_a_certificate_alone_is_not_written_over_either(tmp_path):
    (tmp_path / "certificate.json").write_text("{}")
    with pytest.raises(UsageError, match=r"certificate\.json"):
        check_output(Execution(output=tmp_path))


def test_a_folder_with_other_files_is_accepted(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    check_output(Execution(output=tmp_path))


def test_overwrite_forgets_the_samples_and_spares_other_files(tmp_path):
    write(tmp_path, [sample(0)])
    (tmp_path / "certificate.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    execution = Execution(output=tmp_path, overwrite=True)
    check_output(execution)
    with Journal(execution, HEADER, FRAME) as journal:
        assert journal.finished == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal.jsonl", "notes.txt"]


def test_shards_share_a_folder_and_are_gathered_by_resuming(tmp_path):
    for number in (1, 2):
        shard = Shard(number, 2)
        check_output(Execution(output=tmp_path, shard=shard))
        write(tmp_path, [sample(number)], shard)
    assert set(resume(tmp_path)) == {1, 2}


def test_the_whole_run_does_not_ignore_what_shards_have_done(tmp_path):
    write(tmp_path, [sample(1)], Shard(1, 2))
    with pytest.raises(UsageError, match="1-of-2"):
        check_output(Execution(output=tmp_path))


def test_resuming_nothing_and_writing_into_a_file_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no journal"):
        check_output(Execution(output=tmp_path, resume=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        check_output(Execution(output=tmp_path / "file"))


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Journal(Execution(), HEADER, FRAME) as journal:
        journal.add([sample(0)])
    assert set(journal.finished) == {0}
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_never_ends_is_not_read(tmp_path):
    """A link to a device, and brackets without end, where the coins are looked for as well."""
    path = write(tmp_path, [sample(0)])
    execution = Execution(output=tmp_path, resume=True)
    path.write_text("[" * 200_000 + "\n")
    assert recorded_coins(execution) is None
    with pytest.raises(CannotCertify, match="nested too deeply"):
        resume(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert recorded_coins(execution) is None
    with pytest.raises(UsageError, match="no regular file"):
        resume(tmp_path)
    # Nor one that is longer than any of so few samples.
    path.unlink()
    write(tmp_path, [sample(0)])
    with path.open("r+b") as file:
        file.truncate(1 << 32)
    with pytest.raises(CannotCertify, match="has more than 2"):
        resume(tmp_path)
