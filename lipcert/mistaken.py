"""What a file is where it is not what its name says: what people often have in its place."""

from __future__ import annotations

from pathlib import Path

_LFS, _PAGES = b"version https://git-lfs", (b"<!doctype html", b"<html")
_ENOUGH = 1024


def mistaken(source: Path | bytes) -> str:
    """For a file, or content, that cannot be read: ``": it is empty; …"`` with what to do about
    it, likewise of a pointer of Git LFS and of a web page; empty for anything else."""
    start = source[:_ENOUGH] if isinstance(source, bytes) else _start(source)
    if start is None:
        return ""
    if not start:
        return ": it is empty; write or download it again"
    if start.startswith(_LFS):
        return ": it is a pointer of Git LFS in place of the file itself; run git lfs pull"
    if start.lstrip().lower().startswith(_PAGES):
        return ": it is a web page in place of the file itself; download it by its raw address"
    return ""


def _start(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_ENOUGH)
    except OSError:
        return None
