"""The pages of a Parquet file, by their headers alone: each says what it unpacks to, and a reader
takes memory for that before it looks at the page.

The headers are structs of Thrift's compact protocol, of which only the first numbers are kept
(parquet-format, `PageHeader`: 2 is the unpacked size, 3 the stored one, both in bytes).
"""

from collections.abc import Iterator
from typing import IO

_UNPACKED, _STORED = 2, 3
_MOST_HEADER = 16 << 20  # as much as Arrow reads
_DEEPEST = 16
_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY = 1, 2, 3, (4, 5, 6), 7, 8
_LISTS, _MAP, _STRUCT = (9, 10), 11, 12


def unpacked_sizes(stream: IO[bytes], start: int, length: int) -> Iterator[int]:
    """The bytes that each of the pages of a column, which are `length` bytes from `start` on, says
    that it unpacks to. Raises `ValueError` for what is no page."""
    end = start + length
    while start < end:
        stream.seek(start)
        found, header = _header(stream, min(end - start, _MOST_HEADER))
        unpacked, stored = found.get(_UNPACKED, -1), found.get(_STORED, -1)
        if unpacked < 0 or stored < 0 or start + header + stored > end:
            raise ValueError("a page has no size, or goes beyond its column")
        yield unpacked
        start += header + stored


def _header(stream: IO[bytes], most: int) -> tuple[dict[int, int], int]:
    """The whole numbers of a struct by their fields, and how long it is."""
    content, size = b"", 1 << 10
    while True:
        size = min(size, most)
        content += stream.read(size - len(content))
        reader = _Struct(content)
        try:
            return reader.numbers(), reader.place
        except IndexError:
            if len(content) < size or size == most:
                raise ValueError("a page's header does not end") from None
            size *= 16


class _Struct:
    """Reads on from `place`; `IndexError` where the content ends too soon."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def numbers(self, depth: int = 0) -> dict[int, int]:
        """The whole numbers of a struct, by its fields; everything else is passed over."""
        if depth > _DEEPEST:
            raise ValueError("a page's header is nested too deeply")
        found: dict[int, int] = {}
        field = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            field = field + step if step else _signed(self._varint())
            if kind in _INTEGERS:
                found[field] = _signed(self._varint())
            elif kind not in (_TRUE, _FALSE):
                self._skip(kind, depth)
        return found

    def _skip(self, kind: int, depth: int) -> None:
        if kind in _INTEGERS:
            self._varint()
        elif kind in (_TRUE, _FALSE, _BYTE):  # a byte each in a list
            self._byte()
        elif kind in (_DOUBLE, _BINARY):
            length = 8 if kind == _DOUBLE else self._varint()
            self.place += length
            if self.place > len(self.content):
                raise IndexError
        elif kind == _STRUCT:
            self.numbers(depth + 1)
        elif kind in _LISTS or kind == _MAP:
            self._skip_many(kind, depth + 1)
        else:
            raise ValueError(f"a page's header has a field of type {kind}")

    def _skip_many(self, kind: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise ValueError("a page's header is nested too deeply")
        if kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            each: tuple[int, ...] = (kinds >> 4, kinds & 15)
        else:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            each = (head & 15,)
        for _ in range(count):
            for one in each:
                self._skip(one, depth)

    def _byte(self) -> int:
        self.place += 1
        return self.content[self.place - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number in a page's header is too long")


def _signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)
