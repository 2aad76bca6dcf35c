"""What an audit found, as records, as ``audit.json`` and as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from lipcert.audit.claims import Contradiction
from lipcert.errors import UsageError

SCHEMA = "https://lipcert.dev/schema/audit/1"

Outcome = Literal["confirmed", "not contradicted", "contradicted"]
OUTCOMES: tuple[Outcome, ...] = ("confirmed", "not contradicted", "contradicted")


@dataclass(frozen=True)
class Finding:
    """One claim about a sample, and what became of it."""

    claim: str
    outcome: Outcome
    by: str


@dataclass(frozen=True)
class Audited:
    """One sample: the findings, of which the first is the one that its verdict rests on.

    ``radius``: the certified one. ``proven_radius``: the one that the auditor's own bound proves
    for this sample, at most the one certified; None where it was not tried or proves nothing.
    ``points``: how many points the attack evaluated in the deployed file.
    """

    index: int
    verdict: str
    radius: float | None
    findings: tuple[Finding, ...]
    proven_radius: float | None = None
    points: int = 0
    seconds: float = 0.0

    @property
    def outcome(self) -> Outcome:
        """Contradicted where any claim is; else that of the verdict."""
        found = {finding.outcome for finding in self.findings}
        return "contradicted" if "contradicted" in found else self.findings[0].outcome

    @property
    def contradictions(self) -> list[Contradiction]:
        return [
            Contradiction(f"{finding.claim}: {finding.by}", self.index)
            for finding in self.findings
            if finding.outcome == "contradicted"
        ]


@dataclass(frozen=True)
class ReplayedProofs:
    """The file of proofs, its sha256, and what the checker's norms may fail with over its coins."""

    file: str
    sha256: str
    failure_probability: float


@dataclass(frozen=True)
class Audit:
    """A whole audit. ``files``: sha256 of those that were audited, by name.

    ``unit`` is what radii are measured in. ``reading`` and ``bound``: whether the auditor could
    read and bound the network itself, or why not; ``proofs``: what was replayed in place of that
    bound. ``files_contradict``: contradictions within the files themselves, over all samples.
    """

    lipcert: str
    files: Mapping[str, str]
    model: str
    data: str
    unit: str
    seed: int
    of: int
    reading: str
    bound: str
    proofs: ReplayedProofs | None
    precision: str
    files_contradict: tuple[Contradiction, ...]
    samples: tuple[Audited, ...]
    seconds: float
    schema: str = field(default=SCHEMA)

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(sample.outcome for sample in self.samples)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def unconfirmed(self) -> list[Audited]:
        """Samples of which something is claimed that was neither confirmed nor contradicted."""
        return [sample for sample in self.samples if sample.outcome == "not contradicted"]

    @property
    def contradictions(self) -> list[Contradiction]:
        return [*self.files_contradict, *(c for s in self.samples for c in s.contradictions)]

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        return {
            "schema": record.pop("schema"),
            "agreement": not self.contradictions,
            "counts": self.counts,
            **record,
            "samples": [asdict(sample) | {"outcome": sample.outcome} for sample in self.samples],
        }

    def text(self) -> str:
        """The content of ``audit.json``."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write(audit: Audit, path: Path) -> None:
    """Raises ``UsageError`` where the file cannot be written."""
    try:
        path.write_text(audit.text(), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written: {error.strerror}; name another place with --to"
        ) from error


def table(audit: Audit) -> Table:
    """The outcomes by verdict, then every contradiction, and how the audit was done."""
    made = Table(
        title=Text(f"Audit of {audit.model} on {audit.data}"), title_justify="left",
        caption=Text(_caption(audit)), caption_justify="left",
    )  # fmt: skip
    made.add_column("verdict", style="bold")
    for outcome in OUTCOMES:
        made.add_column(outcome, justify="right")
    made.add_column("proven radius", justify="right")
    for verdict in sorted({sample.verdict for sample in audit.samples}):
        rows = [sample for sample in audit.samples if sample.verdict == verdict]
        counts = Counter(sample.outcome for sample in rows)
        proven = sum(sample.proven_radius is not None for sample in rows)
        cells = [str(counts[outcome]) for outcome in OUTCOMES]
        claimed = sum(bool(sample.radius) for sample in rows)
        made.add_row(Text(verdict), *cells, f"{proven} of {claimed}" if claimed else "")
    made.add_section()
    total = [str(audit.counts[outcome]) for outcome in OUTCOMES]
    made.add_row(Text(f"{len(audit.samples)} of {audit.of} samples"), *total, "")
    return made


def lines(audit: Audit) -> list[str]:
    """Every contradiction, and with proofs every sample that is not confirmed, a line each."""
    found = [f"CONTRADICTED  {contradiction}" for contradiction in audit.contradictions]
    named = audit.unconfirmed if audit.proofs is not None else []
    return found + [
        f"not confirmed  sample {sample.index}: {sample.findings[0].claim}: {sample.findings[0].by}"
        for sample in named
    ]


def _caption(audit: Audit) -> str:
    points = sum(sample.points for sample in audit.samples)
    random = "" if audit.reading == "available" else ", at random alone"
    bound = f"Own bound: {audit.bound}, last evaluated with {audit.precision}. "
    if audit.proofs is not None:
        risk = audit.proofs.failure_probability
        bound = f"Proofs: {audit.bound}; norms fail with probability {risk:.2g} at most. "
    return (
        f"Own reading of the file: {audit.reading}. {bound}{points} points of certified balls "
        f"run{random}. Radii in {audit.unit}, seed {audit.seed}, {audit.seconds:.1f} s."
    )


def first(contradictions: Sequence[Contradiction]) -> str:
    """One line for the error that a contradicted audit ends with, with a sample where it can."""
    named = next((c for c in contradictions if c.sample is not None), contradictions[0])
    more = f" (and {len(contradictions) - 1} more)" if len(contradictions) > 1 else ""
    return f"the audit contradicts the certificate: {named}{more}"
