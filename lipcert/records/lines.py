"""The lines of a ``samples.jsonl``, of which there may be more than memory holds."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from lipcert.errors import CannotCertify, UsageError
from lipcert.records.strict_json import Record, parse

# Up to so many samples are kept in memory, where they are read again and again.
FEW = 100_000
# Bytes: far more than a sample with a thousand layers takes.
_LONGEST = 1 << 20


def lines_of(path: Path, remedy: str = "certify again") -> Iterator[bytes]:
    """Every line with its end, none of them longer than a sample may be.

    Raises ``UsageError`` for what cannot be read or is no regular file, ``CannotCertify`` where the
    last line is cut off or one is too long.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: cannot be read: it is no regular file")
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST):
                number += 1
                if line[-1:] != b"\n":
                    raise CannotCertify(
                        f"{path}: line {number}: is damaged: it is cut off; {remedy}"
                    )
                yield line
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


class Lines(Sequence[Record]):
    """Samples that were read and checked once, each read again when it is asked for.

    In memory are twelve bytes for each: where its line begins, and a checksum, by which a file that
    has changed since is known. Raises ``CannotCertify`` for one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places, self._sums = array("q", [0]), array("I")

    def append(self, line: bytes) -> None:
        """The next line, which has been checked."""
        self._places.append(self._places[-1] + len(line))
        self._sums.append(zlib.crc32(line))

    def __len__(self) -> int:
        return len(self._sums)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        first = self._places[place]
        with self._path.open("rb") as file:
            file.seek(first)
            return self._record(file.read(self._places[place + 1] - first), place)

    def __iter__(self) -> Iterator[Record]:
        place = -1
        for place, line in enumerate(lines_of(self._path)):
            yield self._record(line, place)
        if place + 1 != len(self):
            raise self._changed()

    def _record(self, line: bytes, place: int) -> Record:
        if place >= len(self) or zlib.crc32(line) != self._sums[place]:
            raise self._changed()
        return parse(line, f"{self._path}: line {place + 1}")

    def _changed(self) -> CannotCertify:
        return CannotCertify(f"{self._path}: changed while it was read")
