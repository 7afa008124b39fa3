"""What a refiner does, measured on real tokens: where its energy lies, what the next block sees, what norms become.

W = U S V^T is the linear surrogate of block l+1's MLP, [D, D], so that a change d of a token changes what the MLP adds
by d W as far as the surrogate goes, and a change along a column of U counts by its singular value. "Safe" directions
are those with a singular value under the method's threshold; beside them stands the lowest quarter of all directions,
which a threshold that fits no model alike does not decide. The share of energy that chance would put there is the
share of the directions.

Whether the idea holds is in three numbers of each layer: the share of the *artifacts* (outlier patches less the mean
of the others) that lies in safe directions, without which nothing safe can remove them; the share of the *change*
that the refiner makes; and how well d W predicts what the block really does (`prediction`): what its MLP branch adds
(`mlp_branch`), what attention and MLP add (`update`), the block's whole output, which carries d itself (`block`). W
knows nothing of the norm in front of the MLP, which attention's change enters too; `mlp_alone` leaves both to the
model and predicts the MLP branch from the true change of the MLP's own input.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.api import Calibration, Outputs, Vit
from harness.norms import OUTLIER_Z, outlier_share, robust_z, token_norms
from singer.least_squares import through_mlp
from singer.null_space import left_singular
from singer.refiner import Refiner


@dataclasses.dataclass(frozen=True)
class Site:
    """One refined layer.

    Attributes:
        layer: l. block: whose MLP the surrogate stands for: l + 1, or l where l is the last.
        kind: "product" or "least_squares". weight: W, [D, D]. threshold: under which a direction is safe.
        refiner: as it is now. down, up: its factors as rows [r, D], as they were at the start.
        layer_scale: whether LayerScale is in W.
    """

    layer: int
    block: int
    kind: str
    weight: Tensor
    threshold: float
    refiner: Refiner
    down: Tensor
    up: Tensor
    layer_scale: bool


@torch.no_grad()
def diagnosed(teacher: Vit, sites: Sequence[Site], calibration: Calibration) -> list[dict[str, Any]]:
    """Each site's numbers, from the teacher's patches on `calibration.samples` images."""
    views = [_View(site) for site in sites]
    for outputs in calibration.outputs(calibration.samples, sorted({site.layer for site in sites})):
        for view in views:
            view.add(teacher, outputs)
    return [view.report() for view in views]


def energy(parts: Tensor, values: Tensor, threshold: float) -> dict[str, float | None]:
    """Squared lengths along the singular directions, summed up: total, and shares of it in [0, 1].

    Args:
        parts: [D], along each direction. values: their singular values [D], descending.

    Shares of no energy at all are None.
    """
    total, quarter = float(parts.sum()), len(values) // 4
    below, lowest = float(parts[values < threshold].sum()), float(parts[len(values) - quarter :].sum())
    return {
        "total": total,
        "below_threshold": _ratio(below, total),
        "above_threshold": _ratio(total - below, total),
        "lowest_quarter": _ratio(lowest, total),
        "other_quarters": _ratio(total - lowest, total),
    }


class Agreement:
    """How well predicted vectors fit the true ones, over batches; vectors that are 0 in truth have no direction."""

    def __init__(self) -> None:
        self.cosine, self.count, self.error, self.size = 0.0, 0, 0.0, 0.0

    def add(self, predicted: Tensor, true: Tensor) -> None:
        """[B, P, D] twice."""
        predicted, true = predicted.double(), true.double()
        moved = true.norm(dim=-1) > 0  # [B, P]
        self.cosine += float(F.cosine_similarity(predicted, true, dim=-1)[moved].sum())
        self.count += int(moved.sum())
        self.error += float((predicted - true).square().sum())
        self.size += float(true.square().sum())

    def values(self) -> dict[str, float | None]:
        """Mean cosine, and |predicted - true| / |true| over all of them; None where nothing was to be predicted."""
        relative = _ratio(self.error, self.size)
        return {"cosine": _ratio(self.cosine, self.count), "relative_l2": None if relative is None else relative**0.5}


class _View:
    """A site and what has been seen of it so far."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.vectors, self.singular = left_singular(site.weight)  # [D, D], [D]
        self.norms: dict[str, list[Tensor]] = {"raw": [], "refined": []}
        self.sums: dict[str, float] = defaultdict(float)
        self.parts = {name: torch.zeros(len(self.singular), dtype=torch.float64) for name in ("change", "artifacts")}
        self.fits = {name: Agreement() for name in ("mlp_alone", "mlp_branch", "update", "block")}

    def add(self, teacher: Vit, outputs: Outputs) -> None:
        site, prefix = self.site, outputs.num_prefix_tokens
        tokens = outputs.tokens[site.layer].float()  # [B, N, D]
        after = site.refiner(tokens, prefix)  # [B, N, D]
        raw, refined = tokens[:, prefix:], after[:, prefix:]  # [B, P, D]
        for name, patches in (("raw", raw), ("refined", refined)):
            self.norms[name].append(token_norms(patches).cpu())
        self._compare("own", refined, raw)
        self.parts["change"] += self._along(refined - raw)
        self._add_artifacts(raw)
        if site.block == site.layer + 1:
            self._add_next_block(teacher, tokens, after, prefix)

    def _compare(self, name: str, refined: Tensor, raw: Tensor) -> None:
        self.sums[f"cosine {name}"] += float(F.cosine_similarity(refined, raw, dim=-1).double().sum())
        self.sums[f"distance {name}"] += float(token_norms(refined - raw).double().sum())
        self.sums[f"count {name}"] += raw.shape[0] * raw.shape[1]

    def _along(self, rows: Tensor) -> Tensor:
        """Squared lengths of rows [..., D] along each singular direction, summed over the rows: [D]."""
        return (rows.detach().cpu().double() @ self.vectors).square().flatten(0, -2).sum(dim=0)

    def _add_artifacts(self, raw: Tensor) -> None:
        loud = robust_z(token_norms(raw)) > OUTLIER_Z  # [B, P]
        quiet = (~loud).unsqueeze(-1)
        mean = (raw * quiet).sum(dim=1, keepdim=True) / quiet.sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1, D]
        self.parts["artifacts"] += self._along((raw - mean)[loud])
        self.sums["artifacts"] += int(loud.sum())

    def _add_next_block(self, teacher: Vit, tokens: Tensor, after: Tensor, prefix: int) -> None:
        """Raw and refined tokens through block l+1; predictions from the change d of the patches."""
        site = self.site
        ours = through_mlp(teacher, site.block, after, site.layer_scale)
        theirs = through_mlp(teacher, site.block, tokens, site.layer_scale)
        ours, theirs = ([part[:, prefix:] for part in side] for side in (ours, theirs))  # patches, [B, P, D]
        (seen, branch, out), (raw_seen, raw_branch, raw_out) = ours, theirs
        self._compare("next", out, raw_out)
        change = (after - tokens)[:, prefix:]  # d, [B, P, D]
        predicted = change @ site.weight.to(change)  # d W
        self.fits["mlp_alone"].add((seen - raw_seen) @ site.weight.to(change), branch - raw_branch)
        self.fits["mlp_branch"].add(predicted, branch - raw_branch)
        self.fits["update"].add(predicted, out - raw_out - change)
        self.fits["block"].add(change + predicted, out - raw_out)

    def report(self) -> dict[str, Any]:
        site, values, threshold = self.site, self.singular, self.site.threshold
        factors = {
            "down at the start": site.down,
            "down now": site.refiner.down.T,
            "up at the start": site.up,
            "up now": site.refiner.up,
        }
        parts = {**{name: self._along(rows) for name, rows in factors.items()}, **self.parts}
        has_next = site.block == site.layer + 1
        return {
            "layer": site.layer,
            "block": site.block,
            "surrogate": site.kind,
            "rank": site.refiner.up.shape[0],
            "directions": len(values),
            "below_threshold": int((values < threshold).sum()),
            "lowest_quarter": len(values) // 4,
            "artifacts": int(self.sums["artifacts"]),
            "singular_values": [float(value) for value in values],
            "energy": {name: energy(part, values, threshold) for name, part in parts.items()},
            "norms": {name: _described(torch.cat(found)) for name, found in self.norms.items()},
            "refined_to_raw": {
                "tokens": self._means("own"),
                "next_block": self._means("next") if has_next else None,
            },
            "prediction": {name: fit.values() for name, fit in self.fits.items()} if has_next else None,
        }

    def _means(self, name: str) -> dict[str, float]:
        count = self.sums[f"count {name}"]
        return {what: self.sums[f"{what} {name}"] / count for what in ("cosine", "distance")}


def _described(norms: Tensor) -> dict[str, float]:
    """Norms [images, P] in four numbers; the outlier share is the mean over images."""
    flat = norms.flatten().double()
    median, p99 = (float(flat.kthvalue(max(1, round(q * len(flat)))).values) for q in (0.5, 0.99))
    share = float(outlier_share(norms).mean())
    return {"median": median, "p99": p99, "max": float(flat.max()), "outlier_share": share}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
