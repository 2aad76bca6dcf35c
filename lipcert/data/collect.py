"""What a user's own code returns, torch's datasets and loaders among it, as arrays."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lipcert.bounded import DATASET_BYTES, check_size
from lipcert.data.dataset import Array, Dataset
from lipcert.data.keys import aliases, pick
from lipcert.errors import UsageError


class Collected(NamedTuple):
    """Raw images, labels, and the names of the classes where the object has them."""

    images: Array
    labels: Array
    names: tuple[str, ...] = ()


def collect(
    made: Any, source: str, split: str = "test", *,
    image_key: str | None = None, label_key: str | None = None,
) -> Dataset | Collected:  # fmt: skip
    """`made` is one of

    - a `Dataset` of lipcert, which is returned as it is;
    - (images, labels): arrays, lists or tensors, on any device, with gradients or without;
    - a mapping of such, named as in an npz file, or of splits to such pairs or mappings;
    - a `torch.utils.data.Dataset`, or anything with a length whose items are (image, label), or
      mappings; images may be tensors, arrays or pictures of Pillow;
    - a `DataLoader`, whose dataset is taken in its own order where it has one, or any iterable of
      batches (images, labels).

    Raises `UsageError` telling what it is instead.
    """
    if isinstance(made, Dataset):
        return made
    names = _class_names(made)
    made = _behind_a_loader(made)
    if isinstance(made, Mapping):
        return _of_mapping(made, source, split, image_key, label_key)
    tensors = getattr(made, "tensors", None)  # torch's TensorDataset
    if isinstance(tensors, tuple) and len(tensors) == 2:
        made = tensors
    if isinstance(made, tuple | list) and len(made) == 2 and not all(map(_is_sample, made)):
        if not all(map(_is_batch, made)):
            raise _refused(made, source)
        return Collected(as_array(made[0], source), as_array(made[1], source), names)
    if isinstance(made, str | bytes) or not _can_be_read(made):
        raise _refused(made, source)
    rows = [_pair(item, source, image_key, label_key) for item in _items(made)]
    if not rows:
        raise UsageError(f"{source}: returned no samples")
    images, labels = ([as_array(row[k], source) for row in rows] for k in (0, 1))
    batches = labels[0].ndim >= 1 and images[0].ndim >= 2 and len(images[0]) == len(labels[0])
    join = np.concatenate if batches else np.stack
    try:
        return Collected(join(images), join(labels), names)
    except ValueError as error:
        raise UsageError(f"{source}: its samples do not fit together: {error}") from error


def as_array(value: Any, source: str) -> Array:
    """An array of numbers, of whatever holds them."""
    try:
        if hasattr(value, "detach"):
            # Some of the memory that they are given may be shared by many numbers.
            check_size(source, value.numel() * max(4, value.element_size()), DATASET_BYTES)
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":
                value = value.float()
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{source}: {type(value).__name__} is no array: {error}") from error
    if found.dtype == object and not all(isinstance(part, str) for part in found.reshape(-1)):
        raise UsageError(f"{source}: {type(value).__name__} is no array of numbers")
    return found


def _behind_a_loader(made: Any) -> Any:
    """A loader's dataset, in the order of its indices and not shuffled, where it has the items
    that the loader's own batching makes of it."""
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is None or not isinstance(made, torch_data.DataLoader):
        return made
    usual = made.collate_fn is torch_data.default_collate
    whole = isinstance(made.sampler, torch_data.SequentialSampler | torch_data.RandomSampler)
    indexed = not isinstance(made.dataset, torch_data.IterableDataset)
    return made.dataset if usual and whole and indexed else made


def _of_mapping(
    made: Mapping[Any, Any], source: str, split: str, image_key: str | None, label_key: str | None
) -> Collected:
    there = {str(name): value for name, value in made.items()}
    for name in aliases(split):
        inner = there.get(name)
        if isinstance(inner, Mapping) or (isinstance(inner, tuple | list) and len(inner) == 2):
            found = collect(inner, f"{source}, {name}", split, image_key=image_key,
                            label_key=label_key)  # fmt: skip
            assert isinstance(found, Collected)
            return found
    images, labels = pick(list(there), split, source, image_key=image_key, label_key=label_key)
    assert labels is not None
    return Collected(as_array(there[images], source), as_array(there[labels], source))


def _items(made: Any) -> Iterable[Any]:
    # Python itself would ask for items until an IndexError, which not all datasets raise.
    if hasattr(made, "__getitem__") and hasattr(made, "__len__"):
        return (made[i] for i in range(len(made)))
    items: Iterable[Any] = iter(made)
    return items


def _pair(item: Any, source: str, image_key: str | None, label_key: str | None) -> Sequence[Any]:
    if isinstance(item, Mapping):
        there = [str(name) for name in item]
        images, labels = pick(there, "", source, image_key=image_key, label_key=label_key)
        assert labels is not None
        return item[images], item[labels]
    if isinstance(item, tuple | list) and len(item) == 2:
        return item
    raise UsageError(
        f"{source}: its items must be pairs (image, label), not {type(item).__name__}"
        + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
    )


def _is_sample(value: Any) -> bool:
    """Whether it is a pair of an image and its own label, a single number or name."""
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    return isinstance(value[1], str) or getattr(value[1], "ndim", int(_is_batch(value[1]))) == 0


def _is_batch(value: Any) -> bool:
    """Whether it can be all the images at once: something with a length, no name, no mapping."""
    return hasattr(value, "__len__") and not isinstance(value, str | bytes | Mapping)


def _can_be_read(made: Any) -> bool:
    return hasattr(made, "__iter__") or (hasattr(made, "__getitem__") and hasattr(made, "__len__"))


def _class_names(made: Any) -> tuple[str, ...]:
    """torchvision's `classes`."""
    found = getattr(getattr(made, "dataset", made), "classes", None)
    plain = isinstance(found, list | tuple) and all(isinstance(name, str) for name in found)
    return tuple(found) if plain and found is not None else ()


def _refused(made: Any, source: str) -> UsageError:
    return UsageError(
        f"{source}: returned {type(made).__name__}; it must return (images, labels), a mapping of "
        "them, a torch Dataset or DataLoader, or a lipcert.data.Dataset"
    )
