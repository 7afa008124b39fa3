"""Outputs that note which of their layers are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from harness.api import Layers, Outputs


class Watched(Layers):
    """Tensors by block index that note which were read."""

    def __init__(self, tensors: Mapping[int, Tensor]) -> None:
        super().__init__(tensors)
        self.read: set[int] = set()

    def __getitem__(self, layer: int) -> Tensor:
        self.read.add(layer)
        return super().__getitem__(layer)

    def get(self, layer: int, default: Any = None) -> Any:
        self.read.add(layer)
        return super().get(layer, default)

    def items(self) -> Any:
        self.read.update(self)
        return super().items()

    def values(self) -> Any:
        self.read.update(self)
        return super().values()


def watched(outputs: Outputs) -> Outputs:
    """The same outputs with tokens and attention that note what is read of them."""
    return Outputs(
        tokens=Watched(outputs.tokens),
        logits=lambda: outputs.logits,  # type: ignore[arg-type]
        attention=Watched(outputs.attention),
        num_prefix_tokens=outputs.num_prefix_tokens,
        has_cls=outputs.has_cls,
        grid=outputs.grid,
        norm=outputs.norm,
    )
