"""What a certificate claims, read from its files, and held against itself.

Everything is recomputed from ``samples.jsonl`` by lines of its own: counts, shares, radii, digests,
and what each verdict says of the fields beside it. A ``Contradiction`` names its sample.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lipcert.certificate import SCHEMA, SPACES, threat_model
from lipcert.errors import CannotCertify, UsageError

Record = Mapping[str, Any]

# Of sums in another order.
_SLACK = 1e-9
_NAME = re.compile(r"certificate(\.\d+-of-\d+)?\.json")
_VERDICTS = ("certified", "falsified", "unknown", "misclassified", "timeout", "error")


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
    samples: tuple[Record, ...]
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

    Raises ``UsageError`` where a file is not there; ``CannotCertify`` where one is damaged, is of
    another version, or claims nothing.
    """
    file = path / "certificate.json" if path.is_dir() else path
    if not (file.is_file() and _NAME.fullmatch(file.name)):
        raise UsageError(f"{path}: there is no such certificate; name a certificate.json")
    suffix = file.name.removeprefix("certificate").removesuffix(".json")
    rows = file.with_name(f"samples{suffix}.jsonl")
    if not rows.is_file():
        raise UsageError(f"{rows}: is not there, and is needed beside {file.name}")
    contents = {one.name: _content(one) for one in (file, rows)}
    certificate = _json(contents[file.name], str(file))
    if certificate.get("schema") != SCHEMA:
        raise CannotCertify(f"{file}: has the schema {certificate.get('schema')!r}, not {SCHEMA}")
    lines = contents[rows.name].splitlines()
    samples = tuple(_json(line, f"{rows}: line {k}") for k, line in enumerate(lines, start=1))
    claims = Claims(
        file, certificate, samples,
        {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    )  # fmt: skip
    try:
        _check_fields(claims)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CannotCertify(
            f"{file}: is damaged: {type(error).__name__} at {error}; certify again"
        ) from error
    if certificate["assurance"]["kind"] == "estimate":
        raise CannotCertify(f"{file}: an ESTIMATE certifies nothing, so there is nothing to audit")
    images = bool(certificate["options"].get("pixel_domain", False))
    if all(
        certificate["threat_model"] != threat_model(pixel_domain=images, space=space)
        for space in SPACES
    ):
        raise CannotCertify(f"{file}: is for {certificate['threat_model']}, which is not audited")
    return claims


def radius_of(sample: Record) -> float:
    """The certified radius; 0 without any. An infinite one is stored as null."""
    radius = sample["radius"]
    if radius is None:
        return math.inf if sample["certified"] else 0.0
    return float(radius)


def contradictions(claims: Claims) -> list[Contradiction]:
    """Where the files contradict themselves."""
    found = [Contradiction(message) for message in _of_the_whole(claims)]
    for sample in claims.samples:
        found += [Contradiction(said, sample["index"]) for said in _of_sample(claims, sample)]
    return found


def _of_the_whole(claims: Claims) -> Iterator[str]:
    certificate, samples = claims.certificate, claims.samples
    data = certificate["data"]
    if certificate["options_digest"] != _options_digest(certificate["options"]):
        yield "options_digest is not the digest of the options"
    indices = [sample["index"] for sample in samples]
    repeated = [index for index, count in Counter(indices).items() if count > 1]
    if repeated:
        yield f"sample {repeated[0]} is listed more than once"
    if data["shard"] is None:
        digest = hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()
        if digest != data["indices_sha256"]:
            yield "indices_sha256 is not the digest of the samples listed"
        if len(samples) != data["chosen"]:
            yield f"{data['chosen']} samples were chosen, {len(samples)} are listed"
    if any(not index < data["size"] for index in indices):
        yield f"sample {max(indices)} lies outside the {data['size']} of the dataset"
    spent = math.fsum(sample["failure_probability"] for sample in samples)
    stated = certificate["assurance"]["failure_probability"]
    if spent > stated * (1 + 1e-6):
        yield f"the failure probabilities sum to {spent:.3g}, above the {stated:.3g} stated"
    if stated > certificate["options"]["failure_probability"] * (1 + 1e-6):
        yield "the failure probability stated is above the one that was asked for"
    if certificate["assurance"]["kind"] == "deterministic" and (spent or stated):
        yield "the assurance is deterministic, yet norms may fail"
    for name, (claimed, actual) in _figures(claims).items():
        if not _same(claimed, actual):
            yield f"{name} of the summary is {claimed}, the samples give {actual}"


def _figures(claims: Claims) -> dict[str, tuple[Any, Any]]:
    """By name, what the summary says and what the samples give."""
    summary, samples = claims.certificate["summary"], claims.samples
    n, right = len(samples), [s for s in samples if s["prediction"] == s["label"]]
    radii = [s["radius"] or 0.0 for s in right]
    counts = {text: sum(text in s["certified"] for s in samples) for text in claims.eps}
    actual = {
        "n": n,
        "clean_correct": len(right),
        "clean_accuracy": len(right) / n if n else None,
        "certified_count": counts,
        "certified_accuracy": {text: count / n if n else None for text, count in counts.items()},
        "radius": {
            "mean": statistics.fmean(radii) if radii else None,
            "median": statistics.median(radii) if radii else None,
        },
        "verdicts": dict(Counter(s["verdict"] for s in samples)),
    }
    return {name: (summary.get(name), value) for name, value in actual.items()}


def _of_sample(claims: Claims, sample: Record) -> Iterator[str]:
    verdict, radius = sample["verdict"], radius_of(sample)
    right = sample["prediction"] == sample["label"]
    # Whether a radius of 0 was certified cannot be told from the radius.
    told = {text: eps for text, eps in claims.eps.items() if eps > 0}
    reached = {text for text, eps in told.items() if right and radius >= eps}
    positive = bool(radius) or bool(sample["certified"])
    if verdict not in _VERDICTS:
        yield f"{verdict!r} is no verdict of a certificate"
    if reached != set(sample["certified"]) - (claims.eps.keys() - told.keys()):
        yield f"certified at {sample['certified']}, with a radius of {radius}"
    if (verdict == "certified") != (claims.largest in sample["certified"]):
        yield f"is {verdict}, but certified at {sample['certified']} of eps {claims.largest}"
    if (verdict == "misclassified") == right and verdict != "error":
        yield f"is {verdict}, with prediction {sample['prediction']} and label {sample['label']}"
    if positive and not right:
        yield f"has a certified radius of {radius} though it is misclassified"
    margin = sample["margin"]
    if positive and not (margin is not None and math.isfinite(margin) and margin > 0):
        yield f"is certified with a margin of {margin}"
    attacked = sample.get("attack_radius")
    if attacked is not None and positive and not radius < attacked:
        yield f"has a certified radius of {radius}, and an attack at {attacked}"
    if verdict == "falsified" and (attacked is None or attacked > claims.eps[claims.largest]):
        yield f"is falsified at eps {claims.largest}, with an attack at {attacked}"


def _options_digest(options: Record) -> str:
    canonical = dict(options) | {"eps": sorted(str(_fraction(text)) for text in options["eps"])}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def _fraction(text: str) -> Fraction:
    above, _, below = text.partition("/")
    return Fraction(above) / Fraction(below or 1)


def _same(claimed: Any, actual: Any) -> bool:
    if isinstance(actual, dict) and isinstance(claimed, dict):
        return set(actual) == set(claimed) and all(_same(claimed[k], actual[k]) for k in actual)
    if isinstance(actual, float) and isinstance(claimed, int | float):
        return math.isclose(claimed, actual, rel_tol=_SLACK, abs_tol=1e-300)
    return bool(claimed == actual)


def _check_fields(claims: Claims) -> None:
    """Touches whatever is read later, so that a damaged file is refused here."""
    certificate = claims.certificate
    for name in ("assurance", "model", "data", "summary", "threat_model"):
        dict(certificate[name])
    for name in ("files", "input_shape", "preprocessing", "stripped"):
        certificate["model"][name]
    for name in ("mean", "std", "layout", "value_range"):
        certificate["model"]["preprocessing"][name]
    certificate["assurance"]["kind"], claims.deployed, claims.largest
    for sample in claims.samples:
        names = ("prediction", "label", "verdict", "margin", "lipschitz", "method")
        [sample[name] for name in names]
        int(sample["index"]), float(sample["radius"] or 0), float(sample["failure_probability"])
        list(sample.get("certified", ()))
    if certificate["assurance"]["kind"] != "estimate":
        list(contradictions(claims))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _json(text: bytes, where: str) -> Record:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CannotCertify(f"{where}: is no JSON, so it is damaged: {error}") from error
    if not isinstance(found, dict):
        raise CannotCertify(f"{where}: is no record, so it is damaged")
    return found
