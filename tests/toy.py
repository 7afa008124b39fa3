"""The smallest models, outputs and batches, for cases worked out by hand."""

from __future__ import annotations

import torch
from torch import nn

from harness.api import Batch, Layers, Outputs, Vit


class Shape(Vit):
    """Only what a method's constructor looks at."""

    def __init__(self, dim: int, depth: int = 1, num_classes: int = 2) -> None:
        self.dim, self.depth, self.num_classes = dim, depth, num_classes
        self.num_prefix_tokens, self.has_cls, self.grid = 1, True, (1, 2)

    def block(self, layer):
        raise NotImplementedError

    def through(self, layer, tokens):
        raise NotImplementedError

    def __call__(self, images, layers=(), attention_layers=(), keep=None):
        raise NotImplementedError


def outputs(tokens=(), logits=(0.0, 0.0), num_prefix_tokens: int = 1) -> Outputs:
    """One image, [N, D] after block 0."""
    layers = Layers({0: torch.tensor([tokens], dtype=torch.float32)})
    return Outputs(layers, logits=torch.tensor([logits], dtype=torch.float32), num_prefix_tokens=num_prefix_tokens)


def batch(label: int | None = 0) -> Batch:
    return Batch(torch.zeros(1, 3, 2, 2), None if label is None else torch.tensor([label]), torch.zeros(1).long())


def identity(method):
    """The method with its projectors set to the identity."""
    for projector in method.projectors:
        nn.init.eye_(projector.weight)
        nn.init.zeros_(projector.bias)
    return method


def vectors(rows, logits=None) -> Outputs:
    """A batch of images whose CLS after block 0 is `rows` [B, D], with an identity as final norm."""
    rows = torch.as_tensor(rows, dtype=torch.float32)
    logits = torch.zeros(len(rows), 2) if logits is None else logits
    return Outputs(Layers({0: rows.unsqueeze(1)}), logits=logits, norm=lambda x: x)


def labelled(*labels: int) -> Batch:
    """A batch of blank images with these labels."""
    return Batch(torch.zeros(len(labels), 3, 2, 2), torch.tensor(labels), torch.arange(len(labels)))
