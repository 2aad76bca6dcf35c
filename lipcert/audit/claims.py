"""What a certificate claims, read from its files by the strict reader of ``lipcert.records``.

That reader refuses whatever contradicts itself, so that an audit begins with files that may be
true. A ``Contradiction`` names its sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from lipcert import records
from lipcert.errors import CannotCertify, UsageError

Record = Mapping[str, Any]

_NAME = re.compile(r"certificate(\.\d+-of-\d+)?\.json")


@dataclass(frozen=True)
class Contradiction:
    """Something that cannot be true: of one sample, or of the certificate as a whole."""

    message: str
    sample: int | None = None

    def __str__(self) -> str:
        return self.message if self.sample is None else f"sample {self.sample}: {self.message}"


@dataclass(frozen=True)
class Claims:
    """A certificate and its samples, as their files have them."""

    path: Path
    certificate: Record
    samples: Sequence[Record]
    digests: Mapping[str, str]

    @property
    def suffix(self) -> str:
        """``.1-of-4`` for a shard's certificate, else empty."""
        return self.path.name.removeprefix("certificate").removesuffix(".json")

    @property
    def eps(self) -> dict[str, Fraction]:
        return {text: _fraction(text) for text in self.certificate["options"]["eps"]}

    @property
    def largest(self) -> str:
        return max(self.eps, key=lambda text: self.eps[text])

    @property
    def deployed(self) -> str:
        found: str = self.certificate["options"]["deployed"]
        return found

    @property
    def pixel_domain(self) -> bool:
        """Whether only images in [0, 1] are claimed to be safe."""
        return bool(self.certificate["options"].get("pixel_domain", False))


def read(path: Path) -> Claims:
    """The claims of a ``certificate.json``, or of the one in a folder.

    Raises ``UsageError`` where it is not there; ``CannotCertify`` where anything in its files is
    not as a run writes it, or where it claims nothing.
    """
    file = path / "certificate.json" if path.is_dir() else path
    if not (file.is_file() and _NAME.fullmatch(file.name)):
        raise UsageError(f"{path}: there is no such certificate; name a certificate.json")
    found = records.read(file)
    if found.certificate["assurance"]["kind"] == "estimate":
        raise CannotCertify(f"{file}: an ESTIMATE certifies nothing, so there is nothing to audit")
    return Claims(file, found.certificate, found.samples, found.digests)


def radius_of(sample: Record) -> float:
    """The certified radius; 0 without any. An infinite one is stored as null."""
    radius = sample["radius"]
    if radius is None:
        return math.inf if sample["certified"] else 0.0
    return float(radius)


def _fraction(text: str) -> Fraction:
    above, _, below = text.partition("/")
    return Fraction(above) / Fraction(below or 1)
