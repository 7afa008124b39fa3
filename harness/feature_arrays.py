"""What passes over a data set give: features of whole sources, and the arrays that they are kept in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from torch import Tensor

from harness.api import Outputs

ArrayName: TypeAlias = tuple[str, int | None, bool]  # kind, layer, norm of a Quantity


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Features of a whole source, one or two vectors an image and layer.

    Attributes:
        tokens: block index, from the front -> [n, 2, D] float32, CLS and mean patch; [n, 1, D], the mean patch
            alone, for a model without CLS. Memory-mapped where there is a cache: slice before computing.
        labels: [n] int64, -1 where the source has none. logits: [n, C] float32 of the own head, or None.
    """

    tokens: Mapping[int, np.ndarray]
    labels: np.ndarray
    has_cls: bool
    logits: np.ndarray | None = None

    def cls(self, layer: int) -> np.ndarray:
        """CLS token after `layer`: [n, D]. Raises ValueError for a model without one."""
        if not self.has_cls:
            raise ValueError("this model has no CLS token; use mean_patch(layer)")
        return self.tokens[layer][:, 0]

    def mean_patch(self, layer: int) -> np.ndarray:
        """Mean of the patches after `layer`: [n, D]."""
        return self.tokens[layer][:, -1]

    def vector(self, layer: int) -> np.ndarray:
        """One vector an image, [n, D]: CLS, or the mean patch where the model has no CLS token."""
        return self.tokens[layer][:, 0]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Every token of a whole source, for tasks that ask about pixels.

    Attributes:
        patches: block index, from the front -> [n, P, D] float16. Memory-mapped where there is a cache: slice before
            computing. Rounded to float16 in memory too, so that a cache changes no number.
        cls: block index -> [n, D] float16, the CLS token; empty for a model without one.
        grid: rows and columns of the P patches.
    """

    patches: Mapping[int, np.ndarray]
    cls: Mapping[int, np.ndarray]
    grid: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One array that a pass can fill: what names it in the key, its shape an image, how outputs give it."""

    kind: str
    layer: int | None
    norm: bool
    shape: tuple[int, ...]
    of: Callable[[Outputs], Tensor]
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return self.kind if self.layer is None else f"{self.kind}{self.layer}"
