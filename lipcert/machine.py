"""What this machine has for a process: cores."""

from __future__ import annotations

import os
from pathlib import Path

# Microseconds of processor time in so many of wall clock.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Those that this process may run on, and that its container has the time of."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = _QUOTA.read_text().split()
        granted = int(quota) // int(period)
    except (OSError, ValueError):  # no container, or "max": no limit
        granted = usable or 1
    return max(1, min(usable or 1, granted))
