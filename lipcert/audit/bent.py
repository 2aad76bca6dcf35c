"""Element-wise nodes that are continuous and piecewise linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lipcert.audit.interpreter import Value
from lipcert.audit.operators import NotRead, attributes_of

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Bent:
    """An element-wise, continuous, piecewise linear function.

    ``slopes`` ``(p, n)`` or ``(p, 1)`` of its pieces, from left to right, between the ``kinks``
    ``(p − 1,)``; ``start`` is the value at the first kink.
    """

    slopes: Array
    kinks: Array
    start: float

    @cached_property
    def steepest(self) -> Array:
        found: Array = np.abs(self.slopes).max(axis=0)
        return found

    def values(self, z: Array) -> Array:
        """The function of ``(…, n)``."""
        kinks, slopes = self.kinks, self.slopes
        result: Array = self.start + slopes[0] * np.minimum(z - kinks[0], 0)
        for k, kink in enumerate(kinks):
            reach = kinks[k + 1] - kink if k + 1 < len(kinks) else np.inf
            result = result + slopes[k + 1] * np.clip(z - kink, 0, reach)
        return result


def bent_function(
    node: onnx.NodeProto, values: Sequence[Value | None], shape: tuple[int, ...]
) -> Bent | None:
    """Of a piecewise linear node, with these inputs where they are constant; None for any other."""
    attributes = attributes_of(node)
    column = np.array([[0.0], [1.0]])
    origin = np.zeros(1)
    match node.op_type:
        case "Relu":
            return Bent(column, origin, 0.0)
        case "LeakyRelu":
            return Bent(np.array([[attributes.get("alpha", 0.01)], [1.0]]), origin, 0.0)
        case "PRelu":
            slope = np.broadcast_to(np.asarray(values[1]), shape).reshape(1, -1)
            return Bent(np.concatenate([slope, np.ones_like(slope)]), origin, 0.0)
        case "Abs":
            return Bent(np.array([[-1.0], [1.0]]), origin, 0.0)
        case "Clip":
            low, high = (attributes.late(n, values, k) for n, k in (("min", 1), ("max", 2)))
            least = -math.inf if low is None else float(low)
            most = math.inf if high is None else float(high)
            ends = [end for end in (least, most) if math.isfinite(end)]
            # Nothing passes a lower limit of +∞, nor is NaN a limit.
            if not (least < most and ends):
                raise NotRead("a Clip without an interval in a bound")
            slopes = [0.0, 1.0, 0.0][math.isinf(least) : 3 - math.isinf(most)]
            return Bent(np.array(slopes)[:, None], np.array(ends), ends[0])
        case _:
            return None
