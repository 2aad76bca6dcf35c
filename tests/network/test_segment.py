"""Segments against the derivative of the network with every other source held still."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import clip, normal, padded, places, random_network, seeded, uniform

from lipcert.network import NetworkBuilder, Segment, Sum, segments
from lipcert.network.operators import Convolution, Dense, Diagonal, Operator, Select

NETWORKS = range(8)
seeds = st.integers(0, 2**31)


def replay(network, held, sink):
    """The value of ``sink`` where each source of ``held`` has the value given there."""
    values = dict(held)
    for i, node in enumerate(network.nodes[: sink + 1]):
        if i not in values:
            parts = [values[j] for j in node.inputs]
            values[i] = sum(parts) if isinstance(node.kind, Sum) else node.kind.forward(parts[0])
    return values[sink]


def sources_at(network, x):
    values = network.values(x)
    return {j: values[j] for j in network.sources}


def jacobian(network, held, source, sink):
    """``(outputs, inputs)``, by automatic differentiation at one sample."""
    nodes = network.nodes
    if source > sink:
        return torch.zeros(math.prod(nodes[sink].shape), math.prod(nodes[source].shape))

    def change(value):
        return replay(network, {**held, source: value}, sink)

    derivative = torch.autograd.functional.jacobian(change, held[source])
    return derivative.reshape(math.prod(nodes[sink].shape), -1)


def sinks(network):
    """Where bounds are wanted: the inputs of all activations, and the logits."""
    return [*{network.nodes[i].inputs[0] for i in network.activations}, network.output]


def every_segment(network):
    return [segment for sink in sinks(network) for segment in segments(network, sink)]


@pytest.fixture(params=NETWORKS, ids=lambda seed: f"network {seed}")
def network(request):
    return random_network(seeded(request.param), in_shape=(1, 2, 4, 4), residual=True)


def test_rows_are_the_jacobian(network):
    held = sources_at(network, uniform((1, *network.in_shape), seeded(0)))
    for sink in sinks(network):
        found = {segment.source: segment for segment in segments(network, sink)}
        for source in network.sources:
            exact = jacobian(network, held, source, sink)
            if source in found:
                rows = found[source].rows()
                assert rows.shape == (len(exact), *network.nodes[source].shape)
                torch.testing.assert_close(rows.flatten(1), exact, rtol=1e-12, atol=1e-13)
            else:
                assert not Segment(network, source, sink).exists
                assert not bool(exact.any())


def test_the_four_maps_are_those_of_the_rows(network):
    for segment in every_segment(network):
        matrix = segment.rows().flatten(1)
        v = normal((3, *segment.in_shape), seeded(1))
        w = normal((3, *segment.out_shape), seeded(2))
        forward, backward = segment.apply(v), segment.transpose(w)
        assert forward.shape == w.shape
        assert backward.shape == v.shape
        torch.testing.assert_close(forward.flatten(1), v.flatten(1) @ matrix.mT)
        torch.testing.assert_close(backward.flatten(1), w.flatten(1) @ matrix)
        slack = 1 - 1e-12
        above = segment.magnitude(v.abs()).flatten(1)
        assert bool((above >= v.flatten(1).abs() @ matrix.abs().mT * slack).all())
        above = segment.transpose_magnitude(w.abs()).flatten(1)
        assert bool((above >= w.flatten(1).abs() @ matrix.abs() * slack).all())


def test_rows_of_magnitudes(network):
    for segment in every_segment(network):
        rows, above = segment.rows(), segment.rows(magnitude=True)
        assert above.shape == rows.shape
        assert bool((above >= rows.abs() * (1 - 1e-12)).all())
        v = uniform((1, *segment.in_shape), seeded(8))
        torch.testing.assert_close(
            above.flatten(1) @ v.flatten(), segment.magnitude(v).flatten(), rtol=1e-12, atol=0
        )


def test_segments_and_bias_make_up_the_value(network):
    x = uniform((2, *network.in_shape), seeded(3))
    values = network.values(x)
    still = {j: torch.zeros_like(values[j]) for j in network.sources}
    for sink in sinks(network):
        parts = [s.apply(values[s.source]) for s in segments(network, sink)]
        total = sum(parts) + replay(network, still, sink)
        torch.testing.assert_close(total, values[sink], rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, residual=st.booleans())
def test_adjoint(seed, residual):
    """``⟨A v, w⟩ = ⟨v, Aᵀ w⟩`` for the maps and for their magnitudes."""
    network = random_network(seeded(seed), in_shape=(1, 2, 4, 4), residual=residual, blocks=2)
    for segment in every_segment(network):
        v = normal((1, *segment.in_shape), seeded(seed + 1))
        w = normal((1, *segment.out_shape), seeded(seed + 2))
        left, right = (segment.apply(v) * w).sum(), (v * segment.transpose(w)).sum()
        size = (segment.magnitude(v.abs()) * w.abs()).sum()
        assert float((left - right).abs()) <= 1e-13 * float(size)
        torch.testing.assert_close(
            size, (v.abs() * segment.transpose_magnitude(w.abs())).sum(), rtol=1e-12, atol=0
        )


# Roundings ---------------------------------------------------------------------------------------


def paths(network, source, sink):
    """Every path from source to sink, as its nodes after the source; parallel edges count."""
    if source == sink:
        return [[]]
    if sink in network.sources:
        return []
    return [[*path, sink] for j in network.nodes[sink].inputs for path in paths(network, source, j)]


def longest(network, source, sink, *, transposed):
    """The most roundings that one product of entries goes through, path by path."""
    routes = paths(network, source, sink)
    on_path = {source, *(i for path in routes for i in path)}
    edges = [(j, i) for i in on_path - {source} for j in network.nodes[i].inputs if j in on_path]
    counts = []
    for path in routes:
        count = 0
        for before, i in zip([source, *path], path, strict=False):
            kind = network.nodes[i].kind
            if isinstance(kind, Operator):
                count += kind.transposed_terms if transposed else kind.terms
            # A sum of n parts rounds n − 1 times: at a Sum forwards, at a fan-out backwards.
            if transposed:
                count += sum(j == before for j, _ in edges) - 1
            elif isinstance(kind, Sum):
                count += sum(k == i for _, k in edges) - 1
        counts.append(count)
    return max(counts)


def test_terms_cover_the_longest_path(network):
    for segment in every_segment(network):
        ends = segment.source, segment.sink
        assert segment.terms >= longest(network, *ends, transposed=False)
        assert segment.transposed_terms >= longest(network, *ends, transposed=True)


def test_float32_sweeps_are_within_gamma(network):
    """``|fl(A v) − A v| ≤ γ_terms |A| |v|``."""
    single = network.to(dtype=torch.float32)
    double = single.to(dtype=torch.float64)
    unit = 2.0**-24
    for segment in every_segment(double):
        other = Segment(single, segment.source, segment.sink)
        for name, shape, terms in (
            ("apply", segment.in_shape, segment.terms),
            ("transpose", segment.out_shape, segment.transposed_terms),
        ):
            v = normal((4, *shape), seeded(4), torch.float32)
            exact = getattr(segment, name)(v.double())
            error = (getattr(other, name)(v).double() - exact).abs()
            magnitude = "magnitude" if name == "apply" else "transpose_magnitude"
            gamma = terms * unit / (1 - terms * unit)
            assert bool((error <= gamma * getattr(segment, magnitude)(v.double().abs())).all())


def test_terms_of_a_chain_add_up():
    builder = NetworkBuilder((1, 2, 4, 4))
    first = Convolution.of(torch.ones(3, 2, 3, 3).double(), None, (1, 2, 4, 4), stride=(2, 2))
    node = builder.operator(first, 0)
    node = builder.operator(Select.reshape(first.out_shape, (1, 3)), node)
    network = builder.build(builder.operator(Dense.of(torch.ones(5, 3), None, (1, 3)), node))
    segment = Segment(network, 0, network.output)
    assert segment.terms == 18 + 0 + 3
    assert segment.transposed_terms == 5 + 0 + 3 * 2 * 2


@pytest.mark.parametrize("times", [2, 3, 4])
def test_terms_of_a_node_added_to_itself(times):
    builder = NetworkBuilder((3,))
    network = builder.build(builder.sum([0] * times))
    segment = Segment(network, 0, network.output)
    assert segment.terms == times - 1
    assert segment.transposed_terms == times - 1
    assert torch.equal(segment.rows(), times * torch.eye(3, dtype=torch.float64))


def test_terms_of_a_residual_block():
    builder = NetworkBuilder((4,))
    branch = builder.operator(Dense.of(torch.ones(4, 4).double(), None, (4,)), 0)
    network = builder.build(builder.sum([branch, 0]))
    segment = Segment(network, 0, network.output)
    assert (segment.terms, segment.transposed_terms) == (5, 5)


# Special segments --------------------------------------------------------------------------------


def test_a_segment_from_a_node_to_itself_is_the_identity(network):
    for source in network.sources:
        (segment,) = segments(network, source)
        assert segment.source == source
        v = normal((2, *segment.in_shape), seeded(5))
        assert torch.equal(segment.apply(v), v)
        assert torch.equal(segment.transpose(v), v)
        assert (segment.terms, segment.transposed_terms) == (0, 0)


def test_path_leaves_out_what_does_not_lead_to_the_sink():
    builder = NetworkBuilder((2,))
    scaled = builder.operator(Diagonal.of(torch.tensor(2.0).double(), None, (2,)), 0)
    active = builder.activation(clip(0.0, None), scaled)
    aside = builder.operator(Diagonal.of(torch.tensor(3.0).double(), None, (2,)), scaled)
    total = builder.sum([scaled, active])
    network = builder.build(builder.sum([total, aside]))
    assert Segment(network, 0, total).path == (scaled, total)
    assert Segment(network, active, total).path == (total,)
    assert Segment(network, 0, network.output).path == (scaled, aside, total, network.output)
    assert not Segment(network, 0, active).exists
    assert [s.source for s in segments(network, scaled)] == [0]
    assert [s.source for s in segments(network, total)] == [0, active]


def chain(*operators):
    builder, node = NetworkBuilder(operators[0].in_shape), 0
    for operator in operators:
        node = builder.operator(operator, node)
    network = builder.build(node)
    return Segment(network, 0, network.output)


def test_monomial_segments_have_one_entry_a_row_and_known_squares():
    scale = normal((5,), seeded(6))
    repeat = Select.of(padded(places((3,)), (1, 1)), (3,))
    segment = chain(repeat, Diagonal.of(scale, None, (5,)), Select.reshape((5,), (1, 5)))
    assert segment.is_monomial
    assert segment.rows().count_nonzero(1).tolist() == [0, 1, 1, 1, 0]
    w = uniform((2, 1, 5), seeded(7))
    squares = segment.rows().square().T
    torch.testing.assert_close(segment.transpose_squared(w), w.flatten(1) @ squares.T)


def test_other_segments_refuse_their_squares():
    dense = chain(Dense.of(torch.ones(2, 3).double(), None, (3,)))
    builder = NetworkBuilder((3,))
    scaled = builder.operator(Diagonal.of(torch.tensor(2.0), None, (3,)), 0)
    network = builder.build(builder.sum([0, scaled]))
    for segment in (dense, Segment(network, 0, network.output)):
        assert not segment.is_monomial
        with pytest.raises(ValueError, match="squares"):
            segment.transpose_squared(torch.ones(1, *segment.out_shape))


def test_rows_have_the_type_of_the_network():
    matrix = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(chain(Dense.of(matrix, None, (3,))).rows(), matrix)
    assert chain(Dense.of(matrix.double(), None, (3,))).rows().dtype == torch.float64
    assert chain(Select.reshape((3,), (1, 3))).rows().dtype == torch.float64
