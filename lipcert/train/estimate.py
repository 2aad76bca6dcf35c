"""What a training bound is, and what it says of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.bounds.objectives import Objectives, margin_objectives
from lipcert.network import Network, Segment, segments
from lipcert.numbers import Box
from lipcert.train.norms import WarmNorms


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a bound says of a batch.

    ``logits`` ``(B, K)``; ``margins`` ``(B, K)``: estimated lower bounds of ``f_y − f_j`` over the
    ball, 0 at ``j = y``; ``boxes``: of the input of each activation, for the sparsity loss.
    ``network`` is the one that the nodes of ``boxes`` belong to.
    """

    network: Network
    logits: Tensor
    margins: Tensor
    boxes: dict[int, Box]

    def least(self, labels: Tensor) -> Tensor:
        """The smallest margin of each sample: ``(B,)``."""
        own = torch.nn.functional.one_hot(labels, self.margins.shape[1]).bool()
        return self.margins.masked_fill(own, torch.inf).amin(1)


class TrainingBound(nn.Module, ABC):
    """A bound that a loss can be put on, with numbers of its own to learn, if it has any."""

    def prepare(self, network: Network) -> list[Segment]:
        """Make what depends on the network, before the first step; the segments whose norms will
        be asked for."""
        return [edge for edges in inner_edges(network).values() for edge in edges]

    @abstractmethod
    def forward(
        self, network: Network, pixels: Tensor, labels: Tensor, eps: Tensor, norms: WarmNorms
    ) -> Estimate:
        """For balls of radius ``eps`` ``(B,)`` around ``pixels`` ``(B, …)``."""


def inner_edges(network: Network) -> dict[int, tuple[Segment, ...]]:
    """The segments that end in the input of each activation, by that node."""
    sinks = dict.fromkeys(network.nodes[i].inputs[0] for i in network.activations)
    return {sink: segments(network, sink) for sink in sinks}


def closest_rivals(
    network: Network, margins: Tensor, labels: Tensor, pairs: int
) -> tuple[Objectives, Tensor]:
    """Of each sample the ``pairs`` classes with the least ``margins`` ``(B, K)``: their objectives,
    one row a pair, and which classes they are, ``(B, pairs)``."""
    batch, classes = margins.shape
    own = torch.nn.functional.one_hot(labels, classes).bool()
    count = min(pairs, classes - 1)
    others = margins.detach().masked_fill(own, torch.inf).topk(count, dim=1, largest=False).indices
    rows = torch.arange(batch, device=labels.device).repeat_interleave(count)
    return margin_objectives(network, rows, labels[rows], others.flatten()), others
