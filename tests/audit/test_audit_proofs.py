"""What a proof proves is true, whatever is in its file."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_models import NONE, model, network, node, preprocessing
from proof_files import (
    adversarial,
    changed,
    checked,
    checker,
    dense,
    network_of,
    proofs,
    replay_of,
    smallest_margin,
)

import lipcert
from lipcert.audit.deployed import Deployed, Preprocessing
from lipcert.audit.operators import NotRead
from lipcert.audit.proofs.check import Claim
from lipcert.audit.proofs.norms import Coins, randomised_norm
from lipcert.audit.proofs.replay import FormSource, Hints
from lipcert.certificate import Sample
from lipcert.errors import CannotCertify
from lipcert.options import Epsilon, Options
from lipcert.proving.recorder import record, write

KINDS = ["Relu", "Sigmoid", "Tanh", "Softplus", "Elu", "Abs", "LeakyRelu"]


def label_of(made, front, x):
    return int(Deployed(made, front)(x[None].astype(np.float32))[0].argmax())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1])
def test_no_content_of_a_file_proves_more_than_is_true(kind, seed, tmp_path):
    made, front = dense(seed, kind=kind), preprocessing((5,), std=[0.5])
    random = np.random.default_rng(seed)
    x = random.uniform(size=5).astype(np.float32)
    label, sizes = label_of(made, front, x), network_of(made, front).sizes
    for trial, eps in enumerate((0.003, 0.05, 0.3, 1.5)):
        least = smallest_margin(made, front, x, label, eps, seed)
        for _ in range(4):
            arrays = adversarial(random, sizes, 3, eps)
            found = checked(made, front, arrays, tmp_path / "p.npz", Claim(x, label, eps))
            assert found.margin <= least, (trial, found)
        # Not empty words: an honest proof of what holds by far is one.
        honest = proofs(made, front, x[None], [label], [eps])
        if eps == 0.003 and least > 0.05:
            assert len(honest.index) == 1
        if len(honest.index):
            found = checked(made, front, honest, tmp_path / "p.npz", Claim(x, label, eps))
            assert 0 < found.margin <= least


@pytest.mark.parametrize("kind", ["Relu", "Tanh", "Clip"])
def test_boxes_and_balls_of_any_file_hold_at_sampled_points(kind):
    seed = len(kind)
    more = {} if kind != "Clip" else {"min": -0.4, "max": 0.7}
    made = network(seed, kind) if kind != "Clip" else _clipped(seed, **more)
    shape = (2, 4, 4) if kind != "Clip" else (5,)
    front = preprocessing(shape, mean=[0.3], std=[0.6])
    random = np.random.default_rng(seed)
    x = random.uniform(size=shape).astype(np.float32)
    own = network_of(made, front)
    flat = torch.from_numpy(x.reshape(1, -1).astype(np.float64))
    for eps in (0.02, 0.4):
        arrays = adversarial(random, own.sizes, own.graph.widths[own.graph.output], eps)
        rows = np.arange(1)
        source = FormSource(own, arrays, rows)
        with torch.no_grad():
            state = replay_of(own).state(
                flat,
                torch.tensor([eps], dtype=torch.float64),
                Hints.of(arrays, rows),
                source.of_box,
            )
        offsets = torch.from_numpy(random.normal(size=(500, flat.shape[1])))
        share = eps * torch.from_numpy(random.random((500, 1))) ** 0.1
        values = [flat + offsets / offsets.norm(dim=1, keepdim=True) * share * (1 - 1e-9)]
        for step in own.graph.steps:
            if hasattr(step, "maps"):
                pairs = zip(step.inputs, step.maps, strict=True)
                values.append(sum(m.forth(values[i]) for i, m in pairs) + step.bias)
            else:
                values.append(step.function.value(values[step.input]))
        for value, layer in state.layers.items():
            change = values[own.graph.bend(value).input] - layer.sink.value
            assert bool((change >= layer.sink.low).all())
            assert bool((change <= layer.sink.high).all())
            assert float((change * layer.mask).norm(dim=1).max()) <= float(layer.ball[0])
            risen = values[value] - state.sources[value].value
            secant = risen / torch.where(change == 0, 1.0, change)
            known = (change.abs() > 1e-6) & (layer.mask != 0)
            inside = (secant - layer.middle).abs() <= layer.half + 1e-8
            assert bool((inside | ~known).all())
            outside = (risen < state.sources[value].low - 1e-9) | (
                risen > state.sources[value].high + 1e-9
            )
            assert not bool(outside.any())


def _clipped(seed, **limits):
    random = np.random.default_rng(seed)
    nodes = [
        node("Gemm", "x w b", "z"), node("Clip", "z low high", "a"), node("Gemm", "a v c", "z2"),
        node("Relu", "z2", "a2"), node("Gemm", "a2 u", "y"),
    ]  # fmt: skip
    return model(
        nodes, (5,), w=random.normal(size=(5, 9)), b=random.normal(size=9) * 0.3,
        v=random.normal(size=(9, 9)) / 3, c=random.normal(size=9) * 0.2,
        u=random.normal(size=(9, 3)), low=np.float32(limits["min"]),
        high=np.float32(limits["max"]),
    )  # fmt: skip


def split_proof():
    """A network, a sample, and the first proof found with leaves."""
    for seed in range(20):
        made, front = dense(seed, (6, 14, 14, 3)), preprocessing((6,))
        x = np.random.default_rng(seed).uniform(size=6).astype(np.float32)
        label = label_of(made, front, x)
        for eps in np.linspace(0.05, 0.6, 12):
            arrays = proofs(made, front, x[None], [label], [float(eps)])
            if not len(arrays.index):
                break
            if len(arrays.cut_neuron):
                return made, front, x, label, float(eps), arrays
    raise AssertionError("no proof has leaves")


@pytest.fixture(scope="module")
def split():
    return split_proof()


def test_leaves_prove_a_margin_only_where_they_cover_the_box(split, tmp_path):
    made, front, x, label, eps, arrays = split
    path, claim = tmp_path / "p.npz", Claim(x, label, eps)
    assert checked(made, front, arrays, path, claim).proven
    cut = np.flatnonzero(arrays.form_cuts > 0)
    for lost in cut:
        keep = np.arange(len(arrays.form_bend)) != lost
        first = np.concatenate([[0], np.cumsum(arrays.form_cuts)])
        rest = np.ones(len(arrays.cut_neuron), bool)
        rest[first[lost] : first[lost + 1]] = False
        forms = {
            name: getattr(arrays, name)[keep]
            for name in vars(arrays) if name.startswith("form_")
        }  # fmt: skip
        names = ("cut_neuron", "cut_place", "cut_above")
        cuts = {name: getattr(arrays, name)[rest] for name in names}
        found = checked(made, front, changed(arrays, **forms, **cuts), path, claim)
        assert not found.proven
        assert found.reason == "a margin has no proof"
    # Both halves on one side; and two halves of different cuts.
    above = changed(arrays, cut_above=lambda a: a | True)
    assert not checked(made, front, above, path, claim).proven
    # Smaller leaves that leave out what lies between.
    apart = changed(arrays, cut_place=lambda a: a + np.where(arrays.cut_above, 1e-3, -1e-3))
    assert not checked(made, front, apart, path, claim).proven
    moved = changed(arrays, cut_place=lambda a: a + np.arange(len(a)))
    assert not checked(made, front, moved, path, claim).proven


FORGERIES = {
    "multipliers of nought": {"form_multiplier": lambda a: a * 0},
    "huge multipliers": {"form_multiplier": lambda a: a * 1e30},
    "negative multipliers": {"form_multiplier": lambda a: -a},
    "scales of nought": {"edge_scale": lambda a: a * 0, "chain_scale": lambda a: a * 0},
    "tiny scales": {"edge_scale": lambda a: a * 0 + 1e-30, "chain_scale": lambda a: a * 0 + 1e-30},
    "negative scales": {"edge_scale": lambda a: -a, "chain_scale": lambda a: -a},
    "negative weights": {"chain_weight": lambda a: -a - 1},
    "huge weights": {"chain_weight": lambda a: a * 0 + 1e30},
    "steep slopes": {"slopes": lambda a: a * 0 + 255},
    "other slopes": {"slopes": lambda a: 255 - a},
    "other rules": {"form_rule": lambda a: 1 - a},
    "no slopes": {"form_slopes": lambda a: a * 0 - 1},
    "other signs": {"form_sign": lambda a: -a},
    "other places": {"form_place": lambda a: (a + 1) % 3},
    "huge places": {"form_place": lambda a: a + 2**30},
    "cuts at infinity": {"cut_place": lambda a: a * 0 + 1e300},
    "cuts of others": {"cut_neuron": lambda a: a * 0},
    "cuts on one side": {"cut_above": lambda a: a | True},
    "all of it": {
        "form_multiplier": lambda a: a * 0 + 1e-30, "chain_scale": lambda a: a * 0 + 1e-30,
        "slopes": lambda a: a * 0 + 128, "chain_weight": lambda a: a * 0 + 1e-30,
    },
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_file_proves_nothing_that_is_false(forgery, split, tmp_path):
    """The claim is broken by a point that is known; or the label is another one."""
    made, front, x, label, eps, arrays = split
    false = next(e for e in np.linspace(eps, 20 * eps, 40)
                 if smallest_margin(made, front, x, label, float(e), 0) < 0)  # fmt: skip
    forged = changed(arrays, eps=lambda a: a * 0 + 1e6, **FORGERIES[forgery])
    path = tmp_path / "p.npz"
    for eps_, other in ((float(false), label), (eps, (label + 1) % 3), (1e5, label)):
        assert not checked(made, front, forged, path, Claim(x, other, eps_)).proven


def test_a_proof_is_of_its_own_sample_and_radius(split, tmp_path):
    made, front, x, label, eps, arrays = split
    path = tmp_path / "p.npz"
    write(arrays, path)
    check = checker(made, front, path)
    found = check({0: Claim(x, label, eps * 1.01), 5: Claim(x, label, eps)})
    assert "is for" in found[0].reason
    assert found[5].reason == "there is no proof of it"
    assert not any(one.proven for one in found.values())
    assert not check({0: Claim(x, label, float("nan"))})[0].proven
    # Smaller is as good, and each time there are other coins.
    assert check({0: Claim(x, label, eps * 0.9)})[0].proven


DAMAGED = {
    "NaN": ({"form_multiplier": lambda a: a * np.nan}, "form_multiplier is not finite"),
    "infinity": ({"cut_place": lambda a: a + np.inf}, "cut_place is not finite"),
    "a sample twice": (
        {"index": [0, 0], "eps": [1, 1], "edge_scale": lambda a: np.repeat(a, 2, 0),
         "chain_scale": lambda a: np.repeat(a, 2, 0),
         "chain_weight": lambda a: np.repeat(a, 2, 0)}, "index names a sample twice",
    ),
    "no such row": ({"form_sample": lambda a: a + 7}, "form_sample is no row of index"),
    "no such function": ({"form_bend": lambda a: a + 90}, "form_bend is no function"),
    "a negative place": ({"form_place": lambda a: -a - 1}, "form_place is negative"),
    "a sign of 3": ({"form_sign": lambda a: a * 3}, "form_sign is not 1"),
    "a rule of 9": ({"form_rule": lambda a: a + 9}, "form_rule is no rule"),
    "no such slopes": ({"form_slopes": lambda a: a + 10**6}, "form_slopes is no row"),
    "no such neuron": ({"cut_neuron": lambda a: a + 10**6}, "cut_neuron is no neuron"),
    "too few cuts": ({"form_cuts": lambda a: a * 2}, "form_cuts does not count"),
    "other widths": ({"slopes": lambda a: a[:, 1:]}, "slopes has an axis of"),
    "other axes": ({"eps": lambda a: a[:, None]}, "eps is not float64 of 1 axes"),
    "other lengths": ({"form_rule": lambda a: a[1:]}, "form_rule has"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_with_the_place(damage, split, tmp_path):
    made, front, x, label, eps, arrays = split
    others, message = DAMAGED[damage]
    with pytest.raises(CannotCertify, match=message):
        checked(made, front, changed(arrays, **others), tmp_path / "p.npz", Claim(x, label, eps))


def test_what_is_no_file_of_proofs_is_refused(split, tmp_path):
    made, front, *_, arrays = split
    path = tmp_path / "p.npz"
    write(arrays, path)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[:-40], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CannotCertify, match=r"p\.npz: is damaged"):
            checker(made, front, path)
    np.savez(path, version=1)
    with pytest.raises(CannotCertify, match="its arrays are to be version, index"):
        checker(made, front, path)
    own = dict(vars(arrays))
    np.savez_compressed(path, version=np.int64(2), **own)
    with pytest.raises(CannotCertify, match="version is not 1"):
        checker(made, front, path)
    # More than a certificate of so many samples can have is not even unpacked.
    write(arrays, path)
    with pytest.raises(CannotCertify, match="has an axis of 1, to be 0"):
        checker(made, front, path, samples=0)
    huge = dict(own, slopes=np.zeros((2**31 // own["slopes"].shape[1] + 1, 0), np.uint8))
    np.savez_compressed(path, version=np.int64(1), **huge)
    with pytest.raises(CannotCertify, match="slopes has an axis of 0"):
        checker(made, front, path)


@pytest.mark.parametrize("seed", range(6))
def test_norms_are_upper_bounds_for_any_scale(seed):
    random = np.random.default_rng(seed)
    size, batch = int(random.integers(3, 60)), 4
    rows = torch.from_numpy(random.normal(size=(batch, size, 12)))
    if seed % 2:
        # Clustered spectra.
        rows = torch.linalg.qr(rows.mT if size < 12 else rows)[0][:, : size if size >= 12 else 12]
        size = rows.shape[1]
    exact = torch.linalg.matrix_norm(rows, ord=2)

    def gram(v, absolute):
        part = rows.abs() if absolute else rows
        return torch.einsum("bij,bkj,bk->bi", part, part, v)

    for share in (1e-3, 0.5, 0.98, 1.02, 3.0, 1e3):
        found = randomised_norm(gram, size, share * exact.square(), Coins(1e-9, 100), 200)
        assert bool((found >= exact).all())
        if share == 1.02:
            assert bool((found <= 1.06 * exact).all())


def test_values_that_are_multiplied_by_themselves_are_not_read():
    square = model([node("Mul", "x x", "s"), node("Gemm", "s w", "y")], (2,), w=np.eye(2))
    over = model([node("Div", "c x", "s"), node("Gemm", "s w", "y")], (2,), w=np.eye(2), c=[1.0])
    for made in (square, over):
        with pytest.raises(NotRead):
            network_of(made, preprocessing((2,)))


def test_the_checker_shares_nothing_with_what_it_checks():
    """And is short enough to be read."""
    count, folder = 0, Path(lipcert.__file__).parent / "audit"
    shared = ("affine", "arithmetic", "bent", "deployed", "graph", "interpreter", "linear",
              "matrix", "operators")  # fmt: skip
    for path in (*(folder / f"{name}.py" for name in shared), *folder.glob("proofs/*.py")):
        for part in ast.walk(ast.parse(path.read_text())):
            if isinstance(part, ast.ImportFrom) and (part.module or "").startswith("lipcert."):
                name = part.module.removeprefix("lipcert.")
                own = {"audit", "audit.proofs", "bounded", "errors"}
                own |= {f"audit.{one}" for one in shared}
                assert name in own or name.startswith("audit.proofs."), (path, name)
    for path in folder.glob("proofs/*.py"):
        count += len(path.read_text().splitlines())
    assert count < 1500


def test_the_front_of_a_file_is_as_it_is_run():
    """Statistics of every channel, in a file that has its channels last, blue first, or three of
    them for one: as onnxruntime reads them."""
    random = np.random.default_rng(3)
    for channels, layout in ((3, None), (3, "HWC"), (3, "WHC")):
        for order in ("bgr", None):
            shape = (3, 2, 2) if layout is None else (2, 2, 3)
            nodes = [node("Flatten", "x", "f"), node("Gemm", "f w", "y")]
            made = model(nodes, shape, w=random.normal(size=(12, 4)))
            record = {
                "preprocessing": {"mean": [0.1, 0.5, 0.9], "std": [0.2, 0.7, 1.3],
                                  "layout": layout, "value_range": [0, 1], "channels": order},
                "input_shape": [1, *shape],
            }  # fmt: skip
            for gray in (False, True) if order is None else (False,):
                record["preprocessing"]["channels"] = "rgb" if gray else order
                pixels = random.uniform(size=(5, 1 if gray else channels, 2, 2))
                front = Preprocessing.of(record, pixels.shape[1:])
                graph = network_of(made, front).graph
                value = torch.from_numpy(pixels.reshape(5, -1))
                for step in graph.steps:
                    value = step.maps[0].forth(value) + step.bias
                theirs = Deployed(made, front)(pixels.astype(np.float32))
                np.testing.assert_allclose(value.numpy(), theirs, atol=1e-5)


def test_what_a_tube_decided_has_no_proof_and_is_named(tmp_path):
    """No proof is sought of it; those of other samples are, and the checker names what is left."""
    made, front = dense(1), preprocessing((5,))
    x = np.random.default_rng(1).uniform(size=(3, 5)).astype(np.float32)
    labels, eps = [label_of(made, front, one) for one in x], "0.001"
    samples = [
        Sample(k, label, label, "certified", 1.0, 0.001, None, method, 0.1, (eps,))
        for k, (label, method) in enumerate(zip(labels, ("dual", "tube", "dual"), strict=True))
    ]
    record_of = {"preprocessing": NONE, "input_shape": [1, 5], "stripped": None}

    def recorded(some):
        options = Options((Epsilon.parse(eps),))
        content = made.SerializeToString()
        return record(content, record_of, some, options, lambda index: x[index], (5,))

    found = recorded(samples)
    assert found.unproven == (1,)
    assert found.arrays.index.tolist() == [0, 2]
    claims = {k: Claim(x[k], labels[k], 0.001) for k in range(3)}
    write(found.arrays, tmp_path / "p.npz")
    outcomes = checker(made, front, tmp_path / "p.npz")(claims)
    assert [outcomes[k].proven for k in range(3)] == [True, False, True]
    # Of tubes alone there is a file without proofs.
    found = recorded(samples[1:2])
    assert found.unproven == (1,)
    write(found.arrays, tmp_path / "none.npz")
    assert (
        checker(made, front, tmp_path / "none.npz")(claims)[1].reason == "there is no proof of it"
    )
    # Nor of files that end in what the checker does not know.
    ends, options = record_of | {"stripped": "Sigmoid"}, Options((Epsilon.parse(eps),))
    found = record(b"", ends, samples, options, lambda index: x[index], (5,))
    assert (found.arrays, found.unproven) == (None, (0, 1, 2))


def test_a_network_without_activations_has_proofs_or_none(tmp_path):
    random = np.random.default_rng(0)
    made, front = model([node("Gemm", "x w", "y")], (4,), w=random.normal(size=(4, 3))), None
    front, x = preprocessing((4,)), random.uniform(size=(1, 4)).astype(np.float32)
    label = label_of(made, front, x[0])
    for eps in (1e-3, 0.05, 5.0):
        arrays = proofs(made, front, x, [label], [eps])
        least = smallest_margin(made, front, x[0], label, eps, 0)
        assert len(arrays.index) == (least > 1e-2)
