"""The loop: batches, steps, the validation after each epoch, and a state that can be continued."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.errors import CannotCertify
from lipcert.train import checkpoint
from lipcert.train.checkpoint import Progress
from lipcert.train.data import Batches, Images
from lipcert.train.interrupts import interrupts
from lipcert.train.metrics import Metrics
from lipcert.train.objective import Objective
from lipcert.train.plan import Plan, measured, plan
from lipcert.train.processes import ProcessGroup
from lipcert.train.selection import Selection
from lipcert.train.validation import BATCH, Check, validated
from lipcert.train.watch import TrainingWatch

Weights = dict[str, Tensor]


class Training:
    """One run: what changes from step to step, and where it is kept.

    ``identity`` is what a checkpoint must have in common with the run that continues it. ``check``
    certifies validation images after every epoch; None: only the training bound speaks of them.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        validation: Images,
        folder: Path,
        *,
        identity: dict[str, Any],
        processes: ProcessGroup,
        device: str,
        metrics: Metrics,
        watch: TrainingWatch,
        check: Check | None = None,
    ) -> None:
        self.objective, self.check = objective.to(device), check
        self.recipe = objective.recipe
        self.batches, self.validation, self.folder = batches, validation, folder
        self.held_out = validation
        self.identity, self.processes, self.device = identity, processes, device
        self.metrics, self.watch = metrics, watch
        self.progress = Progress(sums=_nothing())
        learned = [p for p in objective.parameters() if p.requires_grad]
        kind = torch.optim.AdamW if self.recipe.optimiser == "adamw" else torch.optim.Adam
        self.optimiser = kind(learned, lr=self.recipe.rate, weight_decay=self.recipe.weight_decay)
        self.averaged = _weights(objective)
        self.best: Weights = _weights(objective)
        self.stopped = False

    def run(self, *, resume: bool) -> Weights:
        """Train to the end; the weights that did best on the validation split.

        Raises ``KeyboardInterrupt`` where it was interrupted, the state saved, and
        ``CannotCertify`` where the loss is no number, the last good state kept.
        """
        model: nn.Module = self.objective
        if resume:
            self._restore()
        elif self.recipe.minutes is not None:
            self.progress.plan = astuple(self._planned(60 * self.recipe.minutes))
        self._follow_plan()
        if resume:
            self.metrics.resume(self.progress.step // len(self.batches))
        if self.processes.world > 1:
            model = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        with interrupts(self._ask_to_stop), self.watch, closing(self.metrics):
            self.watch.start(self._total, self.progress.step)
            if self.progress.step == 0:
                self._end_of_epoch(0, time.perf_counter())
            while self.progress.step < self._total and not self._no_better:
                self._epoch(model)
        return self.best

    def _ask_to_stop(self) -> None:
        self.stopped = True

    @property
    def _total(self) -> int:
        return self.recipe.epochs * len(self.batches)

    @property
    def _no_better(self) -> bool:
        """Whether so many epochs at the full eps as ``patience`` says brought none that is."""
        patience, recipe = self.recipe.patience, self.recipe
        if patience is None:
            return False
        full = recipe.warmup + recipe.ramp
        return self._time - max(full, self.progress.best_epoch) >= patience

    def _planned(self, seconds: float) -> Plan:
        """Timed on this machine, the weights and norms as they were afterwards."""
        began, device = time.perf_counter(), self.device
        batch = [tensor.to(device) for tensor in next(iter(self.batches.epoch(0, 0)))]
        places = np.arange(min(len(self.validation), BATCH))
        some = [tensor.to(device) for tensor in self.validation.batch(places)]
        found = torch.tensor(measured(self.objective, batch, some), dtype=torch.float64)
        # All processes plan alike.
        one, image = (self.processes.total(found) / self.processes.world).tolist()
        left = seconds - (time.perf_counter() - began)
        made = plan(left, one, image, len(self.batches), len(self.validation))
        return replace(made, epochs=min(made.epochs, made.most(self.recipe, self.batches.whole)))

    def _follow_plan(self) -> None:
        if self.progress.plan is None:
            return
        chosen = Plan(*self.progress.plan)
        self.recipe = chosen.of(self.objective.recipe)
        self.batches = replace(self.batches, most=chosen.steps)
        self.validation = self.held_out.some(chosen.validation)

    def _epoch(self, model: nn.Module) -> None:
        began, progress = time.perf_counter() - self.progress.seconds, self.progress
        number, start = divmod(progress.step, len(self.batches))
        for pixels, labels in self.batches.epoch(number, start):
            totals = self._step(model, pixels.to(self.device), labels.to(self.device))
            progress.sums = [a + b for a, b in zip(progress.sums, totals, strict=True)]
            progress.step += 1
            progress.seconds = time.perf_counter() - began
            self.watch.step(self._figures())
            # After the last step of an epoch, its validation comes first.
            if self.stopped and progress.step % len(self.batches):
                self._stop()
        self._end_of_epoch(number + 1, began)
        progress.spent += time.perf_counter() - began
        progress.sums, progress.seconds = _nothing(), 0.0
        self._keep_to_time(number + 1)
        self._save()
        if self.stopped:
            self._stop()

    def _keep_to_time(self, done: int) -> None:
        """As many epochs as the minutes that were given have room for."""
        progress, minutes = self.progress, self.recipe.minutes
        if progress.plan is None or minutes is None:
            return
        spent = float(self.processes.total(torch.tensor([progress.spent]))) / self.processes.world
        chosen = Plan(*progress.plan)
        most = chosen.most(self.objective.recipe, self.batches.whole)
        progress.plan = astuple(chosen.adjusted(done, spent, 60 * minutes, most))
        self._follow_plan()
        self.watch.start(self._total, progress.step)

    def _stop(self) -> None:
        self._save()
        raise KeyboardInterrupt(
            f"interrupted; step {self.progress.step} is kept in "
            f"{self.folder / checkpoint.FILE}: repeat the command with --resume to go on"
        )

    def _step(self, model: nn.Module, pixels: Tensor, labels: Tensor) -> list[float]:
        """One update; the totals of the global batch."""
        schedule, t = self.recipe.schedule, self._time
        for group in self.optimiser.param_groups:
            group["lr"] = schedule.rate_at(t)
        self.optimiser.zero_grad()
        eps, kappa, left = schedule.eps_at(t), schedule.kappa_at(t), schedule.left_at(t)
        loss, totals = model(pixels, labels, eps, kappa, left)
        loss.backward()
        learned = [p for p in self.objective.parameters() if p.requires_grad]
        # After the gradients were averaged, a NaN of any process is seen by all of them.
        size = nn.utils.clip_grad_norm_(learned, self.recipe.clip_norm)
        if not bool(size.isfinite()):
            raise CannotCertify(self._not_finite(float(loss.detach())))
        self.optimiser.step()
        self.objective.trainable.project()
        self._average()
        # Processes stop together, after the same step.
        asked = totals.new_tensor([float(self.stopped)])
        *found, stops = self.processes.total(torch.cat([totals, asked])).tolist()
        self.stopped = stops > 0
        return found

    @property
    def _time(self) -> float:
        """In epochs."""
        return self.progress.step / len(self.batches)

    def _average(self) -> None:
        """Averaged weights; over few steps they forget their start sooner."""
        done = self.progress.step + 1
        decay = min(self.recipe.ema, done / (done + 10))
        with torch.no_grad():
            for name, tensor in zip(self._trainable.names, self._trainable.tensors, strict=True):
                self.averaged[name].lerp_(tensor, 1 - decay)

    @property
    def _trainable(self) -> Any:
        return self.objective.trainable

    def _end_of_epoch(self, number: int, began: float) -> None:
        """Validate the averaged weights, keep them if they are the best, write the metrics."""
        current = _weights(self.objective)
        self._trainable.load_weights(self.averaged)
        schedule, progress = self.recipe.schedule, self.progress
        clean, robust = validated(
            self.objective, self.validation, float(self.recipe.eps.value), self.processes,
            self.device,
        )  # fmt: skip
        checked = {}
        if self.check is not None and self.processes.first:
            checked = self.check(self.objective, self.validation, self.device)
        # As they were validated: constraints on weights move an average of them.
        kept = _weights(self.objective)
        self._trainable.load_weights(current)
        # A model that comes in may be the most certified already; by any other criterion it would
        # win for what it was before, and counts as a last resort.
        select = self.recipe.select
        score = select.score(clean, robust) if number or select == Selection() else 0.0
        if score > progress.best_score:
            progress.best_score, progress.best_epoch = score, number
            self.best = kept
        record: dict[str, Any] = (
            self._figures()
            | {
                "epoch": number,
                "step": progress.step,
                "kappa": schedule.kappa_at(self._time),
                "learning_rate": schedule.rate_at(self._time),
                "seconds": time.perf_counter() - began,
                "validation_clean": clean,
                "validation_certified_estimate": robust,
                "validation_eps": self.recipe.eps.text,
            }
            | checked
        )
        if self.processes.first:
            self.metrics.add(record)
        self.watch.epoch(record)

    def _figures(self) -> dict[str, Any]:
        """Of the epoch under way."""
        loss, clean, robust, images = self.progress.sums
        seconds = self.progress.seconds
        return {
            "loss": loss / images if images else None,
            "clean": clean / images if images else None,
            "certified_estimate": robust / images if images else None,
            "eps": self.recipe.schedule.eps_at(self._time),
            "images_per_second": images / seconds if seconds else None,
        }

    def _not_finite(self, loss: float) -> str:
        epoch, batch = divmod(self.progress.step, len(self.batches))
        named = zip(self._trainable.names, self._trainable.tensors, strict=True)
        broken = (n for n, p in named if p.grad is not None and not bool(p.grad.isfinite().all()))
        worst = next(broken, "")
        where = f" and the gradient of {worst!r} is not finite" if worst else ""
        path = self.folder / checkpoint.FILE
        kept = f"the last good state is in {path}" if path.is_file() else "nothing was kept yet"
        return (
            f"epoch {epoch + 1}, batch {batch + 1}: the loss is {loss:g}{where}; {kept}; "
            "lower --lr or --clip-norm, or lengthen --ramp"
        )

    def _save(self) -> None:
        if self.processes.first:
            state = {
                "objective": checkpoint.to_cpu(self.objective.state_dict()),
                "optimiser": self.optimiser.state_dict(),
                "averaged": checkpoint.to_cpu(self.averaged),
                "best": checkpoint.to_cpu(self.best),
            }
            checkpoint.save(self.folder, self.identity, self.progress, state)

    def _restore(self) -> None:
        self.progress, state = checkpoint.load(self.folder, self.identity)
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        move = {name: tensor.to(self.device) for name, tensor in state["averaged"].items()}
        self.averaged, self.best = move, state["best"]


def _nothing() -> list[float]:
    return [0.0] * 4


def _weights(objective: Objective) -> Weights:
    trainable = objective.trainable
    return {
        name: tensor.detach().clone()
        for name, tensor in zip(trainable.names, trainable.tensors, strict=True)
    }
