"""Each step of a replay against what could refute it: every point, and every rounding, allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from audit_models import preprocessing
from proof_files import adversarial, dense, network_of, replay_of

from lipcert.audit.proofs.dual import Forms, bound
from lipcert.audit.proofs.norms import Coins, randomised_norm
from lipcert.audit.proofs.replay import FormSource, Hints


def state_of(network, x, eps, deployed="real"):
    arrays = adversarial(np.random.default_rng(0), network.sizes, 2, eps)
    keep = {name: getattr(arrays, name)[:0] for name in vars(arrays) if name.startswith("form_")}
    kept = {name: getattr(arrays, name) * 0 for name in ("edge_scale", "chain_scale")}
    arrays = type(arrays)(**(vars(arrays) | keep | kept))
    source, rows = FormSource(network, arrays, np.arange(1)), np.arange(1)
    radius = torch.tensor([eps], dtype=torch.float64)
    with torch.no_grad():
        return replay_of(network, deployed).state(x, radius, Hints.of(arrays, rows), source.of_box)


def values_of(graph, x, noise=None):
    values = [x]
    for k, step in enumerate(graph.steps, start=1):
        if hasattr(step, "maps"):
            pairs = zip(step.inputs, step.maps, strict=True)
            values.append(sum(m.forth(values[i]) for i, m in pairs) + step.bias)
        else:
            values.append(step.function.value(values[step.input]))
        if noise is not None and k in noise:
            values[k] = values[k] + noise[k]
    return values


@pytest.mark.parametrize("kind", ["Relu", "Abs", "Tanh", "Softplus"])
@pytest.mark.parametrize("seed", range(4))
def test_a_form_is_no_more_than_its_least_value_with_the_best_of_many_multipliers(kind, seed):
    """Of two neurons over a disc every point is tried, and so are hundreds of slopes and λ: a
    charge that is too small for the ball, the box or the band would show."""
    network = network_of(dense(seed, (2, 2, 2), kind), preprocessing((2,)))
    graph, random = network.graph, np.random.default_rng(seed)
    x = torch.from_numpy(random.uniform(-0.5, 0.5, size=(1, 2)))
    angle = torch.linspace(0, 2 * np.pi, 721, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    for eps in (0.1, 0.7, 2.0):
        state = state_of(network, x, eps)
        shares = torch.linspace(0, 1, 40, dtype=torch.float64)
        points = x + eps * (shares[:, None, None] * circle).reshape(-1, 2)
        change = values_of(graph, points)[graph.output] - values_of(graph, x)[graph.output]
        value = graph.bends[0]
        for row in torch.from_numpy(random.normal(size=(6, 2))):
            count = 900
            slopes = torch.from_numpy(random.uniform(-0.5, 1.5, size=(count, 2)))
            slopes[: count // 3] = state.layers[value].pieces.tangent
            powers = torch.from_numpy(10.0 ** random.uniform(-4, 2, size=count))
            sample = torch.zeros(count, dtype=torch.int64)
            forms = Forms(
                graph.output, sample, row.expand(count, -1), {value: slopes}, {value: powers}
            )
            found = float(bound(state, forms, pixel_domain=False).max())
            least = float((change @ row).min())
            assert found <= least
            # And it is worth something, beside the box of the logits.
            box = float((row.abs() * state.sinks[graph.output].reach[0]).sum())
            assert found > -1.5 * box - 1e-9


@pytest.mark.parametrize("kind", ["Relu", "Sigmoid"])
@pytest.mark.parametrize("seed", range(3))
def test_runs_that_round_as_much_as_is_allowed_are_covered(kind, seed):
    """A run may be off by the whole drift of every sink, in the direction that is worst."""
    network = network_of(dense(seed, (4, 6, 6, 2), kind), preprocessing((4,)))
    graph, random = network.graph, np.random.default_rng(seed)
    x = torch.from_numpy(random.uniform(size=(1, 4)))
    eps = 1e-3
    state = state_of(network, x, eps, "bfloat16")
    clean = values_of(graph, x)
    row = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    # Only what the drift of a sink has beside what is passed on from the functions before it.
    sinks = [graph.bend(value).input for value in graph.bends] + [graph.output]
    allowed = {}
    for sink in sinks:
        segments = graph.segments[sink]
        passed = segments.forth({s: state.sources[s].slack for s in segments.sources}, "magnitudes")
        allowed[sink] = (state.sinks[sink].drift - passed).clamp(min=0) * (1 - 1e-9)
    # And what functions round themselves.
    allowed |= {value: state.sources[value].slack for value in graph.bends}
    noise = {sink: torch.zeros_like(most) for sink, most in allowed.items()}
    least = np.inf
    for _ in range(4):
        given = {sink: part.clone().requires_grad_() for sink, part in noise.items()}
        values = values_of(graph, x, given)
        margin = (values[graph.output] * row).sum()
        least = min(least, float(margin.detach()))
        gradients = torch.autograd.grad(margin, list(given.values()))
        noise = {
            sink: -allowed[sink] * gradient.sign()
            for sink, gradient in zip(given, gradients, strict=True)
        }
        for value, layer in state.layers.items():
            off = values[graph.bend(value).input].detach() - clean[graph.bend(value).input]
            assert bool((off >= layer.sink.low).all())
            assert bool((off <= layer.sink.high).all())
            assert float((off * layer.mask).norm()) <= float(layer.ball[0])
    start = float((clean[graph.output] * row).sum())
    best = -np.inf
    for power in (1e-3, 0.1, 1.0, 10.0):
        slopes = {v: layer.pieces.tangent for v, layer in state.layers.items()}
        powers = {v: torch.tensor([power], dtype=torch.float64) for v in slopes}
        forms = Forms(graph.output, torch.zeros(1, dtype=torch.int64), row, slopes, powers)
        best = max(best, float(bound(state, forms, pixel_domain=False)[0]))
    assert start + best <= least


@pytest.mark.parametrize("kind", ["Relu", "Abs", "LeakyRelu", "Sigmoid", "Tanh", "Softplus", "Elu"])
def test_lines_bands_and_secants_hold_on_the_whole_box(kind):
    network = network_of(dense(0, kind=kind), preprocessing((5,)))
    function = network.graph.bend(network.graph.bends[0]).function
    random = np.random.default_rng(1)
    at = torch.from_numpy(random.normal(size=(1, 400)) * 3)
    low, high = (
        torch.from_numpy(sign * 10.0 ** random.uniform(-3, 1, size=(1, 400))) for sign in (-1, 1)
    )
    pieces = function.pieces(at, low, high)
    for share in np.linspace(-1, 1, 401):
        d = -low * share if share < 0 else high * share
        change = function.value(at + d) - function.value(at)
        lines = pieces.slopes * d[:, None] + pieces.offsets
        inside = (pieces.begins <= d[:, None]) & (d[:, None] <= pieces.ends)
        off = (change[:, None] - lines).abs()
        assert bool((inside.any(1)).all())
        assert bool((~inside | (off <= pieces.band)).all())
        slack = 1e-13 / d.abs().clamp(min=1e-300)
        secant = change / torch.where(d == 0, 1.0, d)
        assert bool(((d == 0) | (secant >= pieces.flat - slack)).all())
        assert bool(((d == 0) | (secant <= pieces.steep + slack)).all())
    assert float((pieces.band / (1 + pieces.most[:, None])).max()) < 0.6


class Rigged(Coins):
    """Coins whose component on the top eigenvector is just what they may not fall below."""

    def __init__(self, risk, top, other):
        super().__init__(risk, 1)
        self.top, self.other = top, other

    def unit_vectors(self, rows, size):
        tau = self.each ** (1 / 5) * (np.pi / (2 * size)) ** 0.5 * (1 + 1e-6)
        return tau * self.top + (1 - tau**2) ** 0.5 * self.other


@pytest.mark.parametrize("unit", [0.0, 1e-9, 1e-7, 1e-6, 1e-5])
def test_a_norm_charges_for_errors_of_the_size_allowed(unit):
    """Errors in every step, all of them against the top eigenvector, on coins that could not be
    worse: whoever charges less falls below the truth."""
    random = np.random.default_rng(2)
    size, terms = 30, unit * 2.0**53
    for _ in range(5):
        vectors = torch.linalg.qr(torch.from_numpy(random.normal(size=(size, size))))[0]
        spectrum = torch.linspace(0.0, 0.9, size, dtype=torch.float64)
        spectrum[-1] = 1.0
        whole = (vectors * spectrum) @ vectors.T
        top, other = vectors[None, :, -1], vectors[None, :, 0]

        def gram(v, absolute, whole=whole, top=top):
            if absolute:
                return v @ whole.abs()
            along = (v * top).sum(1, keepdim=True)
            worst = unit * (v.abs() @ whole.abs())
            return v @ whole - along.sign() * top.sign() * worst

        for scale in (0.7, 0.95, 1.01, 1.5):
            coins = Rigged(1e-6, top, other)
            found = randomised_norm(gram, size, torch.tensor([scale]).double(), coins, terms)
            assert float(found[0]) >= 1.0
            if unit <= 1e-9 and scale == 1.01:
                assert float(found[0]) < 1.05
