"""Golden runs: what certificates say, kept before a change and compared after it.

    python tests/benchmarks/golden.py write FOLDER [--only TEXT]
    python tests/benchmarks/golden.py compare BEFORE AFTER [--only TEXT]

``write`` certifies a fixed set of images with fixed options through the command line, in this
process and on one thread, and keeps everything that must not change, one JSON file a case:
``samples.jsonl`` and ``certificate.json`` without seconds, versions, paths and the machine. It also
fine-tunes a network for two steps with every training bound and keeps the metrics and what became
of the weights. ``compare`` names every difference between two such folders, with the relative
change of every number, and ends with exit code 1 where there is one. A change that only rearranges
code leaves nothing to name; one that is meant to move numbers shows here by how much.

The networks are ``examples/digits.onnx`` and those of ``LIPCERT_SHARED_DIR``; a network that is not
there is left out, and ``write`` says so.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from shared import FOLDER, MODELS, index

from lipcert.cli.main import main as lipcert

DIGITS = Path(__file__).parents[2] / "examples" / "digits.onnx"
MAXMIN = FOLDER / "families" / "gs_pairs.onnx"

# What differs from run to run or from machine to machine, wherever it stands in a record.
IGNORED = {
    "seconds", "images_per_second", "samples_sha256", "finished", "environment", "lipcert",
    "options_digest", "source",
}  # fmt: skip
# Nothing, for what one of the two folders does not have.
ABSENT = "absent"


@dataclass(frozen=True)
class Case:
    """One run of the command line; ``name`` is that of its file."""

    name: str
    arguments: tuple[str, ...]


# network, radii, images of most runs, images of the runs at the effort ``max``
NETWORKS = [
    ("digits", "0.3,0.85", 8, 8),
    ("cifar10_kw_small_l2_36", "36/255,72/255", 4, 3),
    ("mnist_kw_linf01", "0.1,0.2", 3, 3),
    ("mnist_fc_256x2", "0.05,0.1", 3, 3),
    ("mnist_sigmoid_6x200_eran", "0.02,0.1", 2, 1),
    ("mnist_convnet_maxpool", "0.02,0.1", 3, 1),
    ("cifar10_resnet_2b", "2/255,8/255", 3, 3),
    ("mnist_784_64_10_gloro", "0.3,1.0", 4, 4),
    ("gs_pairs", "0.5,1.0", 3, 2),
]
WAYS = {
    "global": ("--method", "global"),
    "local": ("--method", "local"),
    "fast": ("--effort", "fast"),
    "standard": ("--effort", "standard"),
    "max": ("--effort", "max"),
}
# Options that change what is certified, once each, on the smallest network.
OTHERS = {
    "local-deterministic": ("--method", "local", "--norms", "deterministic"),
    "standard-deterministic": ("--norms", "deterministic"),
    "local-estimate": ("--method", "local", "--norms", "estimate"),
    "standard-real": ("--deployed", "real"),
    "standard-float16": ("--deployed", "float16"),
    "standard-pixel-domain": ("--pixel-domain",),
    "max-pixel-domain": ("--pixel-domain", "--effort", "max"),
}
BOUNDS = ("local", "anchored", "dual")


def network(name: str) -> tuple[str, ...] | None:
    """The arguments that name a network and its images; None where the network is not here."""
    if name == "digits":
        return (str(DIGITS), "--data", "digits")
    if name == MAXMIN.stem:
        path, images, more = MAXMIN, "mnist", ()
    elif name in index():
        entry = index()[name]
        path = MODELS / entry["onnx"]
        images = "mnist" if entry["dataset"].startswith("mnist") else "cifar10"
        given = {"--mean": entry["mean"], "--std": entry["std"]}
        more = tuple(
            text for option, values in given.items() if values
            for text in (option, ",".join(map(str, values)))
        )  # fmt: skip
    else:
        return None
    if not path.is_file():
        return None
    return (str(path), "--data", images, "--data-dir", str(FOLDER / "data"), "--offline", *more)


def cases() -> Iterator[Case]:
    for name, radii, few, fewest in NETWORKS:
        where = network(name)
        if where is None:
            print(f"{name}: not here, left out", file=sys.stderr)
            continue
        runs = {
            f"{way}-{dtype}": (*options, "--dtype", dtype)
            for way, options in WAYS.items()
            for dtype in ("float64", "float32")
        } | (OTHERS if name == "digits" else {})
        for run, options in runs.items():
            limit = str(fewest if run.startswith("max") else few)
            fixed = ("--seed", "0", "--batch-size", "5", "--workers", "1",
                     "--threads", "1", "--quiet")  # fmt: skip
            yield Case(
                f"{name}.{run}",
                ("certify", *where, "--eps", radii, "--limit", limit, *options, *fixed),
            )
    for bound in BOUNDS:
        # 144 images without the tenth that validates: two batches of 64.
        yield Case(
            f"digits.finetune-{bound}",
            ("finetune", str(DIGITS), "--data", "digits", "--eps", "0.3", "--bound", bound,
             "--preset", "published", "--epochs", "1", "--batch-size", "64",
             "--train-limit", "144", "--no-certify", "--seed", "0", "--threads", "1", "--quiet"),
        )  # fmt: skip


def kept(value: Any) -> Any:
    """A record without what is ignored; of the seconds of each rung the names of the rungs."""
    if isinstance(value, dict):
        chosen = {key: kept(item) for key, item in value.items() if key not in IGNORED}
        return chosen | ({"rungs": list(value["rungs"])} if "rungs" in value else {})
    return [kept(item) for item in value] if isinstance(value, list) else value


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(case: Case, folder: Path) -> dict[str, Any]:
    """What a case says that must not change."""
    found: dict[str, Any] = {"exit": lipcert([*case.arguments, "--output", str(folder)])}
    for name in ("samples", "metrics"):
        if (path := folder / f"{name}.jsonl").is_file():
            found[name] = kept(lines(path))
    if (path := folder / "certificate.json").is_file():
        found["certificate"] = kept(json.loads(path.read_text()))
    if (path := folder / "model.safetensors").is_file():
        found["weights"] = {
            name: {"sum": float(w.sum()), "norm": float(w.norm()), "largest": float(w.abs().max())}
            for name, w in ((n, t.double()) for n, t in load_file(path).items())
        }
    return found


def write(folder: Path, only: str) -> int:
    """Run the cases whose name holds ``only``; returns how many ended with a failure."""
    folder, failed, begun = folder.resolve(), 0, time.process_time()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    # Settings of whoever runs this are no part of the cases.
    for variable in [name for name in os.environ if name.startswith("LIPCERT_")]:
        del os.environ[variable]
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for case in cases():
            if only not in case.name:
                continue
            start = time.process_time()
            found = run(case, Path(scratch) / case.name)
            text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
            (folder / f"{case.name}.json").write_text(text + "\n")
            failed += found["exit"] != 0
            print(f"{case.name}: {time.process_time() - start:.1f} s, exit code {found['exit']}")
        os.chdir(folder)
    print(f"{time.process_time() - begun:.0f} seconds of processor time")
    return failed


def flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a record with its place, such as ``samples[2].radius``."""
    match value:
        case dict() if value:
            for key, item in value.items():
                yield from flat(item, f"{place}.{key}" if place else key)
        case list() if value:
            for number, item in enumerate(value):
                yield from flat(item, f"{place}[{number}]")
        case _:
            yield place, value


def change(before: Any, after: Any) -> float:
    """The relative change of a number; infinite for anything else that differs."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (before, after))
    if not numbers or before == 0:
        return math.inf
    return (after - before) / abs(before)


def compare(before: Path, after: Path, only: str) -> int:
    """Print every difference in the cases whose name holds ``only``; returns how many there are."""
    found = {path.name for folder in (before, after) for path in folder.glob("*.json")}
    names = sorted(name for name in found if only in name)
    total, largest = 0, 0.0
    for name in names:
        one, other = (
            dict(flat(json.loads((folder / name).read_text()))) if (folder / name).is_file() else {}
            for folder in (before, after)
        )
        for place in one | other:
            was, now = one.get(place, ABSENT), other.get(place, ABSENT)
            if was != now:
                size = change(was, now)
                told = "" if math.isinf(size) else f" ({size:+.2e})"
                print(f"{name[:-5]}: {place}: {was} → {now}{told}")
                total += 1
                largest = largest if math.isinf(size) else max(largest, abs(size))
    print(f"{len(names)} cases, {total} differences, the largest relative change {largest:.2e}")
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="run the cases and keep what they say")
    writing.add_argument("folder", type=Path)
    comparing = commands.add_parser("compare", help="name every difference between two folders")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    for command in (writing, comparing):
        command.add_argument("--only", default="", help="the cases whose name holds this text")
    asked = parser.parse_args()
    if asked.command == "write":
        return int(write(asked.folder, asked.only) > 0)
    for folder in (asked.before, asked.after):
        if not folder.is_dir():
            parser.error(f"{folder}: is no folder of golden runs")
    return int(compare(asked.before, asked.after, asked.only) > 0)


if __name__ == "__main__":
    sys.exit(main())
