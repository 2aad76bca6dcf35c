import hashlib
import http.server
import io
import threading
from dataclasses import replace
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

from lipcert.data import download, load_dataset
from lipcert.data.download import Remote, fetch, open_https
from lipcert.data.published import NAMED
from lipcert.errors import CannotCertify

CONTENT = bytes(range(256)) * 64


class Server:
    """Serves `files`, each under its path; `requested` are the paths that were asked for."""

    def __init__(self):
        self.files, self.requested, self.promise = {}, [], 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requested.append(self.path)
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) + outer.promise))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                """Keep the tests' output clean."""

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def server(monkeypatch):
    served = Server()
    monkeypatch.setattr(download, "open_https", lambda url: urlopen(url, timeout=10))
    thread = threading.Thread(target=served.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.http.shutdown()
    thread.join()
    served.http.server_close()


def remote(*bases, content=CONTENT):
    return Remote("file.gz", bases, len(content), hashlib.sha256(content).hexdigest())


def test_a_file_arrives_whole(server, tmp_path):
    server.files["/file.gz"] = CONTENT
    path = fetch(remote(server.base), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "file.gz"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("wrong", [CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + b"x", b""])
def test_a_wrong_checksum_leaves_nothing(server, tmp_path, wrong):
    server.files["/file.gz"] = wrong
    expected = remote(server.base)
    with pytest.raises(CannotCertify) as error:
        fetch(expected, tmp_path)
    for part in ("file.gz", expected.sha256, hashlib.sha256(wrong).hexdigest()):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_the_published_size_is_taken(server, tmp_path):
    server.files["/file.gz"] = bytes(8 << 20)
    taken = hashlib.sha256(bytes(len(CONTENT) + 1)).hexdigest()
    with pytest.raises(CannotCertify, match=taken):
        fetch(remote(server.base), tmp_path)


def test_a_mirror_is_tried_after_a_failure(server, tmp_path):
    server.files["/mirror/file.gz"] = CONTENT
    fetch(remote(server.base + "gone/", server.base + "mirror/"), tmp_path)
    assert server.requested == ["/gone/file.gz", "/mirror/file.gz"]
    assert (tmp_path / "file.gz").read_bytes() == CONTENT


def test_a_broken_transfer_is_a_failure_not_a_checksum(server, tmp_path):
    server.files["/file.gz"], server.promise = CONTENT[:100], 10
    with pytest.raises(CannotCertify, match=f"ended after 100 of {len(CONTENT)} bytes"):
        fetch(remote(server.base), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_failure_is_listed(server, tmp_path):
    with pytest.raises(CannotCertify) as error:
        fetch(remote(server.base + "one/", server.base + "two/"), tmp_path)
    assert f"{server.base}one/file.gz: HTTP Error 404" in str(error.value)
    assert f"{server.base}two/file.gz: HTTP Error 404" in str(error.value)


def test_a_folder_that_cannot_be_made_is_a_failure(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotCertify, match="could not be downloaded"):
        fetch(remote(server.base), tmp_path / "file")


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_only_https_is_opened(tmp_path, scheme):
    (tmp_path / "file").write_text("content")
    with pytest.raises(URLError, match=f"unknown url type: {scheme}"):
        open_https(f"{scheme}://{tmp_path}/file")


def test_every_published_address_is_https_with_a_full_checksum():
    remotes = [r for known in NAMED.values() for split in known.remote.values() for r in split]
    assert len(remotes) == 12
    for published in remotes:
        assert all(url.startswith("https://") for url in published.urls)
        assert bytes.fromhex(published.sha256)[31:] != b""
        assert published.size > 1000


def test_a_named_set_is_downloaded_once_and_then_read_from_the_cache(
    server, small, arrays, empty_cache
):
    images, labels = arrays("mnist", "test")
    idx = {
        "t10k-images-idx3-ubyte": b"\0\0\x08\x03"
        + np.array(images[:, 0].shape, ">u4").tobytes()
        + images.tobytes(),
        "t10k-labels-idx1-ubyte": b"\0\0\x08\x01"
        + np.array(labels.shape, ">u4").tobytes()
        + labels.astype(np.uint8).tobytes(),
    }
    server.files = {f"/{name}": content for name, content in idx.items()}
    remotes = tuple(
        replace(remote(server.base, content=content), name=name) for name, content in idx.items()
    )
    small("mnist", remote={"test": remotes})
    for offline in (False, False, True):
        dataset = load_dataset("mnist", offline=offline)
        np.testing.assert_array_equal(dataset.images, images)
        np.testing.assert_array_equal(dataset.labels, labels)
    assert server.requested == [f"/{name}" for name in idx]
    assert sorted(path.name for path in (empty_cache / "mnist").iterdir()) == sorted(idx)


def test_the_command_fetches_and_verifies(
    server, small, arrays, empty_cache, capsys, monkeypatch, tmp_path
):
    from lipcert.cli.main import main

    monkeypatch.chdir(tmp_path)
    content = npz_of(*arrays("cifar10", "test"))
    server.files = {"/cifar10_test.npz": content}
    source = replace(remote(server.base, content=content), name="cifar10_test.npz")
    small("cifar10", remote={"test": (source,)})
    assert main(["data", "verify", "cifar10"]) == 3
    assert server.requested == []
    for _ in range(2):
        assert main(["data", "fetch", "cifar10"]) == 0
    assert main(["data", "verify", "cifar10"]) == 0
    shown = capsys.readouterr()
    assert server.requested == ["/cifar10_test.npz"]
    first, *others = shown.out.splitlines()
    assert others == [first, first]
    assert first.split("\t")[:3] == ["cifar10", "test", "6 of 3x32x32"]
    server.files = {"/cifar10_test.npz": content[:-1] + b"x"}
    (empty_cache / "cifar10" / "cifar10_test.npz").unlink()
    assert main(["data", "fetch", "cifar10"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not the published file, and was removed" in line


def npz_of(images: np.ndarray, labels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, images=images, labels=labels)
    return file.getvalue()


def test_without_a_network_the_way_out_is_told(server, small):
    small("mnist", remote={"test": (remote(server.base + "gone/"),)})
    with pytest.raises(CannotCertify) as error:
        load_dataset("mnist")
    for part in (server.base + "gone/file.gz", "--data-dir", "mnist_test.npz"):
        assert part in str(error.value)
    assert server.requested == ["/gone/file.gz"]
