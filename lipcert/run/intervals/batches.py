"""Batches of samples enclosed, attacked and run through the file; each failure is its sample's."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert.certification.intervals import Encloser, Intervals
from lipcert.certification.samples import Samples
from lipcert.errors import LipcertError
from lipcert.loading import DeployedFile
from lipcert.options import Epsilon
from lipcert.run.executors import Failure
from lipcert.run.intervals.inputs import Goal
from lipcert.run.intervals.record import NOTHING, Enclosed, Pairs
from lipcert.run.task import Task

# Outputs whose ends are attacked and run through the file, of more an even choice.
_ATTACKED = 16
# By more than this share of the values around it, an attack is outside a tolerance whatever
# rounding does.
_CLEARLY = 2.0**-18


@dataclass(frozen=True, eq=False)
class _Ball:
    """What is known of ``B`` samples in balls of one radius: ``found``; what an attack has
    ``seen``, ``(B, t, m)``; by row, what contradicts this."""

    eps: Epsilon
    found: Intervals
    seen: Tensor
    wrong: dict[int, str]


@dataclass(frozen=True, eq=False)
class Enclosing:
    """One network, enclosed by ``encloser`` and run as its ``file``; ``goal``: what is judged."""

    task: Task
    encloser: Encloser
    file: DeployedFile
    goal: Goal | None

    def enclosed(self, indices: list[int]) -> list[Enclosed]:
        """The samples with these numbers. Where a batch fails, each of them is tried alone, and one
        that fails alone is an ``error``; a ``LipcertError`` concerns the whole run and is passed
        on."""
        try:
            return self._batch(indices)
        except LipcertError:
            raise
        except Exception as error:
            if len(indices) == 1:
                return [self._lost(indices[0], Failure.of(error).message)]
        return [sample for index in indices for sample in self.enclosed([index])]

    def _batch(self, indices: list[int]) -> list[Enclosed]:
        pixels = self._pixels(indices)
        samples = self.encloser.batch(pixels, indices)
        values = self.encloser.values(pixels)
        balls = [
            self._ball(pixels, samples, number, eps)
            for number, eps in enumerate(self.task.options.eps)
        ]
        intervals = {b.eps.text: _pairs(b.found.lower, b.found.upper) for b in balls}
        reached = {b.eps.text: _pairs(b.seen.amin(1), b.seen.amax(1)) for b in balls}
        # The search for radii spends coins, which are counted below.
        judged = self._judged(indices, samples, values, balls)
        spent = samples.allowance.spent.tolist()
        made = [
            Enclosed(
                index=index,
                value=tuple(values[row].tolist()),
                intervals={eps: pairs[row] for eps, pairs in intervals.items()},
                reached={eps: pairs[row] for eps, pairs in reached.items()},
                failure_probability=spent[row],
                **judged[row],
            )
            for row, index in enumerate(indices)
        ]
        wrong = {row: said for ball in reversed(balls) for row, said in ball.wrong.items()} | {
            row: "the outputs are no finite numbers"
            for row, sample in enumerate(made)
            if not all(map(math.isfinite, sample.value))
        }
        return [
            _failed(sample, wrong[row]) if row in wrong else sample
            for row, sample in enumerate(made)
        ]

    def _pixels(self, indices: list[int]) -> Tensor:
        return torch.from_numpy(self.task.dataset.pixels(np.asarray(indices))).double()

    def _ball(self, pixels: Tensor, samples: Samples, number: int, eps: Epsilon) -> _Ball:
        at = torch.full((len(pixels),), eps.rounded_up, dtype=torch.float64)
        found = self.encloser.enclose(samples, at, number)
        points, seen = self.encloser.reached(
            pixels, eps.rounded_down, pixel_domain=self.task.options.pixel_domain, most=_ATTACKED
        )
        wrong = _contradicted(found, seen) | self._against(points, found)
        return _Ball(
            eps, found, seen, {row: f"at eps {eps.text} {said}" for row, said in wrong.items()}
        )

    def _against(self, points: Tensor, found: Intervals) -> dict[int, str]:
        """By row, what the deployed file says against the intervals at these points."""
        flat = points.flatten(0, 1).numpy()
        outputs = self.file(flat).reshape(*points.shape[:2], -1)
        outputs = outputs[:, :, list(self.encloser.outputs)]
        options = self.task.options
        strict = options.deployed != "real" and (self.file.double or options.deployed != "float64")
        slack = 0.0 if strict else 2 * self.file.tolerance * np.abs(outputs).max(2, keepdims=True)
        low, high = found.lower.numpy()[:, None], found.upper.numpy()[:, None]
        wrong = ~((outputs >= low - slack) & (outputs <= high + slack))
        said = {}
        for row in np.flatnonzero(wrong.any((1, 2))).tolist():
            place, output = np.argwhere(wrong[row])[0]
            said[row] = (
                f"the deployed file gives {outputs[row, place, output]:.9g} for output {output}, "
                f"outside [{low[row, 0, output]:.9g}, {high[row, 0, output]:.9g}]; please report "
                "this"
            )
        return said

    def _judged(
        self, indices: list[int], samples: Samples, values: Tensor, balls: list[_Ball]
    ) -> list[dict[str, Any]]:
        """The fields of each sample that depend on its target: none without a goal."""
        if self.goal is None:
            return [{} for _ in indices]
        options, tolerance = self.task.options, self.goal.tolerance
        target = self.goal.of_samples(indices)
        held = {b.eps.text: (b.found.within(target, tolerance) > 0).tolist() for b in balls}
        last = next(ball for ball in balls if ball.eps == options.largest)
        clear = tolerance + _CLEARLY * last.seen.abs().amax((1, 2))
        falsified = ((last.seen - target[:, None]).abs().amax(2) > clear[:, None]).any(1).tolist()
        outside = (~((values - target).abs().amax(1) <= tolerance)).tolist()
        radii = self.encloser.radius(samples, target, tolerance).clamp(min=0).tolist()
        judged: list[dict[str, Any]] = []
        for row, radius in enumerate(radii):
            proven = [eps.rounded_up for eps in options.eps if held[eps.text][row]]
            far = max([radius, *proven])
            verdict = "outside" if outside[row] else "falsified" if falsified[row] else "unknown"
            if held[options.largest.text][row]:
                verdict = "certified"
            judged.append({
                "target": tuple(target[row].tolist()), "radius": far, "verdict": verdict,
                "certified": tuple(e.text for e in options.eps if e.rounded_up <= far),
            })  # fmt: skip
        return judged

    def _lost(self, index: int, message: str) -> Enclosed:
        """A sample whose computation failed: nothing is known of it but its outputs."""
        value = self._value(index)
        none = {eps.text: ((math.nan, math.nan),) * len(value) for eps in self.task.options.eps}
        sample = Enclosed(index, value, none, none, 0.0)
        if self.goal is not None:
            target = tuple(self.goal.of_samples([index])[0].tolist())
            sample = replace(sample, target=target, radius=0.0)
        return _failed(sample, message)

    def _value(self, index: int) -> tuple[float, ...]:
        """The outputs at a sample, NaN where even these cannot be computed."""
        try:
            return tuple(self.encloser.values(self._pixels([index]))[0].tolist())
        except Exception:  # what failed before is told already
            return (math.nan,) * len(self.encloser.outputs)


def _contradicted(found: Intervals, seen: Tensor) -> dict[int, str]:
    """By row, that an attack has left an interval, which cannot be where both are right."""
    out = (seen < found.lower[:, None]) | (seen > found.upper[:, None])
    said = "an attack left the interval that was proven; please report this"
    return dict.fromkeys(out.flatten(1).any(1).nonzero().flatten().tolist(), said)


def _pairs(low: Tensor, high: Tensor) -> list[Pairs]:
    both = torch.stack([low, high], 2).tolist()
    return [tuple((one, other) for one, other in sample) for sample in both]


def _failed(sample: Enclosed, message: str) -> Enclosed:
    nothing = {eps: (NOTHING,) * len(sample.value) for eps in sample.intervals}
    radius = None if sample.radius is None else 0.0
    return replace(
        sample, intervals=nothing, certified=(), radius=radius, verdict="error", message=message
    )
