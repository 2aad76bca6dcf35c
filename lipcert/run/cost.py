"""What a run will take, told from the graph before it is taken."""

from __future__ import annotations

import torch

from lipcert.certification import is_deep
from lipcert.certification.pace import PACES
from lipcert.certification.rungs.plan import TubePlan, not_within
from lipcert.network import Network, keep, lower, simplify
from lipcert.options import Options

# What a sample takes for each value of its network, at the least: twice as much on examples/digits;
# the same of --effort fast.
_SECONDS, _SECONDS_TO_GUESS = 2e-5, 4e-6
# Sweeps there and back over a layer: 60 for the scale of its norm, some 160 for each of its probes.
_SWEEPS = 540
# Products a second in float64: on one thread 2 to 6e9 with layers of more than a million of them.
_PRODUCTS = 5e9
# Seconds of processor time from which on it is said what something takes.
_MUCH = 30.0


def least_seconds(network: Network, options: Options, samples: int) -> float:
    """Of processor time, for so many samples, by the size of the network."""
    values = network.size
    guesses = options.method == "auto" and options.effort == "fast"
    plan = tube_plan(network, options)
    if plan is not None:
        return samples * plan.seconds
    return samples * values * (_SECONDS_TO_GUESS if guesses else _SECONDS)


def cost_of(network: Network, options: Options | None) -> dict[str, int | float | str]:
    """What ``lipcert inspect`` says of it, from the graph alone: the values and the products of one
    sweep, the bounds that ``--method auto`` takes, and of the norms about the processor time."""
    found: dict[str, int | float | str] = {
        "values": network.size,
        "products": sum(node.products for node in network.nodes),
        "bounds": "tube" if is_deep(network) else "dual",
    }
    if options is not None and not network.joints:
        found["norm_seconds"] = norm_seconds(network, options)
    return found


def norm_seconds(network: Network, options: Options) -> float:
    """Of processor time, for the norms that all samples share: so many sweeps there and back over
    every layer, where they are bounded by coins."""
    if options.deterministic or options.estimate:
        return 0.0
    return 2 * _SWEEPS * network.products / _PRODUCTS


def norms_told(network: Network, options: Options, less: str, *, every: bool = False) -> str:
    """That norms are being bounded; where that takes much, about how much, and with what less; and
    what each sample of a deep network will take after them, as long as nothing has begun. With
    tubes norms are bounded when a sample asks for them, unless ``every`` one is wanted."""
    plan = None if every else tube_plan(network, options)
    if plan is not None:
        text = f"the network is deep: {network.parameters:,} parameters"
        return text if plan.seconds < _MUCH else f"{text}, {plan.told}"
    text = f"bounding operator norms: {network.parameters:,} parameters"
    seconds, tube = norm_seconds(network, options), tube_told(network, options)
    if seconds >= _MUCH:
        text += f", about {_spent(seconds)}; less with {less}"
    return text if tube is None else f"{text}; then {tube}"


def samples_told(network: Network, options: Options, samples: int, workers: int) -> str:
    """What is about to be done; where that is much, what it takes at the least, and what less."""
    text = f"certifying {samples} samples, eps {', '.join(eps.text for eps in options.eps)}"
    if workers > 1:
        text += f", in {workers} processes"
    seconds = least_seconds(network, options, samples)
    tube = tube_told(network, options)
    fewer = "--limit" if options.effort == "fast" else "--effort fast or --limit"
    if tube is not None:
        return f"{text}: {tube}; less with {fewer}"
    if options.method != "auto" or seconds < _MUCH:
        return text
    # Of a deep network the other bounds may settle a sample, for which there is no tube then.
    told = "about" if is_deep(network) and not options.deterministic else "at least"
    return f"{text}: {told} {_spent(seconds)}; less with {fewer}"


def tube_told(network: Network, options: Options) -> str | None:
    """What a tube takes for each sample of a deep network, or that none is taken; None for other
    networks, or methods."""
    if options.method != "auto" or options.deterministic or not is_deep(network):
        return None
    plan = tube_plan(network, options)
    if plan is None:
        return not_within(_kept(network), options, PACES[options.effort].tube)
    return None if plan.seconds < _MUCH else f"the network is deep, {plan.told}"


def tube_plan(network: Network, options: Options) -> TubePlan | None:
    """The plan of a deep network's tubes; None for other networks, or methods, and where none is
    within what the effort pays for."""
    if options.method != "auto" or options.deterministic or not is_deep(network):
        return None
    return TubePlan.of(_kept(network), PACES[options.effort].tube)


def _kept(network: Network) -> Network:
    """As a tube has it."""
    return simplify(lower(simplify(keep(network.to(device="cpu", dtype=torch.float64)))))


def _spent(seconds: float) -> str:
    return (f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min") + (
        " of processor time"
    )
