"""Every operator against its matrix, written down entry by entry from the operator's definition."""

import itertools
import math
from functools import singledispatch

import pytest
import torch
from laws import (
    DTYPES,
    OPERATOR_CASES,
    dense_twin,
    floats_to,
    normal,
    places,
    seeded,
    uniform,
)

from lipcert.network.operators import (
    OPERATORS,
    Convolution,
    Dense,
    Diagonal,
    Operator,
    Select,
    TransposedConvolution,
)

BATCHES = (0, 1, 3)
MAPS = {
    "apply": lambda matrix: matrix,
    "magnitude": torch.abs,
    "squared": torch.square,
    "transpose": lambda matrix: matrix.mT,
    "transpose_magnitude": lambda matrix: matrix.abs().mT,
    "transpose_squared": lambda matrix: matrix.square().mT,
}


@singledispatch
def entrywise(operator: Operator) -> torch.Tensor:
    """``A`` in float64."""
    raise NotImplementedError(type(operator).__name__)


def zeros(operator):
    return torch.zeros(
        math.prod(operator.out_shape), math.prod(operator.in_shape), dtype=torch.float64
    )


@entrywise.register
def _(operator: TransposedConvolution) -> torch.Tensor:
    """Each input cell adds its kernel, at its place, to each output that it reaches."""
    matrix = torch.zeros(*operator.out_shape, *operator.in_shape, dtype=torch.float64)
    weight = operator.weight.double()
    _, outputs, *kernel = weight.shape
    share = operator.in_shape[1] // operator.groups
    spots = list(itertools.product(*(range(n) for n in operator.in_shape[2:])))
    for image, channel in itertools.product(*(range(n) for n in operator.in_shape[:2])):
        for at, tap in itertools.product(spots, itertools.product(*(range(n) for n in kernel))):
            place = [
                a * step + t * gap - pad[0]
                for a, step, t, gap, pad in zip(
                    at, operator.stride, tap, operator.dilation, operator.padding, strict=True
                )
            ]
            space = operator.out_shape[2:]
            if all(0 <= p < n for p, n in zip(place, space, strict=True)):
                for k in range(outputs):
                    to = (image, channel // share * outputs + k, *place)
                    matrix[(*to, image, channel, *at)] += weight[(channel, k, *tap)]
    return matrix.reshape(math.prod(operator.out_shape), math.prod(operator.in_shape))


@entrywise.register
def _(operator: Dense):
    samples = math.prod(operator.in_shape[:-1])
    return torch.block_diag(*[operator.weight.double()] * samples)


@entrywise.register
def _(operator: Diagonal):
    scale = torch.ones(()) if operator.scale is None else operator.scale
    return scale.double().expand(operator.in_shape).flatten().diag()


@entrywise.register
def _(operator: Select):
    matrix = zeros(operator)
    for row, column in enumerate(operator.index.tolist()):
        if column >= 0:
            matrix[row, column] = 1
    return matrix


@entrywise.register
def _(operator: Convolution):
    matrix, weight = zeros(operator), operator.weight.double()
    rows, columns = places(operator.out_shape), places(operator.in_shape)
    outputs, inputs, *kernel = weight.shape
    size = outputs // operator.groups
    for image, output, *cell in itertools.product(*map(range, operator.out_shape)):
        for channel, *tap in itertools.product(*map(range, (inputs, *kernel))):
            read = [
                at * step + offset * gap - before
                for at, step, offset, gap, (before, _) in zip(
                    cell, operator.stride, tap, operator.dilation, operator.padding, strict=True
                )
            ]
            inside = zip(read, operator.in_shape[2:], strict=True)
            if all(0 <= at < extent for at, extent in inside):
                source = (image, output // size * inputs + channel, *read)
                matrix[rows[image, output, *cell], columns[source]] += weight[output, channel, *tap]
    return matrix


@pytest.fixture(params=OPERATOR_CASES.values(), ids=OPERATOR_CASES.keys())
def case(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def operator(case, dtype):
    return case(dtype, seeded(0))


def test_every_operator_has_a_case():
    built = {type(build(torch.float64, seeded(0))) for build in OPERATOR_CASES.values()}
    assert built == set(OPERATORS)


def test_matrix_is_the_definition(case):
    operator = case(torch.float64, seeded(0))
    assert torch.equal(dense_twin(operator), entrywise(operator))


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_within_gamma_of_the_matrix(operator, dtype, name):
    """``|fl(A v) − A v| ≤ γ_terms |A| |v|``, with a rounding more for the entries' squares."""
    taken, given, terms = operator.in_shape, operator.out_shape, operator.terms
    if name.startswith("transpose"):
        taken, given, terms = given, taken, operator.transposed_terms
    terms += "squared" in name and operator.entries() is not None
    # In float64 the reference has as many roundings again: the factor 2.
    unit = torch.finfo(dtype).eps / 2
    gamma = 2 * terms * unit / (1 - terms * unit)
    matrix = MAPS[name](entrywise(operator))
    for batch in BATCHES:
        v = normal((batch, *taken), seeded(1), dtype)
        if "magnitude" in name or "squared" in name:
            v = v.abs()
        computed = getattr(operator, name)(v)
        assert computed.dtype == dtype
        assert computed.shape == (batch, *given)
        wide = v.double().flatten(1)
        error = (computed.double().flatten(1) - wide @ matrix.mT).abs()
        assert bool((error <= gamma * (wide.abs() @ matrix.abs().mT)).all())


def test_forward_adds_the_bias(operator, dtype):
    bias = torch.zeros((), dtype=dtype) if operator.bias is None else operator.bias
    for batch in BATCHES:
        v = normal((batch, *operator.in_shape), seeded(2), dtype)
        forward = operator.forward(v)
        assert forward.shape == (batch, *operator.out_shape)
        assert torch.equal(forward, operator.apply(v) + bias)
    magnitude = torch.as_tensor(operator.bias_magnitude(), dtype=dtype)
    assert torch.equal(magnitude.expand(operator.out_shape), bias.abs().expand(operator.out_shape))


def test_terms_count_the_roundings(case):
    """As many products as there are entries; sums of entries 0 and 1 alone need one rounding less.

    Adding to 0, or a product with 1, rounds nothing.
    """
    operator = case(torch.float64, seeded(0))
    matrix = entrywise(operator)
    unit = operator.entries() is None
    for counted, axis in ((operator.terms, 1), (operator.transposed_terms, 0)):
        entries = int((matrix != 0).sum(axis).max())
        assert counted >= (max(entries - 1, 0) if unit else entries)


def test_row_norms(case):
    """``‖row_k(A diag w)‖₂ = sqrt(((A∘A) w²)_k)``."""
    operator = case(torch.float64, seeded(0))
    w = uniform((1, *operator.in_shape), seeded(3))
    norms = operator.squared(w.square()).sqrt().flatten()
    torch.testing.assert_close(norms, (entrywise(operator) * w.flatten()).norm(dim=1))


def test_convert_changes_the_type_and_keeps_indices(case):
    operator = case(torch.float64, seeded(0))
    converted = operator.convert(floats_to(torch.float32))
    assert type(converted) is type(operator)
    assert (converted.in_shape, converted.out_shape) == (operator.in_shape, operator.out_shape)
    for tensor in (converted.entries(), converted.bias):
        assert tensor is None or tensor.dtype == torch.float32
    if isinstance(operator, Select):
        assert torch.equal(converted.index, operator.index)
        assert converted.index.dtype == torch.int64
    v = normal((2, *operator.in_shape), seeded(4))
    torch.testing.assert_close(
        converted.forward(v.float()).double(), operator.forward(v), rtol=1e-5, atol=1e-4
    )


def test_name_shows_the_shapes(case):
    operator = case(torch.float64, seeded(0))
    assert repr(operator) == (
        f"{type(operator).__name__}({list(operator.in_shape)} → {list(operator.out_shape)})"
    )


def test_a_bias_may_differ_from_cell_to_cell():
    bias = normal((1, 2, 4, 4), seeded(0))
    operator = Convolution.of(normal((2, 1, 1, 1), seeded(1)), bias, (1, 1, 4, 4))
    assert torch.equal(operator.forward(torch.zeros(1, 1, 1, 4, 4).double())[0], bias)


def kernel(*shape):
    return torch.ones(shape)


REFUSED = {
    "dense: another width": lambda: Dense.of(kernel(3, 4), None, (1, 5)),
    "dense: no axis": lambda: Dense.of(kernel(3, 1), None, ()),
    "conv: a batch axis too few": lambda: Convolution.of(kernel(2, 3, 3, 3), None, (3, 8, 8)),
    "conv: four axes": lambda: Convolution.of(kernel(1, 1, 2, 2, 2, 2), None, (1, 1, 4, 4, 4, 4)),
    "conv: no axis": lambda: Convolution.of(kernel(1, 1), None, (1, 1)),
    "conv: other channels": lambda: Convolution.of(kernel(2, 3, 3, 3), None, (1, 2, 8, 8)),
    "conv: groups of no size": lambda: Convolution.of(
        kernel(2, 3, 3, 3), None, (1, 0, 8, 8), groups=0
    ),
    "conv: outputs not in groups": lambda: Convolution.of(
        kernel(3, 1, 2, 2), None, (1, 2, 8, 8), groups=2
    ),
    "conv: stride 0": lambda: Convolution.of(kernel(1, 1, 2), None, (1, 1, 8), stride=(0,)),
    "conv: dilation 0": lambda: Convolution.of(kernel(1, 1, 2), None, (1, 1, 8), dilation=(0,)),
    "conv: a stride too few": lambda: Convolution.of(
        kernel(1, 1, 2, 2), None, (1, 1, 8, 8), stride=(1,)
    ),
    "conv: a pair of padding too many": lambda: Convolution.of(
        kernel(1, 1, 2), None, (1, 1, 8), padding=[(0, 0), (0, 0)]
    ),
    "conv: an empty kernel": lambda: Convolution.of(kernel(1, 1, 0), None, (1, 1, 8)),
    "conv: larger than the input": lambda: Convolution.of(
        kernel(1, 1, 3), None, (1, 1, 4), dilation=(2,)
    ),
    "conv: all cropped": lambda: Convolution.of(
        kernel(1, 1, 1), None, (1, 1, 4), padding=[(-2, -2)]
    ),
    "select: after the end": lambda: Select.of(torch.tensor([0, 4]), (2, 2)),
    "select: before the start": lambda: Select.of(torch.tensor([-2]), (2,)),
}


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED.keys())
def test_refuses(build):
    with pytest.raises(ValueError, match=r"\S"):
        build()


@pytest.mark.parametrize(
    ("index", "in_shape", "is_reshape", "multiplicity"),
    [
        (places((2, 3)).reshape(3, 2), (2, 3), True, 1),
        (places((2, 3)).T, (2, 3), False, 1),
        (places((2, 3))[:1], (2, 3), False, 1),
        (torch.tensor([0, 0, 1, 0]), (2,), False, 3),
        (torch.tensor([-1, -1]), (2,), False, 0),
    ],
)
def test_what_select_knows_of_itself(index, in_shape, is_reshape, multiplicity):
    operator = Select.of(index, in_shape)
    assert operator.is_reshape is is_reshape
    assert operator.multiplicity == multiplicity
    # ‖A‖₂ is the square root of the multiplicity.
    norm = torch.linalg.matrix_norm(dense_twin(operator), ord=2)
    assert float(norm) == pytest.approx(math.sqrt(multiplicity))


def test_reshape_keeps_every_place():
    operator = Select.reshape((2, 3), (6,))
    assert operator.is_reshape
    assert torch.equal(operator.apply(places((1, 2, 3))), places((1, 6)))


@pytest.mark.parametrize(
    "index",
    [[0, 1, 2, -1, -1], [-1, -1, 3, 4, 5], [2, 3], [-1, 0, -1], [1, 0], [-1, -1], [0, -1, 1], [5]],
    ids=str,
)
def test_values_in_a_run_are_moved_like_all_others(index: list[int]) -> None:
    """Concatenations and slices are copied as a whole."""
    operator = Select.of(torch.tensor([index]), (1, 6))
    v, back = torch.arange(1.0, 13.0).reshape(2, 1, 6), torch.arange(1.0, 2 * len(index) + 1)
    back = back.reshape(2, 1, -1)
    moved, returned = torch.zeros_like(back), torch.zeros_like(v)
    for out, place in enumerate(index):
        if place >= 0:
            moved[..., out] = v[..., place]
            returned[..., place] = back[..., out]
    assert torch.equal(operator.apply(v), moved)
    assert torch.equal(operator.transpose(back), returned)
