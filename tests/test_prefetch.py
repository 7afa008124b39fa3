"""Batches reach the device in order, one ahead on a GPU, and whatever fails does so in its turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from harness import prefetch
from harness.api import Batch
from harness.data import Data, batches
from harness.prefetch import on_device, one_ahead
from harness.toys import Colours

NEEDS_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def counting(made: list[int], count: int = 3, broken: int | None = None) -> Iterator[int]:
    for number in range(count):
        if number == broken:
            raise ValueError(f"number {number} is broken")
        made.append(number)
        yield number


def test_an_item_comes_once_the_one_behind_it_has_been_made():
    made: list[int] = []
    seen = [(item, len(made)) for item in one_ahead(counting(made))]
    assert seen == [(0, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_item_comes_once_and_in_order(count):
    assert list(one_ahead(counting([], count))) == list(range(count))


def test_what_fails_ahead_fails_in_its_turn():
    seen = []
    with pytest.raises(ValueError, match="number 2 is broken"):
        for item in one_ahead(counting([], broken=2)):
            seen.append(item)
    assert seen == [0, 1]


def test_on_a_cpu_nothing_is_read_ahead_and_bytes_become_fractions():
    made: list[int] = []
    labels = torch.tensor([3])

    def read() -> Iterator[tuple[Batch, int]]:
        for number in counting(made):
            images = torch.full((1, 3, 2, 2), 51 * number, dtype=torch.uint8)
            yield Batch(images, None if number == 1 else labels, torch.tensor([number]), number / 3), 10 + number

    for number, (batch, extra) in enumerate(on_device(read(), "cpu")):
        assert len(made) == number + 1 and extra == 10 + number
        assert torch.equal(batch.images, torch.full((1, 3, 2, 2), 51 * number / 255))
        assert batch.labels is (None if number == 1 else labels)
        assert int(batch.index) == number and batch.progress == number / 3


class Stream:
    """Of a GPU that is not there: notes what it was asked for."""

    def __init__(self, notes: list[str], name: str) -> None:
        self.notes, self.name, self.events = notes, name, 0

    def record_event(self) -> str:
        self.events += 1
        self.notes.append(f"copy {self.events}")
        return f"copy {self.events}"

    def wait_event(self, event: str) -> None:
        self.notes.append(f"{self.name} waits for {event}")


def test_the_gpus_work_waits_for_its_own_batch_alone_and_keeps_its_memory(monkeypatch):
    notes: list[str] = []
    main = Stream(notes, "main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(notes, "side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: notes.append(f"kept for {stream.name}"))
    read = ((Batch(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), None, torch.tensor([i])), 0) for i in range(3))
    for batch, _ in prefetch._copied(read, "cpu"):
        notes.append(f"step {int(batch.index)}")
    kept = ["kept for main"] * 2  # images and index
    assert notes == [
        *("copy 1", "copy 2", "main waits for copy 1", *kept, "step 0"),
        *("copy 3", "main waits for copy 2", *kept, "step 1"),
        *("main waits for copy 3", *kept, "step 2"),
    ]


@NEEDS_A_GPU
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_gpu_gets_what_a_cpu_gets(num_workers):
    source = Colours(20)
    data = Data.of_sources({"train": source}, image_size=32)
    wanted = {"batch_size": 6, "steps": 7, "seed": 0, "num_workers": num_workers}
    here = [batch for batch, _ in batches(source, data, None, **wanted)]
    for one, (other, _) in zip(here, batches(source, data, None, **wanted, device="cuda"), strict=True):
        assert other.images.is_cuda and torch.equal(one.images, other.images.cpu())
        assert torch.equal(one.labels, other.labels.cpu()) and torch.equal(one.index, other.index.cpu())
