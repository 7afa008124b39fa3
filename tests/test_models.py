"""timm models behind the contract: every family's tokens, logits, maps; files good and bad; export."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from harness.api import frozen
from harness.errors import UserError
from harness.models import as_vit, build_model, build_student, build_teacher, export, imagenet_classes, load_exported

SMALL = {"embed_dim": 48, "num_heads": 4, "img_size": 32, "patch_size": 8, "num_classes": 7}
FAMILIES = {
    # name: (timm model, prefix tokens, has CLS)
    "plain": ("vit_tiny_patch16_224", 1, True),
    "distilled": ("deit_tiny_distilled_patch16_224", 2, True),
    "layerscale": ("deit3_small_patch16_224", 1, True),
    "norm_pre": ("vit_base_patch16_clip_224", 1, True),
    "map pooling": ("vit_base_patch16_siglip_224", 0, False),
    "registers, no cls, fc_norm": ("vit_medium_patch16_reg4_gap_256", 4, False),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", 5, True),
    "glu": ("vit_giant_patch14_dinov2", 1, True),
    "dinov3 rope": ("vit_small_patch16_dinov3", 5, True),
    "dinov3 swiglu": ("vit_small_plus_patch16_dinov3", 5, True),
    "eva02": ("eva02_tiny_patch14_224", 1, True),
    "rope mixed": ("vit_small_patch16_rope_mixed_224", 1, True),
}


def small(family: str):
    """The family at toy width and depth, fresh weights."""
    name, prefix, has_cls = FAMILIES[family]
    torch.manual_seed(0)
    return frozen(timm.create_model(name, depth=3, **SMALL)), prefix, has_cls


@pytest.fixture(params=FAMILIES)
def family(request):
    return small(request.param)


def images(count: int = 2, size: int = 32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_are_those_of_timms_own_forward_whatever_layers_are_asked_for(family):
    model, prefix, has_cls = family
    vit = as_vit(model)
    expected = model(vit.normalise(images()))
    assert vit.num_prefix_tokens == prefix and vit.has_cls == has_cls and vit.grid == (4, 4)
    for layers, maps in (((), ()), ((0,), ()), ((-1,), ()), ((0, 1, 2), (0, 2)), ((), (1,)), ((0,), (2,))):
        assert torch.allclose(vit(images(), layers, maps).logits, expected, atol=1e-5)


@torch.no_grad()
def test_tokens_are_what_timm_has_before_its_final_norm(family):
    model, *_ = family
    vit = as_vit(model)
    seen = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: seen.__setitem__(i, out))
    model(vit.normalise(images()))
    expected = dict(seen)
    found = vit(images(), layers=range(vit.depth))
    for i in range(vit.depth):
        assert torch.allclose(found.tokens[i], expected[i], atol=1e-6)
        assert found.tokens[i].shape == (2, vit.num_prefix_tokens + 16, 48)
        assert found.patches(i).shape == (2, 16, 48)


@torch.no_grad()
def test_through_a_block_gives_the_next_tokens(family):
    model, *_ = family
    vit = as_vit(model)
    found = vit(images(), layers=(0, 1))
    assert torch.allclose(vit.through(1, found.tokens[0]), found.tokens[1], atol=1e-6)


@torch.no_grad()
def test_attention_maps_are_distributions_and_explain_the_blocks_output(family):
    model, *_ = family
    vit = as_vit(model)
    tokens = vit.num_prefix_tokens + 16
    found = vit(images(), layers=(0, 1), attention_layers=(0, 1))
    for i in (0, 1):
        assert found.attention[i].shape == (2, 4, tokens, tokens)
        assert torch.allclose(found.attention[i].sum(-1), torch.ones(()), atol=1e-5)
    plain = vit(images(), layers=(0, 1))
    assert torch.equal(plain.tokens[1], found.tokens[1])  # asking for maps changes nothing that a neighbour sees


@torch.no_grad()
def test_normed_is_the_norm_in_front_of_the_head(family):
    model, *_ = family
    vit = as_vit(model)
    norm = model.fc_norm if isinstance(model.norm, torch.nn.Identity) else model.norm
    found = vit(images(), layers=(-1,))
    assert torch.equal(found.normed(2), norm(found.tokens[2]))


@torch.no_grad()
def test_a_pass_stops_at_the_last_layer_asked_for():
    model, *_ = small("plain")
    ran = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    found = as_vit(model)(images(), layers=(1,))
    assert ran == [0, 1] and not found.logits_read
    _ = found.logits
    assert ran == [0, 1, 2] and found.logits_read


def test_a_layer_that_was_not_asked_for_is_a_clear_error():
    model, *_ = small("plain")
    with pytest.raises(KeyError, match=r"layer 2 was not asked for; given: \[1\]"):
        _ = as_vit(model)(images(), layers=(1,)).tokens[2]
    with pytest.raises(ValueError, match=r"layer 3 does not exist; this model has blocks 0 \.\. 2"):
        as_vit(model)(images(), layers=(3,))


@torch.no_grad()
def test_each_model_normalises_for_itself():
    model, *_ = small("plain")
    x = images()
    assert torch.equal(as_vit(model, mean=0, std=1).normalise(x), x)
    assert torch.allclose(as_vit(model).normalise(x), (x - 0.5) / 0.5)  # augreg's own, not ImageNet's
    deit, *_ = small("distilled")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert torch.allclose(as_vit(deit).normalise(x), expected, atol=1e-6)
    bare = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=4)
    assert as_vit(bare).mean == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_images_of_another_size_are_brought_to_the_models_own():
    model, *_ = small("plain")
    vit = as_vit(model)
    assert vit(images(size=48), layers=(0,)).tokens[0].shape == (2, 17, 48)


def test_another_kind_of_model_is_refused():
    with pytest.raises(UserError, match="Linear is not a plain ViT"):
        as_vit(torch.nn.Linear(2, 2))


def test_a_vit_is_no_module_so_storing_one_adds_no_weights():
    module = torch.nn.Module()
    module.teacher = as_vit(small("plain")[0])
    assert list(module.parameters()) == []


def test_student_initialisation_depends_on_the_seed_alone():
    spec = {"width": 32, "depth": 2, "heads": 2, "patch": 8}
    torch.manual_seed(5)
    one = build_student(spec, 32, 4, seed=1)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    same, other = build_student(spec, 32, 4, seed=1), build_student(spec, 32, 4, seed=2)
    assert torch.equal(torch.get_rng_state(), state)  # and it leaves the global stream alone
    assert torch.equal(one.model.blocks[0].attn.qkv.weight, same.model.blocks[0].attn.qkv.weight)
    assert not torch.equal(one.model.blocks[0].attn.qkv.weight, other.model.blocks[0].attn.qkv.weight)
    assert build_student(spec, 32, 4, 1, {"reg_tokens": 4}).num_prefix_tokens == 5


def test_a_fresh_teacher_is_frozen_and_always_the_same():
    spec = {"width": 32, "depth": 2, "heads": 2, "patch": 8}
    one, other = build_teacher(spec, 32), build_teacher(spec, 32)
    assert torch.equal(one.model.head.weight, other.model.head.weight)
    assert not one.model.training and not any(p.requires_grad for p in one.model.parameters())


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_local_weights_load_whatever_the_image_size(suffix, tmp_path):
    spec = {"width": 32, "depth": 2, "heads": 2, "patch": 8}
    model = build_model(spec, 32, 5)
    path = tmp_path / f"weights.{suffix}"
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    loaded = build_model({**spec, "checkpoint": str(path)}, 32, 5)
    assert torch.equal(loaded.head.weight, model.head.weight)
    larger = build_model({**spec, "checkpoint": str(path)}, 64, 5)
    assert larger.pos_embed.shape[1] == 65 and torch.equal(larger.head.weight, model.head.weight)


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


def test_bad_files_and_names_are_one_clear_error_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"head.weight": _Evil()}, protocol=2))
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "weights.safetensors").write_bytes(b"nonsense")
    spec = {"width": 32, "depth": 2, "heads": 2, "patch": 8}
    for change, said in [
        ({"checkpoint": "wieghts.safetensors"}, r"does not exist; did you mean 'weights\.safetensors'\?"),
        ({"checkpoint": "no/where.pth"}, r"nor does its folder 'no'"),
        ({"checkpoint": "evil.pth"}, "evil.pth"),
        ({"checkpoint": "other.pth"}, r"'other\.pth' does not load into 'vit_tiny_patch16_224'"),
        ({"checkpoint": "weights.safetensors"}, r"'weights\.safetensors' does not load"),
        ({"model": "vit_tinny_patch16_224"}, "did you mean 'vit_tiny_patch16_224'"),
        ({"heads": 5}, "timm cannot build 'vit_tiny_patch16_224' with embed_dim=32"),
        ({"options": {"reg_tokns": 4}}, "reg_tokns"),
        ({"model": "local-dir:nowhere"}, "nowhere"),
    ]:
        with pytest.raises(UserError, match=said):
            build_model({**spec, **change}, 32, 5)
    assert not (tmp_path / "evil-was-here").exists()


def test_a_hub_that_cannot_be_reached_names_the_checkpoint_setting(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UserError, match=r"could not be fetched from the hub: no route.*name it as `checkpoint`"):
        build_model({"model": "vit_tiny_patch16_224", "pretrained": True}, 224)


@torch.no_grad()
def test_an_exported_student_gives_the_same_logits_in_timm_and_here(tmp_path):
    student = build_student({"width": 32, "depth": 2, "heads": 2, "patch": 8}, 32, 4, 0, {"reg_tokens": 2})
    student.model.eval()
    export(student, tmp_path / "student", {"run": "x"})
    expected = student(images()).logits
    assert torch.equal(load_exported(tmp_path / "student")(images()).logits, expected)
    again = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
    assert torch.equal(again((images() - 0.5) / 0.5), expected)


def test_wnids_name_the_logits_of_an_imagenet_teacher():
    from timm.data import ImageNetInfo

    names = ImageNetInfo("imagenet-1k").label_names()
    assert imagenet_classes([names[7], names[999], names[0]]) == [7, 999, 0]
    with pytest.raises(UserError, match="1 of 2 are not, the first 'cat'"):
        imagenet_classes([names[0], "cat"])


@torch.no_grad()
def test_chosen_classes_select_logits():
    model, *_ = small("plain")
    whole, part = as_vit(model)(images()).logits, as_vit(model, classes=[5, 2])(images()).logits
    assert torch.equal(part, whole[:, [5, 2]]) and as_vit(model, classes=[5, 2]).num_classes == 2


WEIGHTS = Path(__file__).parents[1].parent / "shared/data/weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
SAMPLE = Path(__file__).parents[1].parent / "shared/data/imagenet-sample"


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="../shared/data is absent")
@torch.no_grad()
def test_the_real_teacher_recognises_real_images():
    from harness.sources import View
    from tasks.datasets.folder import Folder

    source = Folder(str(SAMPLE), ".")
    chosen = range(0, 1000, 20)
    vit = build_teacher(
        {"model": "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "checkpoint": str(WEIGHTS), "classes": "imagenet-1k"},
        224,
        source.classes,
    )
    view = View(224, crop_share=0.9)
    batch = torch.stack([view(source.read(i).image) for i in chosen])
    right = vit(batch).logits.argmax(1) == torch.tensor([int(source.labels()[i]) for i in chosen])
    assert right.float().mean() > 0.7  # 82.8 % on all 1,000; ImageNet's mean and std would give 50 %


def test_eva_and_plain_classes_are_both_covered():
    kinds = {type(small(name)[0]) for name in FAMILIES}
    assert any(issubclass(k, Eva) for k in kinds) and any(issubclass(k, VisionTransformer) for k in kinds)
