"""Cached features: computed once, keyed by content, trusted only when complete."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from harness.api import Outputs, frozen
from harness.errors import UserError
from harness.features import Encoder, weights_identity
from harness.interrupts import Interrupted
from harness.models import TimmVit, as_vit
from harness.sources import Sample, Source, Subset, View
from harness.toys import Colours, PixelVit

SOURCE, VIEW = Colours(10), View(32)


def model(**changes) -> VisionTransformer:
    torch.manual_seed(0)
    args = dict(img_size=32, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=4)
    return frozen(VisionTransformer(**{**args, **changes}))


class Counting(Encoder):
    """Counts the images that go through it."""

    seen = 0

    def __call__(self, images, layers=()) -> Outputs:
        self.seen += len(images)
        return super().__call__(images, layers=layers)


def counting(
    cache: Path | None, module: VisionTransformer | None = None, vit: TimmVit | None = None, **args
) -> Counting:
    module = model() if module is None else module
    vit = as_vit(module) if vit is None else vit
    return Counting(vit, identity=weights_identity(module), cache=cache, batch_size=4, **args)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    counting(tmp_path).pooled(SOURCE, VIEW, [-1])
    return tmp_path


def test_pooled_features_are_cls_and_mean_patch_after_the_final_norm(tmp_path: Path):
    encoder = counting(tmp_path)
    pooled = encoder.pooled(SOURCE, VIEW, [0, -1], logits=True)
    images = torch.stack([VIEW(SOURCE.read(i).image) for i in range(10)])
    with torch.no_grad():
        outputs = as_vit(model())(images, layers=[0, 2])
        for layer in (0, 2):
            normed = outputs.normed(layer)
            torch.testing.assert_close(torch.tensor(pooled.cls(layer)), normed[:, 0])
            torch.testing.assert_close(torch.tensor(pooled.mean_patch(layer)), normed[:, 1:].mean(dim=1))
        torch.testing.assert_close(torch.tensor(pooled.logits), outputs.logits)
    raw = encoder.pooled(SOURCE, VIEW, [-1], norm=False)
    torch.testing.assert_close(torch.tensor(raw.cls(2)), outputs.cls(2))
    assert pooled.labels.tolist() == SOURCE.labels().tolist()


def test_registers_are_neither_cls_nor_patches(tmp_path: Path):
    module = model(reg_tokens=3)
    with torch.no_grad():
        module.reg_token += 100.0
    pooled = counting(tmp_path, module).pooled(SOURCE, VIEW, norm=False)
    outputs = as_vit(module)(torch.stack([VIEW(SOURCE.read(i).image) for i in range(10)]), layers=[2])
    torch.testing.assert_close(torch.tensor(pooled.mean_patch(2)), outputs.tokens[2][:, 4:].mean(dim=1))


def test_tokens_are_patches_and_cls_rounded_to_half_precision_with_and_without_a_cache(tmp_path: Path):
    module = model(reg_tokens=2)
    outputs = as_vit(module)(torch.stack([VIEW(SOURCE.read(i).image) for i in range(10)]), layers=[0, 2])
    for cache in (tmp_path, None):
        tokens = counting(cache, module).tokens(SOURCE, VIEW, [0, -1])
        for layer in (0, 2):
            normed = outputs.normed(layer).detach()
            torch.testing.assert_close(torch.tensor(tokens.patches[layer]), normed[:, 3:].half(), atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(torch.tensor(tokens.cls[layer]), normed[:, 0].half(), atol=1e-3, rtol=1e-3)
        assert tokens.grid[0] * tokens.grid[1] == tokens.patches[2].shape[1]
    cached, fresh = (counting(cache, module).tokens(SOURCE, VIEW) for cache in (tmp_path, None))
    np.testing.assert_array_equal(cached.patches[2], fresh.patches[2])


def test_a_mirrored_image_is_encoded_and_not_its_features_mirrored(tmp_path: Path):
    encoder = counting(tmp_path)
    plain, mirrored = (encoder.tokens(SOURCE, view).patches[2] for view in (VIEW, View(32, mirror=True)))
    flipped = plain.reshape(10, *encoder.grid, -1)[:, :, ::-1].reshape(plain.shape)
    images = torch.stack([VIEW(SOURCE.read(i).image).flip(-1) for i in range(10)])
    expected = as_vit(model())(images, layers=[2]).normed(2)[:, 1:].detach().half()
    torch.testing.assert_close(torch.tensor(mirrored), expected, atol=2e-3, rtol=2e-3)
    assert np.abs(mirrored - flipped).max() > 0.05


def test_a_second_pass_over_the_same_data_never_calls_the_encoder(filled: Path):
    again = counting(filled)
    pooled = again.pooled(SOURCE, VIEW, [-1])
    assert again.seen == 0
    np.testing.assert_array_equal(pooled.tokens[2], counting(None).pooled(SOURCE, VIEW, [-1]).tokens[2])


def test_one_missing_layer_costs_one_pass_and_leaves_the_others_alone(filled: Path):
    before = {p: p.stat().st_ino for p in filled.rglob("*.npy")}
    more = counting(filled)
    more.pooled(SOURCE, VIEW, [0, 1, -1], logits=True)
    assert more.seen == 10
    assert len(list(filled.rglob("*.npy"))) == 4
    assert all(p.stat().st_ino == t for p, t in before.items())


def changed_weight() -> VisionTransformer:
    module = model()
    with torch.no_grad():
        module.blocks[1].mlp.fc1.weight[0, 0] += 1e-3
    return module


OTHER = {
    "weight": lambda cache: counting(cache, changed_weight()).pooled(SOURCE, VIEW),
    "heads": lambda cache: counting(cache, model(num_heads=3)).pooled(SOURCE, VIEW),
    "layer": lambda cache: counting(cache).pooled(SOURCE, VIEW, [1]),
    "norm": lambda cache: counting(cache).pooled(SOURCE, VIEW, norm=False),
    "view size": lambda cache: counting(cache).pooled(SOURCE, View(48)),
    "view crop": lambda cache: counting(cache).pooled(SOURCE, View(32, crop_share=0.875)),
    "view resize": lambda cache: counting(cache).pooled(SOURCE, View(32, "squash")),
    "normalisation": lambda cache: counting(cache, vit=as_vit(model(), mean=0.4)).pooled(SOURCE, VIEW),
    "precision": lambda cache: counting(cache, precision="bf16").pooled(SOURCE, VIEW),
    "samples": lambda cache: counting(cache).pooled(Subset(SOURCE, range(9, -1, -1)), VIEW),
    "split": lambda cache: counting(cache).pooled(Colours(10, split="test"), VIEW),
}


@pytest.mark.parametrize("what", OTHER)
def test_whatever_changes_the_features_changes_the_key(filled: Path, what: str):
    before = set(filled.rglob("*.npy"))
    OTHER[what](filled)
    assert len(set(filled.rglob("*.npy")) - before) == 1


def test_image_size_of_the_model_is_part_of_the_key(filled: Path):
    module = model()
    vit = as_vit(module)
    vit.image_size = (48, 48)
    encoder = Encoder(vit, identity=weights_identity(module), cache=filled)
    assert encoder._key(SOURCE, VIEW) != counting(filled)._key(SOURCE, VIEW)


def test_identity_is_of_content_not_of_the_object():
    assert weights_identity(model()) == weights_identity(model())
    assert weights_identity(model()) == weights_identity(model().train())
    half = model().half()
    assert weights_identity(half) != weights_identity(model())


def test_the_order_of_parameters_does_not_matter_to_the_identity():
    one, other = torch.nn.Module(), torch.nn.Module()
    one.a, one.b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.ones(2))
    other.b, other.a = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(2))
    assert weights_identity(one) == weights_identity(other)


@pytest.mark.parametrize("damage", ["cut short", "empty", "of another shape"])
def test_a_damaged_file_is_made_anew(filled: Path, damage: str):
    (path,) = filled.rglob("*.npy")
    whole = path.read_bytes()
    if damage == "of another shape":
        np.save(path, np.zeros((9, 2, 12), dtype=np.float32))
    else:
        path.write_bytes(whole[:-40] if damage == "cut short" else b"")
    encoder = counting(filled)
    encoder.pooled(SOURCE, VIEW)
    assert encoder.seen == 10
    assert path.read_bytes() == whole


class Breaking(Source):
    """Breaks at one image."""

    name = "breaking"
    classes = SOURCE.classes

    def __init__(self, at: int) -> None:
        self.at = at

    def __len__(self) -> int:
        return 10

    def read(self, index: int) -> Sample:
        if index == self.at:
            raise OSError("image file is truncated")
        return SOURCE.read(index)

    def labels(self) -> np.ndarray:
        return SOURCE.labels()

    def sample_name(self, index: int) -> str:
        return f"folder/{index}.png"

    def identity(self) -> str:
        return f"breaking {self.at}"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_one_clear_error_and_leaves_no_file(tmp_path: Path, num_workers: int):
    with pytest.raises(UserError) as error:
        counting(tmp_path, num_workers=num_workers).pooled(Breaking(6), VIEW)
    assert str(error.value).startswith("image 'folder/6.png' cannot be read: image file is truncated. ")
    assert "Traceback" not in str(error.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_features_that_are_not_finite_name_the_image_and_are_not_kept(tmp_path: Path):
    module = model()
    with torch.no_grad():
        module.blocks[2].mlp.fc2.bias[0] = float("inf")
    with pytest.raises(UserError, match="block2 features of image 'train/0' are not finite"):
        counting(tmp_path, module).pooled(SOURCE, VIEW)
    assert not list(tmp_path.rglob("*.npy"))


def in_a_process(work) -> multiprocessing.Process:
    """Run `work()` in a fork, which has torch imported already."""

    def child() -> None:
        torch.set_num_threads(1)  # the parent's thread pool does not survive a fork
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


class Mortal(Encoder):
    """Kills its process in the third batch."""

    calls = 0

    def __call__(self, images, layers=()) -> Outputs:
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(images, layers=layers)


def test_a_killed_pass_is_gone_on_with_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("harness.storage.feature_files.SYNC_S", 0.0)
    whole = Counting(PixelVit(), identity="toy", cache=tmp_path / "whole", batch_size=4).pooled(SOURCE, VIEW, [0, 1])
    cache = tmp_path / "killed"
    mortal = Mortal(PixelVit(), identity="toy", cache=cache, batch_size=4)
    killed = in_a_process(lambda: mortal.pooled(SOURCE, VIEW, [0, 1]))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not list(cache.rglob("*.npy")) and len(list(cache.rglob(".*.part"))) == 2

    encoder = Counting(PixelVit(), identity="toy", cache=cache, batch_size=4)
    pooled = encoder.pooled(SOURCE, VIEW, [0, 1])
    assert encoder.seen == 2  # eight of ten were there
    for layer in (0, 1):
        np.testing.assert_array_equal(pooled.tokens[layer], whole.tokens[layer])
    names = [sorted((p.name, p.read_bytes()) for p in place.rglob("*.npy")) for place in (cache, tmp_path / "whole")]
    assert names[0] == names[1]
    assert not [p for p in cache.rglob(".*") if p.is_file()]


@pytest.mark.parametrize("damage", ["progress says too much", "part is cut short", "part has another header"])
def test_a_part_that_cannot_be_relied_on_is_begun_anew(tmp_path: Path, monkeypatch, damage: str):
    monkeypatch.setattr("harness.storage.feature_files.SYNC_S", 0.0)
    mortal = Mortal(PixelVit(), identity="toy", cache=tmp_path, batch_size=4)
    in_a_process(lambda: mortal.pooled(SOURCE, VIEW)).join()
    (part,), (progress,) = tmp_path.rglob(".*.part"), tmp_path.rglob(".*.progress")
    if damage == "progress says too much":
        progress.write_text('{"rows": 10}')
    elif damage == "part is cut short":
        part.write_bytes(part.read_bytes()[:-1])
    else:
        part.write_bytes(b"x" + part.read_bytes()[1:])
    encoder = Counting(PixelVit(), identity="toy", cache=tmp_path, batch_size=4)
    found = encoder.pooled(SOURCE, VIEW)
    assert encoder.seen == 10
    np.testing.assert_array_equal(
        found.tokens[1], Counting(PixelVit(), identity="x", cache=None).pooled(SOURCE, VIEW).tokens[1]
    )


def test_a_pass_that_is_asked_to_stop_loses_nothing(tmp_path: Path):
    class Stopped(Counting):
        def __call__(self, images, layers=()) -> Outputs:
            if self.seen == 8:
                raise Interrupted("SIGTERM")
            return super().__call__(images, layers=layers)

    with pytest.raises(Interrupted):
        Stopped(PixelVit(), identity="toy", cache=tmp_path, batch_size=4).pooled(SOURCE, VIEW)
    again = Counting(PixelVit(), identity="toy", cache=tmp_path, batch_size=4)
    again.pooled(SOURCE, VIEW)
    assert again.seen == 2


@pytest.mark.parametrize("place", [200, -80, -1])
def test_one_wrong_bit_is_noticed_and_the_file_made_anew(filled: Path, place: int, monkeypatch):
    monkeypatch.setattr("harness.storage.feature_files._VERIFIED", set())
    (path,) = filled.rglob("*.npy")
    whole = bytearray(path.read_bytes())
    wrong = bytearray(whole)
    wrong[place] ^= 4
    path.write_bytes(wrong)
    encoder = counting(filled)
    encoder.pooled(SOURCE, VIEW)
    assert encoder.seen == 10 and path.read_bytes() == whole


def test_what_was_used_longest_ago_goes_first(tmp_path: Path):
    def sized(limit: int | None = None) -> Counting:
        return Counting(PixelVit(), identity="toy", cache=tmp_path, batch_size=4, cache_bytes=limit)

    sources = [Colours(count) for count in (40, 41, 42)]
    for age, source in enumerate(sources):
        before = set(tmp_path.rglob("*.npy"))
        sized().pooled(source, VIEW)
        (new,) = set(tmp_path.rglob("*.npy")) - before
        os.utime(new, (1000 + age, 1000 + age))
    sized().pooled(sources[0], VIEW)  # now the youngest
    budget = sum(p.stat().st_size for p in tmp_path.rglob("*.npy")) + 500
    sized(budget).pooled(Colours(43), VIEW)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.npy")) <= budget
    left = []
    for source in sources:
        encoder = sized()
        encoder.pooled(source, VIEW)
        left.append(encoder.seen == 0)
    assert left == [True, False, True]


def test_a_budget_that_is_too_small_for_one_pass_is_refused_in_words(tmp_path: Path):
    encoder = Counting(PixelVit(), identity="toy", cache=tmp_path, cache_bytes=100)
    with pytest.raises(UserError, match=r"take 0.00 GB, and runtime.cache_gb \(--cache-gb\) allows 0.00"):
        encoder.pooled(SOURCE, VIEW)
    assert encoder.seen == 0


def test_a_full_disk_is_said_in_words_and_gets_its_room_back(tmp_path: Path):
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            Counting(PixelVit(), identity="toy", cache=tmp_path, batch_size=4).tokens(Colours(200), VIEW)
        except UserError as error:
            (tmp_path / "said").write_text(str(error))

    in_a_process(work).join()
    said = (tmp_path / "said").read_text()
    assert said.startswith("no room for features in") and "--cache-gb" in said
    assert not list(tmp_path.rglob("*.npy*")) and not list(tmp_path.rglob(".*.part"))


def test_who_waits_for_a_pass_finds_its_files_and_runs_none(tmp_path: Path):
    class Slow(Counting):
        def __call__(self, images, layers=()) -> Outputs:
            time.sleep(0.3)
            return super().__call__(images, layers=layers)

    first = in_a_process(lambda: Slow(PixelVit(), identity="toy", cache=tmp_path, batch_size=4).pooled(SOURCE, VIEW))
    while not list(tmp_path.rglob("*.lock")):
        time.sleep(0.01)
    second = Counting(PixelVit(), identity="toy", cache=tmp_path, batch_size=4)
    second.pooled(SOURCE, VIEW)
    first.join()
    assert second.seen == 0 and first.exitcode == 0


def test_two_processes_may_write_and_read_the_same_features(tmp_path: Path):
    def work() -> None:
        encoder = Encoder(PixelVit(), identity="toy", cache=tmp_path, batch_size=1)
        for count in range(10, 30):
            found = encoder.pooled(Colours(count), VIEW).tokens[1]
            assert found.shape == (count, 2, 12) and np.abs(found).max(axis=(1, 2)).min() > 0

    both = [in_a_process(work), in_a_process(work)]
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0]
    assert len(list(tmp_path.rglob("*.npy"))) == 20
    assert not list(tmp_path.rglob(".*.part"))


def test_a_model_without_cls_gives_the_mean_patch_alone(tmp_path: Path):
    pooled = Encoder(PixelVit(has_cls=False), identity="x", cache=tmp_path).pooled(SOURCE, VIEW)
    assert pooled.tokens[1].shape == (10, 1, 12)
    np.testing.assert_array_equal(pooled.vector(1), pooled.mean_patch(1))
    with pytest.raises(ValueError, match="no CLS"):
        pooled.cls(1)


def test_workers_and_batch_size_change_no_feature():
    alone = counting(None).pooled(SOURCE, VIEW)
    module = model()
    other = Encoder(as_vit(module), identity="x", cache=None, batch_size=3, num_workers=2).pooled(SOURCE, VIEW)
    np.testing.assert_allclose(alone.tokens[2], other.tokens[2], rtol=1e-5, atol=1e-6)


def test_a_pass_leaves_the_random_stream_alone():
    encoder = counting(None)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    encoder.pooled(SOURCE, VIEW)
    assert torch.rand(1) == expected


def test_the_encoder_gives_no_gradient_and_refuses_a_model_in_training():
    module = model().requires_grad_(True)
    outputs = counting(None, module)(torch.rand(2, 3, 32, 32), layers=[1])
    assert not any(t.requires_grad for t in (outputs.tokens[1], outputs.logits, outputs.normed(1)))
    with pytest.raises(ValueError, match="training mode"):
        counting(None, model().train())


def test_low_precision_reaches_the_blocks_and_features_stay_finite_fp32(tmp_path: Path):
    exact = counting(None).pooled(SOURCE, VIEW, logits=True)
    rough = counting(tmp_path, precision="bf16").pooled(SOURCE, VIEW, logits=True)
    difference = np.abs(exact.tokens[2] - rough.tokens[2]).max()
    assert rough.tokens[2].dtype == np.float32
    assert 0 < difference < 0.2
    with pytest.raises(UserError, match="no precision 'fp8'"):
        counting(None, precision="fp8")  # type: ignore[arg-type]
