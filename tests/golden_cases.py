"""Two small deterministic cases, A and B, with the values that the SiNGER authors' code gives for them.

Every tensor is filled by a rule (splitmix64), so no file of weights is needed. fp32 on a CPU; agreement to a
relative 1e-4 is expected.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from harness.api import Batch, Layers, Outputs, Vit, frozen
from harness.models import as_vit

TOLERANCE = 1e-4


def fill(key: int, shape: tuple[int, ...], scale: float) -> Tensor:
    """Values in [-scale, scale) that key and position alone decide: float32 of `shape`."""
    i = np.arange(int(np.prod(shape)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = (i + np.uint64(1 + key * 1000003)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(40)).astype(np.float64) / 2**24
    return torch.from_numpy(((2 * unit - 1) * scale).astype(np.float32)).reshape(shape)


@torch.no_grad()
def fill_model(model: nn.Module, base: int) -> nn.Module:
    """The model's parameters by the rule, the k-th by name from key base + k."""
    for k, (name, parameter) in enumerate(sorted(model.named_parameters())):
        shape = tuple(parameter.shape)
        if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
            parameter.copy_(1 + fill(base + k, shape, 0.1))
        else:
            parameter.copy_(fill(base + k, shape, 1.7 / shape[-1] ** 0.5 if len(shape) == 2 else 0.1))
    return model


@dataclasses.dataclass(frozen=True)
class Case:
    """seed: of the fill rule. singer: the method's settings. expected: the authors' values."""

    name: str
    seed: int
    layers: tuple[int, ...]
    student_layers: tuple[int, ...]
    singer: dict[str, Any]
    expected: dict[str, Any]

    def build(self) -> Built:
        teacher = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=6, num_heads=4, num_classes=10)
        student = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=10)
        frozen(fill_model(teacher, self.seed))
        fill_model(student, self.seed + 500)
        images = fill(self.seed + 900, (4, 3, 32, 32), 1.5)
        return Built(
            as_vit(student, mean=0.0, std=1.0),
            as_vit(teacher, mean=0.0, std=1.0),
            student,
            teacher,
            Batch(images, torch.arange(4), torch.arange(4)),
        )

    def loud_logits(self, built: Built) -> list[Outputs]:
        """Student's and teacher's outputs with logits times 3, as the logit losses' values were made."""
        both = built.student(built.batch.images), built.teacher(built.batch.images)
        return [Outputs(Layers(), logits=3 * outputs.logits) for outputs in both]

    def fill_projectors(self, projectors: nn.ModuleList) -> None:
        """Bias, weight, bias, weight, ... in the order of the layers."""
        with torch.no_grad():
            for j, projector in enumerate(projectors):
                projector.bias.copy_(fill(self.seed + 700 + 2 * j, tuple(projector.bias.shape), 0.1))
                projector.weight.copy_(fill(self.seed + 701 + 2 * j, tuple(projector.weight.shape), 0.1))


@dataclasses.dataclass(frozen=True)
class Built:
    student: Vit
    teacher: Vit
    student_model: nn.Module
    teacher_model: nn.Module
    batch: Batch

    def outputs(self, method: Any) -> tuple[Outputs, Outputs]:
        """Student's and teacher's outputs with the layers that the method declares."""
        with torch.no_grad():
            teacher = self.teacher(self.batch.images, method.teacher_layers, method.teacher_attention)
        return self.student(self.batch.images, method.student_layers, method.student_attention), teacher

    def losses(self, method: Any) -> dict[str, Tensor]:
        return method.losses(*self.outputs(method), self.batch)


A = Case(
    name="A",
    seed=10000,
    layers=(3, 5),
    student_layers=(1, 2),
    singer={"rank": 8, "threshold": 0.6, "quantile": 0.9, "w_kd": 1.0, "w_outlier": 0.01, "w_info": 1.0},
    expected={
        "kd": 7.887032985687256,
        "info": 0.2795566916465759,
        "outlier": 0.006887900643050671,
        "singular": [(21, 0.015821436420083046, 2.1046156883239746), (20, 0.017670299857854843, 2.0370571613311768)],
        "refined_norm": [15.50705623626709, 22.29604721069336],
        "raw_norm": [13.306658744812012, 17.897281646728516],
        "grad_down": [1.7949129343032837, 3.48563551902771],
        "grad_up": [0.8685312867164612, 2.1987102031707764],
        "grad_patch_embed": 1.097381830215454,
        "grad_projectors": 2.299315929412842,
        "fitnet_sum": 10.8963041305542,
        "logits_student": 83.55713653564453,
        "logits_teacher": 80.23226928710938,
        "kd_T4": 6.011788368225098,
        "dkd": 46.86800765991211,
        "rkd": 0.41446661949157715,
        "sp": 0.0008521191775798798,
        "pkt": 8.159549906849861e-05,
    },
)
B = Case(
    name="B",
    seed=20000,
    layers=(1, 3, 5),
    student_layers=(0, 1, 2),
    singer={"rank": 8, "threshold": 0.3, "quantile": 0.8, "w_kd": 2.0, "w_outlier": 0.5, "w_info": 3.0},
    expected={
        "kd": 12.2287015914917,
        "info": 1.0477160215377808,
        "outlier": 0.8862287402153015,
        "singular": [
            (11, 0.014221204444766045, 1.9732874631881714),
            (11, 0.009657509624958038, 2.129035472869873),
            (10, 0.014439020305871964, 2.2071595191955566),
        ],
        "refined_norm": [11.512343406677246, 15.817516326904297, 20.75330352783203],
        "raw_norm": [9.326567649841309, 12.906234741210938, 18.412017822265625],
        "grad_down": [2.588127613067627, 5.271129131317139, 5.138376712799072],
        "grad_up": [1.588080644607544, 3.0479140281677246, 2.9266762733459473],
        "grad_patch_embed": 1.7470531463623047,
        "grad_projectors": 3.393017292022705,
        "fitnet_sum": 13.82784652709961,
        "logits_student": 119.47298431396484,
        "logits_teacher": 80.54454040527344,
        "kd_T4": 11.041345596313477,
        "dkd": 94.38544464111328,
        "rkd": 0.706629753112793,
        "sp": 0.006854520179331303,
        "pkt": 0.0005545972380787134,
    },
)
CASES = (A, B)
