"""What ``lipcert.certify`` returns: a certificate, its samples, and what can be done with them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from lipcert import audit as auditing
from lipcert import run
from lipcert.arguments import in_python
from lipcert.errors import UsageError
from lipcert.gate import Outcome, Thresholds, evaluate
from lipcert.report import json_file, table
from lipcert.report.formats import Format, render
from lipcert.report.numbers import percent
from lipcert.report.reading import read_results
from lipcert.report.results import Results, of_run

_Path = str | PathLike[str]


class Result(run.RunResult):
    """The ``certificate`` of a run, and its ``samples`` in the order of the images."""

    def __repr__(self) -> str:
        """One line: model, data, clean and certified accuracy."""
        results = self._results()
        n, at = results.summary["n"], results.eps[-1][0]
        clean = percent(results.summary["clean_correct"], n)
        found = percent(results.counts[at], n)
        said = f"{n} samples, clean {clean}, {results.claim} {found} at eps {at}"
        return f"<Result {results.title}: {said}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the rows of the table that the command line prints."""
        cells = (
            f'<tr><th style="text-align:left">{escape(name)}</th>'
            f'<td style="text-align:left;white-space:pre-line">{escape(value)}</td></tr>'
            for name, value in table.rows(self.certificate)
        )
        title = escape(self._results().title)
        return f"<table><caption>{title}</caption>{''.join(cells)}</table>"

    def save(self, folder: _Path) -> Path:
        """Write ``certificate.json`` and ``samples.jsonl`` to a folder, over what is there; returns
        it. Raises ``UsageError`` where it cannot be written."""
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"folder {path}: cannot be made: {error.strerror}") from error
        json_file.write(path, self.certificate, self.samples)
        return path

    def to_pandas(self) -> Any:
        """A pandas ``DataFrame``, a row a sample, with the fields of ``samples.jsonl``. Raises
        ``UsageError`` without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise UsageError("to_pandas: needs pandas; pip install pandas") from error
        return pandas.DataFrame.from_records(list(self._results().samples), index="index")

    @in_python
    def gate(self, *, baseline: _Path | None = None, **asked: Any) -> list[Outcome]:
        """Hold the result against thresholds, an outcome each, with ``gate``, ``status`` (``pass``,
        ``warn`` or ``fail``) and ``message``.

        ``asked``: those of ``lipcert gate`` as text or numbers, such as ``min_certified=0.6``,
        ``min_certified=["36/255=0.60"]``, ``min_clean="90%"``, ``max_drop="0.5pp"`` with a
        ``baseline``, the path of an older certificate. Raises ``UsageError`` for a threshold that
        makes no sense, ``CannotCertify`` for an ESTIMATE.
        """
        thresholds = Thresholds.of(baseline=baseline, **asked)
        older = None if baseline is None else read_results(Path(baseline)).certificate
        results = self._results()
        return evaluate(thresholds, results.certificate, results.samples, older)

    @in_python
    def audit(
        self,
        model: _Path,
        data: str | None = None,
        *,
        samples: int | Literal["all"] = 20,
        seed: int = 0,
    ) -> auditing.Audit:
        """Check the result by independent means, as ``lipcert audit`` does; its ``contradictions``
        are empty where nothing speaks against it.

        ``model``: the file that was loaded; ``data``: the images as a file or a name, needed for
        those that were given as arrays. Raises ``UsageError`` and ``CannotCertify``.
        """
        with tempfile.TemporaryDirectory() as folder:
            sources = auditing.Sources(model=Path(model), data=data)
            return auditing.audit(self.save(folder), sources=sources, samples=samples, seed=seed)

    @in_python
    def report(
        self,
        format: Format = "html",
        *,
        to: _Path | None = None,
        outcomes: Sequence[Outcome] = (),
    ) -> str:
        """The text of a report, in a format of ``lipcert report``; written to the file ``to``, if
        one is given. ``outcomes``: those of ``gate``, to be shown. Pictures are in reports of the
        folder that ``lipcert.certify`` was given as ``output``, by ``lipcert report``. Raises
        ``UsageError`` and ``CannotCertify``.
        """
        if format not in get_args(Format):
            known = ", ".join(get_args(Format))
            raise UsageError(f"format {format!r}: choose one of {known}")
        text = render(format, self._results(), outcomes)
        if to is not None:
            try:
                Path(to).write_text(text, encoding="utf-8")
            except OSError as error:
                raise UsageError(f"to {to}: cannot be written: {error.strerror}") from error
        return text

    def _results(self) -> Results:
        return of_run(self.certificate, self.samples)
