"""Radii that auto_LiRPA's CROWN certifies, for test_benchmark_crown.py; runs in an environment that
has auto_LiRPA, and prints them as JSON.

    python crown_radii.py network.npz
    python crown_radii.py network.npz 0.1

``network.npz``: ``images`` (N, C, H, W), ``labels``, ``steps`` (JSON: a list of layer names and
options) and the tensors ``0.weight``, ``0.bias``, … that they use. With a radius: the least margins
there, and the processor seconds that they took.
"""

import json
import math
import sys
import time

import numpy as np
import torch
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from torch import nn

SMALLEST, LARGEST, RESOLUTION = 1e-4, 10.0, 1.004


class Permute(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return x.permute(*self.order)


def module(archive):
    layers = []
    for number, (kind, given) in enumerate(json.loads(str(archive["steps"]))):
        tensors = {
            name: torch.from_numpy(archive[f"{number}.{name}"])
            for name in ("weight", "bias")
            if f"{number}.{name}" in archive
        }
        if kind == "dense":
            layers.append(nn.Linear(*reversed(tensors["weight"].shape)))
            layers[-1].load_state_dict(tensors)
        elif kind == "convolution":
            outputs, inputs, *kernel = tensors["weight"].shape
            layers.append(nn.Conv2d(inputs, outputs, kernel, **given))
            layers[-1].load_state_dict(tensors)
        else:
            plain = {"relu": nn.ReLU, "flatten": nn.Flatten, "permute": Permute}
            layers.append(plain[kind](**given))
    return nn.Sequential(*layers).eval()


def margin(bounded, x, label, classes, eps):
    """A lower bound of the least margin over the ball."""
    form = torch.zeros(1, classes - 1, classes)
    others = [j for j in range(classes) if j != label]
    form[0, :, label] = 1
    form[0, range(classes - 1), others] -= 1
    ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps))
    lower, _ = bounded.compute_bounds(x=(ball,), C=form, method="CROWN", bound_upper=False)
    return float(lower.min())


def radius(bounded, x, label, classes):
    """The largest radius found by bisection on a logarithmic scale; 0 if none."""

    def holds(eps):
        return margin(bounded, x, label, classes, eps) > 0

    low, high = math.log(SMALLEST), math.log(LARGEST)
    if not holds(SMALLEST):
        return 0.0
    while high - low > math.log(RESOLUTION):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(math.exp(middle)) else (low, middle)
    return math.exp(low)


def main():
    torch.set_num_threads(1)
    archive = np.load(sys.argv[1], allow_pickle=False)
    images, labels = torch.from_numpy(archive["images"]), archive["labels"].tolist()
    plain = module(archive)
    with torch.no_grad():
        logits = plain(images)
        bounded = BoundedModule(plain, images[:1])
        if len(sys.argv) > 2:
            eps, classes = float(sys.argv[2]), logits.shape[1]
            margin(bounded, images[:1], labels[0], classes, eps)
            began = time.process_time()
            margins = [
                margin(bounded, images[[row]], label, classes, eps)
                for row, label in enumerate(labels)
            ]
            json.dump({"seconds": time.process_time() - began, "margins": margins}, sys.stdout)
            return
        radii = [
            radius(bounded, images[[row]], label, logits.shape[1])
            if int(logits[row].argmax()) == label
            else None
            for row, label in enumerate(labels)
        ]
    json.dump(radii, sys.stdout)


if __name__ == "__main__":
    main()
