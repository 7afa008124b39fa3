"""How alike two sets of tokens of the same places are, whatever their widths. Imports torch only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class LinearCka:
    """Linear CKA of rows that come in batches; only matrices of widths are kept, in fp64.

    CKA = ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F), columns centred over all rows (Kornblith et al. 2019,
    arXiv 1905.00414): in [0, 1], 1 for rows that are equal up to rotation, shift and one scale.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, x: Tensor, y: Tensor) -> None:
        """Further rows, [n, D] and [n, D']."""
        if not len(x):
            return
        x, y = x.double(), y.double()
        if not self._sums:  # about one row: products lose digits on a mean that is large beside the spread
            self._sums |= {"x0": x[:1], "y0": y[:1]}
        x, y = x - self._sums["x0"], y - self._sums["y0"]
        found = {"x": x.sum(dim=0), "y": y.sum(dim=0), "xx": x.T @ x, "yy": y.T @ y, "yx": y.T @ x}
        self._sums |= {name: self._sums.get(name, 0) + value for name, value in found.items()}
        self.rows += len(x)

    def value(self) -> float:
        """The CKA of all rows so far; 0 where one side does not vary, or without rows."""
        if not self.rows:
            return 0.0
        s, n = self._sums, self.rows
        xx, yy, yx = (s[a + b] - torch.outer(s[a], s[b]) / n for a, b in ("xx", "yy", "yx"))
        # A spread within fp32's resolution of the rows themselves is rounding.
        if any(c.trace() <= 1e-14 * n * s[name].square().sum() for c, name in ((xx, "x0"), (yy, "y0"))):
            return 0.0
        return float(yx.norm() ** 2 / (xx.norm() * yy.norm()))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of rows [n, D] and [n, D']: see `LinearCka`."""
    found = LinearCka()
    found.add(x, y)
    return found.value()


def cosines(tokens: Tensor) -> Tensor:
    """Cosine between every two tokens of an image, X^ X^T^: [B, P, D] -> fp32 [B, P, P]; a zero token has none."""
    with torch.autocast(tokens.device.type, enabled=False):
        rows = F.normalize(tokens.float(), dim=-1)
        return rows @ rows.transpose(1, 2)


def gram_distance(x: Tensor, y: Tensor, keep: Tensor | None = None) -> Tensor:
    """||X^ X^T^ - Y^ Y^T^||_F / P of row-normalised tokens, each image's own: [B, P, D], [B, P, D'] -> [B].

    Divided by the number of tokens it is the root mean square difference between cosines, in [0, 2], so that images
    of which unequally many tokens are kept can be averaged. 0 where none is kept.

    Args:
        keep: [B, P] bool, of the tokens that count; None: all.
    """
    difference = cosines(x) - cosines(y)  # [B, P, P]
    if keep is None:
        return difference.flatten(1).norm(dim=1) / x.shape[1]
    pairs = keep[:, :, None] & keep[:, None, :]  # [B, P, P]
    return (difference * pairs).flatten(1).norm(dim=1) / keep.sum(dim=1).clamp(min=1)
