"""Whether a graph treats every sample of a batch by itself.

A certificate speaks of one sample, and the network is read for a batch of one. Where the file takes
any number, it is read for two as well, and has to be the same function of each of them, apart from
the other, at every node on the way:

    every value has twice as many numbers as for one sample, and none of them depends on both;
    the numbers of a sample are, at the output, those that the file gives for it alone;
    how many samples there are becomes part of nothing but shapes, as that number times or plus a
    constant, so that what holds for one and two samples holds for any.

So nothing is cut out of the batch, not even where a batch of two is too short for it to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from lipcert.loading.assembler import Variable
from lipcert.loading.value import Value
from lipcert.network import Input, Network, Node, Sum
from lipcert.network.activations import GroupMax, GroupSort, MaxMin
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator

PAIR = 2
# What the two readings of one sample may differ by, relative: the order of sums.
_SAME = 1e-6

# What passes on the number of samples, from these inputs; and what becomes of it, linear in it.
_MOVED = {
    "Cast": (0,), "CastLike": (0,), "Concat": None, "Gather": (0,), "Identity": (0,),
    "Reshape": (0,), "Slice": (0,), "Split": (0,), "Squeeze": (0,), "Unsqueeze": (0,),
    "Where": (1, 2),
}  # fmt: skip
_LINEAR = ("Add", "Mul", "Sub")
# What is shaped by it, in these inputs.
_SHAPED = {"ConstantOfShape": (0,), "Expand": (1,), "Reshape": (1,), "Resize": (3,)}
# What a constant with a number for every sample may meet.
_TOGETHER = (
    "Add", "Cast", "CastLike", "Concat", "Div", "Max", "Min", "Mul", "Sub", "Sum", "Unsqueeze",
    "Where",
)  # fmt: skip

_ALONE = "; export the model with a fixed batch of 1, if it never gets more"
COUNTED = f"its result depends on how many samples a batch has{_ALONE}"
MIXED = f"mixes the samples of a batch, so that a prediction depends on the others{_ALONE}"
CUT = f"does not treat all samples of a batch alike{_ALONE}"
OTHER = f"reads otherwise for a batch of two than for one sample{_ALONE}"


def obstacle(
    nodes: Sequence[onnx.NodeProto],
    one: Mapping[str, Value],
    two: Mapping[str, Value],
    made: Sequence[Node],
) -> tuple[onnx.NodeProto, str] | None:
    """The first node that stands against it, and why; None: each sample is on its own.

    ``one`` and ``two`` have the values of the graph by name, for one sample and for two, both read
    without problems; ``made`` are the nodes of the network for two.
    """
    mixed = _Mixed(made)
    counted: set[str] = set()
    for node in nodes:
        reason = _counts(node, one, two, counted)
        if reason is None and any(
            mixed(one[name], two[name]) for name in node.output if name in one
        ):
            reason = mixed.reason
        if reason is not None:
            return node, reason
    return None


def _counts(
    node: onnx.NodeProto, one: Mapping[str, Value], two: Mapping[str, Value], counted: set[str]
) -> str | None:
    """Follows the number of samples through the constants; adds those that hold it to
    ``counted``."""
    held = [place for place, name in enumerate(node.input) if name in counted]
    wide = [place for place, name in enumerate(node.input) if _is_wide(one, two, name)]
    constants = [name for name in node.output if isinstance(one.get(name), np.ndarray)]
    kind = node.op_type
    if kind in ("Shape", "Size"):
        counted.update(name for name in constants if _differs(one[name], two[name]))
        return None
    if wide and not held:
        return None if kind in _TOGETHER else COUNTED
    if not held:
        return None
    shaped = all(place in _SHAPED.get(kind, ()) for place in held)
    if shaped:
        return None
    if not constants:
        return COUNTED
    if kind == "Equal" and _is_never_equal(node, one, two):
        return None
    places = _MOVED.get(kind, ())
    passed = kind in _MOVED and (places is None or all(place in places for place in held))
    if not passed and not (kind in _LINEAR and len(held) == 1):
        return COUNTED
    if kind in ("Cast", "CastLike") and np.asarray(one[constants[0]]).dtype.kind not in "if":
        return COUNTED
    counted.update(name for name in constants if _differs(one[name], two[name]))
    return None


def _is_never_equal(
    node: onnx.NodeProto, one: Mapping[str, Value], two: Mapping[str, Value]
) -> bool:
    """Whether a comparison with the number of samples, which grows from the one to the other, is
    with something smaller: with −1 in a shape, as exporters write of ``expand``."""
    sides = [[np.asarray(values[name]) for name in node.input] for values in (one, two)]
    (a, b), (c, d) = sides
    grows = (c != a) | (d != b)
    apart = ((c > a) & (a > b) & (d == b)) | ((d > b) & (b > a) & (c == a))
    return bool((apart | ~grows).all())


def _differs(one: Any, two: Any) -> bool:
    return not np.array_equal(np.asarray(one), np.asarray(two))


def _is_wide(one: Mapping[str, Value], two: Mapping[str, Value], name: str) -> bool:
    """Whether it is a constant whose shape tells the number of samples."""
    first, second = one.get(name), two.get(name)
    if not isinstance(first, np.ndarray) or not isinstance(second, np.ndarray):
        return False
    return first.shape != second.shape


class _Mixed:
    """Which sample each number of the network for two depends on."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        shape = nodes[0].shape
        own = torch.zeros(PAIR, *shape)
        for sample in range(PAIR):
            own[sample, sample] = 1
        self.found: list[Tensor] = []
        for node in nodes:
            self.found.append(own if isinstance(node.kind, Input) else self._through(node))
        self.reason = ""

    def __call__(self, one: Value, two: Value) -> bool:
        """Whether a value is not one sample's beside the other's; the ``reason`` says why not."""
        if not isinstance(one, Variable) or not isinstance(two, Variable):
            return False
        first, second = self.found[two.node]
        if bool((first * second).any()):
            self.reason = MIXED
        elif (
            two.size != PAIR * one.size or not one.size
            or first.count_nonzero() != second.count_nonzero()
        ):  # fmt: skip
            self.reason = CUT
        else:
            return False
        return True

    def _through(self, node: Node) -> Tensor:
        parts = [self.found[i] for i in node.inputs]
        match node.kind:
            case Sum():
                found = torch.stack(parts).sum(0)
            case Operator() as operator:
                found = operator.count(parts[0])
            case MaxMin() as pairs:
                *both, rest = pairs.parts(parts[0], pairs.axis + 1)
                either = torch.stack(both).amax(0)
                found = torch.cat([either, either, rest], pairs.axis + 1)
            case GroupMax():
                found = parts[0].amax(-1)
            case Joint() as joint:
                ones = [torch.ones_like(part) for part in parts]
                found = joint.derivative(ones).magnitude_once(parts)
                return (found > 0).to(found.dtype)
            case GroupSort():
                found = parts[0].amax(-1, keepdim=True).expand_as(parts[0])
            case _:
                found = parts[0]
        return (found > 0.5).to(found.dtype)


def apart(one: Network, two: Network) -> bool:
    """Whether the network for two gives for each sample what the network for one does, in some
    order of its axes; ``one`` and ``two`` have passed ``obstacle``."""
    shape, wide = one.nodes[-1].shape, two.nodes[-1].shape
    if wide == (PAIR, *shape):
        # An axis of one that is left out where there is but one sample.
        shape = (1, *shape)
    axes = [a for a, (n, m) in enumerate(zip(shape, wide, strict=False)) if n != m]
    if len(shape) != len(wide) or len(axes) != 1 or wide[axes[0]] != PAIR * shape[axes[0]]:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(PAIR, *one.in_shape, generator=generator, dtype=torch.float64)
    alone = one.values(x)[-1]
    together = two.values(x.reshape(1, *two.in_shape))[-1]
    found = torch.stack(together[0].chunk(PAIR, axes[0])).reshape(alone.shape)
    scale = alone.flatten(1).abs().amax(1).clamp(min=1e-6)
    off = (found - alone).flatten(1).abs().amax(1)
    return bool((off <= _SAME * scale).all()) and math.isfinite(float(off.sum()))


__all__ = ["CUT", "OTHER", "PAIR", "apart", "obstacle"]
