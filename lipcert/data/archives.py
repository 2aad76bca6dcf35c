"""Tiny-ImageNet and GTSRB as they are published: pictures in folders or zip archives."""

import csv
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lipcert.bounded import read_at_most
from lipcert.data.dataset import Dataset
from lipcert.data.names import GTSRB
from lipcert.data.pillow import Size, Stack, decode
from lipcert.errors import CannotCertify, UsageError

_MOST_BYTES = 64 << 20  # of one picture or list
_GTSRB_SIZE = (32, 32)


class Tree:
    """The files of a folder, or of zip archives taken together, by their paths in them."""

    def __init__(self, places: Sequence[Path]) -> None:
        """Raises `CannotCertify` where an archive is damaged."""
        self.places = tuple(places)
        self._where: dict[str, Path] = {}
        for place in places:
            try:
                self._where |= dict.fromkeys(_listed(place), place)
            except (OSError, zipfile.BadZipFile) as error:
                raise CannotCertify(f"{place}: cannot be read: {error}") from error
        self.names = sorted(self._where)

    def ending(self, end: str) -> str | None:
        """The path that is `end`, or ends in it after a slash."""
        return next((name for name in self.names if f"/{name}".endswith(f"/{end}")), None)

    def contents(self, names: Sequence[str]) -> Iterator[bytes]:
        """Of these files, each archive opened once. Raises `CannotCertify` naming the file."""
        archives: dict[Path, zipfile.ZipFile] = {}
        try:
            for name in names:
                place = self._where[name]
                try:
                    if place.is_dir():
                        with (place / name).open("rb") as file:
                            content = read_at_most(file, name, _MOST_BYTES)
                    else:
                        if place not in archives:
                            archives[place] = zipfile.ZipFile(place)
                        with archives[place].open(name) as stream:
                            content = read_at_most(stream, name, _MOST_BYTES)
                except (OSError, EOFError, zlib.error, RuntimeError, zipfile.BadZipFile) as error:
                    raise CannotCertify(f"{place}: {name}: cannot be read: {error}") from error
                yield content
        finally:
            for archive in archives.values():
                archive.close()

    def text(self, name: str) -> str:
        (content,) = self.contents([name])
        return content.decode("utf-8", "replace")


class _Labelled(NamedTuple):
    """Pictures by their paths, the class of each, the names of the classes, and a note."""

    files: list[str]
    labels: list[int]
    names: tuple[str, ...]
    by_name: bool = False
    note: str | None = None


@dataclass(frozen=True)
class PictureSet:
    """A published set of pictures: `counts` of them per split; `folders` below a data folder where
    it may be; `archives` per split, patterns, of which those that are there are read together where
    the set comes in several; `marks`, by which a data folder is seen to be the set's own; `size`:
    (H, W) that pictures of several sizes are brought to, None where they have one."""

    name: str
    counts: dict[str, int]
    folders: tuple[str, ...]
    archives: dict[str, tuple[str, ...]]
    marks: tuple[str, ...]
    labelled: Callable[[Tree, str], _Labelled | None]
    size: Size | None
    together: bool
    home: str

    def find(self, split: str, folder: Path) -> Tree | None:
        """The files of the set in a data folder, if this split is among them."""
        own = [folder] if any((folder / mark).exists() for mark in self.marks) else []
        places: list[list[Path]] = [
            [path] for path in (*(folder / name for name in self.folders), *own) if path.is_dir()
        ]
        names = self.archives[split]
        zips = [path for name in names for path in sorted(folder.glob(name)) if path.is_file()]
        together = [zips] if self.together else [[path] for path in zips]
        for place in [*places, *(some for some in together if some)]:
            tree = Tree(place)
            found = self.labelled(tree, split)
            if found is not None and found.files:
                return tree
        return None

    def read(self, split: str, tree: Tree, size: Size | None) -> Dataset:
        """Raises `CannotCertify` for damaged files."""
        found = self.labelled(tree, split)
        assert found is not None
        source = ", ".join(place.name for place in tree.places)
        stack, notes = Stack(len(found.files), source), [found.note] if found.note else []
        size = size or self.size
        for name, content in zip(found.files, tree.contents(found.files), strict=True):
            stack.add(decode(content, name, size=size), name)
        notes += [*stack.notes, *self.part_note(len(found.files), split, source)]
        if size is not None:
            notes.append(f"images were brought to {size[0]}x{size[1]} by a bilinear filter")
        images = np.ascontiguousarray(stack.array())
        if images.shape[1] == 1:
            images = np.repeat(images, 3, axis=1)
        return Dataset(
            self.name, split, images, np.array(found.labels, dtype=np.int64), len(found.names),
            source, names=found.names, by_name=found.by_name, notes=tuple(notes),
            reading={} if size is None else {"resize": list(size)},
        )  # fmt: skip

    def part_note(self, count: int, split: str, source: str) -> list[str]:
        """A note where these are not all the images of the split."""
        whole = self.counts[split]
        if count == whole:
            return []
        return [f"{source} holds {count} of the {whole} images of {self.name} {split}"]

    @property
    def help(self) -> str:
        """What to put where."""
        archives = dict.fromkeys(name for names in self.archives.values() for name in names)
        return (
            f"it is published at {self.home}, and is read from the folder "
            f"{self.folders[0]} or from {', '.join(archives)}, in a folder given by --data-dir or "
            "LIPCERT_DATA_DIR"
        )


_WNID = r"(n[0-9]{8})/(?:images/)?[^/]+\.(?:jpeg|jpg|png)"


def _tiny_imagenet(tree: Tree, split: str) -> _Labelled | None:
    """Classes are the wnids in the order of their names, as in torchvision's ImageFolder."""
    folder = "train" if split == "train" else "val"
    note = "the split val, as the images of test have no labels" if split == "test" else None
    pattern = re.compile(rf"(?:^|/){folder}/{_WNID}", re.IGNORECASE)
    pairs = [(name, found[1]) for name in tree.names if (found := pattern.search(name))]
    annotations = tree.ending("val/val_annotations.txt")
    if not pairs and folder == "val" and annotations is not None:
        images = annotations.removesuffix("val_annotations.txt") + "images/"
        rows = [row.split("\t") for row in tree.text(annotations).splitlines() if row.strip()]
        here = set(tree.names)
        if any(len(row) < 2 for row in rows):
            raise CannotCertify(f"{annotations}: needs a file and its wnid on each line")
        pairs = [(images + row[0], row[1]) for row in rows if images + row[0] in here]
    listed = tree.ending("wnids.txt")
    if not pairs and folder == "val" and listed is not None:
        pairs = _listed_pairs(tree, listed.removesuffix("wnids.txt"))
    if not pairs:
        return None
    wnids = {wnid for _, wnid in pairs}
    if listed is not None:
        wnids |= set(tree.text(listed).split())
    order = sorted(wnids)
    number = {wnid: i for i, wnid in enumerate(order)}
    labels = [number[wnid] for _, wnid in pairs]
    return _Labelled([name for name, _ in pairs], labels, tuple(order), True, note)


def _listed_pairs(tree: Tree, root: str) -> list[tuple[str, str]]:
    """Those of a part: a list `labels.csv` of files and wnids, and the files in `images`."""
    listed, here = f"{root}labels.csv", set(tree.names)
    rows = csv.DictReader(StringIO(tree.text(listed))) if listed in here else iter(())
    pairs = [(f"{root}images/{row.get('filename')}", str(row.get("wnid"))) for row in rows]
    return [(name, wnid) for name, wnid in pairs if name in here]


def _gtsrb(tree: Tree, split: str) -> _Labelled | None:
    if split == "train":
        pattern = re.compile(
            r"(?:^|/)(?:Final_Training/Images|Training|Train|train)/([0-9]{1,5})/[^/]+\.(?:ppm|png)"
        )
        pairs = [(name, int(found[1])) for name in tree.names if (found := pattern.search(name))]
    else:
        pairs = _gtsrb_test(tree)
    wrong = next((name for name, label in pairs if label >= len(GTSRB)), None)
    if wrong is not None:
        raise CannotCertify(f"{wrong}: is of no class of GTSRB, which has {len(GTSRB)}")
    return _Labelled([n for n, _ in pairs], [c for _, c in pairs], GTSRB) if pairs else None


def _gtsrb_test(tree: Tree) -> list[tuple[str, int]]:
    listed = tree.ending("GT-final_test.csv") or tree.ending("Test.csv")
    if listed is None:
        return []
    pattern = re.compile(r"(?:^|/)(?:Final_Test/Images|Test|test)/([^/]+\.(?:ppm|png))")
    paths = {found[1]: name for name in tree.names if (found := pattern.search(name))}
    text = tree.text(listed)
    delimiter = ";" if text.count(";") > text.count(",") else ","
    pairs = []
    for row in csv.DictReader(StringIO(text), delimiter=delimiter):
        name, label = row.get("Filename") or row.get("Path") or "", row.get("ClassId") or ""
        if not label.isdecimal():
            raise CannotCertify(f"{listed}: needs a column ClassId of whole numbers")
        if (base := name.rpartition("/")[2]) in paths:
            pairs.append((paths[base], int(label)))
    return pairs


def _listed(place: Path) -> list[str]:
    if place.is_dir():
        return [
            (Path(path) / name).relative_to(place).as_posix()
            for path, _, names in os.walk(place)
            for name in names
        ]
    with zipfile.ZipFile(place) as archive:
        return [info.filename for info in archive.infolist() if not info.is_dir()]


def picture_size(text: Sequence[int] | None) -> Size | None:
    """(H, W) of one or two numbers. Raises `UsageError`."""
    if text is None:
        return None
    if len(text) not in (1, 2) or not all(1 <= side <= 4096 for side in text):
        raise UsageError(
            f"--resize {','.join(map(str, text))}: give a height and a width up to 4096"
        )
    return text[0], text[-1]


PICTURED: dict[str, PictureSet] = {
    known.name: known
    for known in (
        PictureSet(
            name="tiny-imagenet",
            counts={"train": 100_000, "val": 10_000, "test": 10_000},
            folders=("tiny-imagenet-200", "tiny-imagenet", "tiny_imagenet"),
            archives={
                "train": ("tiny-imagenet-200.zip",),
                "val": ("tiny-imagenet-200.zip", "tiny_imagenet_val*.zip"),
                "test": ("tiny-imagenet-200.zip", "tiny_imagenet_val*.zip"),
            },
            marks=("val/val_annotations.txt", "wnids.txt"),
            labelled=_tiny_imagenet,
            size=None,
            together=False,
            home="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
        ),
        PictureSet(
            name="gtsrb",
            counts={"train": 39_209, "test": 12_630},
            folders=("GTSRB", "gtsrb"),
            archives={
                "train": ("GTSRB_Final_Training_Images.zip", "GTSRB-Training_fixed.zip"),
                "test": ("GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip"),
            },
            marks=("Final_Test", "Final_Training", "Test.csv"),
            labelled=_gtsrb,
            size=_GTSRB_SIZE,
            together=True,
            home="https://benchmark.ini.rub.de",
        ),
    )
}
