"""Whole certificates: attacked, compared between options, and on networks built to fool them."""

import math
from fractions import Fraction

import pytest
import torch
from attacks import in_ball, margins, smallest_margins
from fuzz import samples_of, spoiled_network
from laws import random_network, seeded, uniform

from lipcert.bounds import Facts
from lipcert.certificate import Sample
from lipcert.certification import Certifier
from lipcert.certification.analysis import Analysis
from lipcert.certification.attack import Attack
from lipcert.certification.findings import Findings, Step
from lipcert.certification.published import Published
from lipcert.certification.rungs import Rung, ladder
from lipcert.certification.samples import Samples
from lipcert.errors import CannotCertify, InternalError, UsageError
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense
from lipcert.options import Epsilon, Options


def options(*eps: str, **others: object) -> Options:
    return Options(eps=tuple(map(Epsilon.parse, eps or ("0.1",))), **others)  # type: ignore[arg-type]


def certify(
    network: Network, x: torch.Tensor, labels: torch.Tensor, given: Options
) -> list[Sample]:
    return Certifier(network, given, samples=len(x))(x, labels, range(len(x)))


def random_case(seed: int, batch: int = 5) -> tuple[Network, torch.Tensor, torch.Tensor]:
    """Weights and pixels that float32 holds exactly, labels as predicted."""
    network = random_network(seeded(seed)).to(dtype=torch.float32).to(dtype=torch.float64)
    x = uniform((batch, *network.in_shape), seeded(seed + 1)).float().double()
    return network, x, network.logits(x).argmax(1)


METHODS = [
    ("global", "fast"), ("local", "fast"), ("auto", "fast"), ("auto", "standard"), ("auto", "max"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "effort"), METHODS)
@pytest.mark.parametrize("seed", range(5))
def test_no_certificate_is_broken(seed: int, method: str, effort: str) -> None:
    network, x, labels = random_case(seed)
    given = options("0.01", "0.2", method=method, effort=effort)
    samples = certify(network, x, labels, given)
    radius = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    assert (radius > 0).any()
    found = smallest_margins(network, x, labels, radius, steps=25, seed=seed)
    assert (found[radius > 0] > 0).all()
    # The deployed network in float32, in whatever order torch sums.
    single, generator = network.to(dtype=torch.float32), seeded(seed)
    for _ in range(50):
        point = in_ball(x, radius * (1 - 1e-6), generator).float()
        assert (margins(single, point, labels)[radius > 0] > 0).all()


@pytest.mark.parametrize("method", ["global", "local", "auto"])
@pytest.mark.parametrize("seed", range(2))
def test_float32_certifies_little_less_and_never_more_than_it_may(seed: int, method: str) -> None:
    """Weights and pixels that float32 does not hold."""
    network = random_network(seeded(seed))
    x = uniform((5, *network.in_shape), seeded(seed + 1))
    labels = network.logits(x).argmax(1)
    radii = {}
    for dtype in ("float64", "float32"):
        given = options(
            "0.01",
            "0.2",
            method=method,
            dtype=dtype,
            deployed="real",
            norms="deterministic",
            effort="fast",
        )
        samples = certify(network, x, labels, given)
        radii[dtype] = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    single, double = radii["float32"], radii["float64"]
    assert (single > 0).any()
    found = smallest_margins(network, x, labels, single, steps=25, seed=seed)
    assert (found[single > 0] > 0).all()
    # Searches end within 0.5 % of what they could, and a few steps of slopes differ.
    assert (single <= double * (1.01 if method != "auto" else 1.05)).all()
    assert (single >= double * 0.9).all()


def test_weights_that_overflow_an_analysis_in_float32_are_refused() -> None:
    builder = NetworkBuilder((1, 2))
    node = builder.operator(Dense.of(1e39 * torch.eye(2).double(), None, (1, 2)), 0, "fc")
    network, x = builder.build(node), torch.tensor([[[0.9, 0.1]]]).double()
    with pytest.raises(CannotCertify, match=r"fc: .*float32.*--dtype float64"):
        certify(network, x, torch.tensor([0]), options(dtype="float32", deployed="real"))
    (sample,) = certify(network, x, torch.tensor([0]), options(deployed="real"))
    assert sample.radius


@pytest.mark.parametrize("seed", range(6))
def test_the_local_constant_is_never_passed(seed: int) -> None:
    network, x, labels = random_case(seed)
    samples = certify(network, x, labels, options("0.05", "0.2"))
    constant = torch.tensor([sample.lipschitz for sample in samples], dtype=torch.float64)
    eps, generator = torch.full((len(x),), 0.2, dtype=torch.float64), seeded(seed)
    for _ in range(50):
        one, two = in_ball(x, eps, generator), in_ball(x, eps, generator)
        change = (network.logits(one) - network.logits(two)).norm(dim=1)
        assert (change <= constant * (one - two).flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("seed", range(6))
def test_options_agree_where_they_must(seed: int) -> None:
    network, x, labels = random_case(seed)
    runs = {
        norms: certify(network, x, labels, options("0.1", method="local", norms=norms))
        for norms in ("randomised", "deterministic", "estimate")
    }
    whole = certify(network, x, labels, options("0.1", method="global"))
    real = certify(network, x, labels, options("0.1", method="local", deployed="real"))
    every = certify(network, x, labels, options("0.1"))
    for row in range(len(x)):
        sound, certain, guess = (runs[norms][row] for norms in runs)
        assert sound.radius is not None
        assert guess.radius is None
        assert guess.radius_estimate is not None
        # Either search may stop a step before the other.
        assert sound.radius <= guess.radius_estimate * _SEARCH
        assert certain.radius is not None
        assert certain.radius <= guess.radius_estimate * _SEARCH
        assert sound.radius >= (whole[row].radius or 0) * 0.998
        assert sound.radius <= (real[row].radius or 0) * 1.002
        # The search for the duals' radius is coarser than that for one bound alone.
        assert (every[row].radius or 0) >= 0.98 * sound.radius
        assert certain.failure_probability == 0
        assert guess.verdict in ("estimated", "unknown")
        assert guess.certified == ()
        assert guess.lipschitz is None


# Steps of the radius search: 0.4 % for the duals, 0.1 % for one bound alone.
_SEARCH = 1.006


@pytest.mark.parametrize(
    ("seed", "kind", "effort"),
    [(0, "plain", "fast"), (1, "plain", "standard"), (2, "tiny", "fast")],
)
def test_auto_is_at_least_every_other_method(seed: int, kind: str, effort: str) -> None:
    """Its radius up to the steps of the search; every verdict, exactly."""
    generator = seeded(seed)
    network = spoiled_network(generator, kind)
    x, labels = samples_of(network, generator, 10)
    radii = ("0.001", "0.05", "0.3")
    every = certify(network, x, labels, options(*radii, effort=effort))
    for method in ("global", "local"):
        others = certify(network, x, labels, options(*radii, method=method))
        for one, best in zip(others, every, strict=True):
            assert one.radius is not None
            assert best.radius is not None
            assert set(one.certified) <= set(best.certified)
            assert best.radius * _SEARCH >= one.radius


@pytest.mark.parametrize(("seed", "alone"), [(3, (4, 1)), (7, (2,))])
def test_a_sample_s_result_hardly_depends_on_its_batch(seed: int, alone: tuple[int, ...]) -> None:
    """Coins, norms and verdicts are its own. Sums in float32 round by the shape of a batch, and a
    search over multipliers carries that on: radii agree within a few percent."""
    network, x, labels = random_case(seed, batch=6)
    certifier = Certifier(network, options("0.02", "0.1"), samples=6)
    together = certifier(x, labels, range(6))
    apart = [certifier(x[i : i + 1], labels[i : i + 1], [i])[0] for i in alone]
    for sample in apart:
        same = together[sample.index]
        assert sample.radius == pytest.approx(same.radius, rel=3e-2)
        assert sample.lipschitz == pytest.approx(same.lipschitz, rel=1e-9)
        assert sample.certified == same.certified
        # Whether a radius is sought once more hangs on the same sums: whole preparations of it.
        (_, backward) = certifier.budget.accounts
        more = (sample.failure_probability - same.failure_probability) / backward.preparation
        assert more == pytest.approx(round(more), abs=1e-6)
        assert abs(more) <= backward.preparations - 1


def test_without_a_search_over_multipliers_a_batch_changes_nothing_but_rounding() -> None:
    """Radii lie on a grid of 12 bits, whose neighbour rounding may choose."""
    network, x, labels = random_case(3, batch=6)
    for method in ("global", "local"):
        certifier = Certifier(network, options("0.02", "0.1", method=method), samples=6)
        together = certifier(x, labels, range(6))
        for i in (4, 1):
            (alone,) = certifier(x[i : i + 1], labels[i : i + 1], [i])
            assert alone.radius == pytest.approx(together[i].radius, rel=2**-11)
            assert alone.margin == pytest.approx(together[i].margin, rel=1e-12)
            assert alone.lipschitz == pytest.approx(together[i].lipschitz, rel=1e-9)
            assert alone.certified == together[i].certified
            assert alone.failure_probability == together[i].failure_probability


@pytest.mark.parametrize(("seed", "eps"), [(2, "0.7"), (5, "0.05")])
def test_no_radius_ends_just_below_an_eps_that_was_asked_for(seed: int, eps: str) -> None:
    """A proof at the nearest number of the grid below it could as well have been one at it."""
    network, x, labels = random_case(seed, batch=8)
    for sample in Certifier(network, options(eps, effort="fast"), samples=8)(x, labels, range(8)):
        assert not 0.999 * float(eps) < sample.radius < float(eps)


def test_the_deployed_error_is_that_of_the_certified_radius() -> None:
    """And not of a larger one that the search tried last."""
    for seed in (4, 6, 9):
        network, x, labels = random_case(seed, batch=8)
        certifier = Certifier(network, options("0.05", method="global"), samples=8)
        found = certifier(x, labels, range(8))
        radius = torch.tensor([sample.radius for sample in found], dtype=torch.float64)
        assert (radius > 0).any()
        allowance = certifier.budget.open(torch.arange(8))
        samples = Samples.of(certifier.analysis, x, labels, allowance)
        slack, error = certifier.published.slack(samples, radius, Facts())
        assert (slack[radius > 0] > 0).all()
        told = torch.tensor([sample.deployed_error for sample in found], dtype=torch.float64)
        assert torch.allclose(told[radius > 0], error[radius > 0], rtol=1e-9, atol=0)


def test_the_failure_probability_is_kept() -> None:
    network, x, labels = random_case(1)
    certifier = Certifier(network, options("0.1", "0.2", "0.3"), samples=len(x))
    samples = certifier(x, labels, range(len(x)))
    spent = certifier.global_failure_probability + sum(s.failure_probability for s in samples)
    assert 0 <= spent <= 1e-9
    zero = options("0.1", failure_probability=0.0)
    assert all(s.failure_probability == 0 for s in certify(network, x, labels, zero))


def linear(weight: list[list[float]], bias: list[float]) -> Network:
    """One layer: the exact radius is ``m_j / ‖w_y − w_j‖``."""
    builder = NetworkBuilder((1, len(weight[0])))
    operator = Dense.of(
        torch.tensor(weight, dtype=torch.float64),
        torch.tensor(bias, dtype=torch.float64),
        (1, len(weight[0])),
    )
    return builder.build(builder.operator(operator, 0))


@pytest.mark.parametrize("method", ["local", "global"])
def test_the_radius_of_a_linear_classifier_is_exact(method: str) -> None:
    network = linear([[3.0, 0.0], [0.0, 4.0]], [0.0, -1.0])
    x = torch.tensor([[[1.0, 0.25]]], dtype=torch.float64)
    (sample,) = certify(network, x, torch.tensor([0]), options("3/5", method=method))
    # m = 3 − 0, ‖(3, −4)‖ = 5
    assert sample.radius == pytest.approx(0.6, rel=2e-3)
    assert sample.radius is not None
    assert sample.radius < 0.6
    # The distance to the boundary is 3/5 itself: there is a tie on the sphere.
    assert sample.verdict == "unknown"
    (inside,) = certify(network, x, torch.tensor([0]), options("0.599", method=method))
    assert inside.verdict == "certified"
    assert inside.lipschitz == pytest.approx(4.0, rel=1e-6)


def test_misclassified_samples_are_never_certified() -> None:
    network = linear([[1.0], [-1.0]], [0.0, 0.0])
    x = torch.tensor([[[0.9]]], dtype=torch.float64)
    (sample,) = certify(network, x, torch.tensor([1]), options("0.1"))
    assert sample.verdict == "misclassified"
    assert sample.certified == ()
    assert sample.radius == 0


def test_eps_zero_and_huge_eps() -> None:
    network = linear([[1.0], [-1.0]], [0.0, 0.0])
    x = torch.tensor([[[0.5]], [[0.0]]], dtype=torch.float64)
    sure, tie = certify(network, x, torch.tensor([0, 0]), options("0"))
    assert sure.verdict == "certified"
    assert tie.verdict == "unknown"
    for eps in ("1e30", "1e150"):
        (sample, _) = certify(network, x, torch.tensor([0, 0]), options("0.1", eps))
        assert sample.verdict == "falsified"
        assert sample.certified == ("0.1",)


def test_one_output_and_foreign_labels_are_refused() -> None:
    with pytest.raises(CannotCertify, match="one output"):
        Certifier(linear([[1.0]], [0.0]), options(), samples=1)
    certifier = Certifier(linear([[1.0], [2.0]], [0.0, 0.0]), options(), samples=1)
    with pytest.raises(UsageError, match="label"):
        certifier(torch.zeros(1, 1, 1), torch.tensor([2]), [0])


def test_layer_norms_and_their_product() -> None:
    builder = NetworkBuilder((1, 2), "pixels")
    node = builder.operator(Dense.of(torch.eye(2).double() * 3, None, (1, 2)), 0, "first")
    node = builder.activation(relu(), node, "relu")
    node = builder.operator(Dense.of(torch.eye(2).double() * 2, None, (1, 2)), node, "last")
    certifier = Certifier(builder.build(node), options(), samples=1)
    assert [layer.value for layer in certifier.layer_norms] == pytest.approx([3, 2])
    assert [layer.source for layer in certifier.layer_norms] == ["pixels", "relu"]
    assert all(layer.assurance == "deterministic" for layer in certifier.layer_norms)
    assert certifier.product == pytest.approx(6, rel=1e-9)
    assert certifier.product >= 6


def test_tiny_relu_networks_against_exact_arithmetic() -> None:
    """In rational arithmetic no point that was certified is misclassified.

    One hidden neuron pair in one dimension: ``f_0 − f_1`` is piecewise linear, its zeros rational.
    """
    for seed in range(30):
        generator = seeded(seed)
        numbers = [torch.randint(-8, 9, shape, generator=generator)
                   for shape in ((2, 1), (2,), (2, 2), (2,))]  # fmt: skip
        weight, bias, out, shift = (t.double() / 8 for t in numbers)
        builder = NetworkBuilder((1, 1))
        node = builder.operator(Dense.of(weight, bias, (1, 1)), 0)
        node = builder.operator(Dense.of(out, shift, (1, 2)), builder.activation(relu(), node))
        network = builder.build(node)
        x = torch.tensor([[[0.375]]], dtype=torch.float64)
        label = network.logits(x).argmax(1)
        (sample,) = certify(network, x, label, options("0.5", deployed="real"))
        radius = Fraction(sample.radius or 0)

        def margin(at: Fraction, w=weight, b=bias, o=out, s=shift, y=int(label)) -> Fraction:
            hidden = [max(Fraction(0), Fraction(float(w[i, 0])) * at + Fraction(float(b[i])))
                      for i in range(2)]  # fmt: skip
            logits = [sum(Fraction(float(o[k, i])) * hidden[i] for i in range(2))
                      + Fraction(float(s[k])) for k in range(2)]  # fmt: skip
            return logits[y] - logits[1 - y]

        centre = Fraction(3, 8)
        kinks = [-Fraction(float(bias[i])) / Fraction(float(weight[i, 0]))
                 for i in range(2) if weight[i, 0] != 0]  # fmt: skip
        ends = [centre - radius, centre + radius]
        # A piecewise linear margin is smallest at an end or at a kink.
        inside = [kink for kink in kinks if ends[0] <= kink <= ends[1]]
        if radius > 0:
            assert all(margin(at) > 0 for at in [*ends, *inside])


def test_verdicts_of_numbers_that_are_not_finite() -> None:
    network = linear([[1.0], [-1.0]], [0.0, 0.0])
    x = torch.tensor([[[math.nan]], [[math.inf]], [[0.5]]], dtype=torch.float64)
    bad, worse, good = certify(network, x, torch.tensor([0, 0, 0]), options("0.1"))
    assert bad.verdict == worse.verdict == "error"
    assert bad.radius == worse.radius == 0
    assert good.verdict == "certified"


class Liar:
    """A rung that finds every sample misclassified near by."""

    name = "attack"

    def climb(self, samples: Samples, known: Findings) -> Step:
        near = torch.full_like(known.margin, 0.2)
        rows = torch.arange(len(samples))
        return Step(self.name, rows, attack=Attack(near, samples.x))


def with_a_liar(analysis: Analysis, published: Published) -> tuple[Rung, ...]:
    return *ladder(analysis, published), Liar()


def test_an_attack_inside_a_certificate_is_an_internal_error() -> None:
    network = linear([[1.0], [-1.0]], [0.0, 0.0])
    x, labels = torch.tensor([[[0.5]]], dtype=torch.float64), torch.tensor([0])
    certifier = Certifier(network, options("0.3"), samples=1, rungs=with_a_liar)
    with pytest.raises(InternalError, match="inside the certified radius"):
        certifier(x, labels, [0])


def test_an_attack_inside_an_estimate_contradicts_nothing() -> None:
    """An estimate bounds nothing: it may reach beyond a misclassified point, and is no error."""
    network = linear([[1.0], [-1.0]], [0.0, 0.0])
    x, labels = torch.tensor([[[0.5]]], dtype=torch.float64), torch.tensor([0])
    given = options("0.3", norms="estimate")
    (sample,) = Certifier(network, given, samples=1, rungs=with_a_liar)(x, labels, [0])
    assert sample.attack_radius == 0.2
    assert sample.radius_estimate is not None
    assert sample.radius_estimate >= 0.3
    assert (sample.verdict, sample.estimated) == ("estimated", ("0.3",))
    assert (sample.radius, sample.lipschitz, sample.certified) == (None, None, ())


def test_verdicts_of_auto() -> None:
    network = linear([[3.0, 0.0], [0.0, 4.0]], [0.0, -1.0])
    x = torch.tensor([[[1.0, 0.25]], [[0.1, 0.35]]], dtype=torch.float64)
    sure, broken = certify(network, x, torch.tensor([0, 1]), options("0.1", "0.5"))
    assert (sure.verdict, broken.verdict) == ("certified", "falsified")
    # The distances are 0.6 and (0.4 − 0.3)/5.
    assert broken.attack_radius == pytest.approx(0.02, rel=1e-2)
    assert broken.radius == pytest.approx(0.02, rel=2e-2)
    assert sure.attack_radius is not None
    assert sure.attack_radius >= 0.6
    assert sure.radius == pytest.approx(0.6, rel=2e-2)


def test_estimates_of_auto_are_labelled() -> None:
    seen, reached = set(), set()
    for seed in range(2):
        network, x, labels = random_case(seed, batch=3)
        for sample in certify(network, x, labels, options("0.02", "3", norms="estimate")):
            seen.add(sample.verdict)
            reached.update(sample.estimated)
            assert sample.radius is None
            assert sample.certified == ()
            assert sample.radius_estimate is not None
            assert ("0.02" in sample.estimated) == (sample.radius_estimate >= 0.02)
    # An estimate of 0.02 is labelled as one; at 3 an attack decides.
    assert "0.02" in reached
    assert "falsified" in seen
    assert seen <= {"estimated", "unknown", "falsified"}


@pytest.mark.parametrize("seed", range(2))
def test_images_alone_are_easier_and_their_certificates_hold(seed: int) -> None:
    """With samples at the border of the pixel domain, where balls reach far out of it."""
    network, x, labels = random_case(seed)
    x = torch.where(uniform(x.shape, seeded(seed)) < 0.7, x.round(), x)
    labels = network.logits(x).argmax(1)
    given = {"pixel_domain": True, "deployed": "real"}
    images = certify(network, x, labels, options("0.05", "0.4", **given))
    every = certify(network, x, labels, options("0.05", "0.4", deployed="real"))
    radius = torch.tensor([sample.radius for sample in images], dtype=torch.float64)
    # Slopes and coins differ a little: as good but for the noise of the search.
    assert radius.mean() >= 0.99 * sum(sample.radius or 0.0 for sample in every) / len(x)
    generator = seeded(seed + 7)
    for _ in range(100):
        point = in_ball(x, radius * (1 - 1e-9), generator)
        # Moving pixels back into [0, 1] only brings the point nearer to an image.
        assert (margins(network, point.clamp(0, 1), labels)[radius > 0] > 0).all()
    point = x.clone()
    for _ in range(40):
        point.requires_grad_(True)
        (slope,) = torch.autograd.grad(margins(network, point, labels).amin(1).sum(), point)
        with torch.no_grad():
            shape = (-1, *(1,) * (x.dim() - 1))
            size = slope.flatten(1).norm(dim=1).clamp(min=1e-300).reshape(shape)
            point = (point - 0.3 * radius.reshape(shape) * slope / size).clamp(0, 1)
            way = point - x
            far = way.flatten(1).norm(dim=1).clamp(min=1e-300)
            point = x + way * (radius * (1 - 1e-9) / far).clamp(max=1).reshape(shape)
        assert (margins(network, point, labels)[radius > 0] > 0).all()


def test_pixels_outside_their_domain_are_refused() -> None:
    network, x, labels = random_case(0)
    with pytest.raises(UsageError, match="--pixel-domain"):
        certify(network, x + 1, labels, options(pixel_domain=True))


def test_time_that_is_up_leaves_open_samples_to_no_other_rung() -> None:
    network, x, labels = random_case(3)
    hurried = certify(network, x, labels, options("0.3", time_per_sample=1e-9))
    patient = certify(network, x, labels, options("0.3", time_per_sample=1e9))
    assert {sample.verdict for sample in hurried} <= {"certified", "falsified", "timeout"}
    late = [sample for sample in hurried if sample.verdict == "timeout"]
    assert late
    assert all("--time-per-sample" in (sample.message or "") for sample in late)
    assert all("dual" not in sample.rungs for sample in late)
    assert not any(sample.verdict == "timeout" for sample in patient)
    assert any("dual" in sample.rungs for sample in patient)
