"""Samples on disk: those of a run may be more than memory holds.

A sample takes a kilobyte or two as an object, and ten million of them more than most machines have.
So a run writes each to a file that nobody else sees, remembers where, and reads it again when it is
wanted; in memory stay eight bytes for each sample of the data.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from lipcert.certificate import Sample

# Up to so many samples are handed out as a tuple.
FEW = 100_000


class Kept(MutableMapping[int, Sample]):
    """Samples by their indices; there is room for ``size``, and more where it is needed."""

    def __init__(self, size: int) -> None:
        # The place after which a sample's line begins, counted from 1; 0 where there is none.
        self._places = np.zeros(size, np.int64)
        self._file, self._end, self._count = tempfile.TemporaryFile(), 0, 0  # noqa: SIM115

    def __setitem__(self, index: int, sample: Sample) -> None:
        if index >= len(self._places):
            more = np.zeros(index + 1 - len(self._places), np.int64)
            self._places = np.concatenate([self._places, more])
        if index >= len(self._places):
            more = np.zeros(index + 1 - len(self._places), np.int64)
            self._places = np.concatenate([self._places, more])
        line = json.dumps(sample.to_json(), allow_nan=False).encode() + b"\n"
        self._file.seek(self._end)
        self._file.write(line)
        self._count += not self._places[index]
        self._places[index] = self._end + 1
        self._end += len(line)

    def __getitem__(self, index: int) -> Sample:
        if index not in self:
            raise KeyError(index)
        self._file.seek(int(self._places[index]) - 1)
        return Sample.from_json(json.loads(self._file.readline()))

    def __delitem__(self, index: int) -> None:
        if index not in self:
            raise KeyError(index)
        self._places[index] = 0
        self._count -= 1

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and 0 <= index < len(self._places) and (
            bool(self._places[index])
        )  # fmt: skip

    def __iter__(self) -> Iterator[int]:
        return (int(index) for index in np.flatnonzero(self._places))

    def __len__(self) -> int:
        return self._count


class KeptSamples(Sequence[Sample]):
    """Some of those that are ``kept``, in an order of their own, each read when it is asked for."""

    def __init__(self, kept: Kept, indices: Sequence[int]) -> None:
        self._kept, self._indices = kept, np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> KeptSamples: ...
    def __getitem__(self, place: int | slice) -> Sample | KeptSamples:
        if isinstance(place, slice):
            return KeptSamples(self._kept, self._indices[place].tolist())
        return self._kept[int(self._indices[place])]

    def __iter__(self) -> Iterator[Sample]:
        return (self._kept[int(index)] for index in self._indices)


def in_memory_where_few(samples: Sequence[Sample]) -> Sequence[Sample]:
    """A tuple, unless they are too many."""
    return tuple(samples) if len(samples) <= FEW else samples


class Labels(Mapping[int, int]):
    """The labels of the chosen samples alone, by index, in the array that holds all of them."""

    def __init__(self, labels: NDArray[np.int64], indices: NDArray[np.int64]) -> None:
        self._labels, self._chosen = labels, np.zeros(len(labels), bool)
        self._chosen[indices] = True

    def __getitem__(self, index: int) -> int:
        if not (0 <= index < len(self._chosen) and self._chosen[index]):
            raise KeyError(index)
        return int(self._labels[index])

    def __iter__(self) -> Iterator[int]:
        return (int(index) for index in np.flatnonzero(self._chosen))

    def __len__(self) -> int:
        return int(self._chosen.sum())
