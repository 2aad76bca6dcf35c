"""Rules for the last axis of a value, applied to other axes; scales and shifts of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from lipcert.loading.assembler import Variable, places
from lipcert.loading.value import Call, Unsupported


def along(
    call: Call, x: Variable, axes: Sequence[int], rule: Callable[[Variable], Variable]
) -> Variable:
    """A rule for the last axis, applied to these axes as one."""
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    order = places(x.shape).transpose([*kept, *axes])
    call.assembler.allowance.move(x.size)
    flat = order.reshape([*(x.shape[axis] for axis in kept), -1])
    y = rule(call.assembler.select(x, flat))
    back = np.argsort(order.reshape(-1)).reshape(x.shape)
    return call.assembler.select(y, back)


def scaled(call: Call, x: Variable, scale: Tensor | None, bias: Tensor | None) -> Variable:
    for part in (scale, bias):
        if part is not None and np.broadcast_shapes(x.shape, tuple(part.shape)) != x.shape:
            raise Unsupported(f"{list(part.shape)} does not broadcast to {list(x.shape)}")
    return call.assembler.diagonal(x, scale, bias)
