"""A run's teacher with the repairs that its specification asks for, and what was found on the way, kept on disk."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.api import Vit
from harness.errors import UserError
from harness.models import TimmVit
from harness.norms import outlier_share, over_median, token_norms
from harness.records import write_atomic
from harness.specs import REPAIRS, TeacherSpec
from harness.standardise import Moments, channel, hadamard, phi_s
from harness.storage.integrity import NOT_ITS_OWN, digest
from harness.teachers.register_neurons import AT_ONCE, append_registers, find_neurons
from harness.teachers.repairs import Averaging, Clipping, Repaired, Standardising

REPORTED = 64  # training images on which norms are compared before and after each repair
Images = Callable[[int], Iterable[Tensor]]  # so many training images, in batches [B, 3, H, W] in [0, 1]


def repairs_of(spec: TeacherSpec) -> tuple[str, ...]:
    """The repairs that are asked for, in the order in which they are applied."""
    return tuple(name for name in REPAIRS if getattr(spec, name) is not None)


def repaired(teacher: TimmVit, spec: TeacherSpec, images: Images, folder: Path) -> Vit:
    """The teacher with its repairs. What they need of the data is found once and kept in `folder`.

    Kept are report.json, with norms before and after every repair, and statistics.safetensors; whoever finds them
    builds the same teacher to the bit. `teacher` itself may be changed.

    Raises:
        UserError: nothing to repair, settings that this model cannot have, or a damaged file.
    """
    if not (folder / "report.json").is_file():
        return _found_now(teacher, spec, images, folder)
    vit: Vit = teacher
    report, statistics = _read(folder, _device(teacher))
    for name, stage in zip(repairs_of(spec), report["stages"][1:], strict=True):
        vit = _apply(vit, name, spec, stage["found"], statistics)
    return vit


def unfound(teacher: TimmVit, spec: TeacherSpec) -> Vit:
    """A teacher of the same shape whose repairs know nothing yet: what a method is tried on before any data is read.

    Raises:
        UserError: settings that this model cannot have.
    """
    vit: Vit = teacher
    for name in repairs_of(spec):
        _possible(vit, name, spec)
        empty = {"shifts": torch.zeros(vit.depth, vit.dim), "matrices": torch.eye(vit.dim).repeat(vit.depth, 1, 1)}
        empty = {key: value.to(_device(teacher)) for key, value in empty.items()}
        vit = _apply(vit, name, spec, {"neurons": []}, empty)
    return vit


@torch.no_grad()
def _found_now(teacher: TimmVit, spec: TeacherSpec, images: Images, folder: Path) -> Vit:
    vit: Vit = teacher
    device = _device(teacher)
    before = list(_looks(vit, images))
    planted = None if spec.planted is None else spec.planted.model_dump(mode="json")
    stages: list[dict[str, Any]] = [{"repair": None, "planted": planted, **_figures(before, before)}]
    kept: dict[str, Tensor] = {}
    for name in repairs_of(spec):
        _possible(vit, name, spec)
        found, statistics = _find(vit, name, spec, images)
        kept |= statistics
        vit = _apply(vit, name, spec, found, {key: value.to(device) for key, value in statistics.items()})
        stages.append({"repair": name, "found": found, **_figures(list(_looks(vit, images)), before)})
    report: dict[str, Any] = {"images": sum(len(look.norms[0]) for look in before), "stages": stages}
    if kept:
        _write_tensors(folder / "statistics.safetensors", kept)
        report["statistics_sha256"] = digest(folder / "statistics.safetensors")
    write_atomic(folder / "report.json", json.dumps(report, indent=2))  # last: it says that all of it is there
    return vit


def _possible(vit: Vit, name: str, spec: TeacherSpec) -> None:
    """Raises UserError for settings that no data could make possible."""
    if spec.shifted_views is not None and name == "shifted_views" and spec.shifted_views.reach >= min(vit.grid):
        raise UserError(
            f"teacher.shifted_views.reach {spec.shifted_views.reach} leaves nothing of a grid of "
            f"{vit.grid[0]} x {vit.grid[1]} patches; give 1"
        )
    if spec.standardise is not None and name == "standardise" and spec.standardise.kind == "phi_s":
        try:
            hadamard(vit.dim)
        except ValueError as error:
            raise UserError(f"teacher.standardise: {error}; kind: channel needs none") from error


def _find(vit: Vit, name: str, spec: TeacherSpec, images: Images) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a repair needs to know, as plain values and as tensors."""
    if name == "test_time_registers":
        assert isinstance(vit, TimmVit) and spec.test_time_registers is not None  # it is the first
        chosen = find_neurons(vit, images(spec.test_time_registers.images), spec.test_time_registers)
        return dataclasses.asdict(chosen), {}
    if name == "standardise":
        assert spec.standardise is not None
        return {}, _statistics(vit, images(spec.standardise.images), spec.standardise.kind)
    return {}, {}


def _statistics(vit: Vit, batches: Iterable[Tensor], kind: str) -> dict[str, Tensor]:
    """Of the patches after every block; CLS, one of hundreds and often far away, is left out."""
    moments = [Moments(vit.dim) for _ in range(vit.depth)]
    for some in _in_parts(batches):
        outputs = vit(some, layers=range(vit.depth))
        for i, layer in enumerate(moments):
            layer.add(outputs.patches(i))
    pairs = []
    for i, layer in enumerate(moments):
        try:
            pairs.append((phi_s if kind == "phi_s" else channel)(layer.mean, layer.covariance))
        except ValueError as error:
            raise UserError(f"teacher.standardise: after block {i} {error}") from error
    shifts, matrices = zip(*pairs, strict=True)
    return {"shifts": torch.stack(shifts).float(), "matrices": torch.stack(matrices).float()}


def _apply(vit: Vit, name: str, spec: TeacherSpec, found: Mapping[str, Any], statistics: Mapping[str, Tensor]) -> Vit:
    if name == "test_time_registers":
        assert isinstance(vit, TimmVit) and spec.test_time_registers is not None
        neurons = [(int(block), int(neuron)) for block, neuron in found["neurons"]]
        return append_registers(vit, neurons, spec.test_time_registers.registers)
    if name == "shifted_views":
        assert spec.shifted_views is not None
        return Repaired(vit, Averaging(spec.shifted_views))
    if name == "clip":
        assert spec.clip is not None
        return Repaired(vit, Clipping(spec.clip))
    return Repaired(vit, Standardising(statistics["shifts"], statistics["matrices"]))


@dataclasses.dataclass(frozen=True)
class _Look:
    """A few images: patch norms by block [L, B, P], the vector that the head reads [B, D], the likeliest class [B]."""

    norms: Tensor
    vector: Tensor
    top1: Tensor | None


def _looks(vit: Vit, images: Images) -> Iterator[_Look]:
    for some in _in_parts(images(REPORTED)):
        outputs = vit(some, layers=range(vit.depth))
        norms = torch.stack([token_norms(outputs.patches(i)) for i in range(vit.depth)]).cpu()
        normed = outputs.normed(vit.depth - 1).float()  # [B, N, D]
        vector = normed[:, 0] if vit.has_cls else normed[:, vit.num_prefix_tokens :].mean(dim=1)
        yield _Look(norms, vector.cpu(), outputs.logits.argmax(dim=1).cpu() if vit.num_classes else None)


def _figures(now: list[_Look], before: list[_Look]) -> dict[str, Any]:
    """Block by block the outlier share and max/median, means over images; and how much the head's input has moved."""
    norms = torch.cat([look.norms for look in now], dim=1)  # [L, B, P]
    if not norms.isfinite().all():
        raise UserError(
            "the teacher's tokens are not finite on the training images: its weights or a repair are broken"
        )
    pairs = list(zip(now, before, strict=True))
    cosine = torch.cat([F.cosine_similarity(a.vector, b.vector) for a, b in pairs])  # [B]
    agree = [a.top1 == b.top1 for a, b in pairs if a.top1 is not None and b.top1 is not None]
    return {
        "outlier_share": [outlier_share(layer).mean().item() for layer in norms],
        "max_over_median": [over_median(layer, 1.0).mean().item() for layer in norms],
        "vector_cosine": cosine.mean().item(),
        "same_top1": torch.cat(agree).float().mean().item() if agree else None,
    }


def _in_parts(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        yield from batch.split(AT_ONCE)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(temporary))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _device(teacher: TimmVit) -> str:
    return str(next(teacher.model.parameters()).device)


def _read(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        report = json.loads((folder / "report.json").read_text())
        path = folder / "statistics.safetensors"
        if "statistics_sha256" in report and digest(path) != report["statistics_sha256"]:
            raise ValueError(f"{path.name}: {NOT_ITS_OWN}")
        return report, load_file(str(path), device=device) if path.is_file() else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{str(folder)!r} holds what was found of a teacher and is damaged: {error}; remove it"
        ) from error
