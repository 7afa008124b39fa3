"""A timm model, from the hub, a local file or fresh, as a `Vit`; students exported for timm.

`as_vit` wraps timm's VisionTransformer (with its distilled variant) and Eva classes: CLS or none, registers,
distillation token, LayerScale, rotary embeddings, norm_pre, fc_norm.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models import load_state_dict
from timm.models._hub import save_for_hf
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from harness.api import Layers, Outputs, Vit, frozen
from harness.errors import UserError, unknown
from harness.seeds import derive

# A model without a timm configuration (a bare class) gets what most of timm's ViTs expect: images in [-1, 1].
DEFAULT_MEAN = DEFAULT_STD = (0.5, 0.5, 0.5)
FRESH = "vit_tiny_patch16_224"  # the architecture whose width, depth, heads and patch a fresh model overrides


class TimmVit(Vit):
    """A timm ViT behind the contract. `model` is the module itself; the harness owns and optimises it.

    `registers` zero tokens behind the model's own prefix go through every block and are left out before the head:
    places for what `harness.teachers.register_neurons` moves off the patches.
    """

    def __init__(
        self,
        model: VisionTransformer | Eva,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[int] | None = None,
        registers: int = 0,
    ) -> None:
        self.model, self.registers = model, registers
        self.depth = len(model.blocks)
        self.dim = model.embed_dim
        self.num_classes = model.num_classes if classes is None else len(classes)
        self.num_prefix_tokens = model.num_prefix_tokens + registers
        self.has_cls = model.cls_token is not None
        embed = cast(Any, model.patch_embed)
        self.grid = tuple(embed.grid_size)
        self.image_size = tuple(embed.img_size)
        self.mean, self.std = tuple(mean), tuple(std)
        self._shift = torch.tensor(self.mean).view(1, -1, 1, 1)
        self._scale = torch.tensor(self.std).view(1, -1, 1, 1)
        self.classes = None if classes is None else tuple(classes)
        self._classes = None if classes is None else torch.tensor(list(classes))

    def block(self, layer: int) -> nn.Module:
        return self.model.blocks[self.layer(layer)]

    def through(self, layer: int, tokens: Tensor) -> Tensor:
        return self._step(self.layer(layer), tokens, self._rope())

    def __call__(
        self,
        images: Tensor,
        layers: Iterable[int] = (),
        attention_layers: Iterable[int] = (),
        keep: Tensor | None = None,
    ) -> Outputs:
        wanted = {self.layer(i) for i in layers}
        maps = {self.layer(i) for i in attention_layers}
        tokens, rope = self._embed(images)
        if keep is not None:
            tokens, rope = self._kept(tokens, rope, keep)
        kept, attention = Layers(), Layers()
        last = max(wanted | maps, default=-1)
        for i in range(last + 1):
            if i in maps:
                attention[i] = self._attention(i, tokens, rope)
            if i == last and i not in wanted:
                break  # only its map was asked for; the head runs this block again if it is ever read
            tokens = self._step(i, tokens, rope)
            if i in wanted:
                kept[i] = tokens
        done = last + 1 if last in wanted else max(last, 0)
        with_grad = torch.is_grad_enabled()

        def logits() -> Tensor:
            with torch.set_grad_enabled(with_grad):  # a shared teacher stays without, whoever reads it first
                x = tokens
                for i in range(done, self.depth):
                    x = self._step(i, x, rope)
                return self._head(x)

        return Outputs(
            tokens=kept,
            logits=logits,  # type: ignore[arg-type]
            attention=attention,
            num_prefix_tokens=self.num_prefix_tokens,
            has_cls=self.has_cls,
            grid=self.grid if keep is None else None,
            norm=self.final_norm,
        )

    def _kept(self, tokens: Tensor, rope: Tensor | None, keep: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prefix and the patches `keep` [B, K] of tokens [B, N, D], with their rotary embeddings."""
        patches = tokens[:, self.num_prefix_tokens :]
        seen = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[-1]))  # [B, K, D]
        if rope is not None:
            if rope.ndim != 2:
                raise ValueError(f"{type(self.model).__name__} has a rotary table a block; it cannot drop patches")
            rope = rope[keep].unsqueeze(1)  # [B, 1, K, E], broadcast over heads
        return torch.cat([tokens[:, : self.num_prefix_tokens], seen], dim=1), rope

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The norm in front of the head, [..., D] -> [..., D]: `norm`, or `fc_norm` where pooling comes first."""
        model = cast(Any, self.model)
        return model.fc_norm(tokens) if isinstance(model.norm, nn.Identity) else model.norm(tokens)

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] of any size -> the model's own size, mean and standard deviation."""
        images = resized(images, self.image_size)
        self._shift, self._scale = self._shift.to(images.device), self._scale.to(images.device)
        return (images - self._shift) / self._scale

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens, rope = self._embedded(images)
        if self.registers:
            own = self.model.num_prefix_tokens
            empty = tokens.new_zeros(len(tokens), self.registers, self.dim)  # [B, R, D]
            tokens = torch.cat([tokens[:, :own], empty, tokens[:, own:]], dim=1)
        return tokens, rope

    def _embedded(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        model = cast(Any, self.model)
        x = model.patch_embed(self.normalise(images))
        if isinstance(self.model, Eva):
            x, rope = model._pos_embed(x)
            return model.norm_pre(x), rope
        return model.norm_pre(model.patch_drop(model._pos_embed(x))), None

    def _rope(self) -> Tensor | None:
        model = cast(Any, self.model)
        if not isinstance(self.model, Eva) or model.rope is None:
            return None
        if hasattr(model.rope, "feat_shape") and not model.dynamic_img_size:
            return model.rope.get_embed()
        return model.rope.get_embed(shape=self.grid)

    def _rope_of(self, layer: int, rope: Tensor | None) -> dict[str, Tensor | None]:
        if not isinstance(self.model, Eva):
            return {}
        mixed = rope is not None and getattr(self.model, "rope_mixed", False)  # one table a block
        return {"rope": rope[layer] if mixed and rope is not None else rope}

    def _step(self, layer: int, tokens: Tensor, rope: Tensor | None) -> Tensor:
        return self.model.blocks[layer](tokens, **self._rope_of(layer, rope))

    def _head(self, tokens: Tensor) -> Tensor:
        if self.registers:
            tokens = torch.cat([tokens[:, : self.model.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]], dim=1)
        logits = self.model.forward_head(self.model.norm(tokens))
        if self._classes is None:
            return logits
        self._classes = self._classes.to(logits.device)
        return logits[:, self._classes]

    def _attention(self, layer: int, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """Attention map [B, H, N, N] of a block for its input tokens.

        Computed beside the block's own fused attention, so that a method which asks for maps does not change
        the rounding of the tokens that its neighbours see.
        """
        block = cast(Any, self.model.blocks[layer])
        attn = block.attn
        caught: list[Tensor] = []
        hook = attn.attn_drop.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        fused, attn.fused_attn = attn.fused_attn, False
        try:
            attn(block.norm1(tokens), **self._rope_of(layer, rope))
        finally:
            attn.fused_attn = fused
            hook.remove()
        return caught[0]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] at `size` (height, width) in pixels."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def as_vit(
    model: nn.Module,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    classes: Sequence[int] | None = None,
) -> TimmVit:
    """Any timm VisionTransformer or Eva as a `Vit`.

    Args:
        mean, std: of the images, a channel each or one for all; None: the model's own timm configuration,
            or .5 and .5 for a bare class that has none.
        classes: keep these logits only, in this order (a teacher whose classes include the data's).

    Raises:
        UserError: another class of model.
    """
    if not isinstance(model, VisionTransformer | Eva):
        raise UserError(
            f"{type(model).__name__} is not a plain ViT; this harness wraps timm's VisionTransformer and Eva classes"
        )
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return TimmVit(
        model,
        _channels(cfg.get("mean", DEFAULT_MEAN) if mean is None else mean),
        _channels(cfg.get("std", DEFAULT_STD) if std is None else std),
        classes,
    )


def _channels(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(float(v) for v in value)


def architecture(spec: Mapping[str, Any], image_size: int, num_classes: int | None) -> tuple[str, dict[str, Any]]:
    """timm name and keyword arguments of a model specification (harness.config.ModelSpec, as plain values).

    `width`, `depth`, `heads`, `patch` override the named architecture, or that of ViT-Ti/16 where none is named.
    """
    name = spec.get("model") or FRESH
    own = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "patch": "patch_size"}
    args: dict[str, Any] = {own[k]: spec[k] for k in own if spec.get(k) is not None}
    args["img_size"] = spec.get("image_size") or image_size
    if num_classes is not None:
        args["num_classes"] = num_classes
    args.update(spec.get("options") or {})
    bare = name.split(".")[0]
    if not name.startswith("local-dir:") and not timm.is_model(bare):
        raise UserError(unknown("timm model", bare, timm.list_models("*vit*") + timm.list_models("*deit*")))
    return name, args


def at_size(vit: Vit, size: int) -> TimmVit:
    """The same frozen model at another image size, square, in pixels: a copy, its position embeddings resampled.

    Raises:
        UserError: a ViT that is not timm's own (a repaired teacher works at one size), or patches that do not fit.
    """
    if not isinstance(vit, TimmVit):
        raise UserError(
            f"a {type(vit).__name__} works at {vit.image_size[0]} px only and cannot be brought to {size}; only a "
            "plain timm ViT can, so measure the teacher without repairs, or choose a protocol at its own size"
        )
    patch = cast(Any, vit.model.patch_embed).patch_size[0]
    if size < patch or size % patch:
        below = max(1, size // patch) * patch
        raise UserError(
            f"{size} px is no whole number of patches of {patch} px; the nearest sizes are {below} and {below + patch}"
        )
    model = copy.deepcopy(vit.model)
    cast(Any, model).set_input_size(img_size=(size, size))
    return TimmVit(frozen(model), vit.mean, vit.std, vit.classes, vit.registers)  # type: ignore[arg-type]


def build_model(spec: Mapping[str, Any], image_size: int, num_classes: int | None = None) -> nn.Module:
    """A timm model from a plain specification: hub (`pretrained`), local file (`checkpoint`), or fresh.

    Raises:
        UserError: unknown name, options that the model refuses, a hub that cannot be reached (naming
            `checkpoint`), a file that is missing, damaged or of another architecture.
    """
    name, args = architecture(spec, image_size, num_classes)
    checkpoint = spec.get("checkpoint")
    if checkpoint is not None:
        path = Path(checkpoint)
        if not path.is_file():
            raise UserError(
                f"checkpoint {str(path)!r} does not exist"
                f"{_nearest_file(path)} Name a .safetensors file, or a .pth that holds a state_dict"
            )
    load = checkpoint is not None or bool(spec.get("pretrained")) or name.startswith("local-dir:")
    try:
        if checkpoint is not None:
            return _from_file(name, args, checkpoint)
        return timm.create_model(name, pretrained=load, **args)
    except Exception as error:
        raise _explained(error, name, args, checkpoint, load) from error


def _from_file(name: str, args: dict[str, Any], checkpoint: str) -> nn.Module:
    """Weights from a local file, every one of them: timm itself stops looking for missing ones as soon as the
    number of classes differs from the published model's, and leaves the head as it was initialised.
    """
    head = load_state_dict(checkpoint, weights_only=True).get("head.weight")
    held = 0 if head is None else len(head)
    wanted = args.get("num_classes", held)
    overlay = {"file": checkpoint, "num_classes": held}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **{**args, "num_classes": held})
    if wanted != held:
        cast(Any, model).reset_classifier(wanted)
    return model


def _explained(error: Exception, name: str, args: dict[str, Any], checkpoint: str | None, load: bool) -> UserError:
    reason = " ".join(str(error).split()[:60]) or type(error).__name__
    if "weights_only" in reason or "Unsupported operand" in reason:
        reason = "it is not a file of tensors (pickled code is never run); save a state_dict or use safetensors"
    if checkpoint is not None:
        return UserError(f"checkpoint {checkpoint!r} does not load into {name!r} ({_plain(args)}): {reason}")
    if load and not name.startswith("local-dir:"):
        return UserError(
            f"the weights of {name!r} could not be fetched from the hub: {reason}. Where there is no network, "
            "download the .safetensors file elsewhere and name it as `checkpoint`"
        )
    return UserError(f"timm cannot build {name!r} with {_plain(args)}: {reason}")


def _plain(args: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in args.items() if k != "pretrained_cfg_overlay")


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor does its folder {str(path.parent)!r}."
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."


def build_teacher(
    spec: Mapping[str, Any], image_size: int, class_names: Sequence[str] = (), device: str = "cpu"
) -> TimmVit:
    """A frozen teacher. `classes: imagenet-1k` in the spec maps the data's class names (wnids) to its logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("teacher", 0))  # a fresh one, without weights from anywhere, is always the same
        model = frozen(build_model(spec, image_size)).to(device)
    chosen = None
    if spec.get("classes") is not None:
        chosen = imagenet_classes(class_names, str(spec["classes"]))
    return as_vit(model, classes=chosen)


def build_student(
    spec: Mapping[str, Any],
    image_size: int,
    num_classes: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> TimmVit:
    """A student in training mode, initialised from `seed` alone, the same for every method.

    Args:
        options: what the method wants of it (`Method.student_options`).
    """
    spec = {**spec, "options": {**(spec.get("options") or {}), **(options or {})}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("student", seed))
        model = build_model(spec, image_size, num_classes)
    return as_vit(model.train().to(device))


def imagenet_classes(names: Sequence[str], subset: str = "imagenet-1k") -> list[int]:
    """Logit numbers of ImageNet wnids, in the order given. Raises UserError for a name that is not one."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo(subset)
    index = {wnid: i for i, wnid in enumerate(info.label_names())}
    strange = [n for n in names if n not in index]
    if strange:
        raise UserError(
            f"teacher.classes is {subset}, so the data's class folders must be its wnids; "
            f"{len(strange)} of {len(names)} are not, the first {strange[0]!r}"
        )
    return [index[n] for n in names]


def export(vit: TimmVit, folder: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors, so that `timm.create_model("local-dir:FOLDER", pretrained=True)`
    gives this model back. `extra` is put into the configuration beside what timm needs.
    """
    model = cast(Any, vit.model)
    folder.mkdir(parents=True, exist_ok=True)
    save_for_hf(
        model,
        str(folder),
        model_config={"pretrained_cfg": {"mean": vit.mean, "std": vit.std}},
        data_config={"input_size": (3, *vit.image_size), "mean": vit.mean, "std": vit.std},
        safe_serialization=True,
    )
    if extra:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "singer_bench": dict(extra)}, indent=2) + "\n")


def load_exported(folder: Path, device: str = "cpu") -> TimmVit:
    """A student as `export` wrote it, frozen."""
    spec = {"model": f"local-dir:{folder}"}
    return as_vit(frozen(build_model(spec, exported_size(folder))).to(device))


def exported_size(folder: Path) -> int:
    """Image size of an exported model, pixels."""
    try:
        return int(json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"][-1])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{str(folder)!r} is not an exported model: {error}") from error
