import json
import math
from pathlib import Path

import numpy as np
import pytest

from lipcert.certificate import Sample
from lipcert.errors import UsageError
from lipcert.run.job import Execution, Shard
from lipcert.run.journal import Journal, check_output

HEADER = {"options": "aa", "model": {"m.onnx": "bb"}, "samples": "cc"}


def sample(index: int, verdict: str = "certified", margin: float = 1.5) -> Sample:
    return Sample(index, 3, 3, verdict, margin, 0.25, 2.0, "local", 0.1, ("0.1",))


def write(folder: Path, samples: list[Sample], shard: Shard | None = None) -> Path:
    with Journal(Execution(output=folder, shard=shard), HEADER) as journal:
        journal.add(samples)
    assert journal.path is not None
    return journal.path


def resume(folder: Path, header: dict = HEADER, shard: Shard | None = None) -> dict[int, Sample]:
    execution = Execution(output=folder, resume=True, shard=shard)
    check_output(execution)
    with Journal(execution, header) as journal:
        return journal.finished


def test_what_was_added_is_there_after_resuming(tmp_path):
    samples = [sample(4), sample(2, "unknown")]
    write(tmp_path, samples)
    assert resume(tmp_path) == {4: samples[0], 2: samples[1]}


def test_a_margin_that_is_not_a_number_survives(tmp_path):
    write(tmp_path, [sample(0, margin=math.nan)])
    assert math.isnan(resume(tmp_path)[0].margin)


def test_errors_are_tried_again(tmp_path):
    write(tmp_path, [sample(0), sample(1, "error")])
    assert set(resume(tmp_path)) == {0}


@pytest.mark.parametrize("cut", range(1, 40))
def test_an_unfinished_last_line_is_dropped_for_good(tmp_path, cut):
    path = write(tmp_path, [sample(0), sample(1)])
    path.write_bytes(path.read_bytes()[:-cut])
    assert set(resume(tmp_path)) == {0}
    with Journal(Execution(output=tmp_path, resume=True), HEADER) as journal:
        journal.add([sample(1)])
    assert set(resume(tmp_path)) == {0, 1}


def test_a_journal_killed_within_its_header_starts_anew(tmp_path):
    path = write(tmp_path, [])
    path.write_bytes(path.read_bytes()[:10])
    assert resume(tmp_path) == {}
    assert json.loads(path.read_text()) == HEADER


def test_a_damaged_line_is_refused_with_its_number(tmp_path):
    path = write(tmp_path, [sample(0), sample(1)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-20], lines[2], ""]))
    with pytest.raises(UsageError, match=r"line 2 is damaged.*--overwrite"):
        resume(tmp_path)


def test_a_damaged_counterexample_is_refused_with_its_line(tmp_path):
    execution = Execution(output=tmp_path, save_counterexamples=True)
    with Journal(execution, HEADER) as journal:
        journal.points[1] = np.ones((1, 2, 2), np.float32)
        journal.add([sample(0), sample(1, "falsified")])
    again = Execution(output=tmp_path, save_counterexamples=True, resume=True)
    with Journal(again, HEADER) as journal:
        assert set(journal.finished) == {0, 1}
        assert journal.points[1].tolist() == [[[1, 1], [1, 1]]]
    # Whoever does not ask for it does not read it.
    with Journal(Execution(output=tmp_path, resume=True), HEADER) as journal:
        assert (set(journal.finished), journal.points) == ({0, 1}, {})
    good = (tmp_path / "journal.jsonl").read_text()
    start = good.index('"counterexample": "') + len('"counterexample": "')
    for damage in ("AAAA", "*", ""):
        (tmp_path / "journal.jsonl").write_text(good[:start] + damage + '"}\n')
        with pytest.raises(UsageError, match=r"line 3 is damaged.*--overwrite"):
            Journal(again, HEADER)


@pytest.mark.parametrize("name", HEADER)
def test_another_header_is_refused_naming_the_field(tmp_path, name):
    write(tmp_path, [sample(0)])
    with pytest.raises(UsageError, match=f"another {name} "):
        resume(tmp_path, HEADER | {name: "other"})


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
    with Journal(execution, HEADER) as journal:
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
    with Journal(Execution(), HEADER) as journal:
        journal.add([sample(0)])
    assert set(journal.finished) == {0}
    assert list(tmp_path.iterdir()) == []
