"""A limit of memory, within which batches shrink."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lipcert.errors import UsageError

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
# What a process takes before it certifies anything: libraries, the network and its versions.
LEAST = 3 * 2**29


def parse_memory(text: str) -> int:
    """``8GiB``, ``8G``, ``800m`` or a number of bytes. Raises ``UsageError``."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise UsageError(f"--memory-limit {text!r}: give an amount such as 8GiB or 800M")
    return int(float(match[1]) * _UNITS[match[2]])


def check_memory(limit: int | None) -> None:
    """Raises ``UsageError`` for a limit that no process can begin with, or that this system does
    not keep."""
    if limit is None:
        return
    if not sys.platform.startswith("linux"):
        raise UsageError("--memory-limit: only Linux keeps such limits; choose a --batch-size")
    if limit < LEAST:
        raise UsageError(
            f"--memory-limit: {limit / 2**30:.2g} GiB hold no process; give {LEAST / 2**30:.2g}GiB "
            "or more"
        )


def limit_memory(limit: int | None) -> None:
    """Let this process have no more: beyond it an allocation fails, which is told and from which a
    batch recovers, where the system would have killed the process."""
    if limit is not None:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


@contextmanager
def limited(limit: int | None) -> Iterator[None]:
    """``limit_memory`` while the context lasts."""
    if limit is None:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory(limit)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
