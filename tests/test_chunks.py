"""Chunks: as caches hold on a CPU, whatever the device; more on one with memory of its own."""

import torch

from lipcert.chunks import at_once, slices


def test_on_a_cpu_chunks_are_as_caches_hold():
    cpu = torch.device("cpu")
    assert at_once(2**19, cpu) == 2**19
    assert at_once(2**19, cpu, each=2**10) == 2**9
    assert at_once(2**19, cpu, each=2**20) == 1
    assert at_once(2**19, cpu, each=0) == 2**19


def test_a_device_takes_more_at_once_and_never_less():
    device = torch.device("meta")
    assert at_once(2**19, device) > 2**19
    assert at_once(2**19, device, each=2**10) == at_once(2**19, device) // 2**10
    assert at_once(2**60, device) == 2**60


def test_slices_cover_every_place_once():
    places = torch.arange(10)
    assert torch.cat([places[some] for some in slices(10, 3)]).tolist() == list(range(10))
    assert [len(places[some]) for some in slices(10, 3)] == [3, 3, 3, 1]
    assert slices(0, 3) == []
