"""Classification from 1, 5 and 10 labelled images a class, over several draws of them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.api import Metric, Task, Tiny
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.head_choice import checked_labels
from harness.items import Items, Scores
from harness.logistic import fit_logistic
from harness.probes import balanced_accuracy
from harness.seeds import derive
from harness.sources import Source, Subset, balanced_subset
from harness.toys import Colours, PixelVit

SHOTS = (1, 5, 10)
STRENGTH = 1.0  # of the penalty, as in few_shot: with one image a class there is nothing to choose it on


class LowShot(Task):
    """Top-1 on the whole test split of a classifier that saw K labelled images of every class, K of 1, 5 and 10.

    `linear`: logistic regression on the K C images, weight of the penalty 1, no bias. `ncm`: the class whose mean
    feature is nearest in Euclidean distance. Each is the mean over `draws` draws of the images. Draws depend on the
    labels alone: every method and every seed is given the same images, and a class's 5 are among its 10.

    Features: CLS of the last block after the final norm (the mean patch without one), less the mean over unlabelled
    training images, then L2-normalised, as in the few_shot task (SimpleShot's CL2N, arXiv 1911.04623).

    Details: the sample standard deviation over draws of each metric (`linear_1shot_std`), and balanced accuracies.

    Args:
        data: with labels, the same classes in train and test, ten training images of each.
        draws: how often images are drawn.
        mean_images: at most so many training images give the mean feature, every class its share.
    """

    name = "low_shot"
    metrics: ClassVar[dict[str, Metric]] = {
        f"{head}_{shots}shot": Metric("fraction", "up") for shots in reversed(SHOTS) for head in ("linear", "ncm")
    }

    def __init__(self, *, data: Data, draws: int = 5, mean_images: int = 2000) -> None:
        self.data, self.draws, self.mean_images = data, draws, mean_images
        for what, value, least in (("draws", draws, 2), ("mean_images", mean_images, 1)):
            if value < least:
                raise UserError(f"{what} of the low_shot task is {value}; give {least} or more, or leave it out")

    def protocol(self) -> dict[str, Any]:
        return {
            "summary": (
                f"{', '.join(map(str, SHOTS))} training images a class, mean over {self.draws} draws, the same for "
                "every method and seed; measured on all of test; features centred and L2-normalised"
            ),
            "data": self.data.identity(),
            "shots": list(SHOTS),
            "draws": self.draws,
            "mean_images": self.mean_images,
            "features": "CLS of the last block after the final norm, centred, L2-normalised",
            "linear": {"penalty": STRENGTH, "bias": False},
            "version": 1,
        }

    def evaluate(self, encoder: Encoder, *, seed: int) -> dict[str, float]:
        """Metric -> value. `seed` decides nothing here: all are given the same images.

        Raises:
            UserError: a class with fewer than ten training images, classes that differ between train and test,
                images without a label, an image that cannot be read.
        """
        train, test = self.data.open("train"), self.data.open("test")
        labels, truth = (torch.from_numpy(found) for found in checked_labels(train, test))
        drawn = draw_images(labels.numpy(), train, self.draws)  # [draws, C, most shots]
        seen = np.unique(drawn)
        view, last = self.data.view(), encoder.depth - 1

        def features(source: Source) -> np.ndarray:
            return np.array(encoder.pooled(source, view, [last]).vector(last), dtype=np.float64)  # [n, F]

        centre = features(balanced_subset(train, self.mean_images)).mean(axis=0)  # [F]
        support, queries = (
            F.normalize(torch.from_numpy(features(source) - centre).float().to(encoder.device), dim=-1)
            for source in (Subset(train, seen), test)
        )
        place = torch.from_numpy(np.searchsorted(seen, drawn)).to(encoder.device)
        found: dict[str, float] = {}
        over_draws = {}
        for shots in SHOTS:
            shown = support[place[:, :, :shots]]  # [draws, C, shots, F]
            for head, predicted in predictions(shown, queries).items():
                right = (predicted == truth).double().mean(dim=1)  # [draws]
                over_draws[f"{head}_{shots}shot"] = (predicted == truth).float().mean(dim=0).numpy()  # [n]
                balanced = [balanced_accuracy(answers, truth) for answers in predicted]
                found[f"{head}_{shots}shot"] = right.mean().item()
                found[f"{head}_{shots}shot_std"] = right.std().item()
                found[f"{head}_{shots}shot_balanced"] = float(np.mean(balanced))
        return Scores(found, Items(over_draws, {name: ("mean", name) for name in over_draws}))

    @classmethod
    def tiny(cls) -> Tiny:
        sources: dict[str, Source] = {"train": Colours(80, cast=0.3), "test": Colours(60, cast=0.3, split="test")}
        task = cls(data=Data.of_sources(sources, image_size=32, name="colours"), draws=2)
        return Tiny(task, PixelVit(), PixelVit(blind=True))


def draw_images(labels: np.ndarray, source: Source, draws: int) -> np.ndarray:
    """Sample numbers [draws, C, most shots]; draw i of a class does not depend on the other draws or classes."""
    most, classes = max(SHOTS), len(source.classes)
    chosen = np.empty((draws, classes, most), dtype=np.int64)
    for c in range(classes):
        members = np.flatnonzero(labels == c)
        if len(members) < most:
            raise UserError(
                f"low-shot needs {most} training images of every class; class {source.classes[c]!r} has {len(members)}"
            )
        for i in range(draws):
            chosen[i, c] = np.random.default_rng(derive("low-shot", i, c)).permutation(members)[:most]
    return chosen


def predictions(support: Tensor, queries: Tensor) -> dict[str, Tensor]:
    """Head -> class of each query [draws, n], on the CPU, from [draws, C, shots, F] and [n, F]."""
    _, classes, shots = support.shape[:3]
    labels = torch.arange(classes, device=support.device).repeat_interleave(shots)
    found: dict[str, list[Tensor]] = {"linear": [], "ncm": []}
    for shown in support:  # one draw at a time: the kernel of all would not fit
        weights = fit_logistic(shown.flatten(0, 1)[None], labels[None], classes, strength=STRENGTH)[0]  # [F, C]
        means = shown.mean(dim=1)  # [C, F]
        found["linear"].append((queries @ weights).argmax(dim=-1).cpu())
        found["ncm"].append((2 * queries @ means.T - means.square().sum(dim=-1)).argmax(dim=-1).cpu())
    return {head: torch.stack(parts) for head, parts in found.items()}
