"""What else the model may expect: usual preprocessings and numberings, tried on a few samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipcert.certification.heads import PLAIN, Head
from lipcert.data import Dataset
from lipcert.data.dataset import OWN, RANGE
from lipcert.errors import UsageError
from lipcert.loading import normalisation_found
from lipcert.run.checks import predictions, spread
from lipcert.run.job import Preprocessing
from lipcert.run.model import Model

Indices = NDArray[np.int64]
# The options as on the command line, and what they make of the model's preprocessing.
Candidate = tuple[str, Preprocessing]

# Enough to see whether accuracy rises much, and few enough for a large network on a CPU.
_SAMPLES = 48
# What is called much: so many samples, and this share of all.
_FEWEST, _SHARE = 3, 0.15
# Where so many are right already, nothing is tried.
_GOOD = 0.95
# By channels: what public models are trained with, mean and std.
_STATISTICS: dict[int, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    3: {
        "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    },
    1: {"MNIST": ((0.1307,), (0.3081,)), "Fashion-MNIST": ((0.2860,), (0.3530,))},
}
_HALF = "half", ((0.5,), (0.5,))
_CAFFE = (103.939, 116.779, 123.68)  # blue, green, red


def normalisation_notes(model: Model, dataset: Dataset) -> Iterator[str]:
    """What is known of the normalisation of an image: declared, found in the graph, or neither."""
    found, declared = normalisation_found(model.loaded.network), _normalised(model.preprocessing)
    if found is not None:
        after = ", after --mean and --std" if declared else ""
        yield f"the network itself begins with {found}{after}"
    elif dataset.pictures and not declared and model.preprocessing.value_range == (0.0, 1.0):
        yield (
            "no normalisation is declared, and the network begins with none: it is given pixels "
            "of [0, 1] as they are; --mean and --std declare one"
        )


def better(
    model: Model, dataset: Dataset, indices: Indices, *, device: str, head: Head = PLAIN
) -> str | None:
    """Which other labels or options would make the model classify many more samples correctly, if
    any. Where only a few samples are to be certified, others of the data are looked at too."""
    if len(indices) < _SAMPLES:
        indices = np.arange(len(dataset))
    some = spread(indices, _SAMPLES)
    labels, shape = dataset.labels[some], dataset.images.shape[1:]
    predicted = _predicted(model, dataset, some, device, head)
    right = int((predicted == labels).sum())
    if len(some) < _FEWEST or right >= _GOOD * len(some):
        return None
    if numbering := other_numbering(predicted, labels):
        return numbering
    best, told = right, ""
    for name, preprocessing in _candidates(model.preprocessing, dataset):
        then = replace(model, preprocessing=preprocessing)
        try:
            then.on_images(shape)
        except UsageError:
            continue  # it does not fit these images
        found = int((_predicted(then, dataset, some, device, head) == labels).sum())
        if found > best:
            best, told = found, name
    if best - right < max(_FEWEST, _SHARE * len(labels)):
        return None
    return (
        f"with {told}, {best} of {len(labels)} samples would be classified correctly, instead of "
        f"{right}: check how the model was trained"
    )


def other_numbering(predicted: Indices, labels: Indices) -> str | None:
    """How the predictions follow the labels, where they do it by an offset or in another order."""
    n, right = len(labels), int((predicted == labels).sum())
    if n < 2 * _FEWEST or 2 * right > n:
        return None
    for offset in (1, -1):
        hits = int((predicted == labels + offset).sum())
        if 2 * hits >= n and hits - right >= max(_FEWEST, 0.3 * n):
            more = "more" if offset > 0 else "less"
            return (
                f"{hits} of {n} predictions are the label and one {more}: give --label-offset "
                f"{offset} where the model numbers its classes so"
            )
    kinds = np.unique(labels)
    votes = [predicted[labels == label] for label in kinds]
    if min(len(vote) for vote in votes) < 2:
        return None
    usual = [int(np.bincount(vote).argmax()) for vote in votes]
    hits = sum(int((vote == one).sum()) for vote, one in zip(votes, usual, strict=True))
    if len(set(usual)) < len(usual) or 5 * hits < 4 * n:
        return None
    moved = [f"{a} as {b}" for a, b in zip(kinds, usual, strict=True) if a != b]
    return (
        f"{hits} of {n} predictions follow the labels in another order ({', '.join(moved[:3])}"
        f"{', …' if len(moved) > 3 else ''}): name the model's classes in their order with "
        "--classes, or say which class each label is with --label-map"
    )


def _predicted(
    model: Model, dataset: Dataset, indices: Indices, device: str, head: Head
) -> Indices:
    network = model.on_images(dataset.images.shape[1:])
    return predictions(network, dataset, indices, device=device, head=head)


def _normalised(given: Preprocessing) -> bool:
    return given.mean is not None or given.std is not None


def _candidates(given: Preprocessing, dataset: Dataset) -> Iterator[Candidate]:
    shape = dataset.images.shape[1:]
    if dataset.pictures:
        yield from _normalisations(given, 3 if given.channels else shape[0] if shape[1:] else 0)
        if shape[0] == 3 and given.channels is None:
            yield from _blue_first(given)
    elif dataset.unit == RANGE and "value_range" in dataset.reading:
        low, high = dataset.reading["value_range"]
        yield f"--range={low:g},{high:g}", replace(given, value_range=(low, high))
    elif dataset.unit == OWN and dataset.images.min() >= 0 and 1 < dataset.images.max() <= 255:
        yield "--data-range 0,255", replace(given, value_range=(0.0, 1 / 255))
    if len(shape) == 3 and given.layout is None:
        for layout in ("HWC", "CHW"):
            yield f"--layout {layout}", replace(given, layout=layout)


def _normalisations(given: Preprocessing, channels: int) -> Iterator[Candidate]:
    if _normalised(given):
        yield "neither --mean nor --std", replace(given, mean=None, std=None)
        if given.value_range == (0.0, 1.0):
            yield "--range 0,255 besides", replace(given, value_range=(0.0, 255.0))
        return
    if given.value_range != (0.0, 1.0):
        yield "no --range", replace(given, value_range=(0.0, 1.0))
        return
    for name, (mean, std) in [*_STATISTICS.get(channels, {}).items(), _HALF]:
        options = f"--mean {_listed(mean)} --std {_listed(std)} ({name})"
        yield options, replace(given, mean=mean, std=std)
    yield "--range 0,255", replace(given, value_range=(0.0, 255.0))
    if channels == 3 and given.channels is None:
        options = f"--channels bgr --range 0,255 --mean {_listed(_CAFFE)} (Caffe)"
        yield options, replace(given, channels="bgr", value_range=(0.0, 255.0), mean=_CAFFE)


def _blue_first(given: Preprocessing) -> Iterator[Candidate]:
    yield "--channels bgr", replace(given, channels="bgr")
    if given.mean is not None and len(set(given.mean)) > 1:
        mean, std = given.mean[::-1], None if given.std is None else given.std[::-1]
        options = f"--channels bgr and --mean {_listed(mean)}"
        if std is not None:
            options += f" --std {_listed(std)}"
        yield options, replace(given, channels="bgr", mean=mean, std=std)


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
