"""What one step minimises, as one module for DistributedDataParallel and for checkpoints."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lipcert.network import Network
from lipcert.train.bounds import BOUNDS
from lipcert.train.estimate import Estimate
from lipcert.train.losses import LOSSES, Aim, distillation, features_apart, sparsity
from lipcert.train.norms import WarmNorms
from lipcert.train.patches import PatchTrainable
from lipcert.train.recipe import Recipe
from lipcert.train.trainable import Trainable, features_of

# The totals of a batch, in the order in which the module returns them.
TOTALS = ("loss", "clean", "robust", "images")


class Objective(nn.Module):
    """Loss of a batch, and its totals: summed loss, right, right in all of the ball, images.

    ``weights``: how much a sample of each class counts, ``(K,)``; None: all the same. ``teacher``:
    the network that came in, to whose logits and features the trained one keeps while eps is small;
    None where none is asked. The bound runs in float32 throughout, whatever mixed precision may be
    on around it.
    """

    weights: Tensor | None

    def __init__(
        self,
        trainable: Trainable,
        recipe: Recipe,
        weights: Tensor | None = None,
        teacher: Network | None = None,
    ) -> None:
        super().__init__()
        self.trainable, self.recipe, self.teacher = trainable, recipe, teacher
        # Both follow from the recipe, the data and the file: no part of the state.
        self.register_buffer("weights", weights, persistent=False)
        self.bound = BOUNDS[recipe.bound]()
        # The logarithm of one over the temperature of the logits in the loss; the exported file
        # has none of it, as a positive factor moves no decision and no certificate.
        learned = nn.Parameter(torch.zeros(())) if recipe.temperature == "learned" else None
        self.sharpness: nn.Parameter | None = learned
        self.norms = WarmNorms(steps=recipe.power_steps, seed=recipe.seed)
        if not isinstance(trainable, PatchTrainable):
            self.norms.prepare(self.bound.prepare(trainable.network()))

    def estimate(self, pixels: Tensor, labels: Tensor, eps: float) -> Estimate:
        radius = pixels.new_full((len(pixels),), eps)
        with torch.autocast(pixels.device.type, enabled=False):
            if isinstance(self.trainable, PatchTrainable):
                return self.trainable.estimate(pixels, labels, eps, self._layers_type)
            network = self.trainable.network()
            found: Estimate = self.bound(network, pixels, labels, radius, self.norms)
        return found

    @property
    def _layers_type(self) -> torch.dtype:
        coarse = self.training and self.recipe.precision == "bfloat16"
        return torch.bfloat16 if coarse else torch.float32

    def forward(
        self, pixels: Tensor, labels: Tensor, eps: float, kappa: float, left: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """``left``: how much of the weights of distillation is left in this step."""
        recipe = self.recipe
        estimate = self.estimate(pixels, labels, eps)
        each = LOSSES[recipe.loss](self._scaled(estimate), labels, Aim(kappa, recipe.gap, eps))
        if self.teacher is not None and left > 0:
            each = each + left * self._distilled(self.teacher, pixels, estimate.logits)
        loss = (each if self.weights is None else self.weights[labels] * each).mean()
        if recipe.sparsity:
            loss = loss + recipe.sparsity * sparsity(estimate)
        return loss, _totals(estimate, labels, loss)

    def _distilled(self, teacher: Network, pixels: Tensor, logits: Tensor) -> Tensor:
        """What each sample has lost of the network that came in, as the recipe weighs it."""
        if teacher.anchor.device != pixels.device:
            self.teacher = teacher = teacher.to(device=pixels.device)
        with torch.no_grad():
            values = teacher.values(pixels)
        lost = torch.zeros_like(logits[:, 0])
        if weight := self.recipe.distil:
            lost = lost + weight * distillation(logits, values[-1].flatten(1))
        if weight := self.recipe.distil_features:
            found, taught = self.trainable.features(pixels), features_of(teacher, values)
            lost = lost + weight * features_apart(found, taught)
        return lost

    def _scaled(self, estimate: Estimate) -> Estimate:
        """With logits and margins divided by the temperature that is learned, where one is."""
        if self.sharpness is None:
            return estimate
        factor = self.sharpness.exp()
        logits, margins = estimate.logits * factor, estimate.margins * factor
        return replace(estimate, logits=logits, margins=margins)

    @torch.no_grad()
    def evaluate(self, pixels: Tensor, labels: Tensor, eps: float) -> Tensor:
        """The totals of a batch, its norms from more iterations; its loss is not computed."""
        self.eval()
        estimate = self.estimate(pixels, labels, eps)
        self.train()
        return _totals(estimate, labels, pixels.new_zeros(()))


def _totals(estimate: Estimate, labels: Tensor, loss: Tensor) -> Tensor:
    right = estimate.logits.argmax(1) == labels
    robust = right & (estimate.least(labels) > 0)
    count = len(labels)
    return torch.stack([
        loss.detach().double() * count,
        right.sum().double(),
        robust.sum().double(),
        torch.tensor(count, dtype=torch.float64, device=labels.device),
    ])  # fmt: skip
