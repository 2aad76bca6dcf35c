"""Very many samples merged, gated, reported and compared: time and memory a record, and the bar
for ten million."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lipcert.cli.main import main
from lipcert.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits.onnx"
# Ten million take minutes, and ten gigabytes of disk: LIPCERT_MERGE_RECORDS=10000000.
RECORDS = int(os.environ.get("LIPCERT_MERGE_RECORDS", "500000"))
# Reading them afterwards takes no two processes: of more than so many only the merge is measured.
READ = 1_000_000
SHARDS = 4
LINE = (
    '{{"index": {index}, "label": 3, "prediction": 3, "verdict": "certified", "margin": {margin!r},'
    ' "radius": {radius!r}, "lipschitz": 21.542524543775382, "method": "dual", "seconds": 0.75,'
    ' "certified": ["0.3", "0.7"], "failure_probability": {spent!r}, "attack_radius": 4.5,'
    ' "deployed_error": 0.0161406792591981, "rungs": {{"prediction": 0.125, "local": 0.25,'
    ' "attack": 0.125, "dual": 0.25}}, "decided_by": "local", "eliminated": [0, 16, 5]}}\n'
)
CHILD = """
import json, os, re, resource, sys, threading
from pathlib import Path
from lipcert.merging import merge

peaks = {}

def look(ended):
    # Of this process and its children; what a process had before it became another is not counted.
    while True:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                found = dict(re.findall(r"(\\w+):\\s+(\\d+)", status.read_text()))
            except OSError:
                continue
            if str(os.getpid()) in (found.get("Pid"), found.get("PPid")) and "VmHWM" in found:
                peaks[found["Pid"]] = int(found["VmHWM"])
        if ended.wait(0.5):
            return

ended = threading.Event()
threading.Thread(target=look, args=(ended,), daemon=True).start()
*folders, output = map(Path, sys.argv[1:])
merge(folders, output)
ended.set()
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = sum(one.ru_utime + one.ru_stime for one in used)
print(json.dumps({"cpu": cpu, "MiB": sum(peaks.values()) / 2**10}))
"""

# What a process took at most, of which what it was before it became another is no part.
READER = """
import json, re, resource, sys
from pathlib import Path
from lipcert.cli.main import main

assert main(sys.argv[1:]) == 0
used = resource.getrusage(resource.RUSAGE_SELF)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({"cpu": used.ru_utime + used.ru_stime, "MiB": peak / 2**10}))
"""


def synthetic(folder: Path, records: int) -> list[Path]:
    """Shards of a run that never was, each figure of their certificates true to their samples."""
    options = ("--data", "digits", "--eps", "0.3,0.7", "--effort", "fast", "--limit", "2")
    shard = ("--shard", "1/2", "--output", str(folder / "template"))
    assert main(["certify", str(DIGITS), *options, *shard, "--quiet", "--workers", "1"]) == 0
    template = json.loads((folder / "template" / "certificate.1-of-2.json").read_text())
    chosen = hashlib.sha256(np.arange(records, dtype="<i8").tobytes()).hexdigest()
    made = []
    for number in range(1, SHARDS + 1):
        out = folder / f"shard-{number}"
        out.mkdir()
        digest = hashlib.sha256()
        tally = Tally(("0.3", "0.7"), estimate=False)
        record: dict = {}
        with (out / f"samples.{number}-of-{SHARDS}.jsonl").open("wb") as file:
            for index in range(number - 1, records, SHARDS):
                varied = 1 + (index * 7919 % 1000003) / 1000003
                line = LINE.format(
                    index=index, margin=15 * varied, radius=varied, spent=1e-10 / records
                ).encode()
                digest.update(line)
                file.write(line)
                record = record or json.loads(line)
                own = {"index": index, "margin": 15 * varied, "radius": varied}
                tally.add(record | own)
        layers = template["layers"]
        shares = tally.eliminated([layer["neurons"] for layer in layers])
        certificate = template | {
            "samples_sha256": digest.hexdigest(), "summary": tally.summary(),
            "cascade": tally.cascade(), "layers": [
                layer | {"eliminated": share} for layer, share in zip(layers, shares, strict=True)
            ],
            "data": template["data"] | {
                "size": records, "chosen": records, "indices_sha256": chosen,
                "shard": f"{number}/{SHARDS}",
            },
            "assurance": {"kind": "randomised", "failure_probability": 1e-10 + tally.spent},
        }  # fmt: skip
        (out / f"certificate.{number}-of-{SHARDS}.json").write_text(json.dumps(certificate))
        made.append(out)
    return made


@pytest.mark.benchmark
def test_ten_million_samples_merge_in_five_minutes_and_two_gibibytes(tmp_path, monkeypatch):
    monkeypatch.delenv("LIPCERT_MERGE_RECORDS", raising=False)
    folders = synthetic(tmp_path, RECORDS)
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, folders), str(tmp_path / "merged")],
        check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    wall, used = time.perf_counter() - began, json.loads(ran.stdout)
    cpu = used["cpu"]
    certificate = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    assert certificate["summary"]["n"] == RECORDS
    each = 1e6 / RECORDS
    print(
        f"\n{RECORDS} records in {SHARDS} shards: {wall:.1f} s, {wall * each:.1f} µs a record; "
        f"{cpu:.1f} s of processor time, {cpu * each:.1f} µs a record; all processes "
        f"{used['MiB']:.0f} MiB"
    )
    # Of processor time, which two cores share; wall clock tells of who else is at work.
    assert cpu / RECORDS * 10_000_000 < 2 * 300
    assert used["MiB"] < 2048
    for folder in folders:
        shutil.rmtree(folder)
    if RECORDS > READ:
        return
    for command in (
        ("gate", tmp_path / "merged", "--min-certified", "50%"),
        ("report", tmp_path / "merged", "--format", "markdown", "--to", tmp_path / "made.md"),
        ("compare", tmp_path / "merged", tmp_path / "merged"),
    ):
        ran = subprocess.run(
            [sys.executable, "-c", READER, *map(str, command)], check=True, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        )  # fmt: skip
        used = json.loads(ran.stdout.splitlines()[-1])
        print(f"{command[0]}: {used['cpu'] * each:.1f} µs a record, {used['MiB']:.0f} MiB")
        assert used["MiB"] < 2048
