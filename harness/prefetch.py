"""Batches on their way to the device: the next one is copied to a GPU while the GPU works on the one before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from harness.api import Batch

T = TypeVar("T")


def on_device(read: Iterator[tuple[Batch, int]], device: str) -> Iterator[tuple[Batch, int]]:
    """Batches on the device, with whatever comes with each.

    For a GPU they are read one ahead, and copied from pinned memory on a stream of their own, so that neither the
    program nor the GPU waits for a copy. On a CPU each is read when it is asked for.

    Args:
        read: batches in the CPU's memory, images [B, 3, H, W] as bytes; in pinned memory for a GPU.
    """
    return _copied(read, device) if device.startswith("cuda") else ((moved(b, device), extra) for b, extra in read)


def moved(batch: Batch, device: str) -> Batch:
    """The batch on a device, its images as fractions; on a GPU this only asks for the copy."""
    labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
    images = batch.images.to(device, non_blocking=True).float().div_(255)
    return dataclasses.replace(batch, images=images, labels=labels, index=batch.index.to(device, non_blocking=True))


def _copied(read: Iterator[tuple[Batch, int]], device: str) -> Iterator[tuple[Batch, int]]:
    side = torch.cuda.Stream(device)

    def asked() -> Iterator[tuple[Batch, int, Any]]:
        for batch, extra in read:
            with torch.cuda.stream(side):
                there = moved(batch, device)
            yield there, extra, side.record_event()

    for batch, extra, arrived in one_ahead(asked()):
        now = torch.cuda.current_stream(device)
        now.wait_event(arrived)
        for tensor in (batch.images, batch.labels, batch.index):
            if tensor is not None:
                tensor.record_stream(now)  # else its memory could be given away before this stream has read it
        yield batch, extra


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Each item once the one behind it has been made; what making that one raises is raised in its turn."""
    ready: list[T] = []
    error = None
    while error is None:
        try:
            ready.append(next(items))
        except Exception as raised:  # StopIteration too
            error = raised
        if len(ready) > 1 or (error is not None and ready):
            yield ready.pop(0)
    if not isinstance(error, StopIteration):
        raise error
