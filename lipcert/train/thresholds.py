"""Where thresholds start: at a percentile of what each neuron reaches on the training images.

A pretrained network keeps its accuracy there, because few activations of few images are cut.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from lipcert.train.trainable import Trainable

# Images whose activations are in memory at once.
_BATCH = 256
# Of the layer's own mean: a neuron that never fires may still learn to.
_LEAST = 0.05


@torch.no_grad()
def start_thresholds(
    trainable: Trainable, names: Collection[str], pixels: Tensor, percentile: float
) -> None:
    """Set every new threshold; upper limits at ``percentile`` per cent, lower ones at the rest."""
    chosen = [binding for binding in trainable.bindings if binding.parameter in names]
    if not chosen:
        return
    sources = {b.node: trainable.template.nodes[b.node].inputs[0] for b in chosen}
    parts: dict[int, list[Tensor]] = {source: [] for source in sources.values()}
    # The thresholds are still without effect: these are the file's own activations.
    for batch in torch.split(pixels, _BATCH):
        values = trainable.template.values(batch)
        for source, kept in parts.items():
            kept.append(values[source])
    by_name = dict(zip(trainable.names, trainable.tensors, strict=True))
    for binding in chosen:
        values_here = torch.cat(parts[sources[binding.node]])
        parameter = by_name[binding.parameter]
        share = percentile / 100 if binding.field == "upper" else 1 - percentile / 100
        parameter.copy_(_percentile(values_here, parameter, share))
        if binding.field == "upper":
            parameter.clamp_(min=_LEAST * float(parameter.abs().mean()))


def _percentile(values: Tensor, like: Tensor, share: float) -> Tensor:
    """Over the samples, and over every axis along which the threshold is one for all.

    ``values``: ``(B, 1, C, …)``, the file's own leading 1 included; ``like``: ``(1, C, …)``.
    """
    values = values.flatten(0, 1)
    shared = [a for a in range(1, values.dim()) if like.shape[a] == 1]
    own = [a for a in range(1, values.dim()) if like.shape[a] > 1]
    moved = values.permute(0, *shared, *own).flatten(0, len(shared))
    ranked = moved.sort(0).values
    return ranked[round(share * (len(ranked) - 1))].reshape(like.shape)
