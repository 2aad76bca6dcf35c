"""The journal: what a run has finished, kept on disk as it goes, so that nothing is computed twice.

``journal.jsonl`` holds one header line, which says what the samples depend on, and one line a
finished sample. Lines are only ever appended, a batch in one write, so a killed process leaves at
most its last line unfinished; that line is dropped. Shards that share a folder write a journal
each and, when they resume, read all of them. Counterexamples that are to be kept go with their
samples, each as the base64 of a ``.npy`` file.

Every line ends with ``sha256``, of the header's and of the line before that field: a line that was
damaged, edited or taken from another journal is refused, as is a sample that could not be, by the
rules of ``lipcert.records``. Against whoever computes such digests there is no protection, nor need
of one: a journal is resumed where it was written.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lipcert.bounded import array_of
from lipcert.certificate import Sample
from lipcert.coins import Coins
from lipcert.errors import CannotCertify, LipcertError, UsageError
from lipcert.records import Frame
from lipcert.records.sample_rules import check_sample
from lipcert.records.strict_json import parse
from lipcert.report import json_file, thumbnails
from lipcert.run.job import Execution
from lipcert.run.kept import Kept

Header = Mapping[str, Any]

_POINT, _DIGEST = "counterexample", "sha256"
# Bytes: of a line without its counterexample, and of a number of that as base64 has it; of which a
# sample may have several lines, as what failed is tried again.
_LINE, _NUMBER, _LINES = 1 << 14, 12, 16
_REMEDY = "or start afresh with --overwrite"


class Journal:
    """The samples finished so far, by index, and the file that the next ones are appended to.

    ``finished`` leaves out samples that ended in an error, and falsified ones whose counterexample
    is asked for and was not kept: they are tried again. ``points``: the counterexamples by index;
    one that is there is written with its sample.
    """

    def __init__(self, execution: Execution, header: Header, frame: Frame) -> None:
        """Open the journal of ``execution.output``, which ``check_output`` has accepted.

        ``frame``: what its samples are held against. Raises ``CannotCertify`` where the journal to
        resume is damaged, naming the line; ``UsageError`` where it was written for another header,
        naming what differs, or where the folder cannot be written.
        """
        self._frame = frame
        counted = {name: value for name, value in header.items() if name != _SETTINGS}
        self._seed = _sealed(counted, "")[_DIGEST]
        self._most = (1 + frame.size) * _LINES * (_LINE + _NUMBER * frame.values)
        self.finished = Kept(frame.size)
        self.points: dict[int, NDArray[Any]] = {}
        self._keeps_points = execution.save_counterexamples
        self.path: Path | None = None
        if execution.output is None:
            return
        self.path = journal_path(execution)
        try:
            self._open(self.path, execution, header)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written: {error.strerror}") from error

    def _open(self, path: Path, execution: Execution, header: Header) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if execution.overwrite:
            remove_results(execution)
        if execution.resume:
            for other in sorted(path.parent.glob("journal*.jsonl")):
                if other == path and self._holds_no_sample(path):
                    path.unlink()  # whatever it was begun with
                    continue
                self._read(other, header, repair=other == path)
        self._file = path.open("ab", buffering=0)
        if self._file.tell() == 0:
            self._write_lines([_sealed(dict(header), "")])

    def _holds_no_sample(self, path: Path) -> bool:
        """Whether it has a sound first line and no other, or not even a first one."""
        lines = list(islice(_lines(path, self._most, repair=False), 2))
        try:
            return len(lines) < 2 and all(_opened(line, "", str(path)) for line in lines)
        except CannotCertify:
            return False  # reading it says what is wrong with it

    def _read(self, path: Path, header: Header, *, repair: bool) -> None:
        finished = Kept(self._frame.size)
        for number, line in enumerate(_lines(path, self._most, repair=repair), start=1):
            where = f"{path}: line {number}"
            try:
                if number == 1:
                    _compare(path, _opened(line, "", where), header)
                    continue
                sample = self._sample(_opened(line, self._seed, where), where)
                before = finished.get(sample.index)
                # What failed is tried again, as is what lost its counterexample.
                if before and before.verdict not in ("error", "falsified"):
                    raise CannotCertify(f"{where}: sample {sample.index} was finished before")
            except CannotCertify as error:
                remedy = f"remove that line, {_REMEDY}" if number > 1 else _REMEDY[3:]
                raise CannotCertify(f"{error}; {remedy}") from error
            finished[sample.index] = sample
        for index, sample in finished.items():
            lost = sample.verdict == "falsified" and index not in self.points
            if sample.verdict == "error" or (lost and self._keeps_points):
                self.finished.pop(index, None)
            else:
                self.finished[index] = sample

    def _sample(self, record: dict[str, Any], where: str) -> Sample:
        point = record.pop(_POINT, None)
        check_sample(record, self._frame, where)
        if point is not None and self._keeps_points:
            self.points[record["index"]] = point_of(point, where)
        return Sample.from_json(record)

    def add(self, samples: Iterable[Sample]) -> None:
        """Append finished samples; they are on their way to the disk when this returns."""
        samples = list(samples)
        self.finished.update({s.index: s for s in samples if s.verdict != "error"})
        estimate = self._frame.estimate
        records = [
            json_file.sample_record(s, estimate=estimate) | self._point_of(s) for s in samples
        ]
        self._write_lines([_sealed(record, self._seed) for record in records])

    def after_interrupt(self, done: int, total: int) -> str:
        """What to tell whoever interrupted the run."""
        if self.path is None:
            return (
                f"interrupted after {done} of {total} samples; name a folder with --output to keep "
                "them"
            )
        return (
            f"interrupted; {done} of {total} samples are kept in {self.path}: "
            "repeat the command with --resume to go on"
        )

    def _point_of(self, sample: Sample) -> dict[str, str]:
        point = self.points.get(sample.index)
        return {} if point is None else {_POINT: text_of(point)}

    def _write_lines(self, records: list[dict[str, Any]]) -> None:
        if self.path is None:
            return
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        rest = memoryview(text.encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be written: {error.strerror}; "
                "what is there can be continued with --resume"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.path is not None:
            self._file.close()


def _lines(path: Path, most: int, *, repair: bool) -> Iterator[bytes]:
    """The whole lines of a journal; what a killed process left unfinished is cut off, where that is
    to be repaired. Raises ``CannotCertify`` where it has more than ``most`` bytes, ``UsageError``
    where it cannot be read, or is a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: cannot be read: it is no regular file")
    begun = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(most + 1):
                if begun + len(line) > most:
                    raise CannotCertify(f"{path}: is damaged: it has more than {most >> 20} MiB")
                if not line.endswith(b"\n"):
                    break
                begun += len(line)
                yield line[:-1]
            else:
                return
        if repair:
            with path.open("r+b") as file:
                file.truncate(begun)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def journal_path(execution: Execution) -> Path:
    """Where the journal of this run, or of this shard of it, lies."""
    assert execution.output is not None
    return execution.output / f"journal{json_file.suffix(execution.part)}.jsonl"


def recorded_coins(execution: Execution) -> Coins | None:
    """The coins that a run goes on with: those of its own journal, or of another shard's beside it,
    as all shards of a run share their norms; None where a run starts. What else is wrong with a
    journal is found where it is read."""
    if execution.output is None:
        return None
    own = journal_path(execution)
    for path in sorted(own.parent.glob("journal*.jsonl"), key=lambda path: path != own):
        if (path == own or execution.shard is None) and not execution.resume:
            continue
        try:
            if not path.is_file():
                continue
            with path.open("rb") as lines:
                return Coins.from_json(parse(lines.readline(2**20), str(path))["coins"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, LipcertError):
            continue
    return None


def remove_results(execution: Execution) -> None:
    """Remove the journal, the results, the proofs and the audit of an earlier run of the same
    shard, nothing else."""
    assert execution.output is not None
    pictures = thumbnails.paths(execution.output, json_file.suffix(execution.part))
    results = json_file.paths(execution.output, execution.part)
    audit = execution.output / f"audit{json_file.suffix(execution.part)}.json"
    proofs = json_file.proofs_path(execution.output, execution.part)
    for path in (journal_path(execution), *pictures, audit, proofs, *results):
        path.unlink(missing_ok=True)


def check_output(execution: Execution) -> None:
    """Refuse, before anything is computed, to write over an earlier run.

    Raises ``UsageError`` where the folder is no folder, holds results while neither ``resume`` nor
    ``overwrite`` is asked for, or holds no journal to resume.
    """
    folder = execution.output
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: is a file; name a folder")
    if execution.resume:
        # A shard may join the others before it has a journal of its own.
        if not any(folder.glob("journal*.jsonl")):
            raise UsageError(f"--resume: {folder} holds no journal; leave --resume out to start")
        return
    own = (journal_path(execution), *json_file.paths(folder, execution.part))
    kept = [path.name for path in own if path.exists()]
    if execution.shard is None:
        kept += sorted(path.name for path in folder.glob("journal.*-of-*.jsonl"))
    if kept and not execution.overwrite:
        raise UsageError(
            f"--output {folder}: holds {kept[0]} of an earlier run; continue it with --resume "
            f"{_REMEDY}"
        )


# What else a header holds, for people, and how they would say what it differs in.
_WORDS = {
    "lipcert": "version of lipcert",
    "model": "model file, or other weights",
    "data": "data set: the images or labels are not the same",
    "samples": "choice of samples (--limit, --indices or --random)",
}
_SETTINGS, _OPTIONS = "settings", {"value_range": "--range"}


def _compare(path: Path, found: dict[str, Any], expected: Header) -> None:
    wanted = json.loads(json.dumps(dict(expected)))
    differing = [
        name for name in wanted | found if name != _SETTINGS and found.get(name) != wanted.get(name)
    ]
    if not differing:
        return
    said = [text for name in differing for text in _in_words(name, found, wanted)]
    raise UsageError(
        f"{path}: was written with another {', another '.join(dict.fromkeys(said))}; "
        f"resume with the same, {_REMEDY}"
    )


def _in_words(name: str, found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Which options differ, or what else does."""
    of, now = found.get(name), wanted.get(name)
    if name == "options":
        of, now = found.get(_SETTINGS), wanted.get(_SETTINGS)
    if isinstance(of, dict) and isinstance(now, dict) and name in ("options", "preprocessing"):
        differing = [key for key in of | now if of.get(key) != now.get(key)]
        return [_option(key) + _changed(of.get(key), now.get(key)) for key in differing] or [name]
    if name == "coins":
        return ["--seed"]
    if name in ("eps", "lipcert"):
        return [_WORDS.get(name, f"--{name}") + _changed(of, now)]
    return [_WORDS.get(name, name + _changed(of, now))]


def _option(key: str) -> str:
    return _OPTIONS.get(key, f"--{key.replace('_', '-')}")


def _changed(of: Any, now: Any) -> str:
    return f" ({_short(of)}, now {_short(now)})"


def text_of(array: NDArray[Any]) -> str:
    """An array as a line of a journal holds it."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode()


def point_of(text: Any, where: str = "a line of the journal") -> NDArray[Any]:
    """What ``text_of`` wrote; ``CannotCertify`` where it is damaged."""
    try:
        content = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise CannotCertify(f"{where}: is damaged: its counterexample is none: {error}") from error
    return array_of(content, f"{where}: its counterexample")


def _sealed(record: dict[str, Any], seed: str) -> dict[str, Any]:
    """With the digest of ``seed`` and of itself."""
    text = seed + json.dumps(record, allow_nan=False)
    return record | {_DIGEST: hashlib.sha256(text.encode()).hexdigest()}


def _opened(line: bytes, seed: str, where: str) -> dict[str, Any]:
    """The record of a line, whose digest is checked. Raises ``CannotCertify``."""
    record = parse(line, where)
    digest = record.pop(_DIGEST, None)
    if digest != _sealed(record, seed)[_DIGEST]:
        raise CannotCertify(f"{where}: is damaged: it has not the sha256 that it was written with")
    return record


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
