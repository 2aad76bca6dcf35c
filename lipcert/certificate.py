"""The certificate: what a run found, as plain records that every report is a function of.

``Certificate`` becomes ``certificate.json``, its samples ``samples.jsonl``; the JSON Schemas in
``lipcert/report`` describe both. An ESTIMATE (norms by power iteration, which bounds nothing)
never fills a field that says certified, radius or lipschitz: it has fields of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lipcert.tally import Tally

SCHEMA = "https://lipcert.dev/schema/certificate/1"
SAMPLE_SCHEMA = "https://lipcert.dev/schema/sample/1"

Verdict = Literal[
    "certified", "falsified", "unknown", "misclassified", "timeout", "error", "estimated"
]


# What eps may be measured in, as a certificate says it; see ``lipcert.data.dataset``.
PIXELS = "pixels [0,1]"
OWN = "the data's own unit"
RANGE = "the data's range as [0,1]"


def threat_model(*, pixel_domain: bool, space: str = PIXELS) -> dict[str, str]:
    """What a certificate holds against: ``space`` is what eps is measured in, ``domain`` is there
    only where not every point of a ball counts."""
    model = {"norm": "l2", "space": space}
    return model | {"domain": "images [0,1]"} if pixel_domain else model


@dataclass(frozen=True)
class Sample:
    """One input's outcome.

    ``verdict`` is at the largest eps asked for. ``certified`` lists the eps, as written, at which
    the sample is certified (``estimated`` likewise, for an ESTIMATE). ``margin``: the prediction's
    logit at the sample minus the largest other one. ``radius``: the largest certified L2 radius
    found, in the data's unit; 0 where there is none. ``lipschitz``: an upper bound of the local
    Lipschitz constant of the logits, between any two points of the ball of the largest eps.
    ``attack_radius``: the nearest misclassified point that an attack found, an upper bound of every
    certified radius. ``failure_probability``: that of the randomised norms that this sample used.
    ``deployed_error``: what the arithmetic of the deployed network was charged to a margin, in the
    ball of the radius or, where that is 0, of the largest eps: the most that it can move any margin
    or, where it went through the bounds as noise, what that is worth to the nearest class to first
    order.
    ``method``: the rung that found the radius. ``rungs``: by name, the rungs of the cascade that
    the sample went through, in order, with its share of their seconds; ``decided_by``: the one that
    settled the verdict, none where it is unknown. ``eliminated``: how many neurons cannot vary in
    the ball of the largest eps, by the local bound's boxes, for every layer of the certificate but
    those that lead to the logits.
    ``top``: of a run with ``--top-k``, the best classes at the sample, best first, in a tie the
    label last; the answer is right where the label is among them, and ``margin`` is then the
    label's logit minus the K-th largest of the others.
    An ``error`` failed inside lipcert, with ``message``: it is neither certified nor misclassified,
    and prediction and margin are those of the network alone, −1 and NaN where it gives no numbers.
    """

    index: int
    label: int
    prediction: int
    verdict: Verdict
    margin: float
    radius: float | None
    lipschitz: float | None
    method: str
    seconds: float
    certified: tuple[str, ...] = ()
    failure_probability: float = 0.0
    attack_radius: float | None = None
    deployed_error: float | None = None
    radius_estimate: float | None = None
    lipschitz_estimate: float | None = None
    estimated: tuple[str, ...] = ()
    rungs: dict[str, float] = field(default_factory=dict)
    decided_by: str | None = None
    eliminated: tuple[int, ...] = ()
    message: str | None = None
    top: tuple[int, ...] = ()

    @property
    def correct(self) -> bool:
        return self.label in (self.top or (self.prediction,))

    def to_json(self) -> dict[str, Any]:
        """As in ``samples.jsonl``: fields that do not apply are left out, infinities are null."""
        record = asdict(self)
        optional = (
            "attack_radius",
            "deployed_error",
            "radius_estimate",
            "lipschitz_estimate",
            "estimated",
            "rungs",
            "decided_by",
            "eliminated",
            "message",
            "top",
        )
        for name in optional:
            # A radius of 0 says something; nothing, and what is infinite or no number, do not.
            empty = record[name] is None or record[name] in ((), [], {})
            if empty or (isinstance(record[name], float) and not math.isfinite(record[name])):
                del record[name]
        return {name: _finite(value) for name, value in record.items()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Sample:
        names = ("certified", "estimated", "eliminated", "top")
        lists = {name: tuple(record.get(name, ())) for name in names}
        numbers = {"margin": record["margin"] if record["margin"] is not None else float("nan")}
        fields = {name: value for name, value in record.items() if name != "assurance"}
        return cls(**(fields | lists | numbers))


@dataclass(frozen=True)
class Assurance:
    """How far the norms behind the verdicts can be trusted.

    ``kind``: ``deterministic``; ``randomised`` (every norm of the run is an upper bound with
    probability at least 1 − ``failure_probability`` over lipcert's own coins); or ``estimate``.
    """

    kind: Literal["deterministic", "randomised", "estimate"]
    failure_probability: float


@dataclass(frozen=True)
class Certificate:
    """Everything a reader needs to judge a run, but the single samples.

    ``coins``: where those of randomised norms came from, with the seed that repeats the run and
    what the probability then speaks of; None where none count. ``samples_sha256``: the digest of
    the file of the samples. ``finished``: when the run ended, in UTC.
    """

    lipcert: str
    model: dict[str, Any]
    data: dict[str, Any]
    options: dict[str, Any]
    options_digest: str
    assurance: Assurance
    samples_sha256: str
    summary: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    notes: tuple[str, ...] = ()
    cascade: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    coins: dict[str, Any] | None = None
    threat_model: dict[str, str] = field(default_factory=lambda: threat_model(pixel_domain=False))
    finished: str | None = None
    schema: str = SCHEMA
    shards: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        if not self.shards:
            del record["shards"]
        return record


def summarise(samples: Iterable[Sample], eps: Sequence[str], *, estimate: bool) -> dict[str, Any]:
    """The ``summary`` of a certificate of these samples, see ``Tally.summary``."""
    records = (sample.to_json() for sample in samples)
    return Tally.of(records, eps, estimate=estimate).summary()


def failures(summary: Mapping[str, Any]) -> str | None:
    """What a report says first where samples failed inside lipcert, by the summary; else None."""
    count, n = summary["verdicts"].get("error", 0), summary["n"]
    if not count:
        return None
    return (
        f"{count} of {n} samples failed inside lipcert and have no verdict: they count as not "
        "certified, and no gate holds; certify again with --resume"
    )


def cascade(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """The ``cascade`` of a certificate of these samples, see ``Tally.cascade``."""
    return Tally.of((sample.to_json() for sample in samples), (), estimate=False).cascade()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
