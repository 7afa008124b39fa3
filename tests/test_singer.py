"""SiNGER against the authors' values, and the properties that its parts claim."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter

import pytest
import torch
from golden_cases import CASES, TOLERANCE, A, Case
from timm.layers import GluMlp
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from harness.api import Batch, Layers, Outputs, frozen
from harness.models import as_vit
from singer.losses import gram_loss, outlier_loss
from singer.method import Singer
from singer.null_space import null_space_basis, random_basis, smallest_basis, surrogate
from singer.refiner import Refiner

close = pytest.approx


def golden(case: Case, **changes):
    built = case.build()
    settings = {"layers": case.layers, "student_layers": case.student_layers, **case.singer, **changes}
    method = Singer(built.student, built.teacher, **settings)
    case.fill_projectors(method.projectors)
    return built, method


def vit(*, dim: int = 16, depth: int = 4, cls=VisionTransformer, seed: int = 0, **options):
    torch.manual_seed(seed)
    options = {"img_size": 32, "patch_size": 8, "num_classes": 3, "num_heads": 2, **options}
    return as_vit(cls(embed_dim=dim, depth=depth, **options))


def losses_of(method: Singer, student, teacher, batch: Batch | None = None):
    frozen(teacher.model)
    batch = batch or Batch(torch.rand(2, 3, 32, 32), None, torch.arange(2))
    with torch.no_grad():
        targets = teacher(batch.images, method.teacher_layers)
    return method.losses(student(batch.images, method.student_layers), targets, batch)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_terms_basis_and_gradients_are_those_of_the_authors_code(case):
    built, method = golden(case)
    outputs = built.outputs(method)
    terms = method.losses(*outputs, built.batch)
    for term in ("kd", "info", "outlier"):
        assert terms[term].item() == close(case.expected[term], rel=TOLERANCE), term

    report = method.report()["refiners"]
    for found, (count, smallest, largest) in zip(report, case.expected["singular"], strict=True):
        assert found["singular_values_below_threshold"] == count
        assert (found["from_null_space"], found["random_padding"]) == (8, 0)
        assert found["smallest_singular_value"] == close(smallest, rel=TOLERANCE)
        assert found["largest_singular_value"] == close(largest, rel=TOLERANCE)

    for k, (layer, refiner) in enumerate(zip(case.layers, method.refiners, strict=True)):
        raw = outputs[1].tokens[layer]
        assert raw[:, 1:].norm(dim=-1).mean().item() == close(case.expected["raw_norm"][k], rel=TOLERANCE)
        refined = refiner(raw, 1)[:, 1:].norm(dim=-1).mean().item()
        assert refined == close(case.expected["refined_norm"][k], rel=TOLERANCE)

    sum(terms.values()).backward()
    for k, refiner in enumerate(method.refiners):
        assert refiner.down.grad.norm().item() == close(case.expected["grad_down"][k], rel=TOLERANCE)
        assert refiner.up.grad.norm().item() == close(case.expected["grad_up"][k], rel=TOLERANCE)
    embedding = built.student_model.patch_embed.proj.weight.grad.norm().item()
    assert embedding == close(case.expected["grad_patch_embed"], rel=TOLERANCE)
    projectors = torch.cat([p.grad.flatten() for p in method.projectors.parameters()]).norm().item()
    assert projectors == close(case.expected["grad_projectors"], rel=TOLERANCE)


def test_the_paper_preset_sets_all_four_switches_against_the_default():
    _, published = golden(A)
    _, paper = golden(A, **Singer.presets["singer_paper"])
    switches = [(m.basis, m.power, m.info, m.reduction) for m in (published, paper)]
    assert switches == [("null", 2, "features", "mean"), ("smallest", 1, "gram", "sum")]
    assert all(a != b for a, b in zip(*switches, strict=True))
    assert golden(A, **Singer.presets["singer_random"])[1].basis == "random"


def test_each_switch_changes_its_own_term_and_no_other():
    _, method = golden(A)
    built, _ = golden(A)
    plain = {k: v.item() for k, v in built.losses(method).items()}

    def changed(**switch):
        other = {k: v.item() for k, v in built.losses(golden(A, **switch)[1]).items()}
        return {k for k in plain if other[k] != close(plain[k], rel=1e-6)}

    assert changed(outlier="linear") == {"outlier"}
    assert changed(info="gram") == {"info"}
    assert changed(basis="smallest") == {"kd", "outlier", "info"}  # it moves the refined tokens themselves
    assert changed(reduction="sum") == {"kd", "outlier", "info"}


def test_the_sum_over_two_layers_is_twice_the_mean():
    built, mean = golden(A)
    _, total = golden(A, reduction="sum")
    a, b = built.losses(mean), built.losses(total)
    assert {k: b[k].item() for k in a} == close({k: 2 * a[k].item() for k in a}, rel=1e-6)


def test_weights_scale_their_terms():
    built, method = golden(A)
    _, other = golden(A, w_kd=2.0, w_outlier=0.04, w_info=0.0)
    a, b = built.losses(method), built.losses(other)
    assert b["kd"].item() == close(2 * a["kd"].item())
    assert b["outlier"].item() == close(4 * a["outlier"].item())
    assert b["info"].item() == 0


def test_the_paper_info_loss_compares_each_gram_with_the_raw_one_of_the_same_layer():
    built, method = golden(A, **Singer.presets["singer_paper"])
    student, teacher = built.outputs(method)
    refined = {i: r(teacher.tokens[i], 1) for i, r in zip(A.layers, method.refiners, strict=True)}
    after = built.teacher.through(4, refined[3])
    expected = gram_loss(after[:, 1:], teacher.tokens[4][:, 1:]) + gram_loss(
        refined[5][:, 1:], teacher.tokens[5][:, 1:]
    )
    assert method.losses(student, teacher, built.batch)["info"].item() == close(expected.item())


def test_identity_refiners_keep_all_information_under_the_papers_rule():
    built, method = golden(A, info="gram")
    with torch.no_grad():
        for refiner in method.refiners:
            refiner.up.zero_()
    assert built.losses(method)["info"].item() == close(0, abs=1e-9)


def test_the_raw_next_layer_is_read_and_never_computed_again():
    built, method = golden(A)
    assert method.teacher_layers == {3, 4, 5}
    outputs = built.outputs(method)
    calls = Counter()
    hooks = [
        block.register_forward_hook(lambda *_, i=i: calls.update([i]))
        for i, block in enumerate(built.teacher_model.blocks)
    ]
    method.losses(*outputs, built.batch)
    for hook in hooks:
        hook.remove()
    assert calls == {4: 1}  # the refined tokens of layer 3, once


def test_the_declared_layer_after_is_the_one_that_is_compared():
    built, method = golden(A)
    student, teacher = built.outputs(method)
    shifted = dataclasses.replace(teacher, tokens=Layers({**teacher.tokens, 4: teacher.tokens[4] + 1}))
    plain = method.losses(student, teacher, built.batch)["info"]
    assert method.losses(student, shifted, built.batch)["info"] > plain + 0.1


def test_kd_and_every_other_term_reaches_both_factors_of_the_refiner():
    for term in ("kd", "outlier", "info"):
        built, method = golden(A)
        built.losses(method)[term].backward()
        for refiner in method.refiners:
            assert refiner.down.grad.norm() > 0 and refiner.up.grad.norm() > 0, term


def test_the_last_info_loss_also_trains_the_refiner_of_the_layer_before():
    built, method = golden(A, layers=(4, 5))
    _, teacher = built.outputs(method)
    refined = {i: r(teacher.tokens[i], 1) for i, r in zip((4, 5), method.refiners, strict=True)}
    method._info_loss(5, refined, teacher).backward()
    assert method.refiners[0].up.grad.norm() > 0


def test_the_teacher_gets_no_gradient_is_not_owned_and_is_not_written_to():
    built, method = golden(A)
    student, teacher = built.outputs(method)
    before = {i: t.clone() for i, t in teacher.tokens.items()}
    sum(method.losses(student, teacher, built.batch).values()).backward()
    assert all(p.grad is None for p in built.teacher_model.parameters())
    owned = {id(p) for p in method.parameters()}
    assert not owned & {id(p) for p in built.teacher_model.parameters()}
    assert len(owned) == 2 * 2 + 2 * 2
    assert all(torch.equal(before[i], t) for i, t in teacher.tokens.items())


def test_the_student_head_and_final_norm_get_no_gradient_and_every_block_does():
    built, method = golden(A)
    sum(built.losses(method).values()).backward()
    model = built.student_model
    assert model.head.weight.grad is None and model.norm.weight.grad is None
    assert all(block.mlp.fc1.weight.grad.norm() > 0 for block in model.blocks)


def test_the_refiner_changes_patches_and_passes_prefix_tokens():
    tokens = torch.randn(2, 5 + 16, 8)
    refined = Refiner(random_basis(8, 3).vectors)(tokens, 5)
    assert torch.equal(refined[:, :5], tokens[:, :5])
    assert (refined[:, 5:] != tokens[:, 5:]).any(dim=-1).all()


def test_a_new_refiner_doubles_the_null_component_and_keeps_the_rest():
    basis = null_space_basis(torch.diag(torch.tensor([3.0, 2.0, 0.1, 0.05])), rank=2, threshold=1.0).vectors
    tokens = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    assert Refiner(basis)(tokens, 0).tolist()[0][0] == close([1.0, 2.0, 6.0, 8.0])


def test_outlier_loss_is_the_mean_over_the_outliers_of_the_whole_batch():
    # norms 1, 2, 3, 4, 10 and 1, 1, 1, 1, 5: the .75 quantiles are 4 and 1, the excesses 6 and 4
    norms = torch.tensor([[1.0, 2, 3, 4, 10], [1, 1, 1, 1, 5]])
    patches = torch.stack([norms, torch.zeros_like(norms)], dim=-1)
    assert outlier_loss(patches, 0.75, power=2).item() == close((36 + 16) / 2)
    assert outlier_loss(patches, 0.75, power=1).item() == close((6 + 4) / 2)


def test_outlier_loss_pulls_outliers_alone_and_the_quantile_is_detached():
    patches = torch.tensor([[[1.0], [2.0], [3.0], [4.0], [10.0]]], requires_grad=True)
    outlier_loss(patches, 0.9, power=1).backward()  # the quantile lies between 4 and 10
    assert patches.grad.flatten().tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("value", [1.0, 0.0])
def test_equal_norms_have_no_outlier_a_zero_loss_and_a_zero_gradient(power, value):
    patches = torch.full((2, 6, 4), value, requires_grad=True)
    loss = outlier_loss(patches, 0.97, power)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(patches.grad, torch.zeros_like(patches))


def test_gram_loss_ignores_scale_and_sees_direction():
    patches = torch.randn(2, 6, 4)
    scale = torch.rand(2, 6, 1) + 0.5
    assert gram_loss(patches, patches * scale).item() == close(0, abs=1e-9)
    assert gram_loss(patches, patches + torch.randn(2, 6, 4)) > 0.01


def test_grams_are_computed_in_fp32_under_bf16_autocast():
    patches, other = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    exact = gram_loss(patches, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gram_loss(patches, other), exact)


def test_null_space_basis_takes_the_largest_values_below_the_threshold_and_smallest_the_least():
    weight = torch.diag(torch.tensor([4.0, 3.0, 0.4, 0.3, 0.2, 0.1]))
    axes = torch.eye(6)
    found = null_space_basis(weight, rank=2, threshold=0.5)
    assert torch.allclose(found.vectors.abs(), axes[[2, 3]])
    assert (found.below_threshold, found.from_null_space, found.random_padding) == (4, 2, 0)
    assert (found.smallest, found.largest) == close((0.1, 4.0))
    least = smallest_basis(weight, rank=3, threshold=0.25)
    assert torch.allclose(least.vectors.abs(), axes[[3, 4, 5]])
    assert (least.below_threshold, least.from_null_space, least.random_padding) == (2, 2, 0)


def test_too_few_candidates_are_padded_with_random_unit_rows_from_the_global_stream():
    weight = torch.diag(torch.tensor([4.0, 3.0, 2.0, 0.1]))

    def drawn(seed: int):
        torch.manual_seed(seed)
        return null_space_basis(weight, rank=3, threshold=0.5)

    found = drawn(0)
    assert (found.from_null_space, found.random_padding) == (1, 2)
    assert found.vectors.norm(dim=1).tolist() == close([1.0, 1.0, 1.0])
    assert torch.equal(drawn(0).vectors, found.vectors)
    assert not torch.equal(drawn(1).vectors, found.vectors)
    none = null_space_basis(weight, rank=3, threshold=0.01)
    assert (none.from_null_space, none.random_padding, none.vectors.shape) == (0, 3, (3, 4))


def test_the_surrogate_is_the_mlp_without_its_activation_and_biases():
    block = vit().block(1)
    block.mlp.act = nn.Identity()
    nn.init.normal_(block.mlp.fc1.bias)
    tokens, zero = torch.randn(5, 16), torch.zeros(1, 16)
    expected = block.mlp(tokens) - block.mlp(zero)
    assert torch.allclose(tokens.double() @ surrogate(block), expected.double(), atol=1e-5)


@pytest.mark.parametrize("cls", [VisionTransformer, Eva])
def test_the_surrogate_takes_layer_scale_in_unless_told_not_to(cls):
    block = vit(cls=cls, init_values=1.0).block(0)
    gamma = block.ls2.gamma if cls is VisionTransformer else block.gamma_2
    plain = surrogate(block, layer_scale=False)
    with torch.no_grad():
        gamma.copy_(torch.linspace(0.1, 2, 16))
    assert torch.equal(surrogate(block, layer_scale=False), plain)
    assert torch.allclose(surrogate(block), plain * gamma.detach().double())  # gamma scales what comes out


def test_a_gated_mlp_has_no_product_and_works_with_a_random_basis_at_once():
    student = vit()
    teacher = vit(dim=24, mlp_layer=GluMlp)
    with pytest.raises(ValueError, match=r"Block is a GluMlp.*basis='random'"):
        surrogate(teacher.block(0))
    terms = losses_of(Singer(student, teacher, rank=4, basis="random"), student, teacher)
    assert all(torch.isfinite(t) for t in terms.values())


@pytest.mark.parametrize("info", ["features", "gram"])
def test_one_layer_the_last_is_bound_by_its_own_raw_gram(info):
    built, method = golden(A, layers=(5,), student_layers=(2,), info=info)
    assert method.teacher_layers == {5}
    student, teacher = built.outputs(method)
    refined = method.refiners[0](teacher.tokens[5], 1)
    expected = gram_loss(refined[:, 1:], teacher.tokens[5][:, 1:]).item()
    assert expected > 0
    assert method.losses(student, teacher, built.batch)["info"].item() == close(expected)
    assert method.report()["refiners"][0]["info"] == "own raw Gram"


def test_a_final_layer_with_a_block_after_it_is_treated_as_intermediate():
    built, method = golden(A, layers=(1, 3), student_layers=(1, 2))
    assert method.teacher_layers == {1, 2, 3, 4}
    assert [r["surrogate_of_block"] for r in method.report()["refiners"]] == [2, 4]
    assert [r["info"] for r in method.report()["refiners"]] == ["next block's features"] * 2
    assert all(torch.isfinite(t) for t in built.losses(method).values())


def test_neighbouring_layers_share_the_tokens_between_them():
    built, method = golden(A, layers=(4, 5))
    assert method.teacher_layers == {4, 5}
    assert built.losses(method)["info"] > 0


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (VisionTransformer, {"reg_tokens": 4}),
        (VisionTransformer, {"reg_tokens": 4, "class_token": False, "global_pool": "avg", "init_values": 0.1}),
        (Eva, {"num_reg_tokens": 4, "use_rot_pos_emb": True, "use_abs_pos_emb": False, "init_values": 0.1}),
    ],
    ids=["registers", "no CLS", "rope"],
)
@pytest.mark.parametrize("preset", ["singer", "singer_paper"])
def test_teachers_with_registers_without_cls_and_with_rope_train_every_parameter(cls, options, preset):
    student, teacher = vit(), vit(dim=24, cls=cls, seed=1, **options)
    method = Singer(student, teacher, rank=4, **Singer.presets.get(preset, {}))
    terms = losses_of(method, student, teacher)
    sum(terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.norm() > 0 for p in method.parameters())


def test_registers_are_neither_refined_nor_imitated_nor_counted_as_outliers():
    student, teacher = vit(), vit(dim=24, reg_tokens=4, seed=1)
    method = Singer(student, teacher, rank=4)
    frozen(teacher.model)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        seen = teacher(images, method.teacher_layers)
    loud = dataclasses.replace(seen, tokens=Layers({i: t.clone() for i, t in seen.tokens.items()}))
    for layer in method.of_teacher:
        loud.tokens[layer][:, 1:5] *= 100
    batch, ours = Batch(images, None, torch.arange(2)), student(images, method.student_layers)
    plain, other = method.losses(ours, seen, batch), method.losses(ours, loud, batch)
    assert other["kd"].item() == close(plain["kd"].item())
    assert other["outlier"].item() == close(plain["outlier"].item())


def test_bf16_autocast_keeps_terms_finite_and_near_those_of_fp32():
    built, method = golden(A)
    exact = {k: v.item() for k, v in built.losses(method).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = built.losses(method)
        sum(terms.values()).backward()
    assert {k: v.dtype for k, v in terms.items()} == dict.fromkeys(terms, torch.float32)
    assert {k: v.item() for k, v in terms.items()} == close(exact, rel=0.05)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_training_the_refiner_suppresses_norms_that_its_start_raises():
    built, method = golden(A, w_outlier=1.0)
    outputs = built.outputs(method)
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-2)

    def loudest() -> float:
        return method.refiners[1](outputs[1].tokens[5], 1)[:, 1:].norm(dim=-1).max().item()

    start = loudest()
    assert start > outputs[1].tokens[5][:, 1:].norm(dim=-1).max().item()
    for _ in range(20):
        optimiser.zero_grad()
        sum(method.losses(*outputs, built.batch).values()).backward(retain_graph=True)
        optimiser.step()
    assert loudest() < 0.95 * start


def test_a_rank_over_the_teachers_width_and_unknown_switches_are_refused_with_the_remedy():
    built = A.build()
    with pytest.raises(ValueError, match=r"rank 64 is not in 1 \.\. 48"):
        Singer(built.student, built.teacher)
    with pytest.raises(ValueError, match="no basis 'nul'; did you mean 'null'"):
        Singer(built.student, built.teacher, rank=8, basis="nul")


def test_the_refiners_learning_rate_scale_names_an_owned_module():
    _, method = golden(A, refiner_lr_scale=10.0)
    assert method.lr_scale == {"refiners": 10.0}
    assert isinstance(method.get_submodule("refiners"), nn.ModuleList)


@pytest.mark.parametrize(("gain", "factor"), [(1.0, 2.0), (0.0, 1.0), (-1.0, 0.0), (0.5, 1.5)])
def test_the_gain_says_what_becomes_of_the_null_part_at_the_start(gain, factor):
    built, method = golden(A, gain=gain)
    _, teacher = built.outputs(method)
    for k, (layer, tokens) in enumerate(method.targets(teacher).items()):
        basis = method.bases[k].vectors  # orthonormal rows, no padding in this case
        raw = teacher.patches(layer)
        expected = raw + (factor - 1) * raw @ basis.T @ basis
        assert torch.allclose(tokens[:, 1:], expected, atol=1e-4)
        if gain == 0:
            assert torch.equal(tokens, teacher.tokens[layer])


def test_a_refiner_that_starts_at_the_identity_still_learns_both_factors():
    built, method = golden(A, gain=0.0)
    outputs = built.outputs(method)
    before = copy.deepcopy(method.state_dict())
    optimiser = torch.optim.AdamW(method.refiners.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        sum(method.losses(*outputs, built.batch).values()).backward(retain_graph=True)
        optimiser.step()
    moved = {name for name, p in method.refiners.named_parameters() if not torch.equal(p, before[f"refiners.{name}"])}
    assert moved == {"0.down", "0.up", "1.down", "1.up"}


def at(built, progress: float) -> Batch:
    return dataclasses.replace(built.batch, progress=progress)


def test_in_its_warmup_the_refiner_learns_alone_and_afterwards_all_is_as_without():
    built, method = golden(A, refiner_warmup=0.3)
    _, plain = golden(A)
    outputs = built.outputs(method)
    early, late = (method.losses(*outputs, at(built, progress)) for progress in (0.29, 0.3))
    assert early["kd"] == 0
    usual = plain.losses(*outputs, built.batch)
    assert {k: early[k].item() for k in ("outlier", "info")} == {k: usual[k].item() for k in ("outlier", "info")}
    assert {k: v.item() for k, v in late.items()} == {k: v.item() for k, v in usual.items()}
    sum(early.values()).backward(retain_graph=True)
    assert all(p.grad is None for p in [*built.student_model.parameters(), *method.projectors.parameters()])
    assert all(p.grad.norm() > 0 for p in method.refiners.parameters())


def test_training_in_the_warmup_leaves_the_student_as_it_was_to_the_bit(tmp_path):
    from harness.config import Training
    from harness.training.train import Group, Member

    built, method = golden(A, refiner_warmup=0.5)
    before = copy.deepcopy(built.student_model.state_dict()), copy.deepcopy(method.state_dict())
    member = Member("one", 0, built.student, method, tmp_path)
    group = Group([member], built.teacher, Training(steps=4, lr=1e-2, weight_decay=0.1), 4, 4, log_steps=4)
    for step in range(2):
        group.train_step(at(built, step / 4))
    assert all(torch.equal(v, before[0][k]) for k, v in built.student_model.state_dict().items())
    moved = {k.split(".")[0] for k, v in method.state_dict().items() if not torch.equal(v, before[1][k])}
    assert moved == {"refiners"}
    group.train_step(at(built, 2 / 4))
    assert not torch.equal(built.student_model.blocks[0].mlp.fc1.weight, before[0]["blocks.0.mlp.fc1.weight"])


def test_a_detached_target_keeps_imitation_from_the_refiner_and_changes_no_value():
    built, method = golden(A, detach_target=True)
    _, usual = golden(A)
    outputs = built.outputs(method)
    terms, plain = method.losses(*outputs, built.batch), usual.losses(*outputs, built.batch)
    assert {k: v.item() for k, v in terms.items()} == {k: v.item() for k, v in plain.items()}
    terms["kd"].backward(retain_graph=True)
    assert all(p.grad is None for p in method.refiners.parameters())
    assert built.student_model.patch_embed.proj.weight.grad.norm() > 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"refiner_warmup": 1.0}, r"refiner_warmup 1.0 is no share in \[0, 1\)"),
        ({"refiner_warmup": -0.1}, "refiner_warmup -0.1"),
        ({"refiner_warmup": 0.1, "w_outlier": 0.0, "w_info": 0.0}, "both are 0"),
    ],
)
def test_a_warmup_that_cannot_be_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        golden(A, **values)


def test_targets_are_the_refined_tokens_that_imitation_is_made_of():
    built, method = golden(A)
    student, teacher = built.outputs(method)
    targets = method.targets(teacher)
    assert sorted(targets) == [3, 5]
    expected = [
        nn.functional.mse_loss(project(student.tokens[ours]), targets[theirs])
        for project, ours, theirs in zip(method.projectors, (1, 2), (3, 5), strict=True)
    ]
    assert built.losses(method)["kd"].item() == close(sum(expected).item() / 2)


def test_what_a_step_has_seen_are_the_norms_before_and_after_refinement():
    built, method = golden(A)
    student, teacher = built.outputs(method)
    method.losses(student, teacher, built.batch)
    assert set(method.seen) == {f"{w}_{s}/{i}" for w in ("raw", "refined") for s in ("max", "median") for i in (3, 5)}
    for layer, tokens in method.targets(teacher).items():
        for name, patches in (("raw", teacher.patches(layer)), ("refined", tokens[:, 1:])):
            norms = patches.norm(dim=-1)
            assert method.seen[f"{name}_max/{layer}"].item() == close(norms.max().item())
            assert method.seen[f"{name}_median/{layer}"].item() == close(norms.median().item())
    assert not any(value.requires_grad for value in method.seen.values())


def test_the_ablations_are_presets_and_every_searched_value_can_be_built():
    presets = {"singer_no_outlier": "outlier", "singer_no_info": "info"}
    for name, term in presets.items():
        built, method = golden(A, **Singer.presets[name])
        terms = built.losses(method)
        assert terms[term] == 0 and all(terms[k] > 0 for k in terms if k != term)
    student, teacher = vit(), vit(dim=64, seed=1)
    for name, (form, *values) in Singer.search.items():
        assert form in ("log", "uniform", "int", "choice")
        for value in values:
            Singer(student, teacher, **{"rank": 4, name: value})


def test_a_seed_decides_the_random_basis():
    def build(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return golden(A, basis="random")[1].refiners[0].up

    assert torch.equal(build(3), build(3))
    assert not torch.equal(build(3), build(4))
    assert build(3).norm(dim=1).tolist() == close([1.0] * 8)


def test_outputs_that_lack_the_layer_after_are_a_clear_error():
    built, method = golden(A)
    student, teacher = built.outputs(method)
    fewer = Outputs(Layers({i: teacher.tokens[i] for i in (3, 5)}), logits=teacher.logits, grid=teacher.grid)
    with pytest.raises(KeyError, match="layer 4 was not asked for"):
        method.losses(student, fewer, built.batch)
