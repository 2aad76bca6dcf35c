"""Under which names files keep their images and labels."""

from collections.abc import Iterable, Sequence

from lipcert.errors import UsageError

IMAGES = ("images", "image", "img", "imgs", "x", "X", "data", "inputs", "features", "pixels",
          "pixel_values", "arr_0")  # fmt: skip
LABELS = ("labels", "label", "lbl", "lbls", "y", "Y", "targets", "target", "class", "classes",
          "outputs", "fine_label", "fine_labels", "arr_1")  # fmt: skip
# Other names that a split goes by.
_ALIASES = {
    "train": ("training",), "test": ("testing",),
    "val": ("valid", "validation"), "valid": ("val", "validation"), "validation": ("val", "valid"),
}  # fmt: skip
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")


def aliases(split: str) -> tuple[str, ...]:
    """The split's name, and others that mean the same."""
    return (split, *_ALIASES.get(split, ()))


def pick(
    there: Sequence[str],
    split: str,
    source: str,
    *,
    image_key: str | None = None,
    label_key: str | None = None,
    without_labels: bool = False,
) -> tuple[str, str | None]:
    """The names of the images and of the labels among those that are `there`.

    The split's own, such as `x_test` and `test_labels`, come before those of no split. The label's
    is None where there is none and the labels are elsewhere, `without_labels`.
    Raises `UsageError` naming what there is, and the option that says which to take.
    """
    images = _one(there, split, source, "--image-key", image_key, IMAGES)
    if without_labels and label_key is None:
        return images, None
    return images, _one(there, split, source, "--label-key", label_key, LABELS)


def labels_in(there: Sequence[str], split: str) -> str | None:
    """The name of the labels or targets among those that are `there`; None where there are none."""
    own = _of_split(there, split, LABELS)
    return own or next((name for name in LABELS if name in there), None)


def splits_in(there: Iterable[str]) -> list[str]:
    """The splits that the names speak of."""
    there = set(there)
    return [s for s in SPLITS if any(name in there for key in IMAGES for name in _of(key, s))]


def _of_split(there: Sequence[str], split: str, known: Sequence[str]) -> str | None:
    names = (name for part in aliases(split) for key in known for name in _of(key, part))
    return next((name for name in names if name in there), None)


def _one(
    there: Sequence[str], split: str, source: str, option: str, given: str | None,
    known: Sequence[str],
) -> str:  # fmt: skip
    listed = ", ".join(there) or "none"
    if given is not None:
        if given in there:
            return given
        raise UsageError(f"{option} {given}: {source} has no such array; it has {listed}")
    if (own := _of_split(there, split, known)) is not None:
        return own
    others = splits_in(there)
    if others:
        raise UsageError(
            f"{source}: has the splits {', '.join(others)}, not {split!r}; choose one with --split"
            f", or name an array with {option}; it has {listed}"
        )
    for name in known:
        if name in there:
            return name
    such = "images or x" if known is IMAGES else "labels or y"
    raise UsageError(
        f"{source}: needs an array {such}; it has {listed}; name the one to take with {option}"
    )


def _of(key: str, split: str) -> tuple[str, ...]:
    return f"{key}_{split}", f"{split}_{key}", f"{key}{split}", f"{split}{key}"
