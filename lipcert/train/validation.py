"""What held-out images say of the weights: by the training bound, and by ``auto`` itself.

The training bound of an exact image is an estimate, and looser or tighter than what certifies; a
check certifies some of the images in the file as it would be handed back, so that both stand side
by side before the training is over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lipcert.options import Epsilon, Options
from lipcert.run import Execution, Model, certify_dataset
from lipcert.train.data import Images
from lipcert.train.objective import TOTALS, Objective
from lipcert.train.processes import ProcessGroup
from lipcert.train.source import as_model
from lipcert.train.trainable import Trainable

# Images at once.
BATCH = 256


def validated(
    objective: Objective, images: Images, eps: float, processes: ProcessGroup, device: str
) -> tuple[float, float]:
    """Shares of the images that are right, and estimated to be so in all of the ball; every
    process takes its part of them."""
    mine = np.arange(processes.rank, len(images), processes.world)
    sums = torch.zeros(len(TOTALS), dtype=torch.float64, device=device)
    # No more at once than a step has, which takes more memory.
    size = min(BATCH, objective.recipe.batch_size)
    for places in np.split(mine, range(size, len(mine), size)):
        pixels, labels = images.batch(places)
        sums += objective.evaluate(pixels.to(device), labels.to(device), eps)
    _, clean, robust, count = processes.total(sums).tolist()
    return clean / count, robust / count


@dataclass(frozen=True)
class Check:
    """Certifies ``count`` validation images at ``eps`` by ``auto`` at effort fast, in the file as
    it would be handed back; ``model``: the one that came in, whose preprocessing the file needs."""

    model: Model
    eps: Epsilon
    count: int
    execution: Execution

    def __call__(self, objective: Objective, validation: Images, device: str) -> dict[str, Any]:
        """With the weights of now: the share of the images that is certified, the share that the
        training bound believes of the same ones, and the difference."""
        some = validation.some(self.count)
        _, believed = validated(objective, some, float(self.eps.value), ProcessGroup(), device)
        certified = self._certified(objective.trainable, some)
        return {
            "checked_images": len(some),
            "checked_certified": certified,
            "checked_estimate": believed,
            "checked_difference": certified - believed,
        }

    def _certified(self, trainable: Trainable, images: Images) -> float:
        exported = trainable.exported(trainable.weights())
        model = replace(self.model, loaded=as_model(exported, self.model.name))
        options = Options(eps=(self.eps,), effort="fast")
        quiet = replace(
            self.execution, output=None, resume=False, overwrite=False, allow_implausible=True
        )
        result = certify_dataset(model, images.data, images.indices, options, quiet)
        count: int = result.summary["certified_count"][self.eps.text]
        return count / len(images)
