"""Few-shot classification of classes that may never have been distilled on: N-way K-shot episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.api import Metric, Task, Tiny
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.items import Items, Scores
from harness.logistic import fit_logistic
from harness.seeds import derive
from harness.sources import Source, balanced_subset
from harness.toys import Colours, PixelVit

SHOTS = (1, 5)
STRENGTH = 1.0  # of the linear head's penalty: scikit-learn's C = 1, as arXiv 2003.11539 has it
CHUNK = 64  # episodes that are held in memory at once


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Which samples each episode shows. support: [E, ways, shots]. query: [E, ways, queries]; both sample numbers."""

    support: np.ndarray
    query: np.ndarray


class FewShot(Task):
    """N-way 1-shot and 5-shot accuracy over episodes, by the nearest class mean and by a linear head.

    An episode draws `ways` classes of the split, K support and `queries` query images of each without replacement;
    its accuracy is that over all of its queries, and a metric is the mean over episodes. Episodes depend on the
    split's labels and on the options alone: every method and every seed answers the same ones.

    Features: CLS of the last block after the final norm (the mean patch without one), less the mean of the training
    images' features, then L2-normalised (SimpleShot's CL2N, arXiv 1911.04623). `ncm`: the class whose mean support
    feature is nearest in Euclidean distance. `linear`: logistic regression on the support, weight of the penalty 1,
    no bias (arXiv 2003.11539, which does not centre).

    Details: half the width of the 95 % interval of each metric, 1.96 standard errors over the episodes
    (`ncm_1shot_interval95`), and `classes`, how many of the split's classes have images enough to be drawn.

    Args:
        data: with labels. Its training split is read for the mean feature only.
        split: of `data`, whose classes are told apart: "novel" of scenes, another tar or folder. The default is the
            test split, whose classes the student may have been distilled on.
        ways, queries, episodes: N, query images a class, and how many episodes.
        mean_images: at most so many training images give the mean feature, every class its share.
    """

    name = "few_shot"
    metrics: ClassVar[dict[str, Metric]] = {
        f"{head}_{shots}shot": Metric("fraction", "up") for shots in reversed(SHOTS) for head in ("ncm", "linear")
    }

    def __init__(
        self,
        *,
        data: Data,
        split: str = "test",
        ways: int = 5,
        queries: int = 15,
        episodes: int = 600,
        mean_images: int = 2000,
    ) -> None:
        self.data, self.split = data, split
        self.ways, self.queries, self.episodes, self.mean_images = ways, queries, episodes, mean_images
        least = {"ways": 2, "queries": 1, "episodes": 2, "mean_images": 1}
        for what, smallest in least.items():
            if getattr(self, what) < smallest:
                given = getattr(self, what)
                raise UserError(f"{what} of the few_shot task is {given}; give {smallest} or more, or leave it out")

    def protocol(self) -> dict[str, Any]:
        return {
            "summary": (
                f"{self.episodes} episodes of {self.ways} classes of split {self.split!r}, {self.queries} queries a "
                "class, the same for every method and seed; features centred by the training images' mean and "
                "L2-normalised"
            ),
            "data": self.data.identity(),
            "split": self.split,
            "ways": self.ways,
            "shots": list(SHOTS),
            "queries": self.queries,
            "episodes": self.episodes,
            "mean_images": self.mean_images,
            "features": "CLS of the last block after the final norm, centred, L2-normalised",
            "linear": {"penalty": STRENGTH, "bias": False},
            "version": 1,
        }

    def evaluate(self, encoder: Encoder, *, seed: int) -> dict[str, float]:
        """Metric -> value. `seed` decides nothing here: all answer the same episodes.

        Raises:
            UserError: too few classes with images enough for an episode, an image that cannot be read.
        """
        source = self.data.open(self.split)
        base = balanced_subset(self.data.open("train"), self.mean_images)
        labels = source.labels()
        # The classes of 5-shot episodes for 1-shot ones too, so that the two differ in the shots alone.
        classes = self._drawable(labels, source)
        plans = {
            shots: draw_episodes(labels, classes, self.ways, shots, self.queries, self.episodes) for shots in SHOTS
        }
        view, last = self.data.view(), encoder.depth - 1
        centre = np.array(encoder.pooled(base, view, [last]).vector(last), dtype=np.float64).mean(axis=0)  # [F]
        vectors = torch.from_numpy(np.array(encoder.pooled(source, view, [last]).vector(last)) - centre)
        vectors = F.normalize(vectors.float().to(encoder.device), dim=-1)  # [n, F]
        found: dict[str, float] = {"classes": float(len(classes))}
        episodes = {}
        for shots, plan in plans.items():
            for head, right in accuracies(vectors, plan).items():
                found[f"{head}_{shots}shot"] = right.mean().item()
                found[f"{head}_{shots}shot_interval95"] = 1.96 * right.std().item() / len(right) ** 0.5
                episodes[f"{head}_{shots}shot"] = right.float().numpy()
        return Scores(found, Items(episodes, {name: ("mean", name) for name in episodes}, independent=False))

    def _drawable(self, labels: np.ndarray, source: Source) -> np.ndarray:
        """The classes that have images enough for an episode."""
        images = max(SHOTS) + self.queries
        classes, counts = np.unique(labels[labels >= 0], return_counts=True)
        classes = classes[counts >= images]
        if len(classes) < self.ways:
            raise UserError(
                f"a {self.ways}-way episode of {max(SHOTS)} shots and {self.queries} queries needs {self.ways} classes "
                f"with {images} images each; split {self.split!r} has {len(classes)} of them among "
                f"{len(source.classes)} classes and {len(source)} images. Give fewer ways or queries, or another split"
            )
        return classes

    @classmethod
    def tiny(cls) -> Tiny:
        sources: dict[str, Source] = {
            "train": Colours(40, cast=0.3),
            "test": Colours(96, classes=8, cast=0.3, split="test"),
        }
        data = Data.of_sources(sources, image_size=32, name="colours")
        return Tiny(cls(data=data, queries=5, episodes=30), PixelVit(), PixelVit(blind=True))


def draw_episodes(
    labels: np.ndarray, classes: np.ndarray, ways: int, shots: int, queries: int, episodes: int
) -> Episodes:
    """Episodes as labels [n] and the numbers decide; episode i does not depend on how many there are."""
    members = {int(c): np.flatnonzero(labels == c) for c in classes}
    chosen = np.empty((episodes, ways, shots + queries), dtype=np.int64)
    for i in range(episodes):
        draw = np.random.default_rng(derive("episode", ways, shots, queries, i))
        for way, c in enumerate(draw.choice(classes, ways, replace=False)):
            chosen[i, way] = draw.choice(members[int(c)], shots + queries, replace=False)
    return Episodes(chosen[:, :, :shots], chosen[:, :, shots:])


def accuracies(vectors: Tensor, episodes: Episodes) -> dict[str, Tensor]:
    """Head -> accuracy of each episode [E] float64, from L2-normalised features [n, F]."""
    found: dict[str, list[Tensor]] = {"ncm": [], "linear": []}
    for support, query in _chunks(episodes, vectors.device):
        for head, predicted in predictions(vectors[support], vectors[query]).items():
            truth = torch.arange(support.shape[1], device=vectors.device)[:, None]  # the ways, in the episode's order
            found[head].append((predicted == truth).double().mean(dim=(1, 2)).cpu())
    return {head: torch.cat(parts) for head, parts in found.items()}


def _chunks(episodes: Episodes, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(episodes.support), CHUNK):
        part = slice(start, start + CHUNK)
        yield torch.from_numpy(episodes.support[part]).to(device), torch.from_numpy(episodes.query[part]).to(device)


def predictions(support: Tensor, query: Tensor) -> dict[str, Tensor]:
    """Head -> the way that each query is taken for [E, ways, queries], from [E, ways, shots, F], [E, ways, queries, F].

    Queries are answered one by one: none sees the others.
    """
    ways, shots = support.shape[1:3]
    flat = query.flatten(1, 2)  # [E, ways * queries, F]
    means = support.mean(dim=2)  # [E, ways, F]
    # Distance without the query's own square, which is the same for every class.
    nearness = 2 * flat @ means.transpose(1, 2) - means.square().sum(dim=-1)[:, None]
    labels = torch.arange(ways, device=support.device).repeat_interleave(shots).expand(len(support), -1)
    weights = fit_logistic(support.flatten(1, 2), labels, ways, strength=STRENGTH)  # [E, F, ways]
    shape = query.shape[:3]
    return {"ncm": nearness.argmax(dim=-1).view(shape), "linear": (flat @ weights).argmax(dim=-1).view(shape)}
