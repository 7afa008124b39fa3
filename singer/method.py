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
- A gated MLP (GluMlp, SwiGLU) has no product fc2 fc1. Its surrogate is the linear map that fits best, in least
  squares, what the MLP adds to real tokens (`singer.least_squares`); `calibrate` finds it before training.
  `surrogate="least_squares"` takes that for plain MLPs too.
- F_{l+1} is read from the teacher's own pass, where the code computes it again.
- Layer matching is last to last (`harness.matching`), where the code can leave the student's last block without
  a target; CLS and every register pass through the refiner, where the code assumes one prefix token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from harness.api import Batch, Calibration, Method, Outputs, Vit
from harness.matching import chosen, linear_projectors, match_layers, paired_tokens, reduce_layers
from singer.diagnosis import Site, diagnosed
from singer.least_squares import least_squares_surrogates, surrogate_kind
from singer.losses import feature_loss, gram_loss, norms_seen, outlier_loss
from singer.null_space import Basis, null_space_basis, random_basis, smallest_basis
from singer.null_space import surrogate as surrogate_product
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
        surrogate: "product" fc2 fc1, as published, or "least_squares"; "auto" is the product for plain MLPs and
            least squares for gated ones.
        images: training images whose patches a least-squares surrogate is fitted to.
        gain: the refiner's W_up starts as gain N. Published: 1, which doubles the null part; 0 starts at the
            identity, -1 removes the null part at once.
        refiner_warmup: share of the training, from its beginning, in which the refiners learn alone: L_KD is 0 for
            student, projectors and refiners alike, so an untrained student pulls at nothing and stays as it was
            initialised. Published: 0. The learning rate's schedule does not wait.
        detach_target: whether L_KD is kept from the refiners. Published: False, its gradient reaches them.

    Attributes:
        projectors, refiners: ModuleLists in the order of `layers`.
        seen: of the last batch, the largest and the median patch norm of each layer, raw and refined, for the log.

    Raises:
        ValueError: rank over the teacher's width, an unknown switch, layers that do not match, a share outside
            [0, 1), a warm-up without a term that the refiners learn from, or the product for a gated MLP. From
            `losses`: a least-squares surrogate is still to be found by `calibrate`.
    """

    name = "singer"
    family = "refine"
    cite = "SiNGER, ICLR 2026, arXiv 2509.20986"
    per_image = True  # every image has as many outliers, but for ties
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "singer_paper": {"basis": "smallest", "outlier": "linear", "info": "gram", "reduction": "sum"},
        "singer_random": {"basis": "random"},
        "singer_no_outlier": {"w_outlier": 0.0},
        "singer_no_info": {"w_info": 0.0},
    }
    search: ClassVar[Mapping[str, Any]] = {
        "refiner_lr_scale": ("log", 1.0, 30.0),
        "w_outlier": ("log", 0.001, 1.0),
        "w_info": ("log", 0.1, 10.0),
        "quantile": ("uniform", 0.8, 0.99),
        "rank": ("choice", 8, 16, 32, 64),
        "gain": ("choice", -1.0, 0.0, 1.0),
        "refiner_warmup": ("choice", 0.0, 0.05, 0.1, 0.2),
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
        surrogate: Literal["auto", "product", "least_squares"] = "auto",
        images: int = 64,
        gain: float = 1.0,
        refiner_warmup: float = 0.0,
        detach_target: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        if not 1 <= rank <= teacher.dim:
            raise ValueError(
                f"rank {rank} is not in 1 .. {teacher.dim}, the teacher's width; give rank={teacher.dim // 4}"
            )
        if images < 1:
            raise ValueError(f"images is {images}; a surrogate is fitted to at least 1 image, 64 by default")
        if not 0 <= refiner_warmup < 1:
            raise ValueError(f"refiner_warmup {refiner_warmup} is no share in [0, 1); give 0.1 for a tenth of training")
        if refiner_warmup > 0 and w_outlier == 0 and w_info == 0:
            raise ValueError(
                f"in a refiner_warmup of {refiner_warmup} the refiners learn by w_outlier and w_info alone, and both "
                "are 0; give one of them a weight, or set refiner_warmup to 0"
            )
        self.teacher, self.threshold, self.quantile = teacher, threshold, quantile
        self.w_kd, self.w_outlier, self.w_info = w_kd, w_outlier, w_info
        self.basis = chosen("basis", basis, ("null", "smallest", "random"))
        self.power = {"squared": 2, "linear": 1}[chosen("outlier", outlier, ("squared", "linear"))]
        self.info = chosen("info", info, ("features", "gram"))
        self.reduction = chosen("reduction", reduction, ("mean", "sum"))
        self.surrogate = chosen("surrogate", surrogate, ("auto", "product", "least_squares"))
        self.rank, self.layer_scale, self.images, self.gain = rank, layer_scale, images, gain
        self.refiner_warmup, self.detach_target = refiner_warmup, detach_target
        self.of_student, self.of_teacher = match_layers(student, teacher, layers, student_layers)
        self.student_layers = frozenset(self.of_student)
        self.teacher_layers = frozenset(self.of_teacher) | {self._successor(i) for i in self.of_teacher}
        self.lr_scale = {"refiners": refiner_lr_scale}

        self.fitted = [layer for layer in self.of_teacher if basis != "random" and self._kind(layer) != "product"]
        self.bases = [None if layer in self.fitted else self._initial_basis(layer) for layer in self.of_teacher]
        empty = torch.zeros(rank, teacher.dim)  # until calibrate()
        self.refiners = nn.ModuleList(Refiner(empty if b is None else b.vectors, gain) for b in self.bases)
        self.projectors = linear_projectors(student, teacher, len(self.of_teacher))
        for layer in self.fitted:
            self.register_buffer(f"surrogate_{layer}", torch.zeros(teacher.dim, teacher.dim))  # W
            self.register_buffer(f"start_{layer}", empty.clone())  # N, which training leaves behind
        self.waiting = bool(self.fitted)
        self.register_load_state_dict_post_hook(_loaded)

    def calibrate(self, calibration: Calibration) -> None:
        """Find the surrogates that no product gives, and begin the refiners in their null spaces."""
        if not self.fitted:
            return
        blocks = sorted({self._successor(layer) for layer in self.fitted})
        weights = least_squares_surrogates(self.teacher, blocks, calibration, self.images, self.layer_scale)
        for k, layer in enumerate(self.of_teacher):
            if layer in self.fitted:
                weight = weights[self._successor(layer)]
                found = self._basis_of(weight)
                self.bases[k] = found
                self.get_buffer(f"surrogate_{layer}").copy_(weight)
                self.get_buffer(f"start_{layer}").copy_(found.vectors)
                self._refiner(k).restart(found.vectors, self.gain)
        self.waiting = False

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        refined, prefix = self.targets(teacher), teacher.num_prefix_tokens
        if self.refiner_warmup > 0 and batch.progress < self.refiner_warmup:
            imitation = [student.tokens[self.of_student[0]].new_zeros((), dtype=torch.float32)]
        else:
            imitation = self._imitation(student, teacher, refined)
        outliers = [outlier_loss(tokens[:, prefix:], self.quantile, self.power) for tokens in refined.values()]
        kept = [self._info_loss(layer, refined, teacher) for layer in self.of_teacher]
        self.seen = {}
        for layer, tokens in refined.items():
            self.seen |= norms_seen(teacher.patches(layer), tokens[:, prefix:], layer)
        return {
            "kd": self.w_kd * reduce_layers(imitation, self.reduction),
            "outlier": self.w_outlier * reduce_layers(outliers, self.reduction),
            "info": self.w_info * reduce_layers(kept, self.reduction),
        }

    def targets(self, teacher: Outputs) -> dict[int, Tensor]:
        """The refined tokens, refined layer -> [B, N, D]; CLS and registers as they are."""
        self._refuse_if_waiting()
        return {
            layer: refiner(teacher.tokens[layer], teacher.num_prefix_tokens)
            for layer, refiner in zip(self.of_teacher, self.refiners, strict=True)
        }

    def diagnose(self, calibration: Calibration) -> dict[str, Any]:
        """Per layer: the surrogate's spectrum, where the refiner's energy lies, what the next block sees, norms."""
        self._refuse_if_waiting()
        weights = self._surrogates(calibration)
        sites = []
        for k, (layer, found) in enumerate(zip(self.of_teacher, self.bases, strict=True)):
            start = self.get_buffer(f"start_{layer}") if found is None or layer in self.fitted else found.vectors
            where = layer, self._successor(layer), self._kind(layer), weights[layer], self.threshold
            sites.append(Site(*where, self._refiner(k), start, self.gain * start, self.layer_scale))
        return {"threshold": self.threshold, "layers": diagnosed(self.teacher, sites, calibration)}

    def report(self) -> dict[str, Any]:
        """Per layer: where its basis came from, the surrogate's extreme singular values, which rule is L_info."""
        return {"refiners": [self._report_layer(*pair) for pair in zip(self.of_teacher, self.bases, strict=True)]}

    def _imitation(self, student: Outputs, teacher: Outputs, refined: Mapping[int, Tensor]) -> list[Tensor]:
        """L_KD of each layer."""
        found = []
        for ours, theirs, project in zip(self.of_student, self.of_teacher, self.projectors, strict=True):
            target = refined[theirs].detach() if self.detach_target else refined[theirs]
            student_tokens, target = paired_tokens(student, teacher, ours, theirs, target)
            found.append(feature_loss(project(student_tokens), target))
        return found

    def _initial_basis(self, layer: int) -> Basis:
        if self.basis == "random":
            return random_basis(self.teacher.dim, self.rank)
        return self._basis_of(surrogate_product(self.teacher.block(self._successor(layer)), self.layer_scale))

    def _basis_of(self, weight: Tensor) -> Basis:
        choose = null_space_basis if self.basis == "null" else smallest_basis
        return choose(weight, self.rank, self.threshold)

    def _surrogates(self, calibration: Calibration) -> dict[int, Tensor]:
        """Layer -> the W that its basis was chosen from; where bases are random, that it would have been."""
        found = {layer: self.get_buffer(f"surrogate_{layer}").cpu().double() for layer in self.fitted}
        for layer in set(self.of_teacher) - set(found):
            block, scale = self._successor(layer), self.layer_scale
            if self._kind(layer) == "product":
                found[layer] = surrogate_product(self.teacher.block(block), scale)
            else:
                found[layer] = least_squares_surrogates(self.teacher, [block], calibration, self.images, scale)[block]
        return found

    def _kind(self, layer: int) -> str:
        return surrogate_kind(self.teacher.block(self._successor(layer)), self.surrogate)

    def _refiner(self, k: int) -> Refiner:
        return cast(Refiner, self.refiners[k])

    def _refuse_if_waiting(self) -> None:
        if self.waiting:
            blocks = sorted({self._successor(layer) for layer in self.fitted})
            raise ValueError(
                f"the surrogates of blocks {blocks} are fitted to the teacher's tokens, and that is still to be done: "
                "call calibrate() before losses(), as training does, or load a trained state"
            )

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

    def _report_layer(self, layer: int, found: Basis | None) -> dict[str, Any]:
        report: dict[str, Any] = {
            "layer": layer,
            "surrogate_of_block": None if self.basis == "random" else self._successor(layer),
            "surrogate": None if self.basis == "random" else self._kind(layer),
            "rank": self.rank,
            "info": self._info_rule(layer),
        }
        return report if found is None else {**report, **found.report()}  # None: calibrate() was not called here


def _loaded(method: nn.Module, found: Any) -> None:
    """A state that holds the surrogates makes calibrate() unnecessary."""
    lacks = any(key.split(".")[-1].startswith(("surrogate_", "start_")) for key in found.missing_keys)
    cast(Singer, method).waiting = cast(Singer, method).waiting and lacks
