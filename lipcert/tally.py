"""The figures of a certificate, counted one sample at a time, so that samples need not be kept.

A ``Tally`` takes the records of ``samples.jsonl`` in their order. Of each it keeps what a median
needs, at most 24 bytes; tallies of parts can be joined.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lipcert.options import Epsilon

Record = Mapping[str, Any]

# By these words a note of a certificate is known that counts such samples.
FAILED_INSIDE = "failed inside lipcert and have no verdict"


def right(record: Record) -> bool:
    """Whether the answer is right: the label is the prediction or, of a run with ``--top-k``, among
    the best classes."""
    return record["label"] in (record.get("top") or (record["prediction"],))


class Tally:
    """``eps``: as written, in the options' order; ``estimate``: whether nothing is certified.

    ``spent``: the sum of the samples' failure probabilities. ``failed``: the first sample that
    failed inside lipcert, and its message.
    """

    def __init__(self, eps: Sequence[str], *, estimate: bool) -> None:
        self.eps, self.estimate = tuple(eps), estimate
        self._reach = {text: Epsilon.parse(text).rounded_down for text in eps}
        self._word = "estimated" if estimate else "certified"
        self._radius = "radius_estimate" if estimate else "radius"
        self.n = self._correct = 0
        self._verdicts, self._claims, self._left = Counter[str](), Counter[str](), Counter[str]()
        self._attacked = False
        self._radii, self._errors, self._shares = array("d"), array("d"), array("d")
        self.spent = 0.0
        # By the names of a sample's rungs, in order; and by the rung.
        self._paths = Counter[tuple[str, ...]]()
        self._decided = Counter[str]()
        self._seconds: dict[str, float] = {}
        # By the layer: neurons eliminated, and samples that say so.
        self._eliminated: list[list[int]] = []
        self.failed: tuple[int, str] | None = None

    @classmethod
    def of(cls, records: Iterable[Record], eps: Sequence[str], *, estimate: bool) -> Tally:
        made = cls(eps, estimate=estimate)
        for record in records:
            made.add(record)
        return made

    def add(self, record: Record) -> None:
        """One sample, as ``samples.jsonl`` has it."""
        self.n += 1
        verdict = record["verdict"]
        self._verdicts[verdict] += 1
        for text in record.get(self._word, ()):
            self._claims[text] += 1
        self.spent += record["failure_probability"]
        rungs = record.get("rungs") or {}
        self._pass(rungs, record.get("decided_by"))
        eliminated = record.get("eliminated", ())
        while len(self._eliminated) < len(eliminated):
            self._eliminated.append([0, 0])
        for layer, count in zip(self._eliminated, eliminated, strict=False):
            layer[0] += count
            layer[1] += 1
        if verdict == "error" and self.failed is None:
            self.failed = record["index"], record.get("message") or ""
        if right(record):
            self._add_correct(record)

    def _add_correct(self, record: Record) -> None:
        self._correct += 1
        self._radii.append(record.get(self._radius) or 0.0)
        attacked = record.get("attack_radius")
        for text, reach in self._reach.items():
            if attacked is None or attacked > reach:
                self._left[text] += 1
        error, margin = record.get("deployed_error"), record["margin"]
        if error is not None and margin is not None and margin > 0 and not self.estimate:
            self._errors.append(error)
            self._shares.append(error / margin)

    def _pass(self, rungs: Mapping[str, float], decided: str | None) -> None:
        self._paths[tuple(rungs)] += 1
        for name, seconds in rungs.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._attacked = self._attacked or "attack" in rungs
        if decided is not None:
            self._decided[decided] += 1

    def join(self, other: Tally) -> None:
        """Take in what another one has counted, of samples that come after these."""
        self.n += other.n
        self._correct += other._correct
        self._attacked = self._attacked or other._attacked
        for mine, theirs in (
            (self._verdicts, other._verdicts), (self._claims, other._claims),
            (self._left, other._left), (self._decided, other._decided),
        ):  # fmt: skip
            mine.update(theirs)
        self._paths.update(other._paths)
        self._radii += other._radii
        self._errors += other._errors
        self._shares += other._shares
        self.spent += other.spent
        for name, seconds in other._seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        for number, (count, samples) in enumerate(other._eliminated):
            if number == len(self._eliminated):
                self._eliminated.append([0, 0])
            self._eliminated[number][0] += count
            self._eliminated[number][1] += samples
        self.failed = self.failed or other.failed

    def summary(self) -> dict[str, Any]:
        """The ``summary`` of a certificate: shares are over all samples, misclassified included;
        radii over the correctly classified ones. After an attack, ``upper``: correct ones that it
        has not falsified at eps, so that the robust accuracy lies between certified and upper."""
        n, counts = self.n, {text: self._claims[text] for text in self.eps}
        made: dict[str, Any] = {
            "n": n,
            "clean_correct": self._correct,
            "clean_accuracy": self._correct / n if n else None,
            f"{self._word}_count": counts,
            f"{self._word}_accuracy": {t: count / n if n else None for t, count in counts.items()},
            self._radius: {"mean": _mean(self._radii), "median": _median(self._radii)},
        }
        if self._errors:
            made["deployed_error"] = {
                "median": _median(self._errors), "median_share": _median(self._shares),
            }  # fmt: skip
        made["verdicts"] = dict(sorted(self._verdicts.items()))
        if self._attacked:
            left = {text: self._left[text] for text in self.eps}
            made["upper_count"] = left
            made["upper_accuracy"] = {text: count / n for text, count in left.items()}
        return made

    def cascade(self) -> list[dict[str, Any]]:
        """The ``cascade`` of a certificate: of every rung, in order, how many samples went through
        it, how many verdicts it settled, and the seconds that it took."""
        longest_first = sorted(self._paths, key=lambda path: -len(path))
        names = dict.fromkeys(name for path in longest_first for name in path)
        passed = {name: sum(n for path, n in self._paths.items() if name in path) for name in names}
        return [
            {
                "rung": name,
                "samples": passed[name],
                "decided": self._decided[name],
                "seconds": self._seconds[name],
            }
            for name in names
        ]

    def eliminated(self, neurons: Sequence[int]) -> list[float | None]:
        """For layers of so many neurons, the mean share of these that cannot vary in the ball of
        the largest eps, over the samples that say so; None where none does."""
        known = [*self._eliminated, *([[0, 0]] * (len(neurons) - len(self._eliminated)))]
        return [
            count / (samples * size) if samples else None
            for (count, samples), size in zip(known, neurons, strict=False)
        ]

    def failures(self) -> list[str]:
        """What the notes of a certificate say of samples that failed inside."""
        count = self._verdicts["error"]
        if self.failed is None:
            return []
        index, message = self.failed
        return [
            f"{count} sample{'s' * (count > 1)} {FAILED_INSIDE}; the first, {index}, with {message}"
        ]


def _mean(numbers: array[float]) -> float | None:
    return math.fsum(numbers) / len(numbers) if numbers else None


def _median(numbers: array[float]) -> float | None:
    """As ``statistics.median``, which would sort them as so many objects of Python's."""
    if not numbers:
        return None
    # Here, as help and version answer without it.
    import numpy as np

    half = len(numbers) // 2
    places = [half] if len(numbers) % 2 else [half - 1, half]
    middle: list[float] = np.partition(np.frombuffer(numbers), places)[places].tolist()
    return sum(middle) / len(middle)
