"""Probes on cached features: many linear heads trained at once, nearest neighbours, and how they are scored.

The heads of one feature set differ in their learning rate alone, so all of them are one matrix [H * C, F]: a
step is one product for the logits and one for the gradient, whose closed form (p - onehot) / B needs no
autograd: 4 multiply-adds' worth of arithmetic a weight and sample, and no head sees another.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import UserError
from harness.seeds import derive

CHUNK = 1 << 25  # scalars of a score matrix that are held at once, 128 MiB
RESIDENT = 1 << 31  # bytes of one feature set that may lie on a GPU: fetching a batch would cost more than its step


class Rows:
    """Feature vectors that stay where they are, on disk as a rule, until a batch asks for some of them.

    Args:
        parts: arrays or tensors [n, D_i]; a row is their concatenation [F], F the sum of D_i.
    """

    def __init__(self, *parts: np.ndarray | Tensor) -> None:
        self.parts = [p.cpu().numpy() if isinstance(p, Tensor) else p for p in parts]
        self.width = sum(p.shape[1] for p in self.parts)
        self._resident: Tensor | None = None

    def __len__(self) -> int:
        return len(self.parts[0])

    def take(self, index: np.ndarray, device: str = "cpu") -> Tensor:
        """Rows [B, F] float32 by number [B]."""
        if self._resident is not None:
            return self._resident[torch.from_numpy(index).to(self._resident.device)]
        return torch.from_numpy(self._read(index)).to(device)

    def _read(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), self.width), dtype=np.float32)
        start = 0
        for part in self.parts:
            stop = start + part.shape[1]
            out[:, start:stop] = part[index]
            start = stop
        return out

    def resident(self, device: str) -> Rows:
        """The same rows, on the device as a whole where it is another one and they fit `RESIDENT`."""
        if torch.device(device).type == "cpu" or 4 * self.width * len(self) > RESIDENT:
            return self
        there = copy.copy(self)
        there._resident = self.take(np.arange(len(self)), device)
        return there


class Stacked(Rows):
    """The rows of one view of some images, then those of the next view: row i of view v is number v n + i."""

    def __init__(self, *views: Rows) -> None:
        super().__init__(*views[0].parts)
        self.views = views

    def __len__(self) -> int:
        return len(self.views) * len(self.views[0])

    def _read(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), self.width), dtype=np.float32)
        number, row = np.divmod(index, len(self.views[0]))
        for i, view in enumerate(self.views):
            out[number == i] = view._read(row[number == i])
        return out


def stratified_hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out): sample numbers, ascending, with every class's share held out.

    A class of m samples gives round(share m), at least 1; a class with a single sample gives none, since
    a class that is not trained on cannot be judged.

    Args:
        labels: [n] int64.

    Raises:
        UserError: no class has two samples.
    """
    rng = np.random.default_rng(derive("hold-out", seed))
    held = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            held.append(rng.permutation(members)[: max(1, math.floor(share * len(members) + 0.5))])
    if not held:
        raise UserError(
            f"the {len(labels)} labelled training images have no class with two images, so none can be held out to "
            "choose a probe by; give more images"
        )
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


def minibatches(index: np.ndarray, batch: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """`steps` batches from an endless row of permutations of `index`, one after the other without a gap."""
    rng = np.random.default_rng(derive("probe batches", seed))
    waiting = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, rng.permutation(index)])
        yield waiting[:batch]
        waiting = waiting[batch:]


@dataclasses.dataclass
class LinearHeads:
    """H linear classifiers on the same features. weight: [H, C, F]. bias: [H, C]. learning_rates: [H]."""

    weight: Tensor
    bias: Tensor
    learning_rates: tuple[float, ...]

    def logits(self, features: Tensor) -> Tensor:
        """[B, F] -> [B, H, C]."""
        flat = torch.addmm(self.bias.flatten(), features, self.weight.flatten(0, 1).T)
        return flat.view(len(features), *self.bias.shape)

    def only(self, head: int) -> LinearHeads:
        """The one head, H = 1."""
        chosen = slice(head, head + 1)
        return LinearHeads(self.weight[chosen], self.bias[chosen], self.learning_rates[chosen])


class _Sgd:
    """SGD with momentum as torch.optim.SGD has it, for all heads on one feature set at once."""

    def __init__(self, heads: LinearHeads, momentum: float, weight_decay: float) -> None:
        self.heads, self.momentum, self.weight_decay = heads, momentum, weight_decay
        self.weight = heads.weight.flatten(0, 1)  # [H * C, F], a view
        self.bias = heads.bias.flatten()
        self.weight_velocity, self.bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def step(self, features: Tensor, labels: Tensor, rates: Tensor) -> None:
        """One step on features [B, F], labels [B]; rates: [H], this step's learning rates."""
        gradient = torch.softmax(self.heads.logits(features), dim=-1)  # [B, H, C]
        gradient[torch.arange(len(labels), device=labels.device), :, labels] -= 1
        gradient = gradient.div_(len(labels)).flatten(1)  # [B, H * C]
        # The momentum is the accumulating factor of the product itself, which spares a pass over the gradient.
        self.weight_velocity.addmm_(gradient.T, features, beta=self.momentum)
        self.bias_velocity.mul_(self.momentum).add_(gradient.sum(dim=0))
        if self.weight_decay:
            self.weight_velocity.add_(self.weight, alpha=self.weight_decay)
            self.bias_velocity.add_(self.bias, alpha=self.weight_decay)
        rows = rates.repeat_interleave(self.heads.bias.shape[1])  # [H * C]
        self.weight.addcmul_(self.weight_velocity, rows[:, None], value=-1)
        self.bias.addcmul_(self.bias_velocity, rows, value=-1)


def _initial(
    width: int, num_classes: int, rates: Sequence[float], init: str, name: str, seed: int, device: str
) -> LinearHeads:
    """Heads that start from the same values, whatever the learning rates beside them."""
    rng = torch.Generator().manual_seed(derive("head", seed, name))
    if init == "normal":
        weight, bias = torch.randn(num_classes, width, generator=rng) * 0.01, torch.zeros(num_classes)
    else:
        bound = width**-0.5
        weight = (torch.rand(num_classes, width, generator=rng) * 2 - 1) * bound
        bias = (torch.rand(num_classes, generator=rng) * 2 - 1) * bound
    return LinearHeads(weight.to(device).repeat(len(rates), 1, 1), bias.to(device).repeat(len(rates), 1), tuple(rates))


@torch.no_grad()
def train_linear_heads(
    features: Mapping[str, Rows],
    labels: np.ndarray,
    *,
    num_classes: int,
    learning_rates: Sequence[float],
    steps: int,
    batch: int,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    final_rate: float = 0.0,
    init: Literal["normal", "uniform"] = "normal",
    seed: int,
    index: np.ndarray | None = None,
    device: str = "cpu",
) -> dict[str, LinearHeads]:
    """A head for every feature set and learning rate, all on the same batches, by softmax cross-entropy.

    A head does not depend on its neighbours: trained alone it ends with the same weights, to the rounding of a
    matrix product of another size. One that overflows stays non-finite and disturbs nobody.

    Args:
        features: name -> n rows. labels: [n] int64 in 0 .. num_classes - 1.
        learning_rates: of the heads, at the first step; a cosine takes each to `final_rate`, step by step.
        batch: images a step.
        weight_decay: added to the gradient, of the bias too, as torch.optim.SGD does.
        init: "normal": weights N(0, .01^2), biases 0 (DINOv2); "uniform": torch.nn.Linear's own.
        seed: decides initial values (with the feature set's name) and batches.
        index: the rows to train on; None: all.

    Returns:
        name -> heads in the order of `learning_rates`.
    """
    index = np.arange(len(labels)) if index is None else index
    optimisers = {
        name: _Sgd(_initial(rows.width, num_classes, learning_rates, init, name, seed, device), momentum, weight_decay)
        for name, rows in features.items()
    }
    features = {name: rows.resident(device) for name, rows in features.items()}
    start = torch.tensor(learning_rates, dtype=torch.float64)
    for step, picked in enumerate(minibatches(index, batch, steps, seed)):
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        rates = (final_rate + (start - final_rate) * cosine).float().to(device)
        target = torch.from_numpy(labels[picked]).to(device)
        for name, optimiser in optimisers.items():
            optimiser.step(features[name].take(picked, device), target, rates)
    return {name: optimiser.heads for name, optimiser in optimisers.items()}


@torch.no_grad()
def score_heads(
    heads: LinearHeads, rows: Rows, labels: np.ndarray, index: np.ndarray, device: str = "cpu"
) -> tuple[list[float], list[float]]:
    """Top-1 in [0, 1] and mean cross-entropy of each head on the rows `index`; nan and inf for a head that diverged."""
    num_heads, num_classes = heads.bias.shape
    right, loss = torch.zeros(num_heads, dtype=torch.float64), torch.zeros(num_heads, dtype=torch.float64)
    for picked in np.array_split(index, math.ceil(len(index) * num_heads * num_classes / CHUNK)):
        logits = heads.logits(rows.take(picked, device))  # [B, H, C]
        target = torch.from_numpy(labels[picked]).to(device)[:, None].expand(-1, num_heads)  # [B, H]
        right += (logits.argmax(dim=-1) == target).sum(dim=0).cpu()
        loss += F.cross_entropy(logits.transpose(1, 2), target, reduction="none").double().sum(dim=0).cpu()
    loss = loss.div_(len(index)).nan_to_num_(nan=math.inf)
    top1 = torch.where(loss.isfinite(), right / len(index), math.nan)
    return top1.tolist(), loss.tolist()


@torch.no_grad()
def predict(heads: LinearHeads, rows: Rows, device: str = "cpu") -> Tensor:
    """Logits [n, H, C] of all rows, on the CPU."""
    pieces = np.array_split(np.arange(len(rows)), math.ceil(len(rows) * heads.bias.numel() / CHUNK))
    return torch.cat([heads.logits(rows.take(picked, device)).cpu() for picked in pieces])


@torch.no_grad()
def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    ks: Sequence[int],
    *,
    num_classes: int,
    temperature: float = 0.07,
) -> dict[int, Tensor]:
    """k -> class of each query [m], by the vote of its k nearest, each with weight exp(cosine / temperature).

    arXiv 1805.01978; the temperature and this use for frozen features are DINO's, arXiv 2104.14294.

    Args:
        bank: [n, F]. bank_labels: [n] int64. queries: [m, F]. ks: each at most n.
    """
    bank, queries = F.normalize(bank, dim=-1), F.normalize(queries, dim=-1)
    votes: dict[int, list[Tensor]] = {k: [] for k in ks}
    for chunk in queries.split(max(1, CHUNK // len(bank))):
        cosine, nearest = (chunk @ bank.T).topk(max(ks), dim=-1)  # [B, k]
        weight = ((cosine - cosine[:, :1]) / temperature).exp()  # the nearest counts 1, so that nothing overflows
        owner = bank_labels[nearest]  # [B, k]
        for k in ks:
            tally = torch.zeros(len(chunk), num_classes, device=bank.device)
            votes[k].append(tally.scatter_add_(1, owner[:, :k], weight[:, :k]).argmax(dim=-1))
    return {k: torch.cat(found) for k, found in votes.items()}


def classification_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1, top5 and balanced_accuracy of logits [n, C] against labels [n], each in [0, 1].

    top5: the label is among the min(5, C) largest logits, so it is 1 by construction where C <= 5.
    balanced_accuracy: the mean recall over the classes that `labels` holds.
    """
    best = logits.topk(min(5, logits.shape[1]), dim=-1).indices  # [n, 5]
    right = best[:, 0] == labels
    return {
        "top1": right.double().mean().item(),
        "top5": (best == labels[:, None]).any(dim=1).double().mean().item(),
        "balanced_accuracy": balanced_accuracy(best[:, 0], labels),
    }


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Mean recall over the classes that `labels` [n] holds."""
    count = torch.bincount(labels)
    right = torch.bincount(labels[predicted == labels], minlength=len(count))
    present = count > 0
    return (right[present].double() / count[present]).mean().item()
