"""What a finished run keeps of methods that are calibrated or own a token: enough to build them again, and no more."""

from __future__ import annotations

import timm
import torch
from experiments import run, tiny
from safetensors.torch import load_file

from harness.runs import Workspace, student_runs

METHODS = ["deit_hard", "crd", "phi_s", "maskedkd", "attn_distill", "student_registers"]


def test_finished_runs_of_calibrated_methods_can_be_used_again(tmp_path):
    experiment = tiny(tmp_path, methods=METHODS, training={"steps": 6}, teacher={"options": {"num_classes": 4}})
    builder = run(experiment, tmp_path / "workspace").builder
    workspace = Workspace(tmp_path / "workspace")
    runs = {r.info.method: r for r in student_runs(experiment)}
    assert set(runs) == set(METHODS)
    images = torch.rand(2, 3, 32, 32)
    for name, found in runs.items():
        folder = workspace.student(found.id)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert model(images).isfinite().all()
        teacher = builder.teacher(found.teacher)
        method = builder.trained_method(found, teacher)
        kept = load_file(folder / "method.safetensors")
        state = method.state_dict()
        assert set(kept) == {key for key in state if key not in method.training_only}
        assert all(torch.equal(kept[key], state[key]) for key in kept)
        targets = method.targets(teacher(images, method.teacher_layers))
        assert all(target.isfinite().all() for target in targets.values())
        assert {"deit_hard": 2, "student_registers": 5}.get(name, 1) == model.num_prefix_tokens
    assert {"embed_student.weight", "embed_teacher.bias"} <= set(
        load_file(workspace.student(runs["crd"].id) / "method.safetensors")
    )
    assert load_file(workspace.student(runs["phi_s"].id) / "method.safetensors")["matrix"].any()
