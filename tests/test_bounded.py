"""Files that unpack to far more than they are: refused before memory is taken for them."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from lipcert import bounded
from lipcert.data import load_dataset
from lipcert.data.files import read_members
from lipcert.errors import CannotCertify, UsageError
from lipcert.report import thumbnails
from lipcert.train import checkpoint

GIGA = 1 << 30


def header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def deflated_zeros(start: bytes, size: int) -> bytes:
    """A raw deflate stream of ``start`` and so many zeros, without ever holding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing is remembered: every block comes out the same.
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * (size >> 20) + packer.compress(bytes(size % (1 << 20))) + packer.flush()


def bomb(path: Path, others: dict[str, bytes], shape: tuple[int, ...], dtype: str) -> None:
    """An npz file whose ``image`` really unpacks to what its header declares; the zeros' checksum
    is left wrong, nobody is to come that far."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    start = header(shape, dtype)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in others.items():
            archive.writestr(f"{name}.npy", content)
        info = zipfile.ZipInfo("image.npy")
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, start)
    # The last member's content and sizes are put in by hand: names and places stay.
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("image.npy")
        kept = path.read_bytes()[: info.header_offset]
    content = deflated_zeros(start, size)
    with path.open("wb") as file:
        file.write(kept)
        name = b"image.npy"
        extra = zip64(len(start) + size, len(content))
        file.write(b"PK\x03\x04" + packed("HHHHHIIIHH", 45, 0, 8, 0, 0, 0, FULL, FULL,
                                          len(name), len(extra)) + name + extra)  # fmt: skip
        file.write(content)
        begin = file.tell()
        for other in others:
            file.write(directory(path, other, kept))
        file.write(b"PK\x01\x02" + packed("HHHHHHIIIHHHHHII", 45, 45, 0, 8, 0, 0, 0, FULL, FULL,
                                          len(name), len(extra), 0, 0, 0, 0, len(kept))
                   + name + extra)  # fmt: skip
        end = file.tell()
        count = len(others) + 1
        file.write(b"PK\x05\x06" + packed("HHHHIIH", 0, 0, count, count, end - begin, begin, 0))


FULL = 0xFFFFFFFF


def packed(form: str, *values: int) -> bytes:
    return struct.pack("<" + form, *values)


def zip64(size: int, stored: int) -> bytes:
    return packed("HHQQ", 1, 16, size, stored)


def directory(path: Path, name: str, kept: bytes) -> bytes:
    """The entry of an earlier member, read back from what was kept of the file."""
    place = kept.index(name.encode() + b".npy") - 30
    version, flags, way, hour, day, crc, stored, size, length, extra = struct.unpack(
        "<HHHHHIIIHH", kept[place + 4 : place + 30]
    )
    assert extra == 0
    return (
        b"PK\x01\x02"
        + packed("HHHHHHIIIHHHHHII", 20, version, flags, way, hour, day, crc, stored, size,
                 length, 0, 0, 0, 0, 0, place)
        + name.encode() + b".npy"
    )  # fmt: skip


def test_a_bomb_of_the_test_is_one(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    bomb(path, {"index": npy([0])}, (1, 1, 2048, 2048), "<f8")
    assert path.stat().st_size < 1 << 16
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("image.npy").file_size > 32 << 20


SMALL_MEMORY = """
import resource, sys
import numpy, torch
import {imported}
with open("/proc/self/statm") as file:
    taken = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (512 << 20),) * 2)
from pathlib import Path
from lipcert.errors import LipcertError
try:
    {run}
except LipcertError as error:
    print(type(error).__name__, error)
"""


def in_little_memory(imported: str, run: str) -> str:
    """What it prints with 512 MiB more than the imports take."""
    code = SMALL_MEMORY.format(imported=imported, run=run)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["thumbnails", "counterexamples"])
def test_pictures_that_unpack_to_five_gigabytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.npz"
    bomb(path, {"index": npy([0])}, (1, 3, 14930, 14930), "<f8")
    assert path.stat().st_size < 8 << 20
    told = in_little_memory("lipcert.report.thumbnails as t", f"t.read_images(Path({str(path)!r}))")
    assert told.startswith("CannotCertify")
    assert "stored bytes can hold" in told
    assert "remove it or certify again" in told


def test_a_row_of_pictures_may_not_be_larger_than_a_report_needs(tmp_path: Path) -> None:
    path = tmp_path / "thumbnails.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("index.npy", npy([0]))
        # Stored as it is declared, but for a hole in the file.
        archive.writestr("image.npy", header((1, 3, 6000, 6000), "<f8"))
    with pytest.raises(CannotCertify, match="the file holds"):
        thumbnails.read_images(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("index.npy", npy([0]))
        archive.writestr("image.npy", npy(np.zeros((1, 3, 4, 4))))
    assert thumbnails.read_images(path)[0].shape == (3, 4, 4)


def test_a_dataset_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    bomb(path, {"labels": npy([0])}, (3 * GIGA // 64, 1, 8, 8), "|u1")
    path.write_bytes(path.read_bytes().replace(b"image.npy", b"x_img.npy"))
    with bounded.opened(path, "data.npz") as archive, pytest.raises(CannotCertify, match="stored"):
        archive.read("x_img", bounded.DATASET_BYTES)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header((1 << 40,), "<f4"), "declares shape"),
        (header((-1, 4), "<f4"), "declares shape"),
        (header((1 << 62, 1 << 62), "<f4") + bytes(64), "declares shape"),
        (header((2,), "|O") + bytes(16), "Python objects"),
        (b"\x93NUMPY\x09\x00" + bytes(64), "format 9.0"),
        (npy([1.0, 2.0])[:-3], "declares shape"),
    ],
)
def test_arrays_are_as_long_as_they_say(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(CannotCertify, match=reason):
        bounded.array_of(content, "point")
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", npy([0]))
    with pytest.raises(CannotCertify, match=reason):
        load_dataset(str(path))


def test_arrays_that_are_sound_are_read() -> None:
    for array in (np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.int8), np.float32(3)):
        assert (bounded.array_of(npy(array), "array") == array).all()


def test_a_journal_whose_point_asks_for_a_terabyte() -> None:
    from lipcert.run import journal_lines

    text = base64.b64encode(header((1 << 37,), "<f8")).decode()
    with pytest.raises(CannotCertify, match="declares shape"):
        journal_lines.point_of(text)
    assert journal_lines.point_of(journal_lines.text_of(np.ones(3))).tolist() == [1, 1, 1]


def test_a_tar_whose_header_alone_unpacks_to_gigabytes(tmp_path: Path) -> None:
    """An extended header is read whole by ``tarfile``, however long it is."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 3 * GIGA
    path = tmp_path / "set.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1 << 20))
    told = in_little_memory(
        "lipcert.data.files as f", f"f.read_members(Path({str(path)!r}), ['a'])"
    )
    assert told.startswith("CannotCertify")
    assert "more than the" in told
    good = tmp_path / "good.tar.gz"
    with tarfile.open(good, "w:gz") as archive:
        member = tarfile.TarInfo("a")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    [blob] = read_members(good, ["a"])
    assert blob.data == b"abc"


def test_an_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "one").mkdir()
    Image.new("1", (9000, 9000)).save(tmp_path / "one" / "a.png")
    assert (tmp_path / "one" / "a.png").stat().st_size < 1 << 16
    with pytest.raises(CannotCertify, match=r"a\.png: takes 81000000 bytes"):
        load_dataset(str(tmp_path))


def test_a_checkpoint_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.FILE
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    with pytest.raises(CannotCertify, match="declares more than it holds"):
        checkpoint.load(tmp_path, {})


def test_audit_reads_no_more_points_than_there_are_samples(tmp_path: Path) -> None:
    from lipcert.audit.run import saved_points

    path = tmp_path / "counterexamples.npz"
    np.savez_compressed(path, index=[0, 1], image=np.ones((2, 1, 2, 2), np.float32))
    assert set(saved_points(path, 2, (1, 2, 2))) == {0, 1}
    for count, shape in ((1, (1, 2, 2)), (2, (1, 1, 2))):
        with pytest.raises(CannotCertify, match=r"more than the .* that are read"):
            saved_points(path, count, shape)
    np.savez_compressed(path, index=np.zeros(1 << 20, np.int64), image=np.ones((1, 1, 2, 2)))
    with pytest.raises(CannotCertify, match="more than the 16 that are read"):
        saved_points(path, 2, (1, 2, 2))


# Data as people have them


def write_large(path: Path) -> None:
    """Files of a few kilobytes that ask for gigabytes, by their kind."""
    name, kind = path.stem, path.suffix
    if kind == ".npy":
        path.write_bytes(header((1 << 40, 8), "<f4") + bytes(64))
        np.save(path.with_name("labels.npy"), np.zeros(2, int))
    elif name == "view":
        import torch

        images = torch.zeros(1).expand(1 << 30, 8, 8, 3)
        torch.save({"images": images, "labels": torch.zeros(4)}, path)
    elif kind == ".pt":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(1 << 24))
    elif kind == ".parquet":
        arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        if name == "same":  # one picture of 1 MiB, in a hundred thousand rows
            one = arrow.DictionaryArray.from_arrays(
                arrow.array(np.zeros(100_000, np.int32)), arrow.array([bytes(1 << 20)])
            )
            table = arrow.table({"image": one, "label": arrow.array(np.zeros(100_000, np.int8))})
            parquet.write_table(table.cast(arrow.schema({
                "image": arrow.dictionary(arrow.int32(), arrow.binary()), "label": arrow.int8()
            })), path, store_schema=False)  # fmt: skip
        else:  # one row of zeros
            zeros = arrow.array(np.zeros(40_000_000, np.float32))
            wide = arrow.ListArray.from_arrays([0, len(zeros)], zeros)
            table = arrow.table({"image": wide, "label": arrow.array([0], arrow.int8())})
            parquet.write_table(table, path)
    assert path.stat().st_size < 1 << 20


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("images.npy", "declares shape"),
        ("view.pt", "more than the"),
        ("packed.pt", "declares more than it holds"),
        ("same.parquet", "more than the"),
        ("zeros.parquet", "stored bytes can hold"),
    ],
)
def test_small_files_that_ask_for_gigabytes(tmp_path: Path, name: str, told: str) -> None:
    path = tmp_path / name
    write_large(path)
    with pytest.raises(CannotCertify, match=told):
        load_dataset(str(path))


def test_a_picture_in_an_archive_that_unpacks_to_more_than_a_picture_is(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    path = tmp_path / "tiny-imagenet-200.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("tiny-imagenet-200/val/n00000001/a.png", "w") as file,
    ):
        for _ in range(65):
            file.write(bytes(1 << 20))
    with pytest.raises(CannotCertify, match=r"a\.png: takes 67108865 bytes"):
        load_dataset("tiny-imagenet", data_dir=tmp_path)


@pytest.mark.parametrize("label", [1 << 40, 1 << 62])
def test_labels_that_are_no_numbers_of_classes(tmp_path: Path, label: int) -> None:
    """A table of all classes would take all memory."""
    for labels in ([0, label], ["0", str(label)], ["0", str(label) * 9]):
        np.savez(tmp_path / "data.npz", images=np.zeros((2, 1, 2, 2)), labels=labels)
        with pytest.raises(UsageError, match="no numbers of classes"):
            load_dataset(str(tmp_path / "data.npz"))
