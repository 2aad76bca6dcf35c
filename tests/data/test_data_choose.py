import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcert.data import choose, indices_digest
from lipcert.data.arrays import to_dataset
from lipcert.errors import CannotCertify, UsageError


def of_size(count, name="fashion-mnist", split="test"):
    images, labels = np.zeros((count, 2)), np.zeros(count, int)
    return to_dataset(name, split, images, labels, source="source")


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 2**32))
def test_limits_take_the_first_or_a_seeded_sorted_subset(count, limit, seed):
    dataset = of_size(count)
    first, random = choose(dataset, limit=limit), choose(dataset, limit=limit, seed=seed)
    assert first.dtype == random.dtype == np.int64
    assert first.tolist() == list(range(min(limit, count)))
    assert random.tolist() == sorted(set(random.tolist()))
    assert len(random) == min(limit, count)
    assert set(random.tolist()) <= set(range(count))
    np.testing.assert_array_equal(random, choose(dataset, limit=limit, seed=seed))


def test_without_options_all_are_chosen():
    assert choose(of_size(4)).tolist() == [0, 1, 2, 3]
    assert choose(of_size(4), seed=3).tolist() == [0, 1, 2, 3]


def test_seeds_differ():
    dataset = of_size(1000)
    assert choose(dataset, limit=5, seed=0).tolist() != choose(dataset, limit=5, seed=1).tolist()


@given(st.permutations(range(20)), st.integers(1, 25))
def test_every_form_of_a_list_keeps_its_order(tmp_path_factory, order, limit):
    path = tmp_path_factory.mktemp("indices") / "indices"
    forms = [
        "\n".join(map(str, order)),
        json.dumps(order),
        json.dumps({"mnist": [0], "fashion_mnist-test": order}),
        json.dumps({"mnist_test": [0], "fashion_mnist": order}),
    ]
    for text in forms:
        path.write_text(text)
        assert choose(of_size(20), indices_file=path).tolist() == order
        assert choose(of_size(20), indices_file=path, limit=limit).tolist() == order[:limit]


def test_the_split_is_preferred_to_the_name(tmp_path):
    path = tmp_path / "indices.json"
    path.write_text(json.dumps({"mnist": [1], "mnist_test": [2]}))
    assert choose(of_size(3, "mnist"), indices_file=path).tolist() == [2]
    assert choose(of_size(3, "mnist", "train"), indices_file=path).tolist() == [1]
    assert choose(of_size(3, "mnist_test", "test"), indices_file=path).tolist() == [2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n1\n2", "entry 3 repeats 1"),
        ("0\n5\n9", "entry 2 is 5, outside 0 to 4"),
        ("[0, -1]", "entry 2 is -1"),
        ("[0, 1.0]", "entry 2 is not an integer"),
        ("[true]", "entry 1 is not an integer"),
        ("[0, null]", "entry 2 is not an integer"),
        ("zero", "no list of indices"),
        ("[0, 1", "no list of indices"),
        ("[" * 100_000, "no list of indices"),
        ('{"cifar10_test": [0], "mnist": [1]}', "it has cifar10_test, mnist"),
        ('{"fashion_mnist": 3}', "a list of integers is needed, not int"),
        (f"[{10**30}]", "outside 0 to 4"),
    ],
)
def test_bad_lists_name_the_first_offender(tmp_path, text, message):
    path = tmp_path / "indices"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        choose(of_size(5), indices_file=path)


def test_a_missing_list_is_wrong_use(tmp_path):
    with pytest.raises(UsageError, match="no list of indices"):
        choose(of_size(5), indices_file=tmp_path / "absent")


@pytest.mark.parametrize("limit", [0, -1])
def test_limits_are_at_least_one(limit):
    with pytest.raises(UsageError, match="--limit"):
        choose(of_size(5), limit=limit)


@pytest.mark.parametrize("text", ["", "[]", '{"fashion-mnist": []}'])
def test_an_empty_choice_cannot_be_certified(tmp_path, text):
    path = tmp_path / "indices"
    path.write_text(text)
    with pytest.raises(CannotCertify, match="nothing to certify"):
        choose(of_size(5), indices_file=path)


@given(st.lists(st.integers(0, 99), unique=True), st.lists(st.integers(0, 99), unique=True))
def test_digests_are_equal_for_equal_lists_only(left, right):
    same = indices_digest(left) == indices_digest(np.array(right, np.int64))
    assert same == (left == right)
