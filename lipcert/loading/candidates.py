"""Which nodes may be part of a sorting that is written out, found cheaply.

Looking for spellings goes through every value, and most networks have none.
"""

from __future__ import annotations

from collections import Counter

import torch

from lipcert.loading.forms import MAGNITUDES, Forms, is_sparse
from lipcert.network import Network, fold
from lipcert.network.activations import Activation, Clip, GroupMax, MaxMin, PReLU
from lipcert.network.nodes import Kind, Sum
from lipcert.network.operators import Diagonal, Operator, Select

# What may bend one value.
_BENDS = (Clip, PReLU, MaxMin)


def candidates(forms: Forms) -> set[int]:
    """The nodes that are made of magnitudes of differences, or of values alone."""
    network = forms.network
    read = Counter(j for node in network.nodes for j in node.inputs)
    bent = Counter(
        _source(network, node.inputs[0])
        for node in network.nodes if forms.alone and isinstance(node.kind, _BENDS)
    )  # fmt: skip

    def reached(i: int, parts: list[bool]) -> bool:
        node = network.nodes[i]
        if not isinstance(node.kind, Activation):
            starts = False
        elif forms.alone:
            again = isinstance(node.kind, _BENDS) and _again(network, node.inputs[0], bent, read)
            starts = again and (_is_summed(network, i) or _is_repeated(network, node.inputs[0]))
        else:
            starts = _mixes(network, i)
        if not (starts or any(parts)) or not forms.is_transparent(i):
            return False
        form = forms.of(i)
        return bool((form.live & (form.terms >= MAGNITUDES)).any())

    return {i for i, found in enumerate(fold(network, reached)) if found}


def _again(network: Network, i: int, bent: Counter[int], read: Counter[int]) -> bool:
    """Whether values are bent more than once, here or elsewhere, or read beside it."""
    if read[i] > 1 or bent[_source(network, i)] > 1 or _is_repeated(network, i):
        return True
    return _moves(network, i) and _again(network, network.nodes[i].inputs[0], bent, read)


def _is_summed(network: Network, i: int) -> bool:
    """Whether a node's values, moved and scaled, are put together with others."""
    for j in network.readers[i]:
        kind = network.nodes[j].kind
        if isinstance(kind, Sum) or (_is_scaled(kind) and _is_summed(network, j)):
            return True
    return False


def _is_scaled(kind: Kind) -> bool:
    return isinstance(kind, Select | Diagonal)


def _mixes(network: Network, i: int) -> bool:
    """Whether an activation may read a difference, or be a part of one: cheaply, so that most
    networks are passed by."""
    node = network.nodes[i]
    before = node.inputs[:1]
    match node.kind:
        case MaxMin():
            if _is_few(network, before[0]) or _is_one_of_few(network, i):
                return True
            return _is_repeated(network, before[0])
        case GroupMax() if network.nodes[before[0]].shape[-1] == 2:
            return _is_few(network, before[0]) or _is_one_of_few(network, i)
        case Clip() | PReLU():
            return _is_few(network, before[0])
    return False


def _is_few(network: Network, i: int) -> bool:
    """Whether a node's values, or those that it moves and scales, are put together of few."""
    node = network.nodes[i]
    if _moves(network, i):
        return any(_is_few(network, j) for j in node.inputs)
    return _takes_few(node.kind)


def _is_repeated(network: Network, i: int) -> bool:
    """Whether a node moves values of another one to more places than there are of them."""
    if not _moves(network, i):
        return False
    source = network.nodes[_source(network, i)]
    return network.nodes[i].size > source.size


def _is_one_of_few(network: Network, i: int) -> bool:
    """Whether the node's values, moved and scaled, are compared or put together with few others."""
    kinds = {j: network.nodes[j].kind for j in network.readers[i]}
    return any(
        _is_one_of_few(network, j)
        if _moves(network, j)
        else isinstance(kind, Activation) or _takes_few(kind)
        for j, kind in kinds.items()
    )


def _takes_few(kind: Kind) -> bool:
    if isinstance(kind, Operator):
        return is_sparse(kind)
    return isinstance(kind, Sum)


def _moves(network: Network, i: int) -> bool:
    """Whether every value is one of another node's, moved and scaled; so are parts of that node
    that are put together again."""
    node = network.nodes[i]
    if not isinstance(node.kind, Sum):
        return isinstance(node.kind, Select | Diagonal)
    parts = [network.nodes[j].kind for j in node.inputs]
    live = [(part.index >= 0).long() for part in parts if isinstance(part, Select)]
    apart = len(live) == len(parts) and int(torch.stack(live).sum(0).amax()) <= 1
    return apart and len({_source(network, j) for j in node.inputs}) == 1


def _source(network: Network, i: int) -> int:
    """The node whose values these are, moved and scaled."""
    while _moves(network, i):
        i = network.nodes[i].inputs[0]
    return i
