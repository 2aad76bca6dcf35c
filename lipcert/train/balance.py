"""Norms of neighbouring layers made equal before the first step; the function stays.

ReLU, MaxMin and whatever else is positively homogeneous lets a positive factor pass: ``W₁`` may be
multiplied by ``t`` and ``W₂`` divided by it. A file that was trained for accuracy alone often has
layers whose norms differ by orders of magnitude, and steps of one size are then too large for some
of them and too small for others. With ``g`` the geometric mean of the norms between two places
where no factor passes, each layer is multiplied by ``g / ‖W_k‖``, and biases and thresholds by the
product of these factors so far.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import torch
from torch import Tensor

from lipcert.network import Network, Node, fold
from lipcert.network.activations import Clip, GroupMax, GroupSort, Identity, MaxMin, PReLU
from lipcert.network.nodes import Input, Sum
from lipcert.network.operators import Operator
from lipcert.train.provenance import Binding
from lipcert.train.rewriting import NO_LIMIT
from lipcert.train.trainable import Trainable, is_layer

_STEPS = 30


@torch.no_grad()
def balance(trainable: Trainable) -> bool:
    """Balance what can be; whether anything was. Networks with branches around layers, or with a
    parameter in two places, are left as they are."""
    network = trainable.template
    uses = Counter(binding.parameter for binding in trainable.bindings)
    bound = {(binding.node, binding.field): binding for binding in trainable.bindings}
    layers = [i for i in network.operators if is_layer(network.nodes[i]) and (i, "weight") in bound]
    passed = _passed(network, layers)
    if passed is None or any(uses[bound[i, "weight"].parameter] > 1 for i in layers):
        return False
    total = len(layers)
    fixed = {k for i, k in enumerate(passed) if not _lets_pass(network.nodes[i], i, bound)}
    norms = [operator_size(network.operators[i]) for i in layers]
    factors = [1.0] * total
    for start, end in pairwise(sorted({0, total} | fixed)):
        part = norms[start:end]
        if len(part) > 1 and min(part) > 0:
            mean = math.exp(sum(map(math.log, part)) / len(part))
            factors[start:end] = [mean / norm for norm in part]
    so_far = [math.prod(factors[:k]) for k in range(total + 1)]
    scales = {
        binding.parameter: factors[layers.index(binding.node)]
        if binding.field == "weight" and binding.node in layers
        else so_far[passed[binding.node]]
        for binding in trainable.bindings
        if binding.field in ("weight", "bias", "lower", "upper")
    }
    if any(uses[name] > 1 and scale != 1 for name, scale in scales.items()):
        return False
    for name, tensor in zip(trainable.names, trainable.tensors, strict=True):
        tensor.mul_(scales.get(name, 1.0))
    trainable.settle()
    return any(scale != 1 for scale in scales.values())


def operator_size(operator: Operator) -> float:
    """About ``‖A‖₂``, by power iteration from a start that is the same in every run."""
    size = math.prod(operator.in_shape)
    v = torch.sin(1.0 + math.sqrt(2) * torch.arange(size, dtype=torch.float32))
    v = v.reshape(1, *operator.in_shape)
    for _ in range(_STEPS):
        v = operator.transpose(operator.apply(v))
        v = v / v.norm().clamp(min=1e-30)
    return float(operator.apply(v).norm())


def _passed(network: Network, layers: list[int]) -> list[int] | None:
    """How many layers lie before and at each node; None where two ways differ in that."""

    def passed(i: int, parts: list[int | None]) -> int | None:
        before = set(parts) or {0}
        way = before.pop()
        return None if way is None or before else way + (i in layers)

    found = fold(network, passed)
    counts = [count for count in found if count is not None]
    return counts if len(counts) == len(found) else None


def _lets_pass(node: Node, i: int, bound: dict[tuple[int, str], Binding]) -> bool:
    """Whether a factor on all its inputs comes out as one on its outputs, numbers of the file that
    are bound following along."""
    match node.kind:
        case Input() | Sum() | MaxMin() | GroupMax() | GroupSort() | PReLU() | Identity():
            return True
        case Clip(lower=lower, upper=upper):
            return all(
                (i, name) in bound or _no_limit(limit)
                for name, limit in (("lower", lower), ("upper", upper))
            )
        case Operator() as operator:
            bias = operator.bias
            return bias is None or (i, "bias") in bound or not bool(bias.any())
    return False


def _no_limit(limit: Tensor | None) -> bool:
    return limit is None or bool(((limit == 0) | (limit.abs() >= NO_LIMIT)).all())
