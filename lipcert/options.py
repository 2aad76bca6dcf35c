"""What changes a certified number, in one record that is part of the certificate."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, TypedDict, get_args

from lipcert.coins import BITS
from lipcert.errors import UsageError

Method = Literal["auto", "local", "global"]
Effort = Literal["fast", "standard", "max"]
NormMethod = Literal["randomised", "deterministic", "estimate"]
Deployed = Literal["float32", "float64", "float16", "bfloat16", "real"]
Summation = Literal["any", "measured"]
Dtype = Literal["float64", "float32"]

_SUCH = "give a number ≥ 0 or a fraction such as 36/255"
# Of a radius: its square is a number too.
_LARGEST = 2**500


@dataclass(frozen=True)
class Epsilon:
    """A radius in the unit of the data (for images pixels in [0, 1]), as written and exactly."""

    text: str
    value: Fraction

    @classmethod
    def parse(cls, text: str) -> Epsilon:
        """``0.14``, ``36/255``, ``1e-3``, ``0``."""
        bad = UsageError(f"--eps {text!r}: {_SUCH}")
        number = r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?"
        if not re.fullmatch(rf"\s*{number}(?:\s*/\s*{number})?\s*", text):
            raise bad
        above, _, below = text.replace(" ", "").partition("/")
        denominator = Fraction(below or 1)
        if denominator == 0:
            raise bad
        value = Fraction(above) / denominator
        if value > _LARGEST:
            raise UsageError(f"--eps {text!r}: is too large to be squared by a computer; {_SUCH}")
        return cls(text.replace(" ", ""), value)

    @property
    def rounded_up(self) -> float:
        """The smallest double that is not below the exact value."""
        nearest = float(self.value)
        return nearest if Fraction(nearest) >= self.value else math.nextafter(nearest, math.inf)

    @property
    def rounded_down(self) -> float:
        """The largest double that is not above the exact value."""
        nearest = float(self.value)
        return nearest if Fraction(nearest) <= self.value else math.nextafter(nearest, -math.inf)


class OptionValues(TypedDict, total=False):
    """The fields of ``Options`` but the radii, as the library takes them; a seed as text too."""

    method: Method
    norms: NormMethod
    failure_probability: float
    seed: int | str | None
    deployed: Deployed
    summation: Summation
    effort: Effort
    pixel_domain: bool
    time_per_sample: float | None
    dtype: Dtype
    top_k: int
    only_classes: tuple[int, ...] | None
    margin: float
    radii: bool


@dataclass(frozen=True)
class Options:
    """How to certify.

    ``eps``: the radii asked for. ``method``: ``auto`` (an attack, and every bound), ``local``
    (Huang et al., NeurIPS 2021) or ``global`` (product of norms). ``effort``: what ``auto`` may
    spend. ``norms``: ``randomised`` (exact where cheap, else an upper bound that fails
    with a stated probability), ``deterministic``, or ``estimate`` (power iteration, which bounds
    nothing: such results are never ``certified``). ``failure_probability``: the whole run's, over
    lipcert's own coins; 0 means deterministic. ``seed``: of those coins, None for fresh
    ones of the system. ``deployed``: the format
    whose rounding a certificate covers, or ``real`` for none. ``summation``: ``any`` order of its
    sums, or the one that is ``measured`` in the runtime of this machine, which the certificate
    then names and holds for alone.
    ``pixel_domain``: only images count, points of the ball with all pixels in [0, 1].
    ``time_per_sample``: seconds after which ``auto`` begins no other rung, the samples of a batch
    together; None for no limit. ``dtype``: the type that bounds are found in, with what rounding in
    it can change charged against them; norms, and the duals that prove, are always in float64.

    What is claimed of the outputs: ``top_k``, that the label is among so many best; of
    ``only_classes``, where they are given, the numbers of the outputs that compete; ``margin``,
    that its softmax probability is more than so much above every other one.

    ``radii``: whether the largest radius of every sample is sought too; else only whether it is
    certified at each ``eps``, and its radius is the largest of these. A tube of a deep network
    seeks it all the same.
    """

    eps: tuple[Epsilon, ...]
    method: Method = "auto"
    norms: NormMethod = "randomised"
    failure_probability: float = 1e-9
    seed: int | None = None
    deployed: Deployed = "float32"
    effort: Effort = "standard"
    pixel_domain: bool = False
    time_per_sample: float | None = None
    dtype: Dtype = "float64"
    top_k: int = 1
    only_classes: tuple[int, ...] | None = None
    margin: float = 0.0
    summation: Summation = "any"
    radii: bool = True

    def __post_init__(self) -> None:
        if not self.eps:
            raise UsageError("--eps: give at least one radius")
        texts = [eps.value for eps in self.eps]
        if len(set(texts)) != len(texts):
            raise UsageError("--eps: the same radius is given twice")
        for name, value, allowed in (
            ("--method", self.method, get_args(Method)),
            ("--norms", self.norms, get_args(NormMethod)),
            ("--deployed", self.deployed, get_args(Deployed)),
            ("--summation", self.summation, get_args(Summation)),
            ("--effort", self.effort, get_args(Effort)),
            ("--dtype", self.dtype, get_args(Dtype)),
        ):
            if value not in allowed:
                raise UsageError(f"{name} {value!r}: choose one of {', '.join(allowed)}")
        if self.summation == "measured" and self.deployed != "float32":
            raise UsageError(
                f"--summation measured: is for --deployed float32, not {self.deployed}; leave one "
                "of them out"
            )
        if self.time_per_sample is not None and not self.time_per_sample > 0:
            raise UsageError("--time-per-sample: give a number of seconds above 0")
        if not 0 <= self.failure_probability < 1:
            raise UsageError("--failure-probability: give a number in [0, 1), 0 for deterministic")
        if self.seed is not None and not 0 <= self.seed < 2**BITS:
            raise UsageError(f"--seed: give a whole number from 0 to 2^{BITS} − 1")
        self._check_head()

    def _check_head(self) -> None:
        if type(self.top_k) is not int or self.top_k < 1:
            raise UsageError(f"--top-k {self.top_k!r}: give a whole number of at least 1")
        if self.only_classes is not None:
            object.__setattr__(self, "only_classes", _classes(self.only_classes))
        if not 0 <= self.margin < 1:
            raise UsageError(f"--margin {self.margin:g}: give a probability from 0 to below 1")
        if self.margin and (self.top_k > 1 or self.only_classes is not None):
            raise UsageError(
                "--margin: speaks of the best of all outputs; leave --top-k and --only-classes out"
            )

    @property
    def estimate(self) -> bool:
        """Whether the results bound nothing and must never be called certified."""
        return self.norms == "estimate"

    @property
    def deterministic(self) -> bool:
        return self.norms == "deterministic" or self.failure_probability == 0

    @property
    def largest(self) -> Epsilon:
        return max(self.eps, key=lambda eps: eps.value)

    def to_json(self) -> dict[str, Any]:
        """As certificates have them; of the head, the order of sums and ``radii`` only what is not
        the plain one."""
        record = asdict(self) | {"eps": [eps.text for eps in self.eps]}
        plain = {"top_k": 1, "only_classes": None, "margin": 0.0, "summation": "any", "radii": True}
        record = {k: v for k, v in record.items() if k not in plain or v != plain[k]}
        if self.only_classes is not None:
            record["only_classes"] = list(self.only_classes)
        return record

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of the options, radii as exact fractions."""
        canonical = self.to_json() | {"eps": sorted(str(eps.value) for eps in self.eps)}
        return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def _classes(given: Iterable[int]) -> tuple[int, ...]:
    """Classes in ascending order, at least two. Raises ``UsageError``."""
    found = tuple(given)
    wrong = [one for one in found if type(one) is not int or one < 0]
    if wrong:
        raise UsageError(f"--only-classes: {wrong[0]!r} is no class; give whole numbers from 0 on")
    if len(set(found)) != len(found):
        raise UsageError("--only-classes: the same class is given twice")
    if len(found) < 2:
        raise UsageError("--only-classes: give at least two classes, which compete")
    return tuple(sorted(found))


def in_words(value: Any) -> str:
    """What an option was given, as people write it: ``0.1,0.2``, ``on``, ``not given``."""
    match value:
        case None:
            return "not given"
        case bool():
            return "on" if value else "off"
        case list() | tuple():
            return ",".join(map(in_words, value))
    return str(value)
