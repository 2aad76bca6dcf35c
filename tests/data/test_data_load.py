import subprocess
import sys
import textwrap

import numpy as np
import pytest

from lipcert.data import load_dataset
from lipcert.errors import UsageError

DIGESTS = {
    "test": "4f0c7aab4ee55c59e2ac71484137504a33098f0ed7b8c7cd28d31a74fcc56ba3",
    "train": "515133e7662f2c084339fe33612f593bb8310629008cc9a776ab802dcde89421",
    "all": "47abbe5b69a75f02a06b9cd2ee5553f741d61b6e501077b73c1349c70d5c105f",
}


@pytest.mark.parametrize(("split", "count"), [("test", 360), ("train", 1437), ("all", 1797)])
def test_digits_are_the_embedded_ones(split, count):
    digits = load_dataset("digits", split=split)
    assert digits.images.shape == (count, 1, 8, 8)
    assert digits.images.dtype == np.float32
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    np.testing.assert_array_equal(digits.images * 16 % 1, 0)
    assert digits.classes == 10
    assert np.bincount(digits.labels, minlength=10).min() > 0.07 * count
    assert digits.sha256 == DIGESTS[split]


def test_splits_of_digits_are_disjoint_and_complete():
    test, train, every = (load_dataset("digits", split=s) for s in ("test", "train", "all"))
    is_test = np.arange(len(every)) % 5 == 0
    np.testing.assert_array_equal(every.images[is_test], test.images)
    np.testing.assert_array_equal(every.labels[~is_test], train.labels)


def test_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    images, labels = datasets.load_digits(return_X_y=True)
    every = load_dataset("digits", split="all")
    np.testing.assert_array_equal(every.images.reshape(-1, 64) * 16, images)
    np.testing.assert_array_equal(every.labels, labels)


def test_a_split_that_digits_lack_is_named():
    with pytest.raises(UsageError, match="test, train, all, not 'dev'"):
        load_dataset("digits", split="dev")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar-10", "did you mean cifar10"),
        ("MNIST", "did you mean mnist"),
        ("fashion", "did you mean fashion-mnist"),
        (
            "digit",
            "Known are digits, mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet, gtsrb",
        ),
        ("?", "unknown dataset"),
        ("absent.npz", "no such file"),
        ("./absent", "no such file"),
        ("absent/images", "no such file"),
    ],
)
def test_unknown_specs_are_told_what_is_known(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        load_dataset(spec)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "data.xls"
    path.write_text("0,1")
    with pytest.raises(UsageError, match=r"\.npz, .*\.csv, .* files and folders"):
        load_dataset(str(path))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`module(code)`: a package in the working folder holding `code`; the spec's first part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))

    def write(code):
        package = tmp_path / "own_package"
        package.mkdir()
        (package / "__init__.py").touch()
        text = "import numpy as np\nfrom lipcert.data import Dataset\n" + textwrap.dedent(code)
        (package / "source.py").write_text(text)
        return "own_package.source"

    return write


def test_factories_return_arrays_or_a_dataset(module):
    name = module(
        """
        def plain():
            return np.zeros((2, 5, 5, 3), np.uint8), [0, 1]

        def by_split(split):
            return np.full((2, 5), 2.0 if split == "train" else 0.0), np.array([0, 1])

        def by_keyword(**options):
            return by_split(**options)

        def whole():
            images = np.zeros((2, 5), np.uint8)
            return Dataset("mine", "dev", images, np.array([0, 1]), 3, "code")
        """
    )
    before = list(sys.path)
    plain = load_dataset(f"{name}:plain")
    assert plain.images.shape == (2, 3, 5, 5)
    assert plain.labels.tolist() == [0, 1]
    assert (plain.name, plain.source) == (f"{name}:plain", f"{name}:plain")
    for factory in ("by_split", "by_keyword"):
        train = load_dataset(f"{name}:{factory}", split="train", value_range=(0, 4))
        np.testing.assert_array_equal(train.images, 0.5)
    assert load_dataset(f"{name}:whole").name == "mine"
    assert sys.path == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no such table')", "ValueError: no such table"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("return None", "returned NoneType; it must return"),
        ("return [1, 2, 3]", "pairs .*, not int"),
        ("return np.zeros((2, 5)), np.full(2, 0.5)", "labels must be"),
        ("return np.zeros((2, 5)), [0, 1, 2]", "labels"),
        ("return Dataset('a', 'b', np.zeros(2), np.zeros(2), 1, 'code')", "code: images must"),
    ],
)
def test_what_a_factory_does_wrong_is_named(module, body, message):
    name = module(f"def factory():\n    {body}\n")
    with pytest.raises(UsageError, match=message):
        load_dataset(f"{name}:factory")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent_package:factory", "No module named 'absent_package'"),
        ("own_package.source:absent", "has no attribute 'absent'"),
        ("own_package.source:np", "TypeError"),
    ],
)
def test_a_factory_that_is_not_there_is_named(module, spec, message):
    module("")
    with pytest.raises(UsageError, match=message):
        load_dataset(spec)


def test_neither_torch_nor_pillow_is_imported():
    code = "import sys, lipcert.data as d; d.load_dataset('digits'); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "PIL"} & set(result.stdout.split())
