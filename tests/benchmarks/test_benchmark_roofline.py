"""What certifying a sample takes by rung, beside a forward pass: processor time, floating-point
operations, bytes, launches; and what they would take of a GPU, by its data sheet.

    LIPCERT_TEST_IMAGES=1000 pytest -m benchmark tests/benchmarks/test_benchmark_roofline.py -s

A forward-equivalent is what one forward pass of the network takes a sample, in float32 and batches
of 20, measured in the same process before and after. Operations are those that torch is asked for;
coins are drawn by numpy, and only their time counts.
"""

import os
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace

import pytest
import torch
from benchmarks.shared import needs_models
from benchmarks.test_benchmark_launches import fresh_6c2f, pretrained
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lipcert.certification import Certifier
from lipcert.options import Epsilon, Options
from lipcert.run.batches import usual

IMAGES = int(os.environ.get("LIPCERT_TEST_IMAGES", "100"))
BATCH, COUNTED = 20, 50
# NVIDIA's data sheet of the H200 (SXM): operations a second in float32 and float64 without tensor
# cores, bytes a second of its memory. What the host takes to start a kernel is assumed.
FLOPS, BYTES, LAUNCH = {torch.float32: 67e12, torch.float64: 34e12}, 4.8e12, 5e-6
AT_ONCE = 256


@dataclass
class Spent:
    """Of one rung: processor seconds, kernels, operations by their type, and bytes that are read
    and written."""

    seconds: float = 0.0
    kernels: int = 0
    flops: dict = field(default_factory=lambda: defaultdict(float))
    bytes: float = 0.0

    @property
    def intensity(self) -> float:
        return sum(self.flops.values()) / self.bytes if self.bytes else 0.0

    def on_gpu(self, samples: int) -> float:
        """Seconds a sample, with as many launches for a batch of 256 as for these ``samples``."""
        busy = sum(flops / FLOPS[dtype] for dtype, flops in self.flops.items())
        return max(busy, self.bytes / BYTES) / samples + self.kernels * LAUNCH / AT_ONCE


class Counting(TorchDispatchMode):
    """Adds what every operation takes to the rung that is ``current``."""

    def __init__(self, spent: dict[str, Spent]) -> None:
        super().__init__()
        self.spent, self.current = spent, "the rest"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        views = any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)
        tensors = [one for one in tree_leaves(found) if isinstance(one, torch.Tensor)]
        if views or not tensors or func._schema.name == "aten::_unsafe_view":
            return found
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        own, result = self.spent[self.current], tensors[0]
        own.kernels += 1
        own.bytes += sum(one.numel() * one.element_size() for one in [*tensors, *given])
        counted = flop_registry.get(func._overloadpacket)
        flops = counted(*args, **(kwargs or {}), out_val=found) if counted else max(
            one.numel() for one in [*tensors, *given]
        )  # fmt: skip
        dtype = result.dtype if result.dtype in FLOPS else torch.float32
        own.flops[dtype] += flops
        return found


@dataclass(frozen=True)
class Watched:
    """A rung, and who counts for it."""

    rung: object
    spent: dict
    counting: Counting | None = None

    @property
    def name(self) -> str:
        return self.rung.name

    def climb(self, samples, known):
        if self.counting is not None:
            self.counting.current = self.name
        began = time.process_time()
        try:
            return self.rung.climb(samples, known)
        finally:
            self.spent[self.name].seconds += time.process_time() - began
            if self.counting is not None:
                self.counting.current = "the rest"


def forward_seconds(network, data, repeats: int = 30) -> float:
    """A sample; the least of some trials, for what else runs only adds to it."""
    pixels, least = torch.from_numpy(data.pixels(range(BATCH))).float(), float("inf")
    network.logits(pixels)
    for _ in range(5):
        began = time.process_time()
        for _ in range(repeats):
            network.logits(pixels)
        least = min(least, (time.process_time() - began) / repeats / BATCH)
    return least


@needs_models
@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "options", "most", "seconds"),
    [
        ("cifar10_kw_small_l2_36", {"method": "local", "radii": False}, 60, None),
        ("cifar10_kw_small_l2_36", {"effort": "fast", "radii": False}, 40, None),
        ("cifar10_kw_small_l2_36", {"effort": "standard", "radii": False}, 600, None),
        ("cifar10_kw_small_l2_36", {"method": "local"}, None, None),
        ("cifar10_kw_small_l2_36", {"effort": "fast"}, None, None),
        ("6c2f", {"method": "local", "radii": False}, 60, None),
        ("6c2f", {"effort": "fast"}, None, 0.3),
        ("6c2f", {"effort": "fast", "radii": False}, None, 0.3),
    ],
)
def test_forward_equivalents_by_rung(name, options, most, seconds):
    torch.set_num_threads(1)
    network, data = fresh_6c2f() if name == "6c2f" else pretrained(name)
    options = Options((Epsilon.parse("36/255"),), **options)
    spent = defaultdict(Spent)
    certifier = Certifier(network, options, samples=IMAGES + COUNTED, key=7)
    bare = certifier.ladder
    forward = certifier.analysis.attacked
    with torch.no_grad():
        before = forward_seconds(forward, data)

    def certify(first: int, last: int) -> None:
        batch = usual(options, network)
        for start in range(first, last, batch):
            some = range(start, min(start + batch, last))
            certifier(
                torch.from_numpy(data.pixels(some)), torch.from_numpy(data.labels[some]), some
            )

    certify(IMAGES, IMAGES + BATCH)
    certifier.ladder = tuple(Watched(rung, spent) for rung in bare)
    began = time.process_time()
    certify(0, IMAGES)
    each = (time.process_time() - began) / IMAGES
    with torch.no_grad():
        once = min(before, forward_seconds(forward, data))
    counted = defaultdict(Spent)
    with Counting(counted) as counting:
        certifier.ladder = tuple(Watched(rung, counted, counting) for rung in bare)
        first = max(0, min(IMAGES, len(data.labels) - COUNTED))
        some = range(first, first + COUNTED)
        certifier(torch.from_numpy(data.pixels(some)), torch.from_numpy(data.labels[some]), some)
        of_one = Spent()
        counting.spent, counting.current = {"forward": of_one}, "forward"
        with torch.no_grad():
            forward.logits(torch.from_numpy(data.pixels(range(COUNTED))).float())
    one = sum(of_one.flops.values()) / COUNTED
    chosen = options.effort if options.method == "auto" else options.method
    chosen += "" if options.radii else " without radii"
    print(f"\n{name}, {chosen}, {IMAGES} images: {each:.4f} s of processor time a sample, "
          f"{each / once:.0f} forward passes of {once * 1e6:.0f} µs; two cores: "
          f"{each / 2:.4f} s a sample by the clock")  # fmt: skip
    print("rung        forward-equivalents   by operations   operations/byte   kernels   H200")
    for rung in [*dict.fromkeys(rung.name for rung in bare), "the rest"]:
        own = replace(counted[rung], seconds=spent[rung].seconds)
        print(f"{rung:12}{own.seconds / IMAGES / once:15.1f}"
              f"{sum(own.flops.values()) / COUNTED / one:18.1f}{own.intensity:18.2f}"
              f"{own.kernels:12}{own.on_gpu(COUNTED) * 1e6:10.0f} µs a sample")  # fmt: skip
    total = sum(own.on_gpu(COUNTED) for own in counted.values())
    print(f"all of it on an H200, 256 at once: {1 / total:.0f} samples a second at the most")
    assert most is None or each / once <= most
    assert seconds is None or each < seconds
