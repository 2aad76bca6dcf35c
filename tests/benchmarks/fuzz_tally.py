"""What was attacked so far, and the worst of it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from assault import Outcome
from threats import Threat
from torch import Tensor

from lipcert.bounds.coupled import coupled
from lipcert.bounds.split import Splitter
from lipcert.certificate import Sample

_EVERY = 60.0
# Pixels of a sample that breaks are printed where they are so few.
_PRINTED = 64


class Tally:
    """Counts of attacked certificates; prints itself every minute."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {
            name: Counter()
            for name in ("method", "rung", "decided", "weights", "deployed", "domain", "analysis")
        }
        self.networks: set[str] = set()
        self.tried: Counter[str] = Counter()
        self.certify: Counter[str] = Counter()
        self.attack: Counter[str] = Counter()
        self.nearest: dict[str, tuple[float, str]] = {}
        self.close: Counter[str] = Counter()
        self.slowest: dict[str, tuple[float, str]] = {}
        self.searched: Counter[str] = Counter()
        self.broken: list[str] = []
        self.refused, self.margin = 0, math.inf
        self.begun, self.printed = time.process_time(), time.monotonic()

    @property
    def total(self) -> int:
        return self.counts["method"].total()

    def add(
        self, name: str, weights: str, method: str, threat: Threat, samples: Sequence[Sample],
        x: Tensor, outcome: Outcome,
    ) -> None:  # fmt: skip
        """``samples`` that have a radius, their pixels, and what became of them."""
        self.networks.add(name)
        for kind, value in (
            ("method", method), ("weights", weights), ("deployed", threat.deployed),
            ("domain", "images" if threat.pixel_domain else "all"), ("analysis", threat.dtype),
        ):  # fmt: skip
            self.counts[kind][value] += len(samples)
        # Of the other methods there is one rung.
        if method.startswith("auto"):
            self.counts["rung"].update(f"{method} {sample.method}" for sample in samples)
            self.counts["decided"].update(
                f"{method} {sample.decided_by or 'open'}" for sample in samples
            )
        self.margin = min(self.margin, float(outcome.margin.min()))
        least = float(outcome.ratio.min())
        if not least >= self.nearest.get(method, (math.inf, ""))[0]:
            self.nearest[method] = least, name
        self.close[method] += int((outcome.ratio < 1.1).sum())
        for row in outcome.broken.nonzero().flatten().tolist():
            sample, far = samples[row], float((outcome.points[row] - x[row]).norm())
            self.broken.append(
                f"{name}, {method}, {threat}, sample {sample.index} of class {sample.label}: "
                f"radius {sample.radius!r} by {sample.method}, margin {sample.margin!r}, deployed "
                f"error {sample.deployed_error!r}; least relative margin "
                f"{float(outcome.margin[row])!r} at a distance of {far!r}"
                + (f"\n    {x[row].tolist()}\n    {outcome.points[row].tolist()}"
                   if x[row].numel() <= _PRINTED else "")
            )  # fmt: skip

    @contextmanager
    def timed(self, clock: Counter[str], method: str, name: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        took = time.process_time() - begun
        clock[method] += took  # type: ignore[assignment]
        if clock is self.certify and took > self.slowest.get(method, (0.0, ""))[0]:
            self.slowest[method] = took, name

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Counts the margins whose balls are coupled, and those that are split and so proven."""
        proven = Splitter.proven

        def coupling(network, state, found):  # type: ignore[no-untyped-def]
            result = coupled(network, state, found)
            for multipliers in list(result.couplings.values())[:1]:
                self.searched["with coupled balls"] += len(multipliers)
            return result

        def splitting(splitter, found, budget):  # type: ignore[no-untyped-def]
            result = proven(splitter, found, budget)
            self.searched["split"] += len(result)
            self.searched["proven by splits"] += int(result.sum())
            return result

        with (
            mock.patch("lipcert.certification.margins.coupled", coupling),
            mock.patch.object(Splitter, "proven", splitting),
        ):
            yield

    def print_now_and_then(self, where: str) -> None:
        if time.monotonic() - self.printed >= _EVERY:
            self.printed = time.monotonic()
            least = min((ratio for ratio, _ in self.nearest.values()), default=math.inf)
            print(
                f"{where}: {self.total} certificates attacked, {len(self.broken)} broken, nearest "
                f"flip at {least:.5f} of a radius; {self._seconds:.0f} CPU-seconds",
                flush=True,
            )

    def report(self, where: str) -> None:
        print(
            f"\n{where}: {self.total} certificates of {len(self.networks)} networks attacked, "
            f"{len(self.broken)} broken; {self.refused} runs refused for weights that overflow; "
            f"least margin {self.margin:.2e} of the largest logit; "
            f"{self._seconds:.0f} CPU-seconds"
        )
        for method, count in self.counts["method"].items():
            (ratio, name), (slow, where_slow) = self.nearest[method], self.slowest[method]
            print(
                f"  {method:13} {count:6} certified of {self.tried[method]}, in "
                f"{self.certify[method]:.0f} + {self.attack[method]:.0f} s; nearest flip at "
                f"{ratio:.5f} of a radius ({name}), {self.close[method]} below 1.1; "
                f"longest {slow:.0f} s ({where_slow})"
            )
        for kind, counts in (*self.counts.items(), ("margins", self.searched)):
            if kind != "method":
                print(f"  {kind}: " + ", ".join(f"{k} {n}" for k, n in sorted(counts.items())))
        for line in self.broken:
            print(f"  BROKEN {line}")
        print(flush=True)

    @property
    def _seconds(self) -> float:
        return time.process_time() - self.begun
