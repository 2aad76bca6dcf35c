"""States: rows of them, other types, and lengths that are rounded up."""

import torch
from laws import normal, seeded

from lipcert.bounds.state import Coupling, Layer, half_diagonal, select, to_dtype


def layer(generator: torch.Generator, **others: object) -> Layer:
    anchor = normal((4, 2, 3), generator)
    radius = torch.rand(4, generator=generator, dtype=torch.float64)
    ones = torch.ones_like(anchor)
    return Layer(anchor, anchor - 1, anchor + 1, radius, ones, ones, **others)  # type: ignore[arg-type]


def test_rows_and_types_change_every_part_alike() -> None:
    generator = seeded(0)
    coupling = Coupling({3: torch.rand(4).double()}, torch.rand(4).double())
    drift = normal((4, 2, 3), generator).abs()
    state = {0: layer(generator), 3: layer(generator, coupling=coupling, drift=drift)}
    rows = torch.tensor([2, 0, 2])
    some, single = select(state, rows), to_dtype(state, torch.float32)
    for i, whole in state.items():
        for name in ("anchor", "lower", "upper", "radius", "gain", "varying"):
            assert torch.equal(getattr(some[i], name), getattr(whole, name)[rows])
            assert getattr(single[i], name).dtype == torch.float32
    assert torch.equal(some[3].drift, drift[rows])
    assert torch.equal(some[3].coupling.factors[3], coupling.factors[3][rows])
    assert torch.equal(some[3].coupling.rest, coupling.rest[rows])
    assert single[3].drift.dtype == single[3].coupling.rest.dtype == torch.float32
    assert some[0].drift is None
    assert some[0].coupling is None


def test_lengths_of_boxes_and_drifts_are_at_least_those_of_exact_arithmetic() -> None:
    generator = seeded(1)
    widths = normal((4, 2, 3), generator).abs()
    exact = widths.flatten(1).square().sum(1).sqrt()
    for dtype in (torch.float64, torch.float32):
        given = widths.to(dtype)
        found = half_diagonal(given, torch.float64)
        assert (found >= given.double().flatten(1).square().sum(1).sqrt() * (1 - 1e-15)).all()
        assert torch.allclose(found, exact, rtol=1e-6)
    drifted = layer(generator, drift=widths).drifted
    assert (drifted >= exact * (1 - 1e-15)).all()
    assert (layer(generator).drifted == 0).all()
