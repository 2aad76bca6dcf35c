"""What the rules of a certificate ask of all its samples, gathered in one pass.

A certificate was written with the figures of ``lipcert.tally``. It is held against these, found by
lines that share nothing with those.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from lipcert.records.frame import Frame
from lipcert.records.sample_rules import radius_of, reached, right
from lipcert.records.strict_json import Record


@dataclass
class LayerFigures:
    """Of the samples that say so, how many neurons of a layer are eliminated: in all, at most."""

    samples: int = 0
    neurons: int = 0
    most: int = 0


@dataclass
class Figures:
    """Some numbers a sample, in the order of the file, and counts."""

    frame: Frame
    indices: array[int] = field(default_factory=lambda: array("q"))
    probabilities: array[float] = field(default_factory=lambda: array("d"))
    # Of the correct samples: radii, how near an attack came, deployed errors, also as a share.
    radii: array[float] = field(default_factory=lambda: array("d"))
    attacked: array[float] = field(default_factory=lambda: array("d"))
    errors: array[float] = field(default_factory=lambda: array("d"))
    shares: array[float] = field(default_factory=lambda: array("d"))
    verdicts: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    # By rung.
    passed: Counter[str] = field(default_factory=Counter)
    decided: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, array[float]] = field(default_factory=dict)
    layers: list[LayerFigures] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.indices)

    def add(self, sample: Record) -> None:
        """The next sample, which keeps the rules of its own."""
        self.indices.append(sample["index"])
        self.probabilities.append(sample["failure_probability"])
        self.verdicts[sample["verdict"]] += 1
        for text in reached(sample, self.frame):
            self.reached[text] += 1
        for rung, seconds in sample.get("rungs", {}).items():
            self.passed[rung] += 1
            self.seconds.setdefault(rung, array("d")).append(seconds)
        if (decided := sample.get("decided_by")) is not None:
            self.decided[decided] += 1
        for number, count in enumerate(sample.get("eliminated", ())):
            if number == len(self.layers):
                self.layers.append(LayerFigures())
            layer = self.layers[number]
            layer.samples, layer.neurons = layer.samples + 1, layer.neurons + count
            layer.most = max(layer.most, count)
        if right(sample):
            self._add_correct(sample)

    def _add_correct(self, sample: Record) -> None:
        self.radii.append(radius_of(sample, self.frame))
        attacked, margin = sample.get("attack_radius"), sample["margin"]
        self.attacked.append(math.inf if attacked is None else attacked)
        if "deployed_error" in sample and margin is not None and margin > 0:
            self.errors.append(sample["deployed_error"])
            self.shares.append(sample["deployed_error"] / margin)

    @property
    def spent(self) -> float:
        """The sum of the samples' failure probabilities."""
        return math.fsum(self.probabilities)

    @property
    def twice(self) -> tuple[int, int] | None:
        """A sample that is listed more than once, and how often."""
        ordered = np.sort(self.numbers)
        again = np.flatnonzero(ordered[1:] == ordered[:-1])
        if not again.size:
            return None
        index = ordered[again[0]]
        return int(index), int((ordered == index).sum())

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The indices, as an array."""
        return np.frombuffer(self.indices or array("q"), np.int64)

    def summary(self) -> Record:
        """The summary that these samples have."""
        n, estimate = self.n, self.frame.estimate
        radii, correct = self.radii, len(self.radii)
        made: Record = {
            "n": n,
            "clean_correct": correct,
            "clean_accuracy": correct / n,
            "radius_estimate" if estimate else "radius": {
                "mean": fmean(radii) if radii else None,
                "median": median(radii) if radii else None,
            },
            "verdicts": dict(self.verdicts),
        }
        counts = {eps.text: self.reached[eps.text] for eps in self.frame.eps}
        made |= _shares("estimated" if estimate else "certified", n, counts)
        if self.passed["attack"]:
            made |= _shares("upper", n, {
                text: sum(attacked > below for attacked in self.attacked)
                for text, (below, _) in self.frame.rounded.items()
            })  # fmt: skip
        if self.errors and not estimate:
            made["deployed_error"] = {
                "median": median(self.errors), "median_share": median(self.shares),
            }  # fmt: skip
        return made

    def cascade(self) -> dict[str, Record]:
        """By rung, the samples that went through it, what it decided, and its seconds."""
        return {
            name: {
                "rung": name,
                "samples": self.passed[name],
                "decided": self.decided[name],
                "seconds": math.fsum(seconds),
            }
            for name, seconds in self.seconds.items()
        }


def _shares(word: str, n: int, counts: dict[str, int]) -> Record:
    shares = {text: count / n for text, count in counts.items()}
    return {f"{word}_count": counts, f"{word}_accuracy": shares}
