"""From shards to the files of the whole run."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loky import ProcessPoolExecutor

from lipcert.certificate import Assurance, Certificate
from lipcert.errors import CannotCertify, UsageError
from lipcert.machine import usable_cores
from lipcert.merging import carried
from lipcert.merging.columns import Counted, count
from lipcert.merging.shards import ShardFolder, find
from lipcert.progress import Silent
from lipcert.records import Frame
from lipcert.records.certificate_rules import check_claims
from lipcert.report import json_file
from lipcert.report.json_file import ESTIMATE, certificate_text
from lipcert.rounding import exceeds
from lipcert.tally import FAILED_INSIDE, Tally

# Bytes of a file that are held at once, of all shards together.
_HELD = 1 << 27


@dataclass(frozen=True)
class Merged:
    """The certificate that was written, and where."""

    certificate: Certificate
    path: Path
    proofs: int


def merge(
    folders: Sequence[Path], output: Path, *, overwrite: bool = False, watch: Silent | None = None
) -> Merged:
    """Write the certificate of the whole run whose shards lie in ``folders`` into ``output``.

    Samples come in the order of the whole run, each exactly once; every figure is counted anew;
    the failure probabilities of the shards are added, and their sum must be what the run may spend.
    Counterexamples, thumbnails and proofs go along.
    Raises ``UsageError`` where a folder has no shard or ``output`` cannot be written or holds
    results; ``CannotCertify`` where the shards are damaged, incomplete, or not of one run.
    """
    watch = watch or Silent()
    _check_output(output, overwrite=overwrite)
    places = "1 place" if len(folders) == 1 else f"{len(folders)} places"
    watch.stage(f"reading the certificates in {places}")
    shards = find(folders)
    samples = sum(shard.size for shard in shards)
    watch.stage(f"reading {samples} samples of {len(shards)} shards")
    counted = _counted(shards)
    _check_indices(shards, counted)
    tally = counted[0].tally
    for one in counted[1:]:
        tally.join(one.tally)
    spent = _spent(shards)
    watch.stage(f"writing {samples} samples")
    path, rows = json_file.paths(output)
    # What was there is let go only now that all shards have been found good.
    for old in (path, rows, *carried.paths(output), output / "audit.json"):
        old.unlink(missing_ok=True)
    with json_file.written(rows) as file:
        digest = _interleave(shards, file)
    certificate = _certificate(shards, tally, spent, digest)
    carried.images(shards, output)
    proofs = carried.proofs(shards, output)
    record = certificate.to_json()
    check_claims(record, tally.spent, Frame.of(record), str(path))
    with json_file.written(path) as file:
        file.write(certificate_text(certificate).encode())
    return Merged(certificate, path, proofs)


def _check_output(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: is a file; name a folder")
    kept = [output / name for name in ("certificate.json", "samples.jsonl", "journal.jsonl")]
    there = [path.name for path in kept if path.exists()]
    if "journal.jsonl" in there:
        raise UsageError(f"--output {output}: holds the journal of another run; name a new folder")
    if there and not overwrite:
        raise UsageError(
            f"--output {output}: holds {there[0]}; name a new folder, or replace it with "
            "--overwrite"
        )


# Samples that are read before other processes have started.
_FEW = 20_000


def _counted(shards: Sequence[ShardFolder]) -> list[Counted]:
    processes = min(len(shards), usable_cores())
    if processes == 1 or sum(shard.size for shard in shards) < _FEW:
        return [count(shard) for shard in shards]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(count, shards))


def _check_indices(shards: Sequence[ShardFolder], counted: Sequence[Counted]) -> None:
    """Raises ``CannotCertify`` unless the samples, in the order of the whole run, are those that
    were chosen for it, each once."""
    data = shards[0].certificate["data"]
    whole: np.ndarray[Any, np.dtype[np.int64]] = np.empty(data["chosen"], np.int64)
    for shard, one in zip(shards, counted, strict=True):
        whole[shard.number - 1 :: shard.count] = np.frombuffer(one.indices or array("q"), np.int64)
    if hashlib.sha256(whole.astype("<i8").tobytes()).hexdigest() != data["indices_sha256"]:
        raise CannotCertify(
            f"{shards[0].path.parent}: the samples of the shards together are not those that were "
            "chosen: their digest is not indices_sha256; certify the shards again"
        )
    whole.sort()
    if (twice := np.flatnonzero(whole[1:] == whole[:-1])).size:
        raise CannotCertify(f"sample {whole[twice[0]]} was chosen twice, and counts once")


def _spent(shards: Sequence[ShardFolder]) -> float:
    """The sum of the shards' failure probabilities: whatever their coins have to do with each
    other, it bounds that of all of them together."""
    stated = math.fsum(shard.certificate["assurance"]["failure_probability"] for shard in shards)
    allowed: float = shards[0].certificate["options"]["failure_probability"]
    if exceeds(stated, allowed):
        raise CannotCertify(
            f"the shards fail with probability {stated:.3g} together, above the {allowed:.3g} that "
            "was asked for: an earlier version of lipcert made them; certify them again"
        )
    return min(stated, allowed)


class _Lines:
    """The lines of a file, read in blocks and by no file that stays open: there may be thousands of
    shards. ``digest``: of what was read."""

    def __init__(self, path: Path, held: int) -> None:
        self._path, self._held, self._place = path, held, 0
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        while block := self._block():
            *lines, rest = (rest + block).split(b"\n")
            yield from lines

    def _block(self) -> bytes:
        with self._path.open("rb") as file:
            file.seek(self._place)
            block = file.read(self._held)
        self._place += len(block)
        self.digest.update(block)
        return block


def _interleave(shards: Sequence[ShardFolder], file: Any) -> str:
    """Write the samples in the order of the whole run; returns the digest of what was written."""
    held = max(1 << 12, min(1 << 20, _HELD // len(shards)))
    lines = [_Lines(shard.beside("samples", "jsonl"), held) for shard in shards]
    rows = [iter(one) for one in lines]
    digest, chosen = hashlib.sha256(), shards[0].certificate["data"]["chosen"]
    waiting: list[bytes] = []
    for place in range(chosen):
        waiting.append(next(rows[place % len(rows)], b""))
        if len(waiting) == 4096 or place == chosen - 1:
            content = b"\n".join([*waiting, b""])
            digest.update(content)
            file.write(content)
            waiting = []
    for shard, one, rest in zip(shards, lines, rows, strict=True):
        next(rest, None)
        if one.digest.hexdigest() != shard.certificate["samples_sha256"]:
            raise CannotCertify(f"{shard.beside('samples', 'jsonl')}: changed while it was read")
    return digest.hexdigest()


def _certificate(
    shards: Sequence[ShardFolder], tally: Tally, spent: float, digest: str
) -> Certificate:
    certificates = [shard.certificate for shard in shards]
    first = certificates[0]
    kinds = {certificate["assurance"]["kind"] for certificate in certificates}
    kind = "estimate" if "estimate" in kinds else "randomised" if spent else "deterministic"
    checked = max(certificates, key=lambda c: float(c["model"]["cross_check"][_DIFFERENCE]))
    return Certificate(
        lipcert=first["lipcert"],
        model=first["model"] | {"cross_check": checked["model"]["cross_check"]},
        data=first["data"] | {"shard": None},
        options=first["options"],
        options_digest=first["options_digest"],
        assurance=Assurance(kind, spent),  # type: ignore[arg-type]
        samples_sha256=digest,
        summary=tally.summary(),
        environment=first["environment"],
        seconds=math.fsum(certificate["seconds"] for certificate in certificates),
        finished=max((c["finished"] for c in certificates if c.get("finished")), default=None),
        notes=tuple(_notes(certificates, tally)),
        threat_model=first["threat_model"],
        cascade=tally.cascade(),
        layers=_layers(certificates, tally),
        coins=_coins(certificates),
        shards=tuple(_provenance(shard) for shard in shards),
    )


_DIFFERENCE = "max_relative_difference"


def _notes(certificates: Sequence[dict[str, Any]], tally: Tally) -> Iterator[str]:
    """Those of all shards; samples that failed are counted anew."""
    if tally.estimate:
        yield ESTIMATE
    yield from tally.failures()
    if any(c["environment"] != certificates[0]["environment"] for c in certificates):
        yield "its shards ran in different environments, of which the first is shown"
    said = dict.fromkeys(note for certificate in certificates for note in certificate["notes"])
    yield from (note for note in said if note != ESTIMATE and FAILED_INSIDE not in note)


def _layers(certificates: Sequence[dict[str, Any]], tally: Tally) -> list[dict[str, Any]]:
    """Of each layer the largest norm of any shard, whose own coins proved it."""
    tables = [certificate.get("layers", []) for certificate in certificates]
    shape = [(row["source"], row["sink"], row["neurons"]) for row in tables[0]]
    if any([(r["source"], r["sink"], r["neurons"]) for r in rows] != shape for rows in tables):
        raise CannotCertify("the shards list different layers, though their model is the same")
    shares = tally.eliminated([neurons for *_, neurons in shape])
    found = []
    for rows, share in zip(zip(*tables, strict=True), shares, strict=True):
        # None is a norm beyond every double.
        largest = max(rows, key=lambda r: math.inf if r["value"] is None else float(r["value"]))
        tossed = any(row["assurance"] == "randomised" for row in rows)
        kind = "randomised" if tossed else largest["assurance"]
        found.append({**largest, "assurance": kind, "eliminated": share})
    return found


def _coins(certificates: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Those that all shards have in common; without a seed where each drew its own."""
    drawn = [c["coins"] for c in certificates if c.get("coins")]
    if not drawn:
        return None
    one: dict[str, Any] = drawn[0]
    if all(coins["seed"] == one["seed"] for coins in drawn):
        return one
    return {name: value for name, value in one.items() if name != "seed"}


def _provenance(shard: ShardFolder) -> dict[str, Any]:
    certificate = shard.certificate
    return {
        "shard": certificate["data"]["shard"],
        "certificate_sha256": shard.sha256,
        "samples_sha256": certificate["samples_sha256"],
        "failure_probability": certificate["assurance"]["failure_probability"],
        "coins": certificate.get("coins"),
        "environment": certificate["environment"],
        "seconds": certificate["seconds"],
        "finished": certificate.get("finished"),
    }
