"""A teacher's twin that was trained with registers (Darcet et al., arXiv 2309.16588). Imports no torch."""

from __future__ import annotations

import re
from typing import Any

from harness.errors import UserError
from harness.specs import LOCAL, RegisterTeacher, TeacherSpec

# timm's architectures that exist without and with registers, of one training recipe or nearly; a test compares
# the list with timm's own.
TWINS = {
    "vit_small_patch14_dinov2": "vit_small_patch14_reg4_dinov2",
    "vit_base_patch14_dinov2": "vit_base_patch14_reg4_dinov2",
    "vit_large_patch14_dinov2": "vit_large_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2": "vit_giant_patch14_reg4_dinov2",
    "vit_medium_patch16_gap_256": "vit_medium_patch16_reg4_gap_256",
    "vit_betwixt_patch16_gap_256": "vit_betwixt_patch16_reg4_gap_256",
}
SAME_WEIGHTS = ("lvd142m",)  # tags of weights that both of a pair have


def twin(spec: TeacherSpec) -> TeacherSpec:
    """The teacher with its model replaced where `register_teacher` is set, and that setting gone.

    A model with weights becomes its twin by name, or the one that is named; one that is trained here, or fresh,
    becomes the same architecture with registers.

    Raises:
        UserError: no twin is known, or the twin's weights are not named.
    """
    asked = spec.register_teacher
    if asked is None:
        return spec
    rest = spec.model_dump()
    rest["register_teacher"] = None
    if asked.model is None and _has_registers(spec):
        raise UserError(f"register_teacher: {spec.title()!r} has registers already; leave this row out")
    weights = spec.pretrained or spec.checkpoint is not None or spec.exported() is not None
    if not weights:
        return _fresh(spec, asked, rest)
    model = asked.model or _named(spec)
    pretrained = spec.pretrained if asked.pretrained is None else asked.pretrained
    pretrained = pretrained and asked.checkpoint is None
    if not pretrained and asked.checkpoint is None and not model.startswith(LOCAL):
        raise UserError(
            f"register_teacher: the weights of {model!r} are not named; give register_teacher.checkpoint, or "
            "register_teacher.pretrained: true to fetch them from the hub"
        )
    return TeacherSpec.model_validate(
        {**rest, "model": model, "checkpoint": asked.checkpoint, "pretrained": pretrained}
    )


def _fresh(spec: TeacherSpec, asked: RegisterTeacher, rest: dict[str, Any]) -> TeacherSpec:
    weights = {"checkpoint": asked.checkpoint, "pretrained": bool(asked.pretrained)}
    if spec.fit is not None and any(weights.values()):
        raise UserError("register_teacher: fit trains a fresh teacher; leave out its pretrained and checkpoint")
    if asked.model is not None:
        return TeacherSpec.model_validate({**rest, **weights, "model": asked.model})
    return TeacherSpec.model_validate({**rest, **weights, "options": {**spec.options, "reg_tokens": asked.registers}})


def _named(spec: TeacherSpec) -> str:
    """The twin of a model with weights, by timm's name."""
    name, _, tag = (spec.model or "").partition(".")
    if spec.exported() is not None or name not in TWINS:
        raise UserError(
            f"register_teacher: no twin of {spec.title()!r} that was trained with registers is known; name one as "
            f"register_teacher.model, or leave this row out. Known twins are of: {', '.join(sorted(TWINS))}"
        )
    return f"{TWINS[name]}.{tag}" if tag in SAME_WEIGHTS else TWINS[name]


def _has_registers(spec: TeacherSpec) -> bool:
    if spec.options.get("reg_tokens") or spec.options.get("num_reg_tokens"):
        return True
    return bool(re.search(r"_reg\d|dinov3", spec.model or "")) and spec.exported() is None
