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

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from lipcert.certificate import Sample
from lipcert.errors import CannotCertify, UsageError
from lipcert.records import Frame
from lipcert.records.sample_rules import check_sample
from lipcert.report import json_file
from lipcert.run.folder import AFRESH, journal_path, remove_results
from lipcert.run.job import Execution
from lipcert.run.journal_lines import DIGEST, opened, point_of, sealed, text_of, whole_lines
from lipcert.run.kept import Kept
from lipcert.run.resuming import SETTINGS, Header, compare

_POINT = "counterexample"
# Bytes: of a line without its counterexample, and of a number of that as base64 has it; of which a
# sample may have several lines, as what failed is tried again.
_LINE, _NUMBER, _LINES = 1 << 14, 12, 16


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
        counted = {name: value for name, value in header.items() if name != SETTINGS}
        self._seed = sealed(counted, "")[DIGEST]
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
            self._write_lines([sealed(dict(header), "")])

    def _holds_no_sample(self, path: Path) -> bool:
        """Whether it has a sound first line and no other, or not even a first one."""
        lines = list(islice(whole_lines(path, self._most, repair=False), 2))
        try:
            return len(lines) < 2 and all(opened(line, "", str(path)) for line in lines)
        except CannotCertify:
            return False  # reading it says what is wrong with it

    def _read(self, path: Path, header: Header, *, repair: bool) -> None:
        finished = Kept(self._frame.size)
        for number, line in enumerate(whole_lines(path, self._most, repair=repair), start=1):
            where = f"{path}: line {number}"
            try:
                if number == 1:
                    compare(path, opened(line, "", where), header)
                    continue
                sample = self._sample(opened(line, self._seed, where), where)
                before = finished.get(sample.index)
                # What failed is tried again, as is what lost its counterexample.
                if before and before.verdict not in ("error", "falsified"):
                    raise CannotCertify(f"{where}: sample {sample.index} was finished before")
            except CannotCertify as error:
                remedy = f"remove that line, {AFRESH}" if number > 1 else AFRESH[3:]
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
        self._write_lines([sealed(record, self._seed) for record in records])

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
