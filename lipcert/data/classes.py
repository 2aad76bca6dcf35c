"""From the labels of the data to the outputs of a model, and the names that both go by."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lipcert.bounded import read_at_most
from lipcert.data.dataset import Dataset
from lipcert.data.folder import by_number
from lipcert.errors import UsageError

_WNID = re.compile(r"n[0-9]{8}")
_NAMED = 3
_MOST_BYTES = 64 << 20  # of a file of classes, or of a map

# The names of one class: its own, and others that a folder may have.
Aliases = tuple[str, ...]


@dataclass(frozen=True)
class Labelling:
    """How the labels of the data become classes of the model.

    `classes`: a file of the names of the model's classes, by which folders and text labels are
    numbered. `label_map`: a file that sends labels, numbers or names, to classes; samples of other
    labels are left out. `label_offset`: added to every label after that.
    """

    classes: Path | None = None
    label_map: Path | None = None
    label_offset: int = 0


def relabelled(
    dataset: Dataset,
    labelling: Labelling | None = None,
    outputs: int | None = None,
    *,
    known: Sequence[str] = (),
) -> Dataset:
    """The dataset with labels that are classes of a model with so many `outputs`, None where that
    is not known. `known`: the names of the classes by which other data were numbered for it, such
    as the training images; a file of them comes first.

    Folders and text labels are numbered by `classes` or, without, in their order; whole numbers
    count as the labels themselves where the model has outputs for all of them. What was not
    obvious is told in a note. Raises `UsageError` for files that do not fit, naming them.
    """
    labelling = labelling or Labelling()
    notes: list[str] = []
    listed = None if labelling.classes is None else read_classes(labelling.classes)
    if known and listed is None and dataset.by_name and labelling.label_map is None:
        listed, labelling = [(name,) for name in known], replace(labelling, label_offset=0)
    if labelling.label_map is not None:
        target = _mapped(dataset, labelling.label_map)
    elif listed is not None and dataset.by_name:
        target = _looked_up(dataset, listed, labelling)
    else:
        target = _by_number(dataset, labelling.label_offset, outputs, notes)
    target = {label: new + labelling.label_offset for label, new in target.items()}
    _check(dataset, target, labelling, outputs)
    names = _names(dataset, target, listed, labelling, outputs, notes)
    folders = len(dataset.names) if dataset.by_name else 0
    declared = labelling.label_map or labelling.classes or labelling.label_offset
    if folders and outputs is not None and folders != outputs and not declared:
        notes.append(
            f"{dataset.source} has {folders} classes, the model {outputs} outputs: check that "
            "they are numbered alike; --classes FILE names the outputs"
        )
    return replace(
        mapped(dataset, target, outputs),
        names=names,
        notes=(*dataset.notes, *notes, *_left_out(dataset, target)),
    )


def only(dataset: Dataset, classes: Sequence[int] | None) -> Dataset:
    """The samples whose labels are among these classes of the model; all where that is None.
    Raises `UsageError` where none is."""
    if classes is None:
        return dataset
    target = {label: label for label in classes if label < dataset.classes}
    left = int((~np.isin(dataset.labels, classes)).sum())
    found = mapped(dataset, target, dataset.classes, option="--only-classes") if left else dataset
    note = f"{left} samples of classes that --only-classes does not name are left out"
    return replace(found, notes=(*found.notes, note)) if left else found


def mapped(
    dataset: Dataset, target: Mapping[int, int], outputs: int | None = None, *,
    option: str = "--label-map",
) -> Dataset:  # fmt: skip
    """The samples whose labels are in `target`, with the labels that it sends them to."""
    if all(label == new for label, new in target.items()) and len(target) >= dataset.classes:
        return dataset
    table = np.full(dataset.classes, -1, dtype=np.int64)
    for label, new in target.items():
        if 0 <= label < dataset.classes:
            table[label] = new
    before = dataset.reading.get("labels")
    read = table if before is None else [
        table[before[str(k)]] if str(k) in before else -1
        for k in range(max(map(int, before)) + 1)
    ]  # fmt: skip
    labels = table[dataset.labels]
    kept = labels >= 0
    if not kept.any():
        raise UsageError(f"{dataset.source}: no sample has a label that {option} speaks of")
    images = dataset.images if kept.all() else dataset.images[kept]
    return replace(
        dataset,
        images=images,
        labels=labels[kept],
        classes=outputs or int(max(target.values())) + 1,
        reading=dict(dataset.reading)
        | {"labels": {str(k): int(v) for k, v in enumerate(read) if v >= 0}},
    )


def read_classes(path: Path) -> list[Aliases]:
    """The names of the classes, in the order of the model's outputs.

    A JSON list of names or of lists of them; a JSON object from numbers to these (ImageNet's class
    index), or from names to numbers; or text with one name on each line, perhaps after its number.
    `n01440764 tench, Tinca tinca` goes by all of its names. Raises `UsageError`.
    """
    text = _text(path, "--classes")
    try:
        listed = json.loads(text) if text[:1] in ("[", "{") else _lines(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--classes {path}: is no JSON: {error}") from error
    if isinstance(listed, dict):
        listed = _by_index(listed, path)
    found = [_aliases(entry) for entry in listed] if isinstance(listed, list) else []
    if not found or not all(found):
        raise UsageError(
            f"--classes {path}: needs the name of every class: a JSON list, a JSON object from "
            "numbers to names, or one name on each line"
        )
    return found


def read_map(path: Path) -> dict[str, int]:
    """A JSON object from labels, numbers or names, to classes. Raises `UsageError`."""
    wrong = f'--label-map {path}: needs a JSON object from labels to classes, such as {{"3": 0}}'
    try:
        listed = json.loads(_text(path, "--label-map"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{wrong}: {error}") from error
    if not isinstance(listed, dict) or not listed:
        raise UsageError(wrong)
    for label, new in listed.items():
        if isinstance(new, bool) or not isinstance(new, int) or new < 0:
            raise UsageError(f"{wrong}; {label!r} is sent to {new!r}")
    return listed


def _text(path: Path, option: str) -> str:
    try:
        with path.open("rb") as file:
            return read_at_most(file, str(path), _MOST_BYTES).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {path}: cannot be read: {error}") from error


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [re.fullmatch(r"([0-9]+)\s*[:,\t ]\s*(\S.*)", line) for line in lines]
    numbers = [int(found[1]) for found in numbered if found]
    if numbers == list(range(len(lines))):
        return [found[2] for found in numbered if found]
    return lines


def _by_index(listed: Mapping[str, Any], path: Path) -> list[Any]:
    values = list(listed.values())
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        listed = {str(number): name for name, number in listed.items()}  # torchvision's
    if sorted(listed) != sorted(map(str, range(len(listed)))) or len(listed) != len(values):
        raise UsageError(
            f"--classes {path}: needs the classes 0 to {len(values) - 1}, each once; it has "
            f"{', '.join(sorted(listed)[:5])}, …"
        )
    return [listed[str(i)] for i in range(len(listed))]


def _aliases(entry: Any) -> Aliases:
    if isinstance(entry, list | tuple) and all(isinstance(part, str) for part in entry):
        return tuple(entry)
    if not isinstance(entry, str) or not entry.strip():
        return ()
    first, _, rest = entry.partition(" ")
    return (first, rest.strip()) if _WNID.fullmatch(first) and rest.strip() else (entry.strip(),)


def _mapped(dataset: Dataset, path: Path) -> dict[int, int]:
    numbers = {name: label for label, name in enumerate(dataset.names)}
    target = {}
    for label, new in read_map(path).items():
        if label in numbers:
            target[numbers[label]] = new
        elif label.lstrip("-").isdecimal():
            target[int(label)] = new
        else:
            raise UsageError(
                f"--label-map {path}: {dataset.source} has no class {label!r}; it has "
                f"{_some(dataset.names) if dataset.names else 'numbers alone'}"
            )
    return target


def _looked_up(dataset: Dataset, listed: Sequence[Aliases], labelling: Labelling) -> dict[int, int]:
    number = {name: i for i, names in reversed(list(enumerate(listed))) for name in names}
    found = {label: number[name] for label, name in enumerate(dataset.names) if name in number}
    missing = [name for name in dataset.names if name not in number]
    if not missing:
        return found
    if labelling.classes and len(missing) == len(dataset.names) and by_number([*dataset.names]):
        return {label: int(name) for label, name in enumerate(dataset.names)}
    by = f"--classes {labelling.classes}" if labelling.classes else "the training data"
    raise UsageError(
        f"{by}: does not name {_some(missing)}, {len(missing)} of the {len(dataset.names)} classes "
        f"of {dataset.source}; it has {_some([names[0] for names in listed])}: add them with "
        "--classes, or say which classes are which with --label-map"
    )


def _by_number(
    dataset: Dataset, offset: int, outputs: int | None, notes: list[str]
) -> dict[int, int]:
    """As the data number them; folders called by whole numbers that are not 0, 1, … by these,
    where the model has outputs for all of them."""
    plain = {label: label for label in range(dataset.classes)}
    names = list(dataset.names)
    if not dataset.by_name or not by_number(names) or [int(name) for name in names] == list(plain):
        return plain
    numbers = [int(name) for name in names]
    if outputs is not None and max(numbers) + offset < outputs:
        notes.append(
            f"the classes of {dataset.source} are called {_some(names)}: these numbers are taken "
            "as the labels"
        )
        return dict(enumerate(numbers))
    notes.append(
        f"the classes of {dataset.source} are called {_some(names)}: they are numbered 0 to "
        f"{len(names) - 1}, in the order of these numbers"
    )
    return plain


def _check(
    dataset: Dataset, target: Mapping[int, int], labelling: Labelling, outputs: int | None
) -> None:
    present = [int(label) for label in np.unique(dataset.labels)]
    used = {label: target[label] for label in present if label in target}
    least, most = min(used.values(), default=0), max(used.values(), default=0)
    if least < 0:
        raise UsageError(
            f"--label-offset {labelling.label_offset}: makes {least} of label "
            f"{min(used, key=lambda label: used[label])} of {dataset.source}, which no class is"
        )
    if outputs is None or most < outputs:
        return
    shift = ""
    if not labelling.label_offset and least > 0 and most - least < outputs:
        shift = f"; where they begin at {least}, give --label-offset {-least}"
    raise UsageError(
        f"the model has {outputs} outputs, but {dataset.source} has labels up to {most}{shift}; "
        "give the data that the model was trained for, or say which class each label is with "
        "--label-map"
    )


def _names(
    dataset: Dataset, target: Mapping[int, int], listed: Sequence[Aliases] | None,
    labelling: Labelling, outputs: int | None, notes: list[str],
) -> tuple[str, ...]:  # fmt: skip
    """By class of the model; empty where it has none."""
    if listed is not None:
        names = [", ".join(dict.fromkeys(aliases)) for aliases in listed]
        offset = labelling.label_offset
        if outputs is not None and offset > 0 and len(names) + offset == outputs:
            names = [*["background"] * offset, *names]
        if outputs is not None and len(names) != outputs:
            notes.append(
                f"--classes {labelling.classes} names {len(names)} classes, the model has "
                f"{outputs} outputs"
            )
        return tuple(names)
    if not dataset.names:
        return ()
    size = outputs or max(target.values(), default=-1) + 1
    found = [""] * size
    for label, new in target.items():
        if label < len(dataset.names) and 0 <= new < size:
            found[new] = dataset.names[label]
    return tuple(found) if any(found) else ()


def _left_out(dataset: Dataset, target: Mapping[int, int]) -> list[str]:
    other = ~np.isin(dataset.labels, list(target))
    count = int(other.sum())
    return [f"{count} samples of labels that --label-map does not name are left out"] * bool(count)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f", … {names[-1]}" if len(names) > _NAMED else "")
