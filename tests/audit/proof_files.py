"""Files of proofs for the tests, honest, random and forged."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from audit_models import model, node

from lipcert.audit.arithmetic import Arithmetic
from lipcert.audit.deployed import Deployed, Preprocessing
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.proofs.check import Checker, Claim, Outcome
from lipcert.audit.proofs.format import Arrays, Sizes, expected
from lipcert.audit.proofs.graph import Graph
from lipcert.audit.proofs.norms import Coins
from lipcert.audit.proofs.replay import Network, Replay
from lipcert.audit.rule import PLAIN
from lipcert.proving.prover import Prover
from lipcert.proving.recorder import packed, write


def dense(
    seed: int, widths: tuple[int, ...] = (5, 10, 10, 3), kind: str = "Relu"
) -> onnx.ModelProto:
    """A small network of dense layers."""
    random = np.random.default_rng(seed)
    nodes, arrays, value = [], {}, "x"
    for k, (n, m) in enumerate(pairwise(widths)):
        last = k == len(widths) - 2
        arrays |= {f"w{k}": random.normal(size=(n, m)) * (1.6 / n) ** 0.5}
        arrays |= {f"b{k}": random.normal(size=m) * 0.2}
        nodes.append(node("Gemm", f"{value} w{k} b{k}", "y" if last else f"z{k}"))
        if not last:
            nodes.append(node(kind, f"z{k}", f"a{k}"))
        value = f"a{k}"
    return model(nodes, widths[:1], **arrays)


def network_of(made: onnx.ModelProto, front: Preprocessing, *, softmax: bool = False) -> Network:
    return Network(Graph(Interpreter(made, front.shape, softmax=softmax), front))


def replay_of(network: Network, deployed: str = "float32", *, pixel_domain: bool = False) -> Replay:
    coins = Coins(1e-9, 1000)
    arithmetic = Arithmetic.of(deployed)
    return Replay(network, arithmetic, coins, pixel_domain=pixel_domain, softmax=False)


def proofs(
    made: onnx.ModelProto, front: Preprocessing, x: np.ndarray, labels: list[int], eps: list[float]
) -> Arrays:
    """Honest ones of samples 0, 1, …; of those that have one."""
    network = network_of(made, front)
    found = Prover(replay_of(network))(
        torch.from_numpy(x.reshape(len(x), -1).astype(np.float64)), torch.tensor(labels),
        torch.tensor(eps, dtype=torch.float64),
    )  # fmt: skip
    kept = [(k, eps[k], proof) for k, proof in enumerate(found) if proof is not None]
    return packed(network, kept)


def checker(
    made: onnx.ModelProto, front: Preprocessing, path: Path, samples: int = 64,
    deployed: str = "float32", *, pixel_domain: bool = False,
) -> Checker:  # fmt: skip
    reading = Interpreter(made, front.shape, softmax=False)
    arithmetic = Arithmetic.of(deployed, reading.inside, reading.leaves)
    return Checker(
        reading, front, path, samples, arithmetic, pixel_domain=pixel_domain, softmax=False
    )


def checked(
    made: onnx.ModelProto, front: Preprocessing, arrays: Arrays, path: Path, claim: Claim,
    index: int = 0, **options: Any,
) -> Outcome:  # fmt: skip
    write(arrays, path)
    return checker(made, front, path, **options)({index: claim})[index]


def changed(arrays: Arrays, **others: Any) -> Arrays:
    """Some arrays replaced, or made by functions of the old ones, in their types."""
    own = dict(vars(arrays))
    for name, value in others.items():
        made = value(own[name]) if isinstance(value, Callable) else value
        own[name] = np.asarray(made, dtype=own[name].dtype)
    return Arrays(**own)


def adversarial(random: np.random.Generator, sizes: Sizes, classes: int, eps: float) -> Arrays:
    """Numbers of any size wherever a file may have any; margins of sample 0 of all classes, some in
    two leaves, and forms for boxes of all functions."""

    def any_size(*shape: int) -> np.ndarray:
        return 10.0 ** random.uniform(-6, 4, shape) * (random.random(shape) < 0.8)

    bends, places, cuts = [], [], []
    for bend in range(sizes.bends):
        for place in random.integers(0, 12, 8):
            bends.append(bend)
            places.append(int(place))
            cuts.append([])
    for other in range(classes):
        halves = random.random() < 0.5
        neuron, at = int(random.integers(sizes.neurons)), float(random.normal())
        for side in (False, True) if halves else (None,):
            bends.append(-1)
            places.append(other)
            cuts.append([] if side is None else [(neuron, at, side)])
    count, rows = len(bends), 6
    flat = [cut for some in cuts for cut in some]
    values = {
        "index": [0], "eps": [eps], "edge_scale": any_size(1, sizes.edges),
        "chain_scale": any_size(1, sizes.bends), "chain_weight": any_size(1, sizes.weights),
        "form_sample": np.zeros(count), "form_bend": bends, "form_place": places,
        "form_sign": random.choice([-1, 1], count), "form_rule": random.integers(0, 2, count),
        "form_slopes": random.integers(-1, rows, count),
        "form_multiplier": any_size(count, sizes.bends), "form_cuts": [len(c) for c in cuts],
        "cut_neuron": [c[0] for c in flat], "cut_place": [c[1] for c in flat],
        "cut_above": [c[2] for c in flat],
        "slopes": random.integers(0, 256, (rows, sizes.neurons)),
    }  # fmt: skip
    kinds = expected(sizes)
    return Arrays(**{
        name: np.asarray(value, dtype=kinds[name][0]) for name, value in values.items()
    })  # fmt: skip


def smallest_margin(
    made: onnx.ModelProto, front: Preprocessing, x: np.ndarray, label: int, eps: float, seed: int,
    count: int = 200,
) -> float:  # fmt: skip
    """Of many points of the ball, most of them on its sphere, and of a descent, in onnxruntime."""
    from lipcert.audit.attack import Ball, candidates

    reading = Interpreter(made, front.shape, softmax=False)
    random = np.random.default_rng(seed)
    offsets = random.normal(size=(count, *x.shape))
    length = np.linalg.norm(offsets.reshape(count, -1), axis=1)
    share = eps * np.where(np.arange(count) % 3, 1, random.random(count)) / length
    points = x + offsets * (share * (1 - 1e-6)).reshape(-1, *(1,) * x.ndim)

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        flat = pixels.flatten(1) * torch.from_numpy(np.array(front.scale)).to(pixels)
        flat = flat + torch.from_numpy(np.array(front.shift)).to(pixels)
        return reading(flat.reshape(len(pixels), *front.shape))

    ball = Ball(x.astype(np.float32), label, eps)
    found = candidates(logits, ball, restarts=12, steps=15, seed=seed)
    points = np.concatenate([points, found])
    return float(PLAIN.lead(Deployed(made, front)(points.astype(np.float32)), label).min())
