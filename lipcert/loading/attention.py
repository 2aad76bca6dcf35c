"""Softmax inside a network, with what a mask leaves out, and attention as one operator."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from lipcert.loading.assembler import Variable, number, places
from lipcert.loading.axes import along, scaled
from lipcert.loading.masks import NOTHING_LEFT, Masked, left_out, softmax
from lipcert.loading.products import matrices
from lipcert.loading.value import Call, Unsupported
from lipcert.network.joints import Softmax


def _softmax(call: Call) -> Variable:
    x = call.variable(0)
    axis = int(call.attributes["axis"]) % len(x.shape)
    if call.version >= 13:
        return along(call, x, [axis], lambda y: call.assembler.joint(Softmax(y.shape), [y]))
    # Before opset 13 all axes from this one on are one.
    return along(
        call, x, list(range(axis, len(x.shape))),
        lambda y: call.assembler.joint(Softmax(y.shape), [y]),
    )  # fmt: skip


def masked_softmax(call: Call, given: Masked) -> Variable:
    """Of scores of which some are left out."""
    axis = int(call.attributes["axis"]) % len(given.scores.shape)
    if call.version < 13 and axis != len(given.scores.shape) - 1:
        raise Unsupported("a mask over several axes at once")
    order = places(given.scores.shape)

    def rule(y: Variable) -> Variable:
        return given.shares(y, np.moveaxis(order, axis, -1), call.assembler)

    return along(call, given.scores, [axis], rule)


def _attention(call: Call) -> Variable:
    """``softmax(scale · Q Kᵀ + mask) V`` for every head, as opset 23 writes it."""
    attributes, assembler = call.attributes, call.assembler
    if attributes.get("softcap"):
        raise Unsupported("attribute softcap")
    if any(call.has(k) for k in range(4, len(call.inputs))):
        raise Unsupported("past keys and values")
    heads = [_heads(call, k, name) for k, name in enumerate(("q", "kv", "kv"))]
    q, k, v = heads
    if q.shape[1] % k.shape[1]:
        raise Unsupported(f"{q.shape[1]} heads of queries for {k.shape[1]} of keys")
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = (assembler.select(x, np.repeat(places(x.shape), repeat, axis=1)) for x in (k, v))
    given = attributes.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if given is None else float(given)
    if scale <= 0:
        raise Unsupported(f"attribute scale {scale:g}")
    # As the operator's definition has it: its root on either side.
    root = number(math.sqrt(scale))
    q, k = (assembler.diagonal(x, root, None) for x in (q, k))
    scores = matrices(call, q, assembler.transpose(k, (0, 1, 3, 2)))
    kept = np.ones(scores.shape, dtype=bool)
    if attributes.get("is_causal"):
        kept = np.tril(kept)
    if call.has(3):
        mask = call.array(3)
        left = mask if mask.dtype == bool else ~left_out(mask)
        kept = kept & left
        if mask.dtype != bool:
            rest = np.where(left, mask, 0.0).astype(np.float64)
            if not np.isfinite(rest).all():
                raise Unsupported("a mask with values that are not finite")
            scores = scaled(call, scores, None, torch.from_numpy(rest).clone())
    if not kept.any(-1).all():
        raise Unsupported(NOTHING_LEFT)
    if kept.all():
        shares = assembler.joint(Softmax(scores.shape), [scores])
    else:
        shares = softmax(scores, kept, assembler)
    y = matrices(call, shares, v)
    if len(call.variable(0).shape) == 4:
        return y
    y = assembler.transpose(y, (0, 2, 1, 3))
    return assembler.reshape(y, (*y.shape[:2], math.prod(y.shape[2:])))


def _heads(call: Call, slot: int, name: str) -> Variable:
    """``(batch, heads, places, size)``."""
    x = call.variable(slot)
    if len(x.shape) == 4:
        return x
    count = int(call.attributes.get(f"{name}_num_heads") or 0)
    if len(x.shape) != 3 or count < 1 or x.shape[2] % count:
        raise Unsupported(f"{count} heads in {list(x.shape)}")
    x = call.assembler.reshape(x, (*x.shape[:2], count, x.shape[2] // count))
    return call.assembler.transpose(x, (0, 2, 1, 3))


ATTENTION: dict[str, Callable[[Call], Variable]] = {
    "Attention": _attention,
    "Softmax": _softmax,
}
