"""The model held against the deployed file and against the labels, before anything is certified."""

from __future__ import annotations

from lipcert.certification.heads import Head
from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import CrossCheck, cross_check
from lipcert.run.checks import (
    CROSS_CHECK_SAMPLES,
    PLAUSIBILITY_SAMPLES,
    implausible,
    predictions,
    spread,
)
from lipcert.run.suggestions import better, normalisation_notes
from lipcert.run.task import Task


def compared(task: Task) -> tuple[CrossCheck, list[str]]:
    """The cross-check, and notes of what the data, the normalisation and the clean accuracy say.

    Raises ``UsageError`` for labels that are no classes of the model, ``CannotCertify`` where the
    cross-check fails or the clean accuracy is no better than a guess.
    """
    model, dataset, device = task.model, task.dataset, task.execution.device
    network, largest = task.network, int(dataset.labels.max())
    if largest >= network.classes:
        raise UsageError(
            f"{model.name}: has {network.classes} outputs, but {dataset.source} has labels up to "
            f"{largest}; give the data that the model was trained for, or say which class each "
            "label is with --label-offset or --label-map"
        )
    checked = dataset.pixels(spread(task.indices, CROSS_CHECK_SAMPLES))
    check = cross_check(model.loaded, network, checked)
    some = spread(task.indices, PLAUSIBILITY_SAMPLES)
    head = Head.of(task.options)
    head.check(network.classes)
    if head.margin and model.loaded.beside:
        raise CannotCertify(
            f"{model.name}: its one output is compared with {model.loaded.beside:g}, so that it is "
            "no logit of a softmax; leave --margin out"
        )
    predicted = predictions(network, dataset, some, device=device, head=head)
    doubt = implausible(predicted, dataset.labels[some], head.rivals(network.classes) + 1)
    remedy = better(model, dataset, some, device=device, head=head)
    if doubt and not task.execution.allow_implausible:
        remedy = remedy or (
            "the preprocessing is probably wrong; check --mean, --std, --layout, --range and that "
            "the data fits"
        )
        raise CannotCertify(f"{model.name}: {doubt}: {remedy}, or go on with --allow-implausible")
    notes = [f"implausible clean accuracy, allowed: {doubt}"] if doubt else []
    notes += [*dataset.notes, *normalisation_notes(model, dataset)]
    return check, [*notes, *([remedy] if remedy else [])]
