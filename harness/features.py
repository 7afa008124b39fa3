"""The frozen encoder as a task sees it, and its features, computed once and kept on disk.

A feature file (`harness.storage.feature_files`) is keyed by everything that decides what is in it: the encoder's
weights and structure, the samples, the view, the image size, the normalisation, the layer and whether the final norm
was applied. One vector an image is kept as float32, which is little; all tokens as float16, with and without a cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from harness.api import Outputs, Vit
from harness.errors import UserError, unknown
from harness.feature_arrays import ArrayName, Pooled, Quantity, Tokens
from harness.interrupts import left_to_the_parent
from harness.models import TimmVit
from harness.reference import Reference
from harness.seeds import content_hash
from harness.sources import Source, Unread, View
from harness.storage.feature_files import Spec, Writer, make_room, only_one, read
from harness.workers import loaded

LAYOUT = 2  # of the files; raised when the same key would mean other content
Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def weights_identity(module: nn.Module) -> str:
    """sha256 of a module: its state_dict (names, dtypes, shapes, bytes; sorted by name) and its structure.

    The structure is each submodule's class with its plain attributes, since weights alone do not say how many
    heads an attention has, or a norm's epsilon.
    """
    digest = hashlib.sha256()
    for name, child in sorted(module.named_modules()):
        plain = {k: v for k, v in vars(child).items() if k != "training" and _is_plain(v)}
        digest.update(repr((name, type(child).__qualname__, sorted(plain.items()))).encode())
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return isinstance(value, bool | int | float | str | None)


# Fills the files of a pass: the encoder, samples and view, the name of each array, and its file.
Share: TypeAlias = "Callable[[Encoder, Source, View, tuple[ArrayName, ...], tuple[Spec, ...]], None]"


class Encoder:
    """A frozen ViT as a function, with cached passes over whole sources.

    Attributes:
        depth, dim, has_cls, num_prefix_tokens, grid, image_size, num_classes: the ViT's.
        head_classes: the classes that its own head was trained on; None where it was not trained.
        reference: where it came from, or None where that is not known. No feature depends on it.
    """

    def __init__(
        self,
        vit: Vit,
        *,
        identity: str,
        cache: Path | None,
        device: str = "cpu",
        batch_size: int = 64,
        precision: Precision = "fp32",
        num_workers: int = 0,
        head_classes: Sequence[str] | None = None,
        reference: Reference | None = None,
        cache_bytes: int | None = None,
        share: Share | None = None,
    ) -> None:
        """
        Args:
            vit: frozen, on `device`.
            identity: hash of weights and structure, see `weights_identity`.
            cache: folder of feature files, shared by all encoders; None keeps nothing.
            precision: of the forward pass; features are kept in fp32.
            num_workers: processes that decode images; 0: this one.
            cache_bytes: what the cache may take on the disk; what was used longest ago goes first. None: no limit.
            share: fills the files of a pass together with other ranks; None: this process does it alone.
        """
        if isinstance(vit, TimmVit) and vit.model.training:
            raise ValueError("the model is in training mode; pass it through harness.api.frozen first")
        if precision not in PRECISIONS:
            raise UserError(unknown("precision", precision, PRECISIONS))
        self.vit, self.identity, self.cache, self.cache_bytes = vit, identity, cache, cache_bytes
        self.device, self.batch_size, self.num_workers = device, batch_size, num_workers
        self.precision: Precision = precision
        self._share = share
        self.reference = reference
        self.head_classes = None if head_classes is None else tuple(head_classes)
        self.depth, self.dim, self.num_classes = vit.depth, vit.dim, vit.num_classes
        self.has_cls, self.num_prefix_tokens = vit.has_cls, vit.num_prefix_tokens
        self.grid, self.image_size = vit.grid, vit.image_size

    @property
    def head_trained(self) -> bool:
        """Whether the own head's logits mean anything."""
        return self.head_classes is not None

    def beside(self, vit: Vit) -> Encoder:
        """Another frozen ViT, such as the teacher, on this encoder's device and in its precision; nothing is kept."""
        return Encoder(vit, identity="", cache=None, device=self.device, precision=self.precision)

    @torch.no_grad()
    def through(self, layer: int, tokens: Tensor) -> Tensor:
        """Tokens [B, N, D] through block `layer`, without gradient and in this precision: [B, N, D]."""
        with self._autocast():
            return self.vit.through(layer, tokens)

    @torch.no_grad()
    def __call__(self, images: Tensor, layers: Iterable[int] = (), attention_layers: Iterable[int] = ()) -> Outputs:
        """Images [B, 3, H, W] in [0, 1] -> Outputs, all of it without gradient and in this precision."""
        images = images.to(self.device, non_blocking=True)
        with self._autocast():
            found = self.vit(images, layers=layers, attention_layers=attention_layers)

        def logits() -> Tensor:
            with torch.no_grad(), self._autocast():
                return found.logits.float()

        def norm(tokens: Tensor) -> Tensor:
            if found.norm is None:
                raise ValueError("this encoder's ViT gives no final norm")
            with torch.no_grad(), self._autocast():
                return found.norm(tokens)

        return dataclasses.replace(found, logits=logits, norm=norm)  # type: ignore[arg-type]

    def layer(self, layer: int) -> int:
        """`layer` counted from the front: -1 is the last block. Raises ValueError outside the model."""
        return self.vit.layer(layer)

    def pooled(
        self,
        source: Source,
        view: View,
        layers: Iterable[int] = (-1,),
        *,
        norm: bool = True,
        logits: bool = False,
    ) -> Pooled:
        """CLS token and mean patch of every image, after the final norm unless `norm` is False.

        What the cache has is read; what it lacks is computed, all of it in one pass, and kept.

        Raises:
            UserError: an image that cannot be decoded, or features that are not finite; names the sample.
        """
        wanted = {i: self._quantity("block", i, norm) for i in sorted({self.layer(i) for i in layers})}
        head = [self._quantity("logits", None, False)] if logits else []
        arrays = self._arrays(source, view, [*wanted.values(), *head])
        tokens = {i: arrays[quantity.name] for i, quantity in wanted.items()}
        return Pooled(tokens, source.labels(), self.has_cls, arrays.get("logits"))

    def tokens(self, source: Source, view: View, layers: Iterable[int] = (-1,), *, norm: bool = True) -> Tokens:
        """Patches and CLS token of every image, after the final norm unless `norm` is False.

        Raises:
            UserError: an image that cannot be decoded, or features that are not finite or too large for float16;
                names the sample.
        """
        numbers = sorted({self.layer(i) for i in layers})
        patches = {i: self._quantity("patches", i, norm) for i in numbers}
        cls = {i: self._quantity("cls", i, norm) for i in numbers} if self.has_cls else {}
        arrays = self._arrays(source, view, [*patches.values(), *cls.values()])
        return Tokens(
            {i: arrays[q.name] for i, q in patches.items()}, {i: arrays[q.name] for i, q in cls.items()}, self.grid
        )

    def images(self, source: Source, view: View, start: int = 0) -> Iterator[Tensor]:
        """All images in the source's order, from number `start`, in batches [B, 3, H, W] in [0, 1], on the CPU.

        Raises:
            UserError: an image that cannot be decoded; names the sample.
        """
        if self.num_workers:
            source.prepare()

        def loader_from(number: int) -> DataLoader:
            return DataLoader(
                _Viewed(source, view, start + number * self.batch_size),
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                worker_init_fn=left_to_the_parent,
                collate_fn=list,
                generator=torch.Generator().manual_seed(0),  # leaves the global stream alone
            )

        for items in loaded(loader_from):
            for item in items:
                if isinstance(item, Unread):
                    raise UserError(
                        item.sentence("Mend it, or remove it from the data: an evaluation leaves no image out")
                    )
            yield torch.stack(items)

    def _autocast(self) -> contextlib.AbstractContextManager:
        dtype = PRECISIONS[self.precision]
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=dtype)

    def blocks(self, source: Source, view: View, names: Iterable[ArrayName]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """One pass over a source: the number of each batch's first sample, and of each array its [B, *shape].

        Raises:
            UserError: as `pooled` and `tokens`.
        """
        return self._pass(source, view, [self._quantity(*name) for name in names])

    def _quantity(self, kind: str, layer: int | None, norm: bool) -> Quantity:
        if layer is None:
            return Quantity(kind, None, False, (self.num_classes,), lambda outputs: outputs.logits)
        return {"block": self._pooled, "patches": self._patches, "cls": self._cls}[kind](layer, norm)

    def _pooled(self, layer: int, norm: bool) -> Quantity:
        def of(outputs: Outputs) -> Tensor:
            tokens = outputs.normed(layer) if norm else outputs.tokens[layer]  # [B, N, D]
            mean = tokens[:, self.num_prefix_tokens :].float().mean(dim=1)  # [B, D]
            return torch.stack([tokens[:, 0].float(), mean] if self.has_cls else [mean], dim=1)

        return Quantity("block", layer, norm, (1 + self.has_cls, self.dim), of)

    def _patches(self, layer: int, norm: bool) -> Quantity:
        def of(outputs: Outputs) -> Tensor:
            tokens = outputs.normed(layer) if norm else outputs.tokens[layer]  # [B, N, D]
            return tokens[:, self.num_prefix_tokens :].half()

        shape = (self.grid[0] * self.grid[1], self.dim)
        return Quantity("patches", layer, norm, shape, of, "float16")

    def _cls(self, layer: int, norm: bool) -> Quantity:
        def of(outputs: Outputs) -> Tensor:
            return (outputs.normed(layer) if norm else outputs.tokens[layer])[:, 0].half()

        return Quantity("cls", layer, norm, (self.dim,), of, "float16")

    def _arrays(self, source: Source, view: View, quantities: Sequence[Quantity]) -> dict[str, np.ndarray]:
        """Name -> [n, *shape]; read from the cache or computed in one pass."""
        if self.cache is None:
            memory = {q.name: np.empty((len(source), *q.shape), dtype=q.dtype) for q in quantities}
            for start, blocks in self._pass(source, view, quantities):
                for quantity, block in zip(quantities, blocks, strict=True):
                    memory[quantity.name][start : start + len(block)] = block
            return memory
        folder = self.cache / content_hash(self.identity)
        common = self._key(source, view)

        def spec(q: Quantity) -> Spec:
            key = content_hash([common, q.name, q.layer, q.norm, q.shape], 32)
            return Spec(folder / f"{q.name}-{key}.npy", len(source), q.shape, q.dtype)

        specs = {q.name: spec(q) for q in quantities}
        found = {name: read(one) for name, one in specs.items()}
        if any(array is None for array in found.values()):
            with only_one(folder / f"{content_hash(common, 32)}.lock"):
                # Who had to wait finds them here.
                found = {name: read(one) for name, one in specs.items()}
                missing = [q for q in quantities if found[q.name] is None]
                if missing:
                    kept = [one.path for name, one in specs.items() if found[name] is not None]
                    make_room(self.cache, [specs[q.name] for q in missing], kept, self.cache_bytes)
                    self._fill(source, view, missing, specs)
                found |= {q.name: read(specs[q.name]) for q in missing}
        return {name: _present(array, specs[name].path) for name, array in found.items()}

    def _fill(self, source: Source, view: View, missing: Sequence[Quantity], specs: Mapping[str, Spec]) -> None:
        """Write the missing files in one pass, from where a killed one left off."""
        if self._share is not None:
            names = tuple((q.kind, q.layer, q.norm) for q in missing)
            self._share(self, source, view, names, tuple(specs[q.name] for q in missing))
            return
        with Writer([specs[q.name] for q in missing], self.batch_size) as writer:
            for _, blocks in self._pass(source, view, missing, writer.start):
                for quantity, block in zip(missing, blocks, strict=True):
                    writer.write(specs[quantity.name], block)
                writer.sync()
            writer.finish()

    def _key(self, source: Source, view: View) -> dict[str, Any]:
        vit = self.vit
        own = (vit.mean, vit.std, vit.classes) if isinstance(vit, TimmVit) else None  # others: part of identity
        return {
            "layout": LAYOUT,
            "encoder": self.identity,
            "normalisation": own,
            "image_size": self.image_size,
            "precision": self.precision,
            "source": source.identity(),
            "view": [type(view).__name__, dataclasses.asdict(view)],
        }

    def _pass(
        self, source: Source, view: View, quantities: Sequence[Quantity], start: int = 0
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """One pass over the source from sample `start`: number of each batch's first sample, [B, *shape] of each."""
        layers = [q.layer for q in quantities if q.layer is not None]
        for images in self.images(source, view, start):
            outputs = self(images, layers=layers)
            blocks = []
            for quantity in quantities:
                block = quantity.of(outputs).cpu()
                finite = torch.isfinite(block.flatten(1)).all(dim=1)  # [B]
                if not finite.all():
                    sample = source.sample_name(start + int(finite.int().argmin()))
                    kept = "" if quantity.dtype == "float32" else f" as {quantity.dtype}, which holds up to 65504"
                    raise UserError(
                        f"the {quantity.name} features of image {sample!r} are not finite{kept}. The model has "
                        f"diverged, or precision {self.precision!r} is too narrow for it: use fp32"
                    )
                blocks.append(block.numpy())
            yield start, blocks
            start += len(images)


class _Viewed(Dataset):
    """index -> image [3, S, S] in [0, 1], or why it cannot be read."""

    def __init__(self, source: Source, view: View, start: int = 0) -> None:
        self.source, self.view, self.start = source, view, start

    def __len__(self) -> int:
        return len(self.source) - self.start

    def __getitem__(self, index: int) -> Tensor | Unread:
        try:
            return self.view(self.source.read(self.start + index).image)
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
            return Unread.of(self.source, self.start + index, error)


def _present(array: np.ndarray | None, path: Path) -> np.ndarray:
    if array is None:
        raise UserError(f"feature file {str(path)!r} was changed or removed while it was in use; run this again")
    return array
