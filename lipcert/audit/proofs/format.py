"""``proofs.npz``: what it holds, and how it is read. ``PROOFS.md`` describes it.

Nothing of it is trusted. Declared sizes are held against what the model and the certificate allow
before anything is unpacked; what does not fit raises ``CannotCertify`` with the place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcert import bounded
from lipcert.errors import CannotCertify

Array = NDArray[Any]

VERSION = 1
# Slopes are stored as whole numbers of 1/64 above −2, a byte each.
SLOPE_STEP, SLOPE_LEAST = 64.0, -2.0
# Slopes at the sample, or chords of the box where a coefficient is negative.
TANGENT, CHORD = 0, 1
# No file is unpacked beyond this, nor beyond so many forms or cuts of a sample.
MOST_BYTES, MOST_FORMS, MOST_CUTS = 2**31, 2**17, 2**20
_REMEDY = "; certify again with --save-proofs"


@dataclass(frozen=True)
class Sizes:
    """Of the arrays of a model: functions, their neurons, edges, and weights of chains."""

    bends: int
    neurons: int
    edges: int
    weights: int


class Arrays(SimpleNamespace):
    """By their names in the file; ``expected`` has their types and shapes."""


Kinds = Mapping[str, tuple[str, tuple[int | str, ...]]]


def expected(sizes: Sizes) -> Kinds:
    """Dtype and shape of every array; letters stand for a size that arrays share: S samples, F
    forms, C cuts, R rows of slopes."""
    return {
        "version": ("int64", ()),
        "index": ("int64", ("S",)), "eps": ("float64", ("S",)),
        "edge_scale": ("float32", ("S", sizes.edges)),
        "chain_scale": ("float32", ("S", sizes.bends)),
        "chain_weight": ("float32", ("S", sizes.weights)),
        "form_sample": ("int32", ("F",)), "form_bend": ("int16", ("F",)),
        "form_place": ("int32", ("F",)), "form_sign": ("int8", ("F",)),
        "form_rule": ("uint8", ("F",)), "form_slopes": ("int32", ("F",)),
        "form_multiplier": ("float32", ("F", sizes.bends)), "form_cuts": ("int16", ("F",)),
        "cut_neuron": ("int32", ("C",)), "cut_place": ("float64", ("C",)),
        "cut_above": ("bool", ("C",)), "slopes": ("uint8", ("R", sizes.neurons)),
    }  # fmt: skip


def read(path: Path, sizes: Sizes, samples: int) -> Arrays:
    """The arrays for a model of these ``sizes`` and a certificate of so many ``samples``."""
    kinds = expected(sizes)
    with bounded.opened(path, f"{path}: is damaged", _REMEDY) as archive:
        if len(archive.archive.infolist()) != len(kinds) or archive.members.keys() != kinds.keys():
            raise damaged(path, f"its arrays are to be {', '.join(kinds)}")
        if sum(member.file_size for member in archive.members.values()) > MOST_BYTES:
            raise damaged(path, f"it unpacks to more than {MOST_BYTES} bytes")
        shared: dict[str, int] = {}
        most = {"S": samples, "F": samples * MOST_FORMS, "C": samples * MOST_CUTS, "R": MOST_BYTES}
        for name, (dtype, shape) in kinds.items():
            header = archive.header(name)
            if header.fortran or header.dtype != dtype or len(header.shape) != len(shape):
                raise damaged(path, f"{name} is not {dtype} of {len(shape)} axes")
            for size, wanted in zip(header.shape, shape, strict=True):
                if isinstance(wanted, str):
                    wanted = shared.setdefault(wanted, min(size, most[wanted]))
                if size != wanted:
                    raise damaged(path, f"{name} has an axis of {size}, to be {wanted}")
        found = {name: archive.read(name, MOST_BYTES) for name in kinds}
    if int(found.pop("version")) != VERSION:
        raise damaged(path, f"version is not {VERSION}")
    arrays = Arrays(**found)
    _check(path, arrays, sizes)
    return arrays


def _check(path: Path, a: Arrays, sizes: Sizes) -> None:
    """What has to hold of the numbers, for places to be places."""
    floats = ("eps", "edge_scale", "chain_scale", "chain_weight", "form_multiplier", "cut_place")
    rules = [
        (len(np.unique(a.index)) == len(a.index), "index names a sample twice"),
        *((bool(np.isfinite(getattr(a, name)).all()), f"{name} is not finite") for name in floats),
        (_within(a.form_sample, 0, len(a.index)), "form_sample is no row of index"),
        (bool((np.diff(a.form_sample) >= 0).all()), "form_sample is not in order"),
        (_within(a.form_bend, -1, sizes.bends), "form_bend is no function"),
        (_within(a.form_place, 0, 2**31), "form_place is negative"),
        (bool((np.abs(a.form_sign.astype(int)) == 1).all()), "form_sign is not 1 or −1"),
        (_within(a.form_rule, 0, 2), "form_rule is no rule"),
        (_within(a.form_slopes, -1, len(a.slopes)), "form_slopes is no row of slopes"),
        (_within(a.form_cuts, 0, 2**15), "form_cuts is negative"),
        (int(a.form_cuts.sum(dtype=np.int64)) == len(a.cut_neuron), "form_cuts does not count"),
        (_within(a.cut_neuron, 0, sizes.neurons), "cut_neuron is no neuron"),
        (bool((a.form_cuts[a.form_bend >= 0] == 0).all()), "form_cuts cuts a box's form"),
    ]  # fmt: skip
    for holds, message in rules:
        if not holds:
            raise damaged(path, message)
    counts = np.bincount(a.form_sample, minlength=1)
    if int(counts.max()) > MOST_FORMS:
        raise damaged(path, f"a sample has more than {MOST_FORMS} forms")


def _within(values: Array, least: int, beyond: int) -> bool:
    return not len(values) or bool((values >= least).all() and (values < beyond).all())


def damaged(path: Path, message: str) -> CannotCertify:
    return CannotCertify(f"{path}: is damaged: {message}{_REMEDY}")
