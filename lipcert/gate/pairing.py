"""Two certificates of the same samples: may they be compared, and what changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lipcert.certificate import failures
from lipcert.errors import CannotCertify, UsageError
from lipcert.heads import of_record
from lipcert.options import Epsilon, in_words
from lipcert.tally import right

Record = dict[str, Any]
_Outcomes = Counter[tuple[bool, bool]]

# What an option is called where the record has another name.
_OPTIONS = {"value_range": "range"}


@dataclass(frozen=True)
class Change:
    """At one eps, of one class or of all: certified by both, gained, lost, by neither."""

    both: int
    gained: int
    lost: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.gained + self.lost + self.neither


@dataclass(frozen=True)
class Comparison:
    """What differs between the results A and B on the same samples, pair by pair.

    ``changes`` and ``by_class``: at each eps, as A writes it. ``gained`` and ``lost``: the samples
    that B certifies at the largest eps and A does not, and the other way round. ``failures``: what
    is to be said of samples of A, and of B, that failed inside lipcert. ``radii``: of each sample,
    first A's, then B's, with its index. ``options``: what else than the model differs, in words.
    ``class_names``: B's, if it has any.
    """

    names: tuple[str, str]
    changes: dict[str, Change]
    by_class: dict[int, dict[str, Change]]
    clean: Change
    largest: str
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    failures: tuple[str | None, str | None]
    radii: tuple[tuple[int, float, float], ...]
    options: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def require_same_samples(a: Record, b: Record, name_a: str, name_b: str) -> None:
    """Refuse certificates of other data, radii, threat models, claims or samples.

    Raises ``UsageError`` naming everything that differs.
    """
    checks = {
        "data digest": [c["data"]["sha256"] for c in (a, b)],
        "eps": [_radii(c) for c in (a, b)],
        "threat model": [c["threat_model"] for c in (a, b)],
        "claim (--top-k, --only-classes, --margin)": [of_record(c["options"]) for c in (a, b)],
        "sample ids": [
            (c["data"]["indices_sha256"], c["data"]["shard"], c["summary"]["n"]) for c in (a, b)
        ],
    }
    said = {
        "eps": [in_words(c["options"]["eps"]) for c in (a, b)],
        "sample ids": [f"{c['summary']['n']} samples" for c in (a, b)],
    }
    differing = [
        name + _changed(*said.get(name, ("", "")))
        for name, (one, other) in checks.items()
        if one != other
    ]
    if differing:
        raise UsageError(
            f"{name_a} and {name_b} do not compare: another {', another '.join(differing)}; "
            "certify both on the same samples with the same --eps"
        )


def _changed(one: str, other: str) -> str:
    return f" ({one}, now {other})" if one != other else ""


def differences(a: Record, b: Record) -> tuple[str, ...]:
    """What else than the model differs between two runs on the same samples, in words: options,
    preprocessing and the version of lipcert, ``effort (fast, now standard)``.

    The seed is left out, where both drew fresh coins it differs always.
    """
    pairs = [("lipcert", a["lipcert"], b["lipcert"])]
    for one, other in (
        (a["options"], b["options"]),
        (a["model"]["preprocessing"], b["model"]["preprocessing"]),
    ):
        names = [name for name in one | other if name not in ("eps", "seed")]
        pairs += [
            (_OPTIONS.get(name, name.replace("_", "-")), one.get(name), other.get(name))
            for name in names
        ]
    return tuple(
        f"{name} ({in_words(one)}, now {in_words(other)})"
        for name, one, other in pairs
        if one != other
    )


def compare(a: Record, b: Record, of_a: Sequence[Record], of_b: Sequence[Record]) -> Comparison:
    """Pair the samples of two certificates; B is the newer one.

    Raises ``UsageError`` where they do not compare, ``CannotCertify`` for an ESTIMATE.
    """
    for name, certificate in (("A", a), ("B", b)):
        if certificate["assurance"]["kind"] == "estimate":
            raise CannotCertify(
                f"{name} is an ESTIMATE, which bounds nothing and compares with nothing; "
                "certify with --norms randomised or --norms deterministic"
            )
    require_same_samples(a, b, "A", "B")
    names = _same_eps(a, b)
    largest = max(names, key=lambda text: Epsilon.parse(text).value)
    # By eps, and by class and eps, how often what became of a sample in A and in B.
    all_: dict[str, _Outcomes] = {text: Counter() for text in names}
    classes: dict[int, dict[str, _Outcomes]] = {}
    clean: _Outcomes = Counter()
    gained: list[int] = []
    lost: list[int] = []
    radii: list[tuple[int, float, float]] = []
    for one, other in zip(of_a, of_b, strict=True):
        if one["index"] != other["index"]:
            raise UsageError("A and B do not compare: their samples.jsonl list other samples")
        own = classes.setdefault(one["label"], {text: Counter() for text in names})
        clean[right(one), right(other)] += 1
        for text, of_other in names.items():
            outcome = text in one["certified"], of_other in other["certified"]
            all_[text][outcome] += 1
            own[text][outcome] += 1
            if text == largest and outcome[0] != outcome[1]:
                (lost if outcome[0] else gained).append(one["index"])
        radii.append((one["index"], one["radius"] or 0.0, other["radius"] or 0.0))
    return Comparison(
        names=(a["model"]["name"], b["model"]["name"]),
        changes={text: _change(outcomes) for text, outcomes in all_.items()},
        by_class={
            label: {text: _change(outcomes) for text, outcomes in classes[label].items()}
            for label in sorted(classes)
        },
        clean=_change(clean),
        largest=largest,
        gained=tuple(gained),
        lost=tuple(lost),
        failures=(failures(a["summary"]), failures(b["summary"])),
        options=differences(a, b),
        radii=tuple(radii),
        class_names=tuple(b["data"].get("class_names", ())),
    )


def _change(outcomes: _Outcomes) -> Change:
    return Change(
        both=outcomes[True, True],
        gained=outcomes[False, True],
        lost=outcomes[True, False],
        neither=outcomes[False, False],
    )


def _radii(certificate: Record) -> set[Any]:
    return {Epsilon.parse(text).value for text in certificate["options"]["eps"]}


def _same_eps(a: Record, b: Record) -> dict[str, str]:
    """The eps of A as written there, and as B writes the same number."""
    of_b = {Epsilon.parse(text).value: text for text in b["options"]["eps"]}
    return {text: of_b[Epsilon.parse(text).value] for text in a["options"]["eps"]}
