"""Images a second through training steps and through the data pipeline, and how much of a GPU the steps use.

    python benchmarks/throughput.py [--quick] [--root DIR] [--batch N] [--threads N] [--device D]

Steps: harness.training.train.Group with 1, 5 and 10 methods, ViT-L/16 -> ViT-Ti/16 at 224 px, in fp32, fp32 rounded
to TF32, bf16, and bf16 with torch.compile; fresh weights, noise images that are in memory before the clock starts.
Model FLOP utilisation is the arithmetic of a step as torch counts it (teacher, students forward and backward) a second,
as a share of what the GPU's maker names for that precision. Peak memory is torch's own count.

Data: harness.data.batches alone, decoding and augmentation on 1, 2 and 4 workers, of JPEGs in class folders (--root;
else made-up ones of 500 x 375 px), against what the steps would take.

Patch embedding: the same convolution on images as they come and in channels_last.

Without a GPU nothing but --quick is measured, steps at the demo's shapes: whether the program works, and the data.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe
from pairs import timed
from shapes import DEMO, LARGE, Shape, group_of, stream, teacher_of

from harness.config import Training
from harness.data import Augment, Data, batches
from harness.errors import UserError
from harness.models import TimmVit

METHODS = ("fitnet", "logit_kd", "norm_clip", "target_norm", "singer", "none", "attn_distill", "sp", "dkd", "unic")
COUNTS = (1, 5, 10)
WORKERS = (1, 2, 4)
WARM = 3  # steps before the clock starts
JPEG_SIZE = (500, 375)  # pixels; ImageNet's most frequent


class Mode(NamedTuple):
    """How a step computes. peak: which of the maker's figures it is measured against."""

    title: str
    settings: dict[str, object]
    peak: str


MODES = (
    Mode("fp32", {}, "fp32"),
    Mode("tf32", {"tf32": True}, "tf32"),
    Mode("bf16", {"precision": "bf16"}, "bf16"),
    Mode("bf16 + compile", {"precision": "bf16", "compile": True}, "bf16"),
)

# Dense, in 1e12 operations a second. NVIDIA's data sheets of A100 (2022), H100 (2023), H200 (2024), L40S (2023),
# L4 (2023) and A10 (2021), which name twice as many for matrices with every second number 0.
PEAKS = {
    "NVIDIA A100.*": {"fp32": 19.5, "tf32": 156, "bf16": 312},
    "NVIDIA H100 80GB HBM3": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4},
    "NVIDIA H100 PCIe": {"fp32": 51.2, "tf32": 378, "bf16": 756},
    "NVIDIA H200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4},
    "NVIDIA L40S": {"fp32": 91.6, "tf32": 183, "bf16": 362},
    "NVIDIA L4": {"fp32": 30.3, "tf32": 60, "bf16": 121},
    "NVIDIA A10": {"fp32": 31.2, "tf32": 62.5, "bf16": 125},
}


def peak_of(device_name: str, precision: str) -> float | None:
    """Operations a second that a GPU of this name can do; None where that is not known here."""
    for name, peaks in PEAKS.items():
        if re.fullmatch(name, device_name):
            return 1e12 * peaks[precision]
    return None


class Measured(NamedTuple):
    """operations: of one image, 0 where they were not counted. peak_gb: of the device; None on a CPU."""

    images_a_second: float
    operations: float
    peak_gb: float | None


def steps(shape: Shape, count: int, mode: Mode, teacher: TimmVit, rounds: int, device: str) -> Measured:
    """Steps of a group with the first `count` methods. Ends the program where a student was dropped."""
    training = Training.model_validate({"steps": WARM + rounds, "batch_size": shape.batch_size, **mode.settings})
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        group = group_of(shape, METHODS[:count], teacher, training, Path(folder), device, log_steps=WARM + rounds + 1)
        given = stream(shape, WARM + rounds, device)
        operations = 0
        if not training.compile:  # a compiled block's are not seen one by one
            with FlopCounterMode(display=False) as counter:
                group.train_step(next(given))
            operations = counter.get_total_flops()
        for _ in range(WARM - bool(operations)):
            group.train_step(next(given))
        took = timed(lambda: [group.train_step(batch) for _, batch in zip(range(rounds), given, strict=False)], device)
    failed = {m.id: m.failure["reason"] for m in group.members if m.failure is not None}
    if failed:
        raise SystemExit(f"nothing was measured: {failed}")
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    images = shape.batch_size * rounds
    return Measured(images / took.wall_s, operations / shape.batch_size, peak_gb)


def table(shape: Shape, rounds: int, device: str) -> float:
    """Print a row for each number of methods and each mode; returns the most images a second."""
    teacher, most = teacher_of(shape, device), 0.0
    name = torch.cuda.get_device_name() if device == "cuda" else "a CPU"
    print(f"\n{shape.title}, batch {shape.batch_size}, {rounds} steps a row\n")
    print("| methods | precision | images/s | GFLOP an image | utilisation | peak memory |")
    print("|---:|---|---:|---:|---:|---:|")
    for count in COUNTS:
        operations = 0.0
        for mode in MODES:
            try:
                found = steps(shape, count, mode, teacher, rounds, device)
            except torch.OutOfMemoryError:
                print(f"| {count} | {mode.title} | does not fit | | | |")
                continue
            operations = found.operations or operations
            peak = peak_of(name, mode.peak)
            share = "unknown" if peak is None else f"{100 * operations * found.images_a_second / peak:.1f} %"
            memory = "unknown" if found.peak_gb is None else f"{found.peak_gb:.1f} GB"
            rate = found.images_a_second
            print(f"| {count} | {mode.title} | {rate:.1f} | {operations / 1e9:.3g} | {share} | {memory} |")
            most = max(most, rate)
    return most


def data(root: Path, batch_size: int, count: int, device: str) -> dict[int, float]:
    """Print and return images a second of the pipeline, by the number of workers: over `count` batches."""
    images = Data("folder", "benchmark", str(root), train=".", image_size=LARGE.image_size)
    source = images.open("train")
    size, found = min(batch_size, len(source)), {}
    print(f"\ndata: {len(source)} JPEGs, {images.image_size} px, random resized crops, batches of {size}")
    for workers in WORKERS:
        read = batches(
            source,
            images,
            Augment(),
            batch_size=size,
            steps=workers + count,
            seed=0,
            num_workers=workers,
            device=device,
        )
        for _ in range(workers):  # all of them have started, and are about to begin anew
            next(read)
        begin_s = time.perf_counter()
        for _ in read:
            pass
        found[workers] = count * size / (time.perf_counter() - begin_s)
        print(f"  {workers} worker{'s' * (workers > 1)}: {found[workers]:.0f} images/s")
    return found


def made_up(folder: Path, count: int) -> Path:
    """Smooth random JPEGs in two class folders: about as many bytes as a photograph has."""
    draws = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(draws.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        small.resize(JPEG_SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def patch_embedding(shape: Shape, teacher: TimmVit, rounds: int, device: str) -> None:
    """Print what the teacher's patch embedding takes in both memory formats, copies into the format included."""
    embed = teacher.model.patch_embed
    given = next(stream(shape, 1, device)).images
    milliseconds = {}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        layer = embed.to(memory_format=memory_format)

        def once(layer: torch.nn.Module = layer, memory_format: torch.memory_format = memory_format) -> None:
            with torch.no_grad():
                layer(given.contiguous(memory_format=memory_format))

        once()
        seconds = [timed(once, device).wall_s for _ in range(rounds)]
        milliseconds[memory_format] = 1000 * statistics.median(seconds)
    embed.to(memory_format=torch.contiguous_format)
    plain, last = milliseconds.values()
    print(f"\npatch embedding of the teacher in fp32: {plain:.2f} ms, in channels_last {last:.2f} ms a batch")


def roots(given: str | None, images: int) -> Iterator[Path]:
    """Where the JPEGs are, for as long as they are needed."""
    if given is not None:
        yield Path(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield made_up(Path(folder), images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps and batches; on a CPU at the demo's shapes")
    parser.add_argument("--root", help="JPEGs in class folders, DIR/class/image.jpg")
    parser.add_argument("--batch", type=int, help="images a step; default 128, on a CPU 8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(describe())
    if args.device == "cpu" and not args.quick:
        print("no GPU: nothing is measured; --quick runs the program on the CPU, at small shapes")
        return

    gpu = args.device == "cuda"
    shape = dataclasses.replace(LARGE if gpu else DEMO, batch_size=args.batch or (128 if gpu else 8))
    rounds = (5 if gpu else 2) if args.quick else 20
    need = table(shape, rounds, args.device)
    patch_embedding(shape, teacher_of(shape, args.device), rounds, args.device)
    try:
        for root in roots(args.root, images=64 if args.quick else 512):
            found = data(root, shape.batch_size, 12 if args.quick else 48, args.device)
    except UserError as error:
        raise SystemExit(f"--root: {error}") from None
    if gpu:
        one = found[WORKERS[0]]
        print(f"  the fastest steps take {need:.0f} images/s: {need / one:.1f} times what one worker gives")


if __name__ == "__main__":
    main()
