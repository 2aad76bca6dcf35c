"""What a report is made of: the records of one output folder."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any, overload

from lipcert import heads
from lipcert.certificate import Certificate, Sample, failures
from lipcert.options import Epsilon
from lipcert.report import json_file
from lipcert.report.thumbnails import Images
from lipcert.report.training import TrainingRecord
from lipcert.tally import right

Record = dict[str, Any]


@dataclass
class OfClass:
    """Its samples; by eps as written, those certified there, or estimated to be robust; the radii
    of the correct ones."""

    n: int = 0
    held: Counter[str] = field(default_factory=Counter)
    radii: array[float] = field(default_factory=lambda: array("d"))

    @property
    def correct(self) -> int:
        return len(self.radii)


@dataclass(frozen=True)
class Results:
    """A certificate and its samples, as their files say it, and the images beside them.

    ``digests``: sha256 of the files that were read, by name; empty for results that were never
    written. ``images``: small originals by sample index; ``counterexamples`` likewise. A report
    must not need either. ``taken_for``: the class that each counterexample is taken for.
    ``training``: how the model was fine-tuned, if lipcert did it. ``audit``: what ``lipcert audit``
    found about these very files.
    """

    certificate: Record
    samples: Sequence[Record] = ()
    digests: dict[str, str] = field(default_factory=dict)
    images: Images = field(default_factory=dict)
    counterexamples: Images = field(default_factory=dict)
    training: TrainingRecord | None = None
    taken_for: dict[int, int] = field(default_factory=dict)
    audit: Record | None = None

    @property
    def summary(self) -> Record:
        found: Record = self.certificate["summary"]
        return found

    @property
    def failures(self) -> str | None:
        """What a report says first where samples failed inside lipcert."""
        return failures(self.summary)

    @property
    def estimate(self) -> bool:
        """Whether nothing here may be called certified."""
        return bool(self.certificate["assurance"]["kind"] == "estimate")

    @property
    def claim(self) -> str:
        """The name of the shares by eps."""
        found = heads.accuracy(self.certificate["options"])
        return f"ESTIMATE: {found}" if self.estimate else f"certified {found}"

    @property
    def clean_name(self) -> str:
        """The name of the share of right answers."""
        return heads.clean(self.certificate["options"])

    @property
    def what(self) -> str | None:
        """What is certified, in one sentence, where it is not that the label is the best class."""
        names = dict(enumerate(self.certificate["data"].get("class_names", ())))
        named = {label: with_name(label, [*names.values()]) for label in names}
        return heads.claim(self.certificate["options"], named)

    @property
    def radius_name(self) -> str:
        return "ESTIMATE: radius" if self.estimate else "certified radius"

    @property
    def counts(self) -> dict[str, int]:
        """By eps as written, the samples certified there, or estimated to be robust."""
        word = "estimated_count" if self.estimate else "certified_count"
        found: dict[str, int] = self.summary[word]
        return found

    @property
    def upper(self) -> dict[str, int]:
        """By eps as written, the correct samples that an attack left; empty without an attack."""
        found: dict[str, int] = self.summary.get("upper_count", {})
        return found

    @property
    def median_radius(self) -> float | None:
        word = "radius_estimate" if self.estimate else "radius"
        found: float | None = self.summary[word]["median"]
        return found

    @cached_property
    def eps(self) -> tuple[tuple[str, float], ...]:
        """The radii asked for, as written and as numbers, ascending."""
        pairs = ((text, float(Epsilon.parse(text).value)) for text in self.counts)
        return tuple(sorted(pairs, key=lambda pair: pair[1]))

    @property
    def unit(self) -> str:
        """What eps is measured in."""
        found: str = self.certificate["threat_model"]["space"]
        return found

    def class_name(self, label: int) -> str:
        """A class by its number and, where the certificate has it, its name."""
        return with_name(label, self.certificate["data"].get("class_names", ()))

    @property
    def title(self) -> str:
        data = self.certificate["data"]
        part = f", shard {data['shard']}" if data["shard"] else ""
        return f"{self.certificate['model']['name']} on {data['name']} {data['split']}{part}"

    def radius(self, sample: Record) -> float:
        """The certified radius, or the ESTIMATE's; 0 where there is none."""
        found = sample.get("radius_estimate" if self.estimate else "radius")
        return found or 0.0

    def holds_at(self, sample: Record, eps: str) -> bool:
        return eps in sample.get("estimated" if self.estimate else "certified", ())

    @cached_property
    def classes(self) -> dict[int, OfClass]:
        """What became of the samples of each class, by label in order."""
        found: dict[int, OfClass] = {}
        for sample in self.samples:
            own = found.setdefault(sample["label"], OfClass())
            own.n += 1
            for text, _ in self.eps:
                own.held[text] += self.holds_at(sample, text)
            if correct(sample):
                own.radii.append(self.radius(sample))
        return {label: found[label] for label in sorted(found)}

    def median_of(self, samples: Iterable[Record]) -> float | None:
        """The median radius of the correctly classified ones."""
        radii = [self.radius(sample) for sample in samples if correct(sample)]
        return median(radii) if radii else None


def with_name(label: int, names: Sequence[str]) -> str:
    """``3 cat``; the number alone where there is no name, or no other one."""
    name = names[label] if 0 <= label < len(names) else ""
    return f"{label} {name}" if name not in ("", str(label)) else str(label)


def correct(sample: Record) -> bool:
    """Whether the answer is right."""
    return right(sample)


def of_run(certificate: Certificate, samples: Sequence[Sample]) -> Results:
    """The results of a run that has just ended, as its files would say it."""
    estimate = certificate.assurance.kind == "estimate"
    return Results(json.loads(json_file.certificate_text(certificate)), _Records(samples, estimate))


class _Records(Sequence[Record]):
    """Samples as ``samples.jsonl`` has them, each made when it is asked for."""

    def __init__(self, samples: Sequence[Sample], estimate: bool) -> None:
        self._samples, self._estimate = samples, estimate

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | Sequence[Record]:
        if isinstance(place, slice):
            return _Records(self._samples[place], self._estimate)
        return json_file.sample_record(self._samples[place], estimate=self._estimate)
