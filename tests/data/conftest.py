"""Small stand-ins for the published sets, and nothing of the machine's own data in sight."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipcert.data import named
from lipcert.data.published import NAMED

COUNTS = {"train": 10, "test": 6}


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and no LIPCERT_DATA_DIR."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(named, "cache_folder", lambda: folder)
    monkeypatch.delenv("LIPCERT_DATA_DIR", raising=False)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Callable[..., None]:
    """`small(name, **fields)`: replace a published set by one of ten and six images."""

    def shrink(name: str, **fields: Any) -> None:
        changed = {"counts": COUNTS, "sha256": {}, **fields}
        monkeypatch.setitem(NAMED, name, replace(NAMED[name], **changed))

    return shrink


@pytest.fixture
def arrays() -> Callable[[str, str], tuple[np.ndarray, np.ndarray]]:
    """Random images (N, C, H, W) and labels for a set and split, the same at each call."""

    def make(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([len(name), len(split)])
        known = NAMED[name]
        images = random.integers(0, 256, (COUNTS[split], *known.shape), dtype=np.uint8)
        return images, random.integers(0, known.classes, COUNTS[split])

    return make
