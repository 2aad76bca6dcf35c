"""Sparse matrices for numpy's longest floating type, which no library multiplies by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Of an entry that is a sum, a quotient or a root: relative, generously.
ENTRY = 2.0**-50


@dataclass(frozen=True, eq=False)
class Matrix:
    """``shape`` (m, n), and its nonzero entries in the order of their rows, in float64."""

    shape: tuple[int, int]
    rows: Array
    columns: Array
    entries: Array

    @classmethod
    def of(cls, rows: Array, columns: Array, entries: Array, shape: tuple[int, int]) -> Matrix:
        order = np.lexsort((columns, rows))
        return cls(shape, rows[order], columns[order], entries[order])

    @classmethod
    def diagonal(cls, entries: Array) -> Matrix:
        places = np.arange(len(entries))
        return cls.of(places, places, entries, (len(entries), len(entries)))

    @cached_property
    def transpose(self) -> Matrix:
        return Matrix.of(self.columns, self.rows, self.entries, self.shape[::-1])

    @cached_property
    def magnitude(self) -> Matrix:
        return Matrix(self.shape, self.rows, self.columns, np.abs(self.entries))

    @cached_property
    def squared(self) -> Matrix:
        return Matrix(self.shape, self.rows, self.columns, self.entries**2)

    @cached_property
    def positive(self) -> Matrix:
        return Matrix(self.shape, self.rows, self.columns, np.maximum(self.entries, 0))

    @cached_property
    def negative(self) -> Matrix:
        return Matrix(self.shape, self.rows, self.columns, np.minimum(self.entries, 0))

    @cached_property
    def longest(self) -> int:
        """The most entries in a row or in a column."""
        counts = [np.bincount(places, minlength=1) for places in (self.rows, self.columns)]
        return max(int(count.max()) for count in counts)

    @cached_property
    def selects(self) -> bool:
        """Whether every result is one of the values, unchanged."""
        ones = len(self.rows) == self.shape[0] and bool((self.entries == 1).all())
        return ones and bool((self.rows == np.arange(len(self.rows))).all())

    @cached_property
    def _starts(self) -> tuple[Array, Array]:
        """The rows that are not empty, and where each begins."""
        return np.unique(self.rows, return_index=True)

    def __matmul__(self, v: Array) -> Array:
        """``M v`` for every ``v`` of ``(…, n)``, in the type of ``v``: sums in order."""
        flat = v.reshape(-1, v.shape[-1])
        result = np.zeros((len(flat), self.shape[0]), dtype=v.dtype)
        occupied, starts = self._starts
        if len(starts):
            for row, one in zip(result, flat, strict=True):
                row[occupied] = np.add.reduceat(self.entries * one[self.columns], starts)
        return result.reshape(*v.shape[:-1], self.shape[0])

    def row_norms(self, scale: Array) -> Array:
        """``‖row_k(M diag(scale))‖``."""
        result: Array = np.sqrt(self.squared @ scale**2)
        return result

    def dense(self, columns: Array, scale: Array) -> Array:
        """The chosen columns, scaled."""
        place = np.full(self.shape[1], -1)
        place[columns] = np.arange(len(columns))
        kept = place[self.columns] >= 0
        made = np.zeros((self.shape[0], len(columns)))
        where = self.columns[kept]
        made[self.rows[kept], place[where]] = self.entries[kept] * scale[where]
        return made
