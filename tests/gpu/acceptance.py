"""What a GPU has to show, in at most nine minutes, as one JSON on stdout.

    python tests/gpu/acceptance.py --device cuda > acceptance.json
    python tests/gpu/acceptance.py --device cpu --reduced

``LIPCERT_SHARED_DIR`` names the folder with the pretrained networks and data; without it the digits
of the package are all there is. Each part has a share of the time, and stops after the batch that
exceeds it; what fails is in the JSON by its message, and the exit code is then 1.

The parts: the arithmetic of the device is tried out (``probes``); five networks are certified on it
and on the CPU, with the same coins (``agreement``: margins are equal but for the rounding of
float64, no radius passes what an attack of the other one found); samples a second by batch size and
memory (``throughput``); a fine-tuning (``finetune``).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from lipcert.certification import Certifier  # noqa: E402
from lipcert.certification.ieee import check_device, ieee_arithmetic  # noqa: E402
from lipcert.certification.probes import check_sums  # noqa: E402
from lipcert.cli.main import main as lipcert  # noqa: E402
from lipcert.data import Dataset, load_dataset  # noqa: E402
from lipcert.loading import load_model, with_preprocessing  # noqa: E402
from lipcert.loading.architectures import build  # noqa: E402
from lipcert.network import Network  # noqa: E402
from lipcert.options import Epsilon, Options  # noqa: E402
from lipcert.run.devices import Devices  # noqa: E402

DIGITS = ROOT / "examples" / "digits.onnx"
SHARED = Path(os.environ.get("LIPCERT_SHARED_DIR", ROOT / "shared"))
# Of two evaluations in float64, relative to the largest logit.
ROUNDING = 1e-9
# Seconds of each part.
SHARES = {"probes": 20, "agreement": 150, "throughput": 240, "finetune": 90}
AGREEING = (
    ("mnist_kw_small_linf03", "0.1"), ("cifar10_kw_small_l2_36", "36/255"),
    ("mnist_fc_256x2", "0.1"), ("mnist_sigmoid_6x200_eran", "0.01"),
    ("mnist_convnet_maxpool", "0.05"),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    name: str
    network: Network
    data: Dataset
    eps: str


def digits() -> Case:
    data = load_dataset("digits")
    return Case("digits", load_model(DIGITS).network, data, "0.3")


def pretrained(name: str, eps: str) -> Case:
    entries = json.loads((SHARED / "models" / "index.json").read_text())
    entry = next(entry for entry in entries if entry["id"] == name)
    kind = "mnist" if entry["dataset"].startswith("mnist") else "cifar10"
    data = load_dataset(kind, data_dir=SHARED / "data", offline=True)
    network = with_preprocessing(
        load_model(SHARED / "models" / entry["onnx"]).network,
        image_shape=data.images.shape[1:],
        mean=entry["mean"],
        std=entry["std"],
        layout="CWH" if "TRANSPOSED" in entry["layout"] else None,
    )
    return Case(name, network, data, eps)


def fresh(name: str, eps: str) -> Case:
    """A network as a training from scratch begins with it."""
    data = load_dataset("cifar10", data_dir=SHARED / "data", offline=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        path.write_bytes(build(name, (3, 32, 32), 10, 0).SerializeToString())
        return Case(name, load_model(path).network, data, eps)


def certified(
    case: Case, device: str, indices: np.ndarray, batch: int, seconds: float = math.inf,
    **options: Any,
) -> tuple[list[dict[str, Any]], float, float]:  # fmt: skip
    """Records of as many of the samples as the ``seconds`` allow; the seconds that they took, and
    those for what they share."""
    began = time.perf_counter()
    asked = Options((Epsilon.parse(case.eps),), **options)
    certifier = Certifier(case.network, asked, samples=len(indices), device=device, key=7)
    _wait(device)
    shared, records = time.perf_counter() - began, []
    began = time.perf_counter()
    for start in range(0, len(indices), batch):
        some = indices[start : start + batch]
        pixels, labels = torch.from_numpy(case.data.pixels(some)), case.data.labels[some]
        found = certifier(pixels, torch.from_numpy(labels), [int(index) for index in some])
        records += [sample.to_json() for sample in found]
        _wait(device)
        if time.perf_counter() - began > seconds:
            break
    return records, time.perf_counter() - began, shared


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def probes(device: str, seconds: float, *, reduced: bool) -> Iterator[dict[str, Any]]:
    with ieee_arithmetic():
        check_device(device)
        check_sums(device)
    yield {"device": device, "holds": True}


def agreement(device: str, seconds: float, *, reduced: bool) -> Iterator[dict[str, Any]]:
    cases = [digits] if reduced else [lambda n=n, e=e: pretrained(n, e) for n, e in AGREEING]
    for make in cases:
        case = make()
        some = np.arange(4 if reduced else 10)
        here, *_ = certified(case, "cpu", some, 5, seconds / 6, effort="fast")
        there, *_ = certified(case, device, some[: len(here)], 5, seconds / 6, effort="fast")
        worst, moved = 0.0, 0
        for one, other in zip(here, there, strict=False):
            worst = max(worst, abs(one["margin"] - other["margin"]) / (1 + abs(one["margin"])))
            moved += one["verdict"] != other["verdict"]
            for a, b in ((one, other), (other, one)):
                if a["radius"] and a["radius"] >= b.get("attack_radius", math.inf):
                    raise AssertionError(f"{case.name}: sample {a['index']}: a radius is broken")
        if worst > ROUNDING:
            raise AssertionError(f"{case.name}: margins differ by {worst:.2g}")
        radii = [[r["radius"] for r in rows[: len(there)]] for rows in (here, there)]
        yield {
            "network": case.name, "samples": len(there), "margins_differ_by": worst,
            "verdicts_that_differ": moved, "mean_radius_cpu": float(np.mean(radii[0])),
            "mean_radius_device": float(np.mean(radii[1])),
        }  # fmt: skip


def throughput(device: str, seconds: float, *, reduced: bool) -> Iterator[dict[str, Any]]:
    runs: list[tuple[Callable[[], Case], str, int, int]] = [
        (lambda: pretrained("cifar10_kw_small_l2_36", "36/255"), "standard", 20, 60),
        (lambda: pretrained("cifar10_kw_small_l2_36", "36/255"), "standard", 500, 1000),
        (lambda: fresh("6c2f", "36/255"), "fast", 500, 10_000),
        (lambda: pretrained("cifar10_resnet20_bn", "0.01"), "fast", 100, 1000),
    ]
    if reduced:
        runs = [(digits, "fast", 2, 4), (digits, "fast", 4, 4)]
    for make, effort, batch, samples in runs:
        case = make()
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        found, took, shared = certified(
            case, device, np.arange(samples), batch, seconds / len(runs), effort=effort
        )
        peak = torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else None
        yield {
            "network": case.name, "effort": effort, "batch": batch, "samples": len(found),
            "seconds": took, "samples_per_second": len(found) / took, "seconds_shared": shared,
            "peak_MiB": peak,
            "certified": sum(record["verdict"] == "certified" for record in found),
        }  # fmt: skip


def finetune(device: str, seconds: float, *, reduced: bool) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        began = time.perf_counter()
        limit = ("--train-limit", "600", "--batch-size", "64") if reduced else ()
        code = lipcert([
            "finetune", str(DIGITS), "--data", "digits", "--eps", "0.1",
            "--epochs", "1" if reduced else "20", *limit, "--no-certify", "--device", device,
            "--output", folder,
        ])  # fmt: skip
        took = time.perf_counter() - began
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    if code:
        raise AssertionError(f"lipcert finetune ended with exit code {code}")
    last = json.loads(lines[-1])
    yield {"seconds": took, "epochs": len(lines) - 1, "last": last}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--reduced", action="store_true", help="The digits alone, in a minute.")
    asked = parser.parse_args()
    device, began = Devices.of(asked.device).name, time.perf_counter()
    gpu = device.startswith("cuda")
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "torch": torch.__version__, "cuda": torch.version.cuda, "reduced": asked.reduced,
    }  # fmt: skip
    for part in (probes, agreement, throughput, finetune):
        rows: list[dict[str, Any]] = []
        report[part.__name__] = rows
        try:
            for row in part(device, SHARES[part.__name__], reduced=asked.reduced):
                rows.append(row)
        except Exception as error:  # the other parts are wanted all the same
            rows.append({"error": f"{type(error).__name__}: {error}"})
    report["seconds"] = time.perf_counter() - began
    print(json.dumps(report, indent=2))
    return int(any("error" in row for part in SHARES for row in report[part]))


if __name__ == "__main__":
    sys.exit(main())
