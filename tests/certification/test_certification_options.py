"""Options: what is asked for, exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcert.errors import UsageError
from lipcert.options import Epsilon, Options


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_radius_is_never_rounded_down(above: int, below: int) -> None:
    eps = Epsilon.parse(f"{above}/{below}")
    assert eps.value == Fraction(above, below)
    assert Fraction(eps.rounded_up) >= eps.value
    assert eps.rounded_up <= float(eps.value) * (1 + 1e-15)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.14", Fraction(14, 100)), ("36/255", Fraction(36, 255)), ("1e-3", Fraction(1, 1000)),
     (" 72 / 255 ", Fraction(72, 255)), ("0", Fraction(0)), (".5/2", Fraction(1, 4))],
)  # fmt: skip
def test_numbers_and_fractions(text: str, value: Fraction) -> None:
    assert Epsilon.parse(text).value == value


@pytest.mark.parametrize(
    "text", ["", "-1", "abc", "1/0", "1/2/3", "nan", "inf", "1e9999", "0x1", "１", "1_0"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--eps"):
        Epsilon.parse(text)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"eps": ()}, "--eps"), ({"method": "best"}, "--method"), ({"norms": "power"}, "--norms"),
     ({"deployed": "int8"}, "--deployed"), ({"dtype": "float16"}, "--dtype"),
     ({"failure_probability": 1.0}, "--failure-probability"),
     ({"failure_probability": float("nan")}, "--failure-probability"), ({"seed": -1}, "--seed"),
     ({"eps": (Epsilon.parse("0.5"), Epsilon.parse("1/2"))}, "twice")],
)  # fmt: skip
def test_wrong_options_name_themselves(change: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Options(**({"eps": (Epsilon.parse("0.1"),)} | change))  # type: ignore[arg-type]


def test_the_digest_depends_on_every_option_and_on_nothing_else() -> None:
    base = Options(eps=(Epsilon.parse("1/2"), Epsilon.parse("0.1")))
    same = Options(eps=(Epsilon.parse("0.1"), Epsilon.parse("0.5")))
    assert base.digest == same.digest
    others = [
        Options(eps=(Epsilon.parse("0.1"),)),
        Options(eps=base.eps, method="global"),
        Options(eps=base.eps, norms="deterministic"),
        Options(eps=base.eps, failure_probability=1e-8),
        Options(eps=base.eps, seed=1),
        Options(eps=base.eps, deployed="real"),
        Options(eps=base.eps, dtype="float32"),
        Options(eps=base.eps, radii=False),
    ]
    assert len({options.digest for options in [base, *others]}) == len(others) + 1


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_time_is_above_zero(seconds: float) -> None:
    with pytest.raises(UsageError, match="--time-per-sample"):
        Options((Epsilon.parse("0.1"),), time_per_sample=seconds)
