"""Attacked certificates of deep random networks, by sketched tubes: residual, batch norm,
concatenations, pooling, adversarial weights.

LIPCERT_DEEP_CERTIFICATES=20000 pytest -m benchmark tests/benchmarks/test_benchmark_deep.py -s

Every seed is one network, and gives the same in every run; ``LIPCERT_DEEP_FIRST`` is the first.
Its samples are followed side by side; one network in eight is larger, with tubes of as many
tangents as ``--effort fast`` has.
"""

import os
import time

import pytest
from deep import attacked

pytestmark = pytest.mark.benchmark

WANTED = int(os.environ.get("LIPCERT_DEEP_CERTIFICATES", "20000"))
FIRST = int(os.environ.get("LIPCERT_DEEP_FIRST", "0"))
# Of certificates that are asked for, so many networks at most give none.
_IN_VAIN = 2
# Seconds between two lines of what was found so far.
_NOW_AND_THEN = 60.0


def test_no_attack_breaks_a_deep_certificate() -> None:
    begun, told = time.process_time(), time.monotonic()
    certificates = samples = seed = 0
    nearest, broken = float("inf"), []
    while certificates < WANTED and seed < _IN_VAIN * WANTED:
        large = (FIRST + seed) % 8 == 7
        found = attacked(FIRST + seed, samples=16 if large else 64, lean=not large)
        seed, samples = seed + 1, samples + found.samples
        certificates += found.certificates
        if found.broken:
            broken.append(FIRST + seed - 1)
        if found.outcome is not None:
            nearest = min(nearest, float(found.outcome.ratio.min()))
        if time.monotonic() - told > _NOW_AND_THEN or certificates >= WANTED:
            told, spent = time.monotonic(), time.process_time() - begun
            print(
                f"\n{seed} networks, {samples} samples, {certificates} certificates attacked, "
                f"nearest flip at {nearest:.3g} radii, broken: {broken}; {spent:.0f} CPU seconds",
                flush=True,
            )
    assert not broken
    assert certificates >= WANTED
