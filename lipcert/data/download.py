"""Fetching one published file over https into the cache, whole and verified or not at all."""

import hashlib
import http.client
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast
from urllib import request

from lipcert.errors import CannotCertify

_LOG = logging.getLogger(__name__)
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A published file: where it is served, its size in bytes and the SHA-256 of its content."""

    name: str
    bases: tuple[str, ...]
    size: int
    sha256: str

    @property
    def urls(self) -> list[str]:
        return [base + self.name for base in self.bases]


def open_https(url: str) -> IO[bytes]:
    """Open `url` for reading, by https alone: no other scheme, nor a redirect to one."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.HTTPSHandler,
        request.HTTPRedirectHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPErrorProcessor,
        request.UnknownHandler,
    ):
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", "lipcert")]
    return cast(IO[bytes], opener.open(url, timeout=_TIMEOUT))


def fetch(remote: Remote, folder: Path) -> Path:
    """Download `remote` into `folder` from the first place that serves it; the path it then has.

    The file appears under its name only once its checksum holds. Raises `CannotCertify` for a
    wrong checksum (the file is removed), or where no place could be reached, naming each.
    """
    failures = []
    for url in remote.urls:
        try:
            return _fetch_from(url, remote, folder)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"  {url}: {error}")
    raise CannotCertify(
        f"{remote.name} could not be downloaded to {folder}:\n" + "\n".join(failures)
    )


def _fetch_from(url: str, remote: Remote, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    _LOG.info("downloading %s (%.1f MB)", url, remote.size / 1e6)
    # In the same folder, so that the last step is a rename.
    handle, name = tempfile.mkstemp(dir=folder, prefix=remote.name + ".", suffix=".part")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as sink, open_https(url) as stream:
            found = _copy(stream, sink, remote.size)
        if found != remote.sha256:
            raise CannotCertify(
                f"{remote.name} from {url} is not the published file, and was removed:\n"
                f"  expected sha256 {remote.sha256} in {remote.size} bytes\n"
                f"  found    sha256 {found}"
            )
        return partial.replace(folder / remote.name)
    finally:
        partial.unlink(missing_ok=True)


def _copy(stream: IO[bytes], sink: IO[bytes], size: int) -> str:
    """Copy at most one byte beyond `size`, enough for a longer file to fail its checksum."""
    digest, left = hashlib.sha256(), size + 1
    while left and (chunk := stream.read(min(left, _CHUNK))):
        digest.update(chunk)
        sink.write(chunk)
        left -= len(chunk)
    # http.client ends a broken transfer like a whole one; only its count of missing bytes tells.
    if left and getattr(stream, "length", None):
        raise OSError(f"the connection ended after {size + 1 - left} of {size} bytes")
    return digest.hexdigest()
