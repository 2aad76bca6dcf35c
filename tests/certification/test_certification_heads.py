"""Heads: the K best, some of the classes, probabilities. What is certified is attacked as what it
claims, by a definition written down here, and held against exact radii."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from attacks import in_ball
from certification.made import small_case
from laws import normal, seeded, uniform
from torch import Tensor

from lipcert.certification import Certifier
from lipcert.certification.attack import nearest
from lipcert.certification.file_check import FileCheck, probes
from lipcert.certification.findings import answers
from lipcert.certification.heads import PLAIN, Head
from lipcert.errors import CannotCertify, UsageError
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.joints import Product
from lipcert.network.operators import Dense
from lipcert.options import Epsilon, Options
from lipcert.rounding import SINGLE

HEADS = [Head(2), Head(3), Head(classes=(0, 2, 3)), Head(2, (0, 2, 3, 5)), Head(margin=0.4)]
IDS = ["top-2", "top-3", "subset", "top-2 of a subset", "margin"]


def holds(head: Head, logits: Tensor, labels: Tensor) -> Tensor:
    """The claim by its definition: rivals are counted, probabilities are quotients."""
    found = []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        rivals = [j for j in head.classes or range(len(row)) if j != label]
        finite = all(map(math.isfinite, row))
        if not finite:
            found.append(False)
        elif head.margin:
            terms = [mpmath.exp(mpmath.mpf(one) - max(row)) for one in row]
            gap = (terms[label] - max(terms[j] for j in rivals)) / mpmath.fsum(terms)
            found.append(bool(gap > head.margin))
        else:
            found.append(sum(row[j] >= row[label] for j in rivals) < head.top_k)
    return torch.tensor(found)


def options(head: Head, **given) -> Options:
    how = {"eps": (Epsilon.parse("0.05"), Epsilon.parse("0.2")), "effort": "fast", "seed": 0}
    given = how | {"top_k": head.top_k, "only_classes": head.classes, "margin": head.margin} | given
    return Options(**given)


def six_classes(seed: int, *, hidden: int = 12) -> Network:
    builder, generator = NetworkBuilder((1, 5)), seeded(seed)
    node = 0
    for before, after in ((5, hidden), (hidden, 6)) if hidden else ((5, 6),):
        weight, bias = normal((after, before), generator), normal((after,), generator)
        weight, bias = (weight / before**0.5).float().double(), (bias / 4).float().double()
        weight, bias = (8 * weight, 8 * bias) if after == 6 else (weight, bias)
        node = builder.operator(Dense.of(weight, bias, (1, before)), node)
        node = builder.activation(relu(), node) if after == hidden else node
    return builder.build(node)


def labelled(network: Network, head: Head, seed: int, count: int = 8) -> tuple[Tensor, Tensor]:
    """Samples, of a label that is the best of those that compete, or the worst that may be."""
    x = uniform((count, *network.in_shape), seeded(seed)).float().double()
    order = head.competing(network.logits(x)).argsort(1, descending=True)
    places = torch.arange(count) % head.top_k
    return x, order.gather(1, places[:, None]).squeeze(1)


@pytest.mark.parametrize("head", HEADS, ids=IDS)
def test_a_head_says_what_its_definition_says(head: Head) -> None:
    generator = seeded(1)
    for scale in (1e-3, 1.0, 30.0):
        logits = scale * normal((400, 6), generator)
        # Ties of two and of three, the label's own among them.
        logits[100:200, 2] = logits[100:200, 0]
        logits[150:250, 3] = logits[150:250, 0]
        logits[300:310, 4] = torch.tensor([math.nan, math.inf] * 5)
        logits[310:320, 0] = torch.tensor([math.nan, -math.inf] * 5)
        labels = torch.arange(400) % 2 * 2
        said = head.least(head.margins(logits, labels), labels) > 0
        finite = logits.isfinite().all(1)
        expected = holds(head, logits, labels)
        assert not bool((said & ~expected & finite).any())
        assert bool((said == expected)[finite].all())
        assert int(expected.sum()) < 380
        assert bool(expected.any()) or scale < 1


@pytest.mark.parametrize("head", [PLAIN, *HEADS], ids=["plain", *IDS])
def test_a_head_never_falls_where_a_margin_rises_and_no_nan_holds(head: Head) -> None:
    generator = seeded(2)
    margins, labels = normal((500, 6), generator), torch.zeros(500, dtype=torch.int64)
    rise = uniform((500, 6), generator) * (uniform((500, 6), generator) < 0.5)
    assert bool((head.least(margins + rise, labels) >= head.least(margins, labels)).all())
    for k in (2, 3, 5):
        broken = margins.abs() + 5
        broken[:, k] = math.nan
        competes = head.classes is None or k in head.classes
        held = head.least(broken, labels) > 0
        # Of K best one that is no number may be ahead.
        assert bool(held.all()) == (not competes or head.top_k > 1)
        broken[:, :] = math.nan
        assert not bool((head.least(broken, labels) > 0).any())


def test_a_margin_in_probabilities_is_exact_at_its_edge() -> None:
    generator = seeded(3)
    logits = 3 * normal((3000, 5), generator)
    labels = logits.argmax(1)
    terms = logits.softmax(1)
    first, second = terms.topk(2).values.unbind(1)
    for row in range(300):
        own = torch.tensor([labels[row]])
        gap = float(first[row] - second[row])
        for share, expected in ((1 - 1e-9, True), (1 + 1e-9, False)):
            head = Head(margin=min(gap * share, 1 - 1e-12))
            assert bool(head.least(head.margins(logits[row][None], own), own) > 0) == expected


def test_the_best_classes_are_listed_with_the_label_last_in_a_tie() -> None:
    logits = torch.tensor([[3.0, 1.0, 3.0, 2.0], [3.0, 3.0, 3.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    for label, expected in (
        (0, [[2, 0], [1, 2], [3, 2]]), (2, [[0, 2], [0, 1], [3, 2]]), (3, [[0, 2], [0, 1], [3, 2]]),
    ):  # fmt: skip
        labels = torch.full((3,), label)
        prediction, margin, right, top = answers(logits, labels, Head(2))
        assert top is not None
        assert top.tolist() == expected
        assert prediction.tolist() == [row[0] for row in expected]
        assert right.tolist() == [label in row for row in expected]
        assert bool(((margin > 0) == right).all())
    assert Head(2, (0, 1, 3)).top(logits, torch.tensor([1, 1, 1])).tolist() == [
        [0, 3], [0, 3], [3, 1],
    ]  # fmt: skip


METHODS = [
    {"method": "global"}, {"method": "local"}, {"effort": "fast"}, {"effort": "standard"},
    {"effort": "max", "deployed": "real", "norms": "deterministic"}, {"dtype": "float32"},
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS, ids=IDS)
@pytest.mark.parametrize("how", METHODS, ids=lambda how: " ".join(how.values()))
def test_no_attack_breaks_what_a_head_certifies(head: Head, how: dict[str, str]) -> None:
    network = six_classes(7)
    x, labels = labelled(network, head, 8)
    given = options(head, **how)
    samples = Certifier(network, given, samples=len(x))(x, labels, range(len(x)))
    radius = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    clean = holds(head, network.logits(x), labels)
    right = [sample.verdict != "misclassified" for sample in samples]
    assert right == [sample.correct for sample in samples]
    assert head.margin or right == clean.tolist()
    assert int((radius > 0).sum()) >= (5 if head.pairwise else 2)
    found = nearest(network, x, labels, within=radius, steps=40, restarts=4, head=head)
    assert bool((found.radius > radius)[radius > 0].all())
    single = network.to(dtype=torch.float32)
    for seed in range(20):
        points = in_ball(x, radius, seeded(seed)).float()
        inside = (points.double() - x).flatten(1).norm(dim=1) <= radius
        claimed = (radius > 0) & inside
        assert bool(holds(head, single.logits(points), labels)[claimed].all())


def distances(weight: Tensor, bias: Tensor, x: Tensor, label: int, top_k: int) -> float:
    """The exact distance of ``x`` from where ``top_k`` rivals reach the label of linear logits: the
    nearest point of each intersection of half-spaces lies on some of their planes."""
    nearest_of_all = math.inf
    rivals = [j for j in range(len(weight)) if j != label]
    for group in itertools.combinations(rivals, top_k):
        rows = weight[label] - weight[list(group)]
        gaps = rows @ x + (bias[label] - bias[list(group)])
        for size in range(top_k + 1):
            for active in itertools.combinations(range(top_k), size):
                some = list(active)
                step = torch.zeros_like(x)
                if some:
                    inverse = torch.linalg.pinv(rows[some])
                    step = -inverse @ gaps[some]
                if bool((rows @ step + gaps <= 1e-9).all()):
                    nearest_of_all = min(nearest_of_all, float(step.norm()))
    return nearest_of_all


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_radii_of_linear_networks_lie_below_the_exact_one_and_attacks_near_it(top_k: int) -> None:
    network, head = six_classes(11, hidden=0), Head(top_k)
    operator = network.nodes[1].kind
    weight, bias = operator.weight.reshape(6, 5), operator.bias.reshape(6)
    x, labels = labelled(network, head, 12, 10)
    given = options(head, eps=(Epsilon.parse("0.01"),), effort="standard")
    samples = Certifier(network, given, samples=10, reach=100.0)(x, labels, range(10))
    for sample, point in zip(samples, x.reshape(10, 5), strict=True):
        exact = distances(weight, bias, point, sample.label, top_k)
        rows = weight[sample.label] - weight
        gaps = (rows @ point + bias[sample.label] - bias) / rows.norm(dim=1)
        own = float(gaps.nan_to_num(math.inf).sort().values[top_k - 1])
        assert sample.radius < exact * (1 + 1e-6)
        assert own * 0.98 <= sample.radius <= own * (1 + 1e-6)
        assert sample.attack_radius >= exact * (1 - 1e-6)
        assert sample.attack_radius <= 1.1 * exact + 1e-3


def test_a_sample_that_loses_only_its_first_place_is_no_counterexample() -> None:
    network, head = six_classes(42), Head(3)
    x, labels = labelled(network, PLAIN, 14)
    eps = (Epsilon.parse("0.15"),)
    plain = Certifier(network, options(PLAIN, eps=eps), samples=8)(x, labels, range(8))
    points: dict = {}
    three = Certifier(network, options(head, eps=eps), samples=8, counterexamples=points)(
        x, labels, range(8)
    )
    assert any(sample.verdict == "falsified" for sample in plain)
    assert any(a.verdict == "falsified" != b.verdict for a, b in zip(plain, three, strict=True))
    for index, point in points.items():
        logits = network.logits(torch.from_numpy(point)[None].double())
        assert not bool(holds(head, logits, labels[[index]]))
    for one, other in zip(plain, three, strict=True):
        assert other.radius >= one.radius * 0.99
        assert other.attack_radius is None or other.attack_radius >= one.attack_radius
        assert one.verdict != "falsified" or other.verdict != "misclassified"
    certified = [sum(one.verdict == "certified" for one in some) for some in (plain, three)]
    assert certified[0] < certified[1]


def test_a_subset_is_the_network_without_the_other_outputs() -> None:
    network, classes = six_classes(17), (0, 2, 3)
    x, labels = labelled(network, Head(classes=classes), 18)
    last = network.nodes[-1].kind
    part = list(classes)
    cut = Dense.of(last.weight.reshape(6, -1)[part], last.bias.reshape(6)[part], last.in_shape)
    builder = NetworkBuilder((1, 5))
    node = builder.activation(relu(), builder.operator(network.nodes[1].kind, 0))
    small = builder.build(builder.operator(cut, node))
    places = torch.tensor([part.index(label) for label in labels.tolist()])
    whole = Certifier(network, options(Head(classes=classes)), samples=8)(x, labels, range(8))
    alone = Certifier(small, options(PLAIN), samples=8)(x, places, range(8))
    for one, other in zip(whole, alone, strict=True):
        assert (one.label, one.prediction) == (part[other.label], part[other.prediction])
        assert one.verdict == other.verdict
        assert one.margin == pytest.approx(other.margin, rel=1e-12)
        assert one.radius == pytest.approx(other.radius, rel=0.02)


def test_joints_and_tubes_serve_every_head() -> None:
    """A gate: ``relu(Wx) · Vx``, whose only bound is the tube."""
    generator, builder = seeded(19), NetworkBuilder((1, 5))

    def dense(node: int, size: int) -> int:
        weight = normal((size, builder.shape(node)[-1]), generator) / 3
        bias = normal((size,), generator) / 4
        return builder.operator(
            Dense.of(weight.float().double(), bias.float().double(), builder.shape(node)), node
        )

    gate = builder.activation(relu(), dense(0, 8))
    node = builder.joint(Product((1, 8), (1, 8)), [gate, dense(0, 8)])
    network = builder.build(dense(node, 6))
    for head in HEADS:
        x, labels = labelled(network, head, 20, 4)
        given = options(head, eps=(Epsilon.parse("0.001"),), margin=0.01 if head.margin else 0.0)
        samples = Certifier(network, given, samples=4)(x, labels, range(4))
        radius = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
        assert int((radius > 0).sum()) >= (2 if head.pairwise else 1)
        for seed in range(5):
            points = in_ball(x, radius, seeded(seed)).float()
            seen = holds(Head.of(given), network.to(dtype=torch.float32).logits(points), labels)
            assert bool(seen[radius > 0].all())


@pytest.mark.parametrize("head", [Head(2), Head(classes=(1, 2, 3))], ids=["top-2", "subset"])
def test_a_softmax_far_above_the_label_underflows_to_ties(head: Head) -> None:
    """Outputs that nothing tells apart once the largest one is subtracted."""
    for lift, certified in ((2.0, True), (200.0, False)):
        weight = torch.eye(4, dtype=torch.float64)
        bias = torch.tensor([lift, 0.0, 0.0, 0.0], dtype=torch.float64)
        builder = NetworkBuilder((1, 4))
        network = builder.build(builder.operator(Dense.of(weight, bias, (1, 4)), 0))
        x = torch.tensor([[[0.0, 1.0, 0.2, 0.1]]], dtype=torch.float64)
        label, given = torch.tensor([1]), options(head)
        (sample,) = Certifier(network, given, samples=1, softmax=True)(x, label, [0])
        assert (sample.radius > 0) == certified
        (logits,) = Certifier(network, given, samples=1)(x, label, [0])
        assert logits.radius > 0
        outputs = network.to(dtype=torch.float32).logits(x.float()).softmax(1)
        assert bool(holds(head, outputs, label)) == certified


class File:
    tolerance, double = 1e-4, False

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        self.answer = answer

    def __call__(self, pixels):
        return self.answer(torch.from_numpy(pixels)).double().numpy()


@pytest.mark.parametrize(
    ("head", "answer", "said"),
    [
        (Head(2), [2.0, 3.0, 1.0, 0.0], None),
        (Head(2), [2.0, 3.0, 2.0, 0.0], "2 classes that reach it"),
        (Head(2), [2.0, 3.0, 1.0, math.nan], "no finite logits"),
        (Head(classes=(0, 2, 3)), [2.0, 3.0, 1.0, 0.0], None),
        (Head(classes=(0, 2, 3)), [2.0, 3.0, 2.0, 0.0], "a tie"),
        (Head(classes=(0, 2, 3)), [2.0, 3.0, 1.0, 2.5], "class 3"),
        (Head(margin=0.5), [2.0, -3.0, 0.5, -9.0], None),
        (Head(margin=0.7), [2.0, -3.0, 0.5, -9.0], "no margin above 0.7"),
        (Head(margin=0.5), [2.0, math.inf, 0.5, -9.0], "no finite logits"),
    ],
)
@pytest.mark.parametrize("softmax", [None, "probabilities", "logarithms"])
def test_the_file_is_asked_for_the_very_claim(head, answer, said, softmax) -> None:
    network, label = six_classes(23), torch.tensor([0])
    x = uniform((1, *network.in_shape), seeded(0)).float().double()
    outputs = torch.tensor(answer, dtype=torch.float64)
    if softmax is not None:
        outputs = outputs.softmax(0) if softmax == "probabilities" else outputs.log_softmax(0)
    file = File(lambda points: outputs.expand(len(points), -1))
    check = FileCheck(file, network, options(head), softmax=softmax is not None)
    found = check.contradictions(x, label, torch.tensor([0.1]), x)
    if said is None:
        assert not found
    elif softmax is None:
        assert said in found[0]
    else:
        assert "the deployed file gives" in found[0]


def test_the_file_is_run_where_all_rivals_come_nearest_together() -> None:
    """At the points that are tried the second rival is lower than down its own gradient alone."""
    network, head = six_classes(29, hidden=0), Head(2)
    x, labels = labelled(network, PLAIN, 30)
    points = probes(
        network, x, labels, torch.full((8,), 0.3), towards=x, head=head
    )  # fmt: skip
    least = torch.stack([
        head.least(head.margins(network.logits(some), labels), labels)
        for some in points.unbind(1)
    ])  # fmt: skip
    assert bool((least.amin(0) < least[0]).all())


def test_a_softmax_in_the_file_costs_a_margin_its_rounding() -> None:
    charged = Head(margin=0.25).charged(1000, SINGLE)
    assert 0.25 + 1e-4 < charged.margin < 0.25 + 2e-4
    assert Head(2).charged(1000, SINGLE) == Head(2)
    # The claim that is charged gives the claim about what float32 computes.
    generator = seeded(31)
    logits = 4 * normal((20_000, 20), generator)
    labels = logits.argmax(1)
    head = Head(margin=0.3).charged(20, SINGLE)
    sure = head.least(head.margins(logits, labels), labels) > 0
    single = logits.float().softmax(1)
    first, second = single.topk(2).values.unbind(1)
    assert bool((first - second > 0.3)[sure].all())


REFUSED = [
    ({"top_k": 0}, "--top-k 0: give a whole number"),
    ({"top_k": 1.5}, "--top-k 1.5: give a whole number"),
    ({"only_classes": (1,)}, "at least two classes"),
    ({"only_classes": (1, 1, 2)}, "given twice"),
    ({"only_classes": (1, -2)}, "-2 is no class"),
    ({"margin": 1.0}, "--margin 1: give a probability"),
    ({"margin": math.nan}, "--margin nan"),
    ({"margin": 0.1, "top_k": 2}, "leave --top-k and --only-classes out"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_no_head_is_is_refused(given, said) -> None:
    with pytest.raises(UsageError, match=said):
        Options(eps=(Epsilon.parse("0.1"),), **given)


def test_a_head_that_does_not_fit_the_network_is_refused() -> None:
    network, x, labels = small_case(0)
    for given, said in (
        ({"top_k": 3}, "every label is among the 3 best"),
        ({"only_classes": (0, 3)}, "names class 3, the network has the classes 0 to 2"),
        ({"only_classes": (0, 2), "top_k": 2}, "of 2 classes every label"),
    ):
        with pytest.raises(UsageError, match=said):
            Certifier(network, Options(eps=(Epsilon.parse("0.1"),), **given), samples=6)
    certifier = Certifier(
        network, Options(eps=(Epsilon.parse("0.1"),), only_classes=(0, 1)), samples=6
    )
    with pytest.raises(UsageError, match="samples of other classes"):
        certifier(x, torch.full_like(labels, 2), range(6))


def test_a_sigmoid_of_each_output_has_no_margin_in_probabilities() -> None:
    from dataclasses import replace

    network = replace(small_case(0)[0], each=True)
    with pytest.raises(CannotCertify, match="Sigmoid"):
        Certifier(network, options(Head(margin=0.1)), samples=1, softmax=True)
