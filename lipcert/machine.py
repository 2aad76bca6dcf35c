"""What this machine has for a process: cores, and of what kind."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path

# Microseconds of processor time in so many of wall clock.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_PROCESSOR = Path("/proc/cpuinfo")


def usable_cores() -> int:
    """Those that this process may run on, and that its container has the time of."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = _QUOTA.read_text().split()
        granted = int(quota) // int(period)
    except (OSError, ValueError):  # no container, or "max": no limit
        granted = usable or 1
    return max(1, min(usable or 1, granted))


def processor() -> dict[str, str]:
    """Its model, and a digest of the features that programs choose their instructions by."""
    told: dict[str, str] = {}
    try:
        lines = _PROCESSOR.read_text().splitlines()
    except OSError:  # not on Linux: the platform says what there is
        lines = []
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            told.setdefault(name.strip().lower(), value.strip())
    parts = [told.get(name, "") for name in ("vendor_id", "cpu family", "model", "stepping")]
    features = " ".join(sorted((told.get("flags") or told.get("features") or "").split()))
    kind = told.get("model name") or platform.processor() or platform.machine()
    seen = json.dumps([platform.machine(), *parts, features])
    return {"processor": kind, "features": hashlib.sha256(seen.encode()).hexdigest()[:16]}
