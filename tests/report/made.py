"""Results that look like a run's: every kind of sample, an attack, a cascade, images."""

import copy
import zlib
from pathlib import Path

import numpy as np
from forging import refit
from forging import save as save_files

from lipcert.certificate import threat_model
from lipcert.options import Epsilon, Options
from lipcert.report.results import Results

DIGEST = "0123456789abcdef" * 4
EPS = ("0.1", "36/255", "0.3")
VALUES = (0.1, 36 / 255, 0.3)

Record = dict


def sample(index: int, random: np.random.Generator, *, attacked: bool) -> Record:
    margin = float(random.gamma(2.0, 1.5))
    label = int(random.integers(10))
    right = bool(random.random() < 0.95)
    radius = margin * float(random.uniform(0.05, 0.09)) if right else 0.0
    certified = [text for text, eps in zip(EPS, VALUES, strict=True) if right and radius >= eps]
    broken = radius * float(random.uniform(1.05, 2.5)) if right else None
    falsified = attacked and broken is not None and broken <= VALUES[-1]
    verdict = "certified" if "0.3" in certified else "falsified" if falsified else "unknown"
    record = {
        "index": index,
        "label": label,
        "prediction": label if right else (label + 1) % 10,
        "verdict": verdict if right else "misclassified",
        "margin": margin,
        "radius": radius,
        "lipschitz": 20.0 if right else None,
        "method": "local",
        "seconds": 0.125,
        "certified": certified,
        "failure_probability": 0.0,
    }
    if not attacked:
        return record
    record["rungs"] = {"prediction": 0.0625, "local": 0.0625}
    if not right:
        return record | {"decided_by": "prediction"}
    record["rungs"] = {"prediction": 0.0, "local": 0.0625, "attack": 0.0625}
    by = {"certified": "local", "falsified": "attack"}
    if verdict in by:
        record["decided_by"] = by[verdict]
    return record | {"attack_radius": broken}


def samples(n: int = 300, *, attacked: bool = True, seed: int = 0) -> tuple[Record, ...]:
    random = np.random.default_rng(seed)
    return tuple(sample(index, random, attacked=attacked) for index in range(n))


def as_estimate(record: Record) -> Record:
    names = {"radius": "radius_estimate", "lipschitz": "lipschitz_estimate"}
    names["certified"] = "estimated"
    made = {names.get(name, name): value for name, value in record.items() if value is not None}
    verdict = "estimated" if record["verdict"] == "certified" else record["verdict"]
    return made | {
        "verdict": verdict, "radius": None, "lipschitz": None, "assurance": "ESTIMATE",
    }  # fmt: skip


def certificate(rows: tuple[Record, ...], *, estimate: bool = False, **changes) -> Record:
    kind = "estimate" if estimate else "randomised"
    made = {
        "lipcert": "0.1.0",
        "model": {
            "name": "digits.onnx",
            "format": "onnx",
            "opset": 17,
            "files": {"digits.onnx": DIGEST},
            "input_shape": [1, 1, 8, 8],
            "classes": 10,
            "parameters": 650,
            "stripped": "Softmax",
            "preprocessing": {
                "mean": [0.5], "std": None, "layout": None, "value_range": [0.0, 1.0],
            },
            "cross_check": {
                "samples": 32,
                "max_relative_difference": 1.24e-7,
                "onnx2torch": None,
                "onnx2torch_note": "not available",
            },
        },
        "data": {
            "name": "digits",
            "split": "test",
            "source": "digits, embedded",
            "sha256": DIGEST[::-1],
            "size": len(rows),
            "classes": 10,
            "chosen": len(rows),
            "indices_sha256": DIGEST,
            "shard": None,
        },
        "options": Options(
            tuple(map(Epsilon.parse, EPS)), method="local", norms=kind, failure_probability=1.1e-9
        ).to_json(),
        "options_digest": DIGEST,
        "assurance": {"kind": kind, "failure_probability": 0.0 if estimate else 1.04e-9},
        "samples_sha256": DIGEST,
        "environment": {
            "python": "3.11.7", "lipcert": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6",
            "onnx": "1.23.2", "onnxruntime": "1.31.1", "platform": "Linux x86_64",
            "device": "cpu", "threads": 2,
        },
        "seconds": 42.5,
        "notes": ["ESTIMATE: power iteration bounds nothing"] if estimate else [],
        "threat_model": threat_model(pixel_domain=False),
        "schema": "https://lipcert.dev/schema/certificate/1",
    }  # fmt: skip
    return refit(made, rows) | changes


LAYERS = [
    {
        "source": "input", "sink": "relu1", "operator": "Conv", "value": 2.31,
        "assurance": "randomised", "neurons": 1000, "eliminated": None,
    },
    {
        "source": "relu1", "sink": "logits", "operator": "Gemm", "value": None,
        "assurance": "deterministic", "neurons": 10, "eliminated": None,
    },
]  # fmt: skip


def picture(index: int) -> np.ndarray:
    """A ring with a gap that depends on the index, so that mistakes can be seen."""
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    ring = np.exp(-60 * (np.hypot(x, y) - 0.6) ** 2)
    angle = (np.arctan2(y, x) + index) % (2 * np.pi)
    return np.rint(255 * ring * (angle > 1)).astype(np.uint8)[None]


def full(n: int = 300, *, colour: bool = False) -> Results:
    """With everything that a certificate may have."""
    rows = samples(n)
    images = {row["index"]: picture(row["index"]) for row in rows[: min(n, 60)]}
    falsified = [row["index"] for row in rows if row["verdict"] == "falsified"][:12]
    images |= {index: picture(index) for index in falsified}
    broken = {index: 255 - (255 - picture(index)) // 2 for index in falsified}
    if colour:
        images = {i: np.repeat(image, 3, axis=0) for i, image in images.items()}
    rows[0]["eliminated"] = [417]
    made = refit(certificate(rows) | {"layers": copy.deepcopy(LAYERS)}, rows)
    return Results(made, rows, {"certificate.json": DIGEST}, images, broken)


def plain(n: int = 300) -> Results:
    """With nothing that a certificate may lack."""
    rows = samples(n, attacked=False)
    return Results(certificate(rows), rows)


def estimated(n: int = 300) -> Results:
    rows = tuple(map(as_estimate, samples(n, attacked=False)))
    return Results(certificate(rows, estimate=True), rows)


def save(folder: Path, results: Results) -> Path:
    """As an output folder."""
    save_files(folder, results.certificate, results.samples)
    for name, images in (
        ("thumbnails.npz", results.images), ("counterexamples.npz", results.counterexamples),
    ):  # fmt: skip
        if images:
            np.savez(folder / name, index=list(images), image=np.stack(list(images.values())))
    return folder


def inflated(png: bytes) -> bytes:
    """The rows of a PNG with one IDAT chunk."""
    start = png.index(b"IDAT")
    length = int.from_bytes(png[start - 4 : start], "big")
    return zlib.decompress(png[start + 4 : start + 4 + length])
