"""Files of the published sets, read whole but never beyond a bound: plain, gzipped, in a tar."""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from lipcert.data.formats import Blob
from lipcert.errors import CannotCertify

# The largest published file, CIFAR-100's training split, takes 155 MB.
_MOST_BYTES = 256 << 20
_BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError)


def read_file(path: Path) -> Blob:
    """A file's bytes, gunzipped where its name ends in `.gz`.

    Raises `CannotCertify` if it cannot be read or exceeds 256 MiB.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return Blob(str(path), _bounded(stream.read, str(path)))
    except _BROKEN as error:
        raise CannotCertify(f"{path}: cannot be read: {error}") from error


def read_members(path: Path, names: Sequence[str]) -> list[Blob]:
    """Regular files out of a tar.gz, in the order of `names`; nothing is extracted to disk.

    Raises `CannotCertify` if it is damaged, lacks one, or one exceeds 256 MiB.
    """
    found: dict[str, Blob] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                wanted = member.isreg() and name in names
                if wanted and (stream := archive.extractfile(member)) is not None:
                    label = f"{path}: {name}"
                    found[name] = Blob(label, _bounded(stream.read, label))
                if len(found) == len(names):
                    break
    except _BROKEN as error:
        raise CannotCertify(f"{path}: cannot be read: {error}") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise CannotCertify(f"{path}: lacks {', '.join(missing)}")
    return [found[name] for name in names]


def _bounded(read: Callable[[int], bytes], label: str) -> bytes:
    data = read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise CannotCertify(f"{label}: exceeds {_MOST_BYTES >> 20} MiB")
    return data
