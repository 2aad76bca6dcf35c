"""A forger's tools: what is in an output folder, changed, and everything else made to fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from lipcert.certificate import Sample, cascade, summarise
from lipcert.options import Epsilon, Options

Record = dict[str, Any]


def opened(folder: Path) -> tuple[Record, list[Record]]:
    """The certificate in a folder, and its samples."""
    certificate = json.loads((folder / "certificate.json").read_text())
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return certificate, [json.loads(line) for line in lines]


def text_of(samples: Any) -> str:
    return "".join(json.dumps(sample) + "\n" for sample in samples)


def digest_of(samples: Any) -> str:
    return hashlib.sha256(text_of(samples).encode()).hexdigest()


def save(folder: Path, certificate: Record, samples: Any) -> Path:
    """Write both files, the digest of the samples in the certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate = certificate | {"samples_sha256": digest_of(samples)}
    (folder / "samples.jsonl").write_text(text_of(samples))
    (folder / "certificate.json").write_text(json.dumps(certificate))
    return folder


def refit(certificate: Record, samples: Any) -> Record:
    """All that follows from the samples and the options, in place."""
    estimate = certificate["assurance"]["kind"] == "estimate"
    found = [Sample.from_json(sample) for sample in samples]
    certificate["options_digest"] = options_digest(certificate["options"])
    certificate["summary"] = summarise(found, certificate["options"]["eps"], estimate=estimate)
    certificate["cascade"] = cascade(found)
    for number, layer in enumerate(certificate.get("layers", ())):
        known = [s.eliminated[number] for s in found if number < len(s.eliminated)]
        share = sum(known) / (len(known) * layer["neurons"]) if known else None
        layer["eliminated"] = share
    indices = np.asarray([sample.index for sample in found], dtype="<i8")
    digest = hashlib.sha256(indices.tobytes()).hexdigest()
    certificate["samples_sha256"] = digest_of(samples)
    certificate["data"] |= {"chosen": len(found), "indices_sha256": digest}
    return certificate


def options_digest(options: Record) -> str:
    return Options(**options | {"eps": tuple(map(Epsilon.parse, options["eps"]))}).digest


def claimed(sample: Record, certificate: Record, radius: float) -> Record:
    """The sample with another radius, and the eps, verdict and rungs that go with it, in place."""
    eps = [Epsilon.parse(text) for text in certificate["options"]["eps"]]
    sample.pop("attack_radius", None)
    listed = [one.text for one in eps if radius >= one.rounded_up]
    held = max(eps, key=lambda one: one.value).text in listed
    sample |= {"radius": radius, "certified": listed}
    sample |= {"verdict": "certified" if held else "unknown", "decided_by": sample["method"]}
    if not held:
        del sample["decided_by"]
    return sample
