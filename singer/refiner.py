"""The low-rank adapter on the frozen teacher's patch tokens. Imports torch only."""

from __future__ import annotations

import torch
from torch import Tensor, cat, nn


class Refiner(nn.Module):
    """F^ = F + (F W_down) W_up on patch tokens; CLS and registers pass through (arXiv 2509.20986).

    No bias, no activation. It starts with W_down = N^T and W_up = gain N, so that the part of a token that lies in
    the span of N is multiplied by 1 + gain. The published gain of 1 doubles it, and norms *rise* at first; training
    has to turn the sign.

    Args:
        basis: N, [r, D]. gain: 1 as published, 0 starts at the identity, -1 removes the part at once.

    Attributes:
        down: W_down, [D, r]. up: W_up, [r, D].
    """

    def __init__(self, basis: Tensor, gain: float = 1.0) -> None:
        super().__init__()
        self.down = nn.Parameter(basis.T.clone())
        self.up = nn.Parameter(gain * basis)

    @torch.no_grad()
    def restart(self, basis: Tensor, gain: float = 1.0) -> None:
        """Begin anew with this basis, in place."""
        self.down.copy_(basis.T)
        self.up.copy_(gain * basis)

    def forward(self, tokens: Tensor, num_prefix_tokens: int) -> Tensor:
        """Tokens [B, N, D], of which the first `num_prefix_tokens` pass unchanged: [B, N, D]."""
        prefix, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
        return cat([prefix, patches + (patches @ self.down) @ self.up], dim=1)
