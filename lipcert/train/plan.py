"""How many epochs fit into the minutes that a training is given.

A few steps at the full eps and one batch of the validation are timed before the first epoch. An
epoch is cut where fewer than eight whole ones would fit, so that the schedules still have room and
the weights are chosen among some; the validation takes at most a tenth of the time. Other programs
come and go: after every epoch the number of epochs becomes what fits at the pace so far, and all
schedules, which go by shares of it, follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lipcert.train.checkpoint import to_cpu
from lipcert.train.objective import Objective
from lipcert.train.recipe import Recipe

# Steps that are timed, after the first one, which allocates.
_TIMED = 4
_EPOCHS = 8
_VALIDATION_SHARE = 0.1
# Images that a validation keeps at least, however little time there is.
_LEAST_VALIDATION = 100


@dataclass(frozen=True)
class Plan:
    """``epochs`` of ``steps`` batches each, every one validated with ``validation`` images."""

    epochs: int
    steps: int
    validation: int

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with these epochs; warm-up and ramp keep their shares of all."""
        share = self.epochs / recipe.epochs
        return replace(
            recipe, epochs=self.epochs, warmup=recipe.warmup * share, ramp=recipe.ramp * share
        )

    def adjusted(self, done: int, spent: float, seconds: float, most: int) -> Plan:
        """With as many epochs as fit into ``seconds`` at the pace of the ``done`` ones that took
        ``spent``, up to ``most``; the epoch under way is always the last one at least."""
        fit = int(done * seconds / spent) if spent > 0 else self.epochs
        return replace(self, epochs=max(done, min(fit, most)))

    def most(self, recipe: Recipe, steps: int) -> int:
        """The epochs in which every image is seen as often as the recipe says, where all of them
        make ``steps`` batches."""
        return -(-recipe.epochs * steps // self.steps)


def plan(seconds: float, step: float, image: float, steps: int, validation: int) -> Plan:
    """For a training of ``seconds``, where a step takes ``step`` and validating an image ``image``
    seconds, an epoch has ``steps`` batches and ``validation`` images are held out."""
    affordable = int(_VALIDATION_SHARE * seconds / (_EPOCHS * max(image, 1e-9)))
    checked = min(validation, max(_LEAST_VALIDATION, affordable))
    in_all = max(1, int((seconds - image * checked) / max(step, 1e-9)))
    each = max(1, min(steps, in_all // _EPOCHS))
    epochs = max(1, int((seconds - image * checked) / (step * each + image * checked)))
    return Plan(epochs, each, checked)


def measured(
    objective: Objective, batch: Sequence[Tensor], some: Sequence[Tensor]
) -> tuple[float, float]:
    """Seconds that a step takes with ``batch``, and that validating one of ``some`` does, each
    pixels and labels; weights and norms are afterwards as they were."""
    recipe, state = objective.recipe, to_cpu(objective.state_dict())

    def step() -> None:
        loss, _ = objective(batch[0], batch[1], recipe.training_eps, recipe.kappa, 1.0)
        loss.backward()
        objective.zero_grad()

    def evaluate() -> None:
        objective.evaluate(some[0], some[1], float(recipe.eps.value))

    found = _timed(step, _TIMED), _timed(evaluate, 1) / len(some[0])
    objective.load_state_dict(state)
    return found


def _timed(action: Callable[[], object], times: int) -> float:
    """Seconds that one call takes, the mean of so many, after one that is not counted."""
    action()
    began = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - began) / times
