"""What 100 epochs of all dense heads cost on kept tokens, against running the backbone again in every epoch.

    python benchmarks/dense_probes.py [--quick] [--threads N] [--device cuda]

ViT-T/16 at 224 px with random weights: the grids of the segmentation task (16 heads, 150 classes) and of the depth task
(6 heads, 256 bins) under their `linear` protocols. A step of heads and a forward pass of the backbone take turns, and
what is printed are their medians, scaled to 100 epochs: a step's cost does not depend on the epoch. Disk: bytes of the
tokens that are kept an image. Ratio: the heads of the dearer task / one pass of the backbone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe
from probes import Noise, backbone_s, synchronise

from harness.api import frozen
from harness.dense import TokenMaps, fit_heads, whole_view
from harness.features import Encoder
from harness.models import as_vit
from harness.segmenting import pixel_batches
from tasks import depth, depth_fitting, segmentation
from tasks.depth_truth import TrainingDepths

GOAL = 3.0
EPOCHS, CLASSES, SIZE, BATCH = 100, 150, 224, 16
RANGE_M = (0.001, 10.0)


def segmentation_s(maps: dict[str, TokenMaps], steps: int, device: str) -> float:
    """Seconds of so many steps of all segmentation heads."""
    masks = np.random.default_rng(0).integers(0, CLASSES, (len(maps["last block"]), SIZE, SIZE), dtype=np.uint8)
    heads = segmentation.make_heads(
        segmentation._head_of(CLASSES), maps, segmentation.RATES, segmentation.DECAYS, 0, device
    )
    draws = segmentation.PixelDraws(masks, segmentation.PIXELS, 0)
    index = np.arange(len(masks))

    def run() -> None:
        stream = pixel_batches(heads, maps, draws, index=index, steps=steps, batch=BATCH, seed=0, device=device)
        fit_heads(heads, stream, segmentation.loss_of_pixels, steps=steps)

    return timed(run, device)


class Noisy(TrainingDepths):
    """Depth maps of noise, in memory."""

    def __init__(self, images: int) -> None:
        super().__init__(range(images), SIZE, *RANGE_M)  # type: ignore[arg-type] # only its length is asked for
        self.maps = np.random.default_rng(0).random((images, SIZE, SIZE), dtype=np.float32) * 9 + 0.5

    def known(self, index: int) -> np.ndarray:
        return self.maps[index]


def depth_s(maps: dict[str, TokenMaps], steps: int, device: str) -> float:
    """Seconds of so many steps of all depth heads."""
    index = np.arange(len(maps["last block"]))
    truth = Noisy(len(index))

    def run() -> None:
        depth_fitting.fit_linear(maps, truth, index, steps=steps, batch=BATCH, seed=0, device=device)

    return timed(run, device)


def timed(run: Callable[[], None], device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 9")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(describe())

    images, rounds = (32, 3) if args.quick else (64, 9)
    torch.manual_seed(0)
    model = frozen(timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=10)).to(args.device)
    with tempfile.TemporaryDirectory() as cache:
        encoder = Encoder(as_vit(model), identity="random", cache=Path(cache), device=args.device, batch_size=32)
        start = time.perf_counter()
        tokens = encoder.tokens(Noise(images), whole_view(SIZE), range(8, 12))
        caching = time.perf_counter() - start
        kept = sum(path.stat().st_size for path in Path(cache).rglob("*.npy")) / images
        maps = {name: TokenMaps([tokens], blocks) for name, blocks in segmentation.feature_blocks(12).items()}
        with_cls = {name: TokenMaps([tokens], found.layers, cls=True) for name, found in maps.items()}
        steps = 2
        times: dict[str, list[float]] = {"pass": [], "segmentation": [], "depth": []}
        for _ in range(rounds):
            times["pass"].append(backbone_s(encoder, images) / images)
            times["segmentation"].append(segmentation_s(maps, steps, args.device) / (steps * BATCH))
            times["depth"].append(depth_s(with_cls, steps, args.device) / (steps * BATCH))
    an_image = {what: statistics.median(found) for what, found in times.items()}
    one = an_image.pop("pass")
    print(f"ViT-T/16, {SIZE} px; an image's forward pass {1000 * one:.1f} ms; tokens kept {kept / 1e6:.2f} MB an image")
    print(f"the caching pass (makes noise images, forward, writes): {1000 * caching / images:.1f} ms an image")
    heads = {"segmentation": len(segmentation.RATES) * len(segmentation.DECAYS) * 2}
    heads["depth"] = len(depth_fitting.RATES) * len(depth.BLOCKS)
    for what, step in an_image.items():
        again = (EPOCHS * (one + step)) / (one + EPOCHS * step)
        print(
            f"{what}: {EPOCHS} epochs of {heads[what]} heads take {EPOCHS * step / one:.1f} passes; with the backbone "
            f"in every epoch everything would take {again:.1f} times as long"
        )
    print(f"ratio: {EPOCHS * max(an_image.values()) / one:.2f} (goal <= {GOAL})")


if __name__ == "__main__":
    main()
