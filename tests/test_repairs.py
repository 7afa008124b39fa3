"""Repairs of a teacher: their words, identities and mathematics, what is kept of them, and that they work together."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
import yaml
from experiments import run, tiny

from harness.config import merge, parse
from harness.errors import ConfigError, UserError
from harness.features import Encoder
from harness.job import Job
from harness.models import build_teacher
from harness.norms import token_norms
from harness.progress import Console
from harness.records import read_records
from harness.runs import Workspace, bound_runs, fit_runs, groups, student_runs, teacher_key
from harness.specs import REPAIRS, Clip, ShiftedViews, TeacherSpec
from harness.standardise import Moments, channel, phi_s
from harness.teachers import repaired as teachers
from harness.teachers.planting import plant
from harness.teachers.repaired import repaired, repairs_of, unfound
from harness.teachers.repairs import Averaging, Clipping, Repaired, Standardising, shifted, vit_identity
from harness.toys import PixelVit
from harness.training.builder import Builder
from harness.twins import TWINS, twin

BASE: dict[str, Any] = {
    "teacher": {"width": 48},
    "student": {"width": 24},
    "data": {"source": "scenes", "options": {"count": 100}},
    "training": {"steps": 2},
    "methods": ["fitnet"],
}
MODEL = {"width": 48, "depth": 4, "heads": 4, "patch": 8}
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ALL: dict[str, Any] = {
    "test_time_registers": {"threshold": 0.001, "images": 8},
    "shifted_views": {},
    "clip": {},
    "standardise": {"images": 8},
}


def spec(**changes: Any) -> TeacherSpec:
    return TeacherSpec.model_validate({**MODEL, **changes})


def images(count: int):
    return iter([IMAGES[:count]])


# ---- words and identities


def test_runs_without_repairs_keep_their_identity():
    """The ids that these had before there were repairs."""
    here = parse(BASE)
    assert [r.id for r in student_runs(here)] == ["e3517b0261ee44e4"]
    assert [r.id for r in bound_runs(here)] == ["8551e4e94da6def0", "fca78d5cbaa1aa03"]
    assert student_runs(here)[0].shared == "5702208ac65fb2eb"
    fitted = parse(merge(BASE, {"teacher": {"fit": {"training": {"steps": 3}}, "planted": {"layer": 1, "size": 5}}}))
    assert [r.id for r in student_runs(fitted) + fit_runs(fitted)] == ["9f733d78aab3f6f3", "d4005306d3c750ba"]


def of(**teacher: Any):
    return student_runs(parse(merge(BASE, {"teacher": teacher})))[0]


def test_runs_whose_teachers_differ_in_a_repair_are_other_runs_in_other_groups(tmp_path):
    changes = [
        {},
        *({name: given} for name, given in ALL.items()),
        {"test_time_registers": {}},
        {"test_time_registers": {"registers": 2}},
        {"shifted_views": {"pattern": "square"}},
        {"clip": {"median": 2}},
        {"standardise": {"kind": "channel"}},
        {"clip": {}, "standardise": {}},
        {"register_teacher": {}},
        {"planted": {"layer": 1, "size": 5}},
        {"planted": {"layer": 1, "size": 5, "places": "random"}},
    ]
    runs = [of(**change) for change in changes]
    assert len({r.id for r in runs}) == len({r.shared for r in runs}) == len(changes)
    rows = [{"method": "fitnet", "label": str(i), "teacher": change} for i, change in enumerate(changes)]
    found = groups(student_runs(parse({**BASE, "methods": rows})), Workspace(tmp_path), 8)
    assert [len(group.runs) for group in found] == [1] * len(changes)


def test_a_default_that_is_written_out_changes_nothing():
    assert of(clip={}).id == of(clip={"quantile": 0.97}).id == of(clip={"quantile": 0.97, "median": None}).id
    assert of(planted={"layer": 1, "size": 5}).id == of(planted={"layer": 1, "size": 5, "places": "smallest"}).id
    assert of(standardise=None).id == of().id


def test_a_teacher_is_fitted_once_for_all_its_repairs():
    fit = {"training": {"steps": 3}}
    rows = ["fitnet", *({"method": "fitnet", "label": name, "teacher": {name: ALL[name]}} for name in ALL)]
    assert len(fit_runs(parse(merge(BASE, {"teacher": {"fit": fit}, "methods": rows})))) == 1
    rows.append({"method": "fitnet", "label": "registers", "teacher": {"register_teacher": {}}})
    assert len(fit_runs(parse(merge(BASE, {"teacher": {"fit": fit}, "methods": rows})))) == 2


@pytest.mark.parametrize(
    "teacher, said",
    [
        ({"test_time_regs": {}}, "teacher: no setting 'test_time_regs'; did you mean 'test_time_registers'?"),
        ({"test_time_registers": {"tops": 1}}, "teacher.test_time_registers: no setting 'tops'; did you mean 'top'?"),
        ({"test_time_registers": {"top": 0}}, "teacher.test_time_registers.top: must be greater than 0, not 0"),
        ({"standardise": {"kind": "phis"}}, "teacher.standardise.kind: no value 'phis'; did you mean 'phi_s'?"),
        ({"clip": {"quantile": 2}}, "teacher.clip.quantile: must be at most 1, not 2"),
        ({"clip": {"quantile": 0.9, "median": 2}}, "teacher.clip: quantile and median exclude each other"),
        ({"shifted_views": {"pattern": "star"}}, "teacher.shifted_views.pattern: no value 'star'"),
        ({"planted": {"layer": 1, "size": 2, "places": "rand"}}, "no value 'rand'; did you mean 'random'?"),
    ],
)
def test_mistakes_are_told_in_words(teacher, said):
    with pytest.raises(ConfigError) as caught:
        parse(merge(BASE, {"teacher": teacher}))
    assert said in str(caught.value)


# ---- the twin with registers


def test_the_twins_are_those_that_timm_has():
    every = set(timm.list_models("vit_*"))
    found = {
        name.replace("_reg4", ""): name for name in every if "_reg4_" in name and name.replace("_reg4", "") in every
    }
    assert found == TWINS


def test_a_teacher_with_weights_becomes_its_twin_by_name():
    def name(own: str, **asked: Any) -> tuple[Any, ...]:
        found = twin(TeacherSpec.model_validate({"model": own, "pretrained": True, "register_teacher": asked}))
        assert found.register_teacher is None
        return found.model, found.pretrained, found.checkpoint

    reg4 = "vit_small_patch14_reg4_dinov2"
    assert name("vit_small_patch14_dinov2.lvd142m") == (f"{reg4}.lvd142m", True, None)
    assert name("vit_medium_patch16_gap_256.sw_in12k_ft_in1k") == ("vit_medium_patch16_reg4_gap_256", True, None)
    assert name("vit_small_patch14_dinov2", checkpoint="f.safetensors") == (reg4, False, "f.safetensors")
    assert name("vit_large_patch16_224", model="vit_x") == ("vit_x", True, None)
    assert twin(TeacherSpec()) == TeacherSpec()


def test_a_fresh_teacher_gets_registers_of_its_own():
    assert twin(spec(register_teacher={"registers": 3})) == spec(options={"reg_tokens": 3})
    assert of(register_teacher={}).id == of(options={"reg_tokens": 4}).id  # it is that teacher and no other
    fitted = parse(merge(BASE, {"teacher": {"fit": {"training": {"steps": 3}}, "register_teacher": {}}}))
    assert fit_runs(fitted)[0].student.options == {"reg_tokens": 4}


@pytest.mark.parametrize(
    "teacher, asked, said",
    [
        ({"model": "vit_large_patch16_224", "pretrained": True}, {}, "no twin of 'vit_large_patch16_224' that was tr"),
        ({"model": "vit_small_patch14_reg4_dinov2", "pretrained": True}, {}, "has registers already"),
        ({"width": 48, "options": {"reg_tokens": 4}}, {}, "has registers already"),
        ({"model": "vit_small_patch14_dinov2", "checkpoint": __file__}, {}, "give register_teacher.checkpoint, or"),
        ({"width": 48, "fit": {"training": {"steps": 1}}}, {"pretrained": True}, "fit trains a fresh teacher"),
        ({"width": 48}, {"checkpoint": "nowhere/x.safetensors"}, "teacher.register_teacher.checkpoint: no file"),
        ({"width": 48}, {"checkpoint": __file__, "pretrained": True}, "pretrained and checkpoint exclude each other"),
    ],
)
def test_a_row_without_a_twin_is_a_mistake_of_the_configuration(teacher, asked, said):
    row = {"method": "fitnet", "label": "other", "teacher": {"register_teacher": asked}}
    with pytest.raises(ConfigError) as caught:
        parse({**BASE, "teacher": teacher, "methods": ["none", row]})
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("methods.1.teacher.register_teacher") and said in mistake


# ---- clipping


@torch.no_grad()
def test_clipping_scales_only_the_patches_over_the_limit():
    vit = build_teacher(MODEL, 32)
    plant(vit, 1, 20.0, 0.2)
    plain = vit(IMAGES, layers=(1, 3))
    norms = token_norms(plain.patches(3))
    for limit, top in (
        (Clip(median=2), 2 * norms.quantile(0.5, dim=1, keepdim=True)),
        (Clip(quantile=0.5), norms.quantile(0.5, dim=1, keepdim=True)),
    ):
        found = Repaired(vit, Clipping(limit))(IMAGES, layers=(1, 3), attention_layers=(2,))
        assert torch.allclose(token_norms(found.patches(3)), torch.minimum(norms, top), rtol=1e-5)
        within = norms <= top
        assert torch.equal(found.patches(3)[within], plain.patches(3)[within])
        assert torch.equal(found.cls(3), plain.cls(3))
        assert torch.equal(found.logits, plain.logits)  # of the stream that is not clipped
        assert torch.equal(found.attention[2], vit(IMAGES, attention_layers=(2,)).attention[2])
        cosine = torch.cosine_similarity(found.patches(3), plain.patches(3), dim=-1)
        assert torch.allclose(cosine, torch.ones_like(cosine))
    assert Clip() == Clip(quantile=0.97)


@torch.no_grad()
def test_a_block_runs_on_clipped_tokens_as_they_are():
    vit = build_teacher(MODEL, 32)
    tokens = torch.randn(2, 17, 48)
    for repair in (Clipping(Clip()), Averaging(ShiftedViews())):
        assert torch.equal(Repaired(vit, repair).through(-1, tokens), vit.through(3, tokens))
        assert Repaired(vit, repair).block(2) is vit.block(2)


# ---- shifted views


def test_an_image_moves_by_pixels_and_is_mirrored_at_its_border():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(shifted(image, 0, 0), image)
    assert torch.equal(shifted(image, 1, 0)[0, 0, :, 0], torch.tensor([4.0, 0, 4, 8]))
    assert torch.equal(shifted(image, -1, 0)[0, 0, :, 0], torch.tensor([4.0, 8, 12, 8]))
    assert torch.equal(shifted(image, 0, 2)[0, 0, 0], torch.tensor([2.0, 1, 0, 1]))
    assert torch.equal(shifted(image, 0, -1)[0, 0, 0], torch.tensor([1.0, 2, 3, 2]))


@pytest.mark.parametrize("views", [ShiftedViews(), ShiftedViews(reach=2), ShiftedViews(reach=3, pattern="square")])
def test_shifted_views_change_nothing_where_a_patch_sees_only_itself(views):
    vit = PixelVit()
    plain, found = vit(IMAGES, layers=(0, 1)), Repaired(vit, Averaging(views))(IMAGES, layers=(0, 1))
    for layer in (0, 1):
        assert torch.allclose(found.tokens[layer], plain.tokens[layer], atol=1e-5)
    small = torch.nn.functional.interpolate(IMAGES, size=(24, 24))  # brought to the model's size before it is shifted
    assert Repaired(vit, Averaging(views))(small, layers=(1,)).tokens[1].shape == plain.tokens[1].shape


def test_an_artifact_of_a_place_is_divided_by_the_number_of_views():
    vit = PixelVit(planted=1, planted_norm=10.0)  # on the patch in the corner, whatever the image
    clean = PixelVit()(IMAGES, layers=(1,)).patches(1)
    found = Repaired(vit, Averaging(ShiftedViews()))(IMAGES, layers=(1,)).patches(1)
    assert torch.allclose(found[:, 0], clean[:, 0] * (10 + 1 + 1) / 3, atol=1e-5)  # two of four shifts lose a corner
    assert torch.allclose(found[:, 1], clean[:, 1] * (10 + 1 + 1 + 1) / 4, atol=1e-5)  # once it lay in the corner
    assert torch.allclose(found[:, 5:], clean[:, 5:], atol=1e-5)


def test_views_that_leave_nothing_and_patches_that_are_dropped_are_refused():
    with pytest.raises(UserError, match="reach 4 leaves nothing of a grid of 4 x 4 patches"):
        unfound(build_teacher(MODEL, 32), spec(shifted_views={"reach": 4}))
    vit = Repaired(build_teacher(MODEL, 32), Averaging(ShiftedViews()))
    keep = torch.arange(8).expand(4, -1)
    with pytest.raises(ValueError, match="drops no patches"):
        vit(IMAGES, layers=(1,), keep=keep)
    assert torch.equal(vit(IMAGES, keep=keep).logits, vit.vit(IMAGES, keep=keep).logits)


# ---- standardising


def standardising(vit: Any, kind: Any = phi_s) -> Repaired:
    pairs = []
    for layer in range(vit.depth):
        moments = Moments(vit.dim)
        moments.add(vit(torch.rand(16, 3, 32, 32), layers=(layer,)).patches(layer))
        pairs.append(kind(moments.mean, moments.covariance))
    shifts, matrices = (torch.stack(part).float() for part in zip(*pairs, strict=True))
    return Repaired(vit, Standardising(shifts, matrices))


@torch.no_grad()
@pytest.mark.parametrize("kind", [phi_s, channel])
def test_a_standardised_teachers_blocks_lead_from_layer_to_layer(kind):
    inner = build_teacher(MODEL, 32)
    vit = standardising(inner, kind)
    tokens, plain = vit(IMAGES, layers=range(4)).tokens, inner(IMAGES, layers=range(4)).tokens
    assert not torch.allclose(tokens[1], plain[1], atol=0.1)
    for layer in range(3):
        assert torch.allclose(vit.through(layer + 1, tokens[layer]), tokens[layer + 1], atol=2e-3)
        back = vit.repair.back(layer, tokens[layer])
        assert torch.allclose(back, plain[layer], atol=1e-4)
    first = torch.randn(1, 17, 48)
    assert torch.allclose(vit.repair.back(0, vit.through(0, first)), inner.through(0, first), atol=1e-4)


@torch.no_grad()
def test_standardised_tokens_are_brought_back_before_the_final_norm():
    inner = build_teacher(MODEL, 32)
    vit = standardising(inner)
    found, plain = vit(IMAGES, layers=range(4)), inner(IMAGES, layers=range(4))
    seen = Encoder(vit, identity="x", cache=None)(IMAGES, layers=range(4))
    for layer in range(4):
        assert torch.allclose(found.normed(layer), plain.normed(layer), atol=1e-3)
        assert torch.allclose(seen.normed(layer), plain.normed(layer), atol=1e-3)
    assert torch.allclose(found.norm(found.tokens[3]), plain.normed(3), atol=1e-3)
    assert torch.equal(found.logits, plain.logits)


def test_a_channel_that_does_not_vary_comes_back_as_it_was():
    tokens = torch.randn(50, 48)
    tokens[:, 3] = 7.0
    moments = Moments(48)
    moments.add(tokens)
    shift, matrix = (part.float()[None] for part in channel(moments.mean, moments.covariance))
    repair = Standardising(shift, matrix)
    there = (tokens - shift[0]) @ matrix[0].T
    assert torch.allclose(repair.back(0, there), tokens, atol=1e-5)


def test_a_width_without_a_hadamard_matrix_is_refused_before_any_data_is_read():
    with pytest.raises(UserError, match=r"teacher\.standardise: no Hadamard matrix of order 46.*kind: channel"):
        unfound(build_teacher({**MODEL, "width": 46, "heads": 2}, 32), spec(width=46, heads=2, standardise={}))


# ---- together, and on disk


@torch.no_grad()
def test_what_was_found_is_read_again_to_the_bit(tmp_path, monkeypatch):
    asked = spec(planted={"layer": 1, "size": 10.0, "share": 0.1}, **{**ALL, "clip": {"median": 2.0}})

    def teacher():
        vit = build_teacher(MODEL, 32)
        plant(vit, 1, 10.0, 0.1)
        return vit

    first = repaired(teacher(), asked, images, tmp_path)
    monkeypatch.setattr(teachers, "find_neurons", None)
    again = repaired(teacher(), asked, lambda count: pytest.fail("the images are read again"), tmp_path)
    a, b = first(IMAGES, layers=range(4)), again(IMAGES, layers=range(4))
    assert all(torch.equal(a.tokens[i], b.tokens[i]) for i in range(4)) and torch.equal(a.logits, b.logits)
    assert vit_identity(first) == vit_identity(again)
    assert a.num_prefix_tokens == 2 and a.patches(3).shape == (4, 16, 48)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "statistics.safetensors"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [stage["repair"] for stage in report["stages"]] == [None, *REPAIRS]
    assert report["stages"][0]["planted"]["size"] == 10.0 and report["images"] == 4
    clean, clipped = report["stages"][0], report["stages"][3]
    assert clean["max_over_median"][1] > 5 and clipped["max_over_median"][1] <= 2.001
    assert all(len(stage["outlier_share"]) == 4 for stage in report["stages"])
    assert len(report["stages"][1]["found"]["neurons"]) == 1


def test_a_damaged_report_is_told(tmp_path):
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        repaired(build_teacher(MODEL, 32), spec(clip={}), images, tmp_path)


def test_repairs_are_applied_in_one_order_however_they_are_written():
    backwards = dict(reversed(ALL.items()))
    assert repairs_of(spec(**backwards)) == REPAIRS == tuple(ALL)


@torch.no_grad()
def test_different_repairs_never_share_features():
    def built(**changes: Any) -> str:
        return vit_identity(unfound(build_teacher(MODEL, 32), spec(**changes)))

    found = [built(), built(clip={}), built(clip={"median": 2}), built(shifted_views={}), built(standardise={})]
    found += [built(test_time_registers={}), built(test_time_registers={"registers": 2}), built(**ALL)]
    other = build_teacher(MODEL, 32)
    other.model.blocks[0].mlp.fc1.weight[0, 0] += 1
    found += [vit_identity(other), vit_identity(Repaired(other, Clipping(Clip())))]
    found.append(vit_identity(standardising(build_teacher(MODEL, 32))))
    assert len(set(found)) == len(found)
    with pytest.raises(TypeError, match="PixelVit"):
        vit_identity(PixelVit())


def test_a_teachers_own_row_is_cached_by_what_repairs_it(tmp_path):
    def identity(**changes: Any) -> str:
        experiment = tiny(tmp_path, teacher=changes, bounds=True)
        job = Job(experiment, Workspace(tmp_path / "workspace"), Console(quiet=True))
        return job.evaluation._encoder(bound_runs(experiment)[0])[0].identity

    found = [identity(), identity(clip={}), identity(clip={"median": 2}), identity(standardise={"images": 8})]
    assert len(set(found)) == 4


def test_what_is_kept_belongs_to_a_teacher_and_its_data():
    def key(experiment: dict[str, Any] | None = None, **changes: Any) -> str:
        return teacher_key(parse(merge(BASE, experiment or {})), spec(clip={}, **changes))

    assert key() == key({"methods": ["none"]}) == key({"data": {"augment": None}}) == key({"student": {"width": 48}})
    other = [key({"data": {"image_size": 32}}), key({"data": {"options": {"count": 99}}}), key(standardise={})]
    assert len({key(), *other}) == 4


def test_an_experiment_with_every_repair_runs_and_keeps_what_it_found(tmp_path, monkeypatch):
    rows = [
        "fitnet",
        *({"method": "fitnet", "label": name, "teacher": {name: given}} for name, given in ALL.items()),
        {"method": "singer", "hyperparameters": {"rank": 8}, "label": "all", "teacher": ALL},
        {"method": "fitnet", "label": "register twin", "teacher": {"register_teacher": {"registers": 2}}},
    ]
    experiment = tiny(tmp_path, methods=rows, training={"steps": 2})
    job = run(experiment, tmp_path / "workspace")
    assert not job.outcome.failed and len(job.outcome.trained) == len(rows)
    workspace = Workspace(tmp_path / "workspace")
    assert len(list(workspace.teachers.glob("*/report.json"))) == 5
    described = {
        r.info.label: yaml.safe_load((workspace.student(r.id) / "run.yaml").read_text())
        for r in student_runs(experiment)
    }
    assert "teacher" not in described["fitnet"] and "teacher" not in described["register twin"]
    assert [stage["repair"] for stage in described["all"]["teacher"]["stages"]] == [None, *REPAIRS]

    monkeypatch.setattr(teachers, "_find", None)
    runs = {r.info.label: r for r in student_runs(experiment)}
    vit = Job(experiment, workspace, Console(quiet=True)).builder.teacher(runs["all"].teacher)
    assert isinstance(vit, Repaired) and vit.num_prefix_tokens == 2


def test_a_repaired_teachers_own_row_measures_the_repaired_tokens(tmp_path):
    share: dict[str, float] = {}
    for name, change in {"plain": {}, "clipped": {"clip": {"median": 1.5}}}.items():
        planted = {"layer": 1, "size": 20, "share": 0.1}
        experiment = tiny(
            tmp_path, teacher={"planted": planted, **change}, methods=["none"], training={"steps": 1},
            tasks=["artifacts"], bounds=True,
        )  # fmt: skip
        run(experiment, tmp_path / "workspace")
        records, _ = read_records(tmp_path / "workspace" / "records")
        ids = {r.id for r in bound_runs(experiment)}
        (record,) = (r for r in records if r.run.id in ids and r.run.label == "teacher")
        share[name] = record.values["max_over_median"]
    assert share["plain"] > 10 and share["clipped"] <= 1.51


def test_all_mistakes_of_all_teachers_come_at_once(tmp_path):
    rows = [
        "fitnet",
        {"method": "fitnet", "label": "far", "teacher": {"shifted_views": {"reach": 9}}},
        {"method": "none", "label": "far too", "teacher": {"shifted_views": {"reach": 9}}},
        {"method": "fitnet", "label": "clean", "teacher": {"test_time_registers": {"threshold": 1e9}}},
        {"method": "fitnet", "label": "rank", "hyperparameters": {"layers": [7]}},
    ]
    experiment = tiny(tmp_path, methods=rows)
    with pytest.raises(ConfigError) as caught:
        run(experiment, tmp_path / "workspace")
    said = [mistake[:60] for mistake in caught.value.mistakes]
    assert len(said) == 3 and not list((tmp_path / "workspace").glob("students/*"))
    for label, word in (("far", "reach 9"), ("clean", "high norm"), ("rank", "layer 7")):
        assert any(f"method {label!r}" in m and word in m for m in caught.value.mistakes), said


def test_a_teacher_that_is_yet_to_be_trained_is_tried_without_data(tmp_path):
    """Its repairs are found only when it is trained, and then of the trained one."""
    fit = {"training": {"steps": 2, "batch_size": 8}}
    asked: dict[str, Any] = {"fit": fit, **ALL}
    experiment = tiny(tmp_path, teacher=asked, methods=["fitnet"], training={"steps": 2})
    workspace = Workspace(tmp_path / "workspace")
    builder = Builder(experiment, workspace, "cpu", lambda _: pytest.fail("it is trained in the preflight"))
    builder.preflight(student_runs(experiment))
    assert not workspace.teachers.exists()
    job = run(experiment, tmp_path / "workspace")
    assert len(job.outcome.trained) == 2 and len(list(workspace.teachers.glob("*/report.json"))) == 1


# ---- planting


@torch.no_grad()
def test_random_places_tell_nothing_of_the_norm_and_planting_stays_exact():
    noise = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def planted(size: float, places: Any):
        vit = build_teacher(MODEL, 64)
        u = plant(vit, 1, size, 0.1, places)
        return vit(noise, layers=(1, 3)), u

    (dirty, u), (clean, _) = planted(20.0, "random"), planted(0.0, "random")
    for layer in (1, 3):
        gap = dirty.tokens[layer] - clean.tokens[layer]
        along = gap @ u
        assert torch.allclose(gap, along[..., None] * u, atol=1e-4)
        assert (along > 1).sum(dim=1).tolist() == [6] * 16
    marked = ((dirty.tokens[1] - clean.tokens[1]) @ u)[:, 1:] > 1
    rank = token_norms(clean.patches(1)).argsort(dim=1).argsort(dim=1).float() / 63
    assert 0.3 < rank[marked].mean() < 0.7  # the smallest would have .04
    small = planted(20.0, "smallest")[0]
    assert not torch.equal(small.tokens[1], dirty.tokens[1])


@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f")]
)
def test_damaged_statistics_are_told_and_never_used(harm, tmp_path):
    asked = spec(standardise={"kind": "channel", "images": 4})
    repaired(build_teacher(MODEL, 32), asked, images, tmp_path)
    harm(tmp_path / "statistics.safetensors")
    with pytest.raises(UserError, match=r"is damaged: .*statistics\.safetensors.*; remove it"):
        repaired(build_teacher(MODEL, 32), asked, images, tmp_path)
