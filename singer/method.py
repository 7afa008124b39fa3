"""SiNGER: the student imitates a teacher that is refined while the student learns (arXiv 2509.20986, ICLR 2026).

Notation, paper -> here. F_l: tokens after block l, 0-based, [B, N, D], `teacher.tokens[l]`. F^_l: refined
tokens, `refined[l]`. W_down, W_up: `Refiner.down` [D, r], `Refiner.up` [r, D]. W_FFN1 W_FFN2: `surrogate`
[D, D]. N: `Basis.vectors` [r, D]. Gram: `gram`, row-normalised. L_KD, L_outlier, L_info: the terms `kd`,
`outlier`, `info`; lambda_o, lambda_i: `w_outlier`, `w_info`.

What the published code (AIRLABkhu/SiNGER) does, `singer`, and where the paper differs, `singer_paper`:

| switch    | code                                                        | paper                                    |
|-----------|-------------------------------------------------------------|------------------------------------------|
| basis     | "null": first r singular vectors with value < threshold     | "smallest": r smallest singular values   |
| outlier   | "squared": mean (n - q)^2 over outliers                     | "linear": mean (n - q)                   |
| info      | "features": MSE of block l+1's outputs; last block: Gram of | "gram": MSE of Grams of block l+1's      |
|           | F^_l against Gram of the refined layer before it            | outputs; last block: of F^_l against F_l |
| reduction | "mean" over layers                                          | "sum"                                    |

`singer_random` is the published ablation of the basis. The paper's lambdas are not known; both presets use
the code's weights.

Where neither says what to do, or what the code does cannot be meant, this does:
- A listed layer that is not the teacher's last block has a block after it, so it is treated as intermediate
  wherever it stands in `layers`: basis and L_info by block l+1. Only the teacher's last block, which has no
  successor, uses its own MLP and the final rule. (Both sources always list the last block last.)
- With no layer before the last block in `layers` there is no refined Gram to compare with, and the published
  code stops. The paper's rule, Gram of F_l itself, holds there under either switch: a refiner without L_info
  would be bound by nothing.
- LayerScale is part of the surrogate, diag(gamma) fc2 fc1; `layer_scale=False` leaves it out, as published.
- F_{l+1} is read from the teacher's own pass, where the code computes it again.
- Layer matching is last to last (`harness.matching`), where the code can leave the student's last block without
  a target; CLS and every register pass through the refiner, where the code assumes one prefix token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import chosen, linear_projectors, match_layers, paired_tokens, reduce_layers
from singer.losses import feature_loss, gram_loss, outlier_loss
from singer.null_space import Basis, null_space_basis, random_basis, smallest_basis, surrogate
from singer.refiner import Refiner


class Singer(Method):
    """FitNet towards teacher tokens that a low-rank adapter, trained along, frees of high norms.

    total = reduce over layers of w_kd MSE(P_l F_S, F^_l) + w_outlier L_outlier(F^_l) + w_info L_info(F^_l).
    No labels, no logits. Projectors are linear with bias, tokens are all that both models have.

    Args:
        layers: the teacher's, ascending; None: three quarters up and the last block.
        student_layers: None matches proportionally, last to last.
        rank: r of the refiners, at most the teacher's width. 64 is the published value for ViT-L.
        threshold: absolute bound on singular values under which a direction counts as null.
        quantile: of an image's patch norms; patches over it are outliers.
        basis, outlier, info, reduction: the four switches in which code and paper differ, see the module.
        layer_scale: whether LayerScale is part of the surrogate; published: False.
        refiner_lr_scale: multiplier of the learning rate for the refiners.

    Attributes:
        projectors, refiners: ModuleLists in the order of `layers`.

    Raises:
        ValueError: rank over the teacher's width, an unknown switch, layers that do not match, or a gated MLP
            under a basis other than "random".
    """

    name = "singer"
    family = "refine"
    cite = "SiNGER, ICLR 2026, arXiv 2509.20986"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "singer_paper": {"basis": "smallest", "outlier": "linear", "info": "gram", "reduction": "sum"},
        "singer_random": {"basis": "random"},
    }

    def __init__(
        self,
        student: Vit,
        teacher: Vit,
        *,
        layers: tuple[int, ...] | None = None,
        student_layers: tuple[int, ...] | None = None,
        rank: int = 64,
        threshold: float = 0.05,
        quantile: float = 0.97,
        w_kd: float = 1.0,
        w_outlier: float = 0.01,
        w_info: float = 1.0,
        basis: Literal["null", "smallest", "random"] = "null",
        outlier: Literal["squared", "linear"] = "squared",
        info: Literal["features", "gram"] = "features",
        reduction: Literal["mean", "sum"] = "mean",
        layer_scale: bool = True,
        refiner_lr_scale: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        if not 1 <= rank <= teacher.dim:
            raise ValueError(
                f"rank {rank} is not in 1 .. {teacher.dim}, the teacher's width; give rank={teacher.dim // 4}"
            )
        self.teacher, self.threshold, self.quantile = teacher, threshold, quantile
        self.w_kd, self.w_outlier, self.w_info = w_kd, w_outlier, w_info
        self.basis = chosen("basis", basis, ("null", "smallest", "random"))
        self.power = {"squared": 2, "linear": 1}[chosen("outlier", outlier, ("squared", "linear"))]
        self.info = chosen("info", info, ("features", "gram"))
        self.reduction = chosen("reduction", reduction, ("mean", "sum"))
        self.of_student, self.of_teacher = match_layers(student, teacher, layers, student_layers)
        self.student_layers = frozenset(self.of_student)
        self.teacher_layers = frozenset(self.of_teacher) | {self._successor(i) for i in self.of_teacher}
        self.lr_scale = {"refiners": refiner_lr_scale}

        self.bases = [self._initial_basis(layer, rank, layer_scale) for layer in self.of_teacher]
        self.refiners = nn.ModuleList(Refiner(found.vectors) for found in self.bases)
        self.projectors = linear_projectors(student, teacher, len(self.of_teacher))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        refined = {
            layer: refiner(teacher.tokens[layer], teacher.num_prefix_tokens)  # [B, N, D]
            for layer, refiner in zip(self.of_teacher, self.refiners, strict=True)
        }
        imitation = []
        for ours, theirs, project in zip(self.of_student, self.of_teacher, self.projectors, strict=True):
            student_tokens, target = paired_tokens(student, teacher, ours, theirs, refined[theirs])
            imitation.append(feature_loss(project(student_tokens), target))
        prefix = teacher.num_prefix_tokens
        outliers = [outlier_loss(tokens[:, prefix:], self.quantile, self.power) for tokens in refined.values()]
        kept = [self._info_loss(layer, refined, teacher) for layer in self.of_teacher]
        return {
            "kd": self.w_kd * reduce_layers(imitation, self.reduction),
            "outlier": self.w_outlier * reduce_layers(outliers, self.reduction),
            "info": self.w_info * reduce_layers(kept, self.reduction),
        }

    def report(self) -> dict[str, Any]:
        """Per layer: where its basis came from, the surrogate's extreme singular values, which rule is L_info."""
        return {"refiners": [self._report_layer(*pair) for pair in zip(self.of_teacher, self.bases, strict=True)]}

    def _initial_basis(self, layer: int, rank: int, layer_scale: bool) -> Basis:
        if self.basis == "random":
            return random_basis(self.teacher.dim, rank)
        weight = surrogate(self.teacher.block(self._successor(layer)), layer_scale)
        choose = null_space_basis if self.basis == "null" else smallest_basis
        return choose(weight, rank, self.threshold)

    def _successor(self, layer: int) -> int:
        """The block whose MLP reads `layer`: the next one; the last block stands in for its own."""
        return min(layer + 1, self.teacher.depth - 1)

    def _info_rule(self, layer: int) -> str:
        """Which of four comparisons L_info makes for `layer`."""
        if layer < self.teacher.depth - 1:
            return "next block's features" if self.info == "features" else "next block's Gram"
        previous = self.info == "features" and len(self.of_teacher) > 1
        return "refined Gram of the layer before" if previous else "own raw Gram"

    def _info_loss(self, layer: int, refined: Mapping[int, Tensor], teacher: Outputs) -> Tensor:
        rule, prefix = self._info_rule(layer), teacher.num_prefix_tokens
        if rule == "own raw Gram":
            return gram_loss(refined[layer][:, prefix:], teacher.patches(layer))
        if rule == "refined Gram of the layer before":
            before = self.of_teacher[self.of_teacher.index(layer) - 1]
            return gram_loss(refined[layer][:, prefix:], refined[before][:, prefix:])  # neither is detached
        after = self.teacher.through(layer + 1, refined[layer])  # [B, N, D]
        if rule == "next block's features":
            return feature_loss(after, teacher.tokens[layer + 1])
        return gram_loss(after[:, prefix:], teacher.patches(layer + 1))

    def _report_layer(self, layer: int, found: Basis) -> dict[str, Any]:
        return {
            "layer": layer,
            "surrogate_of_block": None if self.basis == "random" else self._successor(layer),
            "rank": len(found.vectors),
            "from_null_space": found.from_null_space,
            "random_padding": found.random_padding,
            "singular_values_below_threshold": found.below_threshold,
            "smallest_singular_value": found.smallest,
            "largest_singular_value": found.largest,
            "info": self._info_rule(layer),
        }
