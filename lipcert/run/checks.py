"""Before anything is certified: is this the right model, fed in the right way?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipcert.certification.findings import answers
from lipcert.certification.heads import PLAIN, Head
from lipcert.data import Dataset
from lipcert.errors import UsageError
from lipcert.network import Network
from lipcert.options import Options
from lipcert.run.job import Execution

Indices = NDArray[np.int64]

# Enough that a wrong order of axes or channels shows.
CROSS_CHECK_SAMPLES = 32
# Enough that an accuracy of chance is told from a low one.
PLAUSIBILITY_SAMPLES = 1000
# Of fewer, even a model of three times chance level often gets no more right than a guess would.
FEWEST_SAMPLES = 20


def check_counterexamples(options: Options, execution: Execution) -> None:
    """Raises ``UsageError`` where counterexamples are to be kept and no attack finds any."""
    if execution.save_counterexamples and options.method != "auto":
        raise UsageError(
            f"--save-counterexamples: --method {options.method} runs no attack; choose "
            "--method auto, or leave it out"
        )


def check_proofs(options: Options, execution: Execution) -> None:
    """Raises ``UsageError`` where proofs are to be kept of what is not certified, or of another
    claim than theirs."""
    if execution.save_proofs and Head.of(options) != PLAIN:
        raise UsageError(
            "--save-proofs: proofs say that the label is the best of all classes; leave them out, "
            "or --top-k, --only-classes and --margin"
        )
    if execution.save_proofs and options.summation == "measured":
        raise UsageError(
            "--save-proofs: proofs cover sums in any order; leave them out, or --summation measured"
        )
    if execution.save_proofs and options.estimate:
        raise UsageError(
            "--save-proofs: --norms estimate certifies nothing; choose --norms randomised or "
            "deterministic, or leave it out"
        )


def check_summation(options: Options, execution: Execution) -> None:
    """Raises ``UsageError`` where other machines would take part in a run whose order of sums is
    that of this one."""
    if options.summation == "measured" and execution.cluster is not None:
        raise UsageError(
            "--summation measured: the order is that of this machine's runtime, and a cluster has "
            "others; leave --cluster out"
        )


def check_domain(options: Options, dataset: Dataset) -> None:
    """Raises ``UsageError`` where only images are to count and the data are none."""
    if options.pixel_domain and not dataset.pictures:
        raise UsageError(
            f"--pixel-domain: {dataset.source} is no set of images, its unit is {dataset.unit}; "
            "leave it out, or say --data-layout flat for images stored as rows"
        )


def spread(indices: Indices, most: int) -> Indices:
    """At most ``most`` of the indices, evenly spaced: sets sorted by class keep their variety."""
    if len(indices) <= most:
        return indices
    return indices[np.arange(most) * len(indices) // most]


def predictions(
    network: Network, dataset: Dataset, indices: Indices, *, device: str, batch: int = 32,
    head: Head = PLAIN,
) -> Indices:  # fmt: skip
    """The predicted class of every index, of those that compete, in float32; raises what torch
    raises."""
    network = network.to(device=device, dtype=torch.float32)
    parts = [
        network.logits(torch.from_numpy(dataset.pixels(some)).to(device))
        for some in np.split(indices, range(batch, len(indices), batch))
    ]
    return np.concatenate([head.competing(logits).argmax(1).cpu().numpy() for logits in parts])


def outcome(
    network: Network, pixels: NDArray[np.float32], label: int, head: Head = PLAIN
) -> tuple[int, float, tuple[int, ...]]:
    """The predicted class of one sample, its margin and its best classes, in float64, see
    ``certification.findings.answers``; −1, NaN and nothing where a logit is no finite number."""
    logits = network.to(device="cpu", dtype=torch.float64).logits(torch.from_numpy(pixels).double())
    prediction, margin, _, top = answers(logits, torch.tensor([label]), head)
    if not bool(torch.isfinite(logits).all()):
        return -1, math.nan, ()
    return int(prediction), float(margin), () if top is None else tuple(top[0].tolist())


def classes_of(
    network: Network, points: Sequence[NDArray[Any]], head: Head = PLAIN, *, batch: int = 32
) -> list[int]:
    """The class, of those that compete, that the network, in float64, takes each point for."""
    exact = network.to(device="cpu", dtype=torch.float64)
    parts = [points[start : start + batch] for start in range(0, len(points), batch)]
    logits = (exact.logits(torch.from_numpy(np.stack(part)).double()) for part in parts)
    return [int(one) for some in logits for one in head.competing(some).argmax(1)]


def implausible(predicted: Indices, labels: Indices, classes: int) -> str | None:
    """Why the clean accuracy speaks for wrong preprocessing, or None where it does not.

    Two signs, each on at least 20 samples: no more predictions are right than guessing gets,
    ``1 / classes``; or one class is predicted for everything, wrongly for most. A model three times
    as good as guessing shows the first sign with a probability below 4 % (20 samples, 10 classes),
    which is why the caller may overrule it; a wrong mean and standard deviation often shows
    neither, so a pass proves nothing.
    """
    n, right = len(labels), int((predicted == labels).sum())
    if n < FEWEST_SAMPLES:
        return None
    if right * classes <= n:
        return f"{right} of {n} samples are classified correctly, no more than guessing would"
    if len(np.unique(predicted)) == 1 and 2 * right <= n:
        return f"all {n} samples are predicted as class {predicted[0]}, {right} of them correctly"
    return None
