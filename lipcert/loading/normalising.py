"""Normalisation by a value's own length: Layer-, RMS-, Group-, InstanceNorm, L2, local response.

What is normalised is first moved to the last axis; scales and shifts behind it are affine, as the
file has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lipcert.loading.assembler import Variable, number, places
from lipcert.loading.axes import along, scaled
from lipcert.loading.products import curve
from lipcert.loading.value import Call, Unsupported
from lipcert.network.joints import InverseLength, Product, Quotient, Standardise


def _layer_normalization(call: Call) -> Variable:
    return _layers(call, centred=True)


def _rms_normalization(call: Call) -> Variable:
    return _layers(call, centred=False)


def _layers(call: Call, *, centred: bool) -> Variable:
    x = call.variable(0)
    axis = int(call.attributes["axis"]) % len(x.shape)
    axes = list(range(axis, len(x.shape)))
    y = _normalised(call, x, axes, centred=centred)
    return scaled(call, y, call.optional(1), call.optional(2))


def _normalised(
    call: Call, x: Variable, axes: Sequence[int], *, centred: bool, name: str = "epsilon"
) -> Variable:
    epsilon = float(call.attributes[name])
    if not 0 <= epsilon < math.inf:
        raise Unsupported(f"attribute {name}={epsilon}")

    def rule(y: Variable) -> Variable:
        inverse = assembler.joint(InverseLength(y.shape, epsilon, centred, True), [y])
        if not centred:
            return assembler.joint(Product(y.shape, inverse.shape), [y, inverse])
        size = y.shape[-1]
        mean = assembler.dense(y, torch.full((1, size), 1 / size, dtype=torch.float64))
        return assembler.joint(Standardise(y.shape), [y, mean, inverse])

    assembler = call.assembler
    return along(call, x, axes, rule)


def _instance_normalization(call: Call) -> Variable:
    x = call.variable(0)
    y = _normalised(call, x, range(2, len(x.shape)), centred=True)
    spread = (-1, *(1,) * (len(x.shape) - 2))
    return scaled(call, y, call.constant(1).reshape(spread), call.constant(2).reshape(spread))


def _group_normalization(call: Call) -> Variable:
    """Scale and shift are for each group before opset 21, for each channel since."""
    x, groups = call.variable(0), int(call.attributes["num_groups"])
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise Unsupported(f"{channels} channels in {groups} groups")
    assembler = call.assembler
    parts = assembler.reshape(x, (x.shape[0], groups, channels // groups, *x.shape[2:]))
    y = _normalised(call, parts, range(2, len(parts.shape)), centred=True)
    y = assembler.reshape(y, x.shape)
    scale, bias = (call.constant(k) for k in (1, 2))
    if call.version < 21:
        scale, bias = (t.repeat_interleave(channels // groups) for t in (scale, bias))
    spread = (-1, *(1,) * (len(x.shape) - 2))
    return scaled(call, y, scale.reshape(spread), bias.reshape(spread))


def _lp_normalization(call: Call) -> Variable:
    x, power = call.variable(0), int(call.attributes["p"])
    if power != 2:
        raise Unsupported(f"attribute p={power}: only the Euclidean norm")
    axis = int(call.attributes["axis"]) % len(x.shape)

    def rule(y: Variable) -> Variable:
        inverse = assembler.joint(InverseLength(y.shape, 0.0, False, False), [y])
        return assembler.joint(Product(y.shape, inverse.shape), [y, inverse])

    assembler = call.assembler
    return along(call, x, [axis], rule)


def _local_response(call: Call) -> Variable:
    """``x / (bias + alpha/size · Σ x²)^beta``, summed over ``size`` channels around each."""
    x, assembler, attributes = call.variable(0), call.assembler, call.attributes
    size, channels = int(attributes["size"]), x.shape[1]
    if size < 1:
        raise Unsupported(f"attribute size={size}")
    squares = curve(call, x, 2.0)
    index = places(x.shape)
    before, after = (size - 1) // 2, size // 2
    padded = np.pad(
        index, [(0, 0), (before, after), *[(0, 0)] * (len(x.shape) - 2)], constant_values=-1
    )
    assembler.allowance.move(size * x.size)
    window = np.stack([padded[:, k : k + channels] for k in range(size)], -1)
    summed = assembler.dense(
        assembler.select(squares, window), torch.ones(1, size, dtype=torch.float64)
    )
    summed = assembler.reshape(summed, x.shape)
    scale, bias = (float(attributes[name]) for name in ("alpha", "bias"))
    below = assembler.diagonal(summed, number(scale / size), number(bias))
    power = curve(call, below, float(attributes["beta"]))
    return assembler.joint(Quotient(x.shape, power.shape), [x, power])


NORMALISATIONS: dict[str, Callable[[Call], Variable]] = {
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LRN": _local_response,
    "LpNormalization": _lp_normalization,
    "RMSNormalization": _rms_normalization,
}
