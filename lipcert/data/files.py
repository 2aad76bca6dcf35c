"""Files of the published sets, read whole but never beyond a bound: plain, gzipped, in a tar."""

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from lipcert.bounded import PUBLISHED_BYTES, Bounded, read_at_most
from lipcert.data.formats import Blob
from lipcert.errors import CannotCertify

_BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError)


def read_file(path: Path) -> Blob:
    """A file's bytes, gunzipped where its name ends in `.gz`.

    Raises `CannotCertify` if it cannot be read or exceeds 256 MiB.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return Blob(str(path), read_at_most(stream, str(path), PUBLISHED_BYTES))
    except _BROKEN as error:
        raise CannotCertify(f"{path}: cannot be read: {error}") from error


def read_members(path: Path, names: Sequence[str]) -> list[Blob]:
    """Regular files out of a tar.gz, in the order of `names`; nothing is extracted to disk.

    Raises `CannotCertify` if it is damaged, lacks one, or one, a header included, exceeds 256 MiB.
    """
    found: dict[str, Blob] = {}
    try:
        with (
            gzip.open(path) as packed,
            tarfile.open(fileobj=Bounded(packed, str(path), PUBLISHED_BYTES), mode="r:") as archive,
        ):
            for member in archive:
                name = member.name.removeprefix("./")
                wanted = member.isreg() and name in names
                if wanted and (stream := archive.extractfile(member)) is not None:
                    label = f"{path}: {name}"
                    found[name] = Blob(label, read_at_most(stream, label, PUBLISHED_BYTES))
                if len(found) == len(names):
                    break
    except _BROKEN as error:
        raise CannotCertify(f"{path}: cannot be read: {error}") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise CannotCertify(f"{path}: lacks {', '.join(missing)}")
    return [found[name] for name in names]
