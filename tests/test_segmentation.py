"""Segmentation: its metric and losses against references, three protocols, and that test labels choose nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness import segmenting
from harness.api import frozen
from harness.crops import crop_batches, own_streams, padded, short_side_to, slid_logits, window_maps, windows
from harness.data import Data
from harness.dense import TokenMaps, hold_out_images
from harness.errors import UserError
from harness.features import Encoder, Tokens
from harness.models import TimmVit, as_vit, at_size, build_model
from harness.segmenting import (
    PixelDraws,
    areas,
    at_pixels,
    batches_at_pixels,
    checked_classes,
    linear_head,
    loss_everywhere,
    loss_of_pixels,
    pixels_of_tokens,
    predicted,
    read_masks,
    read_sample,
    scores,
)
from harness.sources import Sample, Source
from harness.toys import Colours, Patchwork, PixelVit
from tasks import segmentation
from tasks.segmentation import Segmentation, choose, feature_blocks


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    monkeypatch.setattr(segmentation, "RATES", (3e-3, 1e-2))
    monkeypatch.setattr(segmentation, "DECAYS", (1e-4,))


def data_of(train: Source | None = None, test: Source | None = None) -> Data:
    sources = {"train": train or Patchwork(24), "test": test or Patchwork(8, split="test")}
    return Data.of_sources(sources, image_size=32, name="patchwork")


def task(train: Source | None = None, test: Source | None = None, **options) -> Segmentation:
    return Segmentation(data=data_of(train, test), **{"steps": 40, "batch": 8} | options)


def encoder(cache=None, **options) -> Encoder:
    return Encoder(PixelVit(**options), identity=f"pixels {options}", cache=cache)


def toy_vit(**options) -> TimmVit:
    spec = {"width": 32, "depth": 2, "heads": 2, "patch": 8, "options": options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return as_vit(frozen(build_model(spec, 32, 4)))


def wide_vit() -> Encoder:
    return Encoder(toy_vit(), identity="vit", cache=None)


class Patches(Source):
    """Patchwork, with what is given in the place of some samples."""

    name = "patches"

    def __init__(self, count: int, changed: dict[int, Sample | Exception], **options) -> None:
        self.inner, self.changed = Patchwork(count, **options), changed
        self.classes, self.segmentation_classes = (), self.inner.segmentation_classes

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, index: int) -> Sample:
        found = self.changed.get(index) or self.inner.read(index)
        if isinstance(found, Exception):
            raise found
        return found

    def labels(self) -> np.ndarray:
        return self.inner.labels()

    def sample_name(self, index: int) -> str:
        return self.inner.sample_name(index)

    def identity(self) -> str:
        return f"{self.inner.identity()} {sorted(self.changed)}"


# ---- the metric


def reference(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> dict[str, float]:
    """mIoU and the others by way of one confusion matrix [truth, prediction] in whole numbers, by no other's code."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for found, truth in pairs:
        for t, f in zip(truth.ravel(), found.ravel(), strict=True):
            if t != 255:
                matrix[t, f] += 1
    hit, labelled, said = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    iou = {c: hit[c] / (labelled[c] + said[c] - hit[c]) for c in range(classes) if labelled[c] + said[c]}
    acc = {c: hit[c] / labelled[c] for c in range(classes) if labelled[c]}
    out = {"mIoU": np.mean(list(iou.values())), "mAcc": np.mean(list(acc.values())), "aAcc": hit.sum() / labelled.sum()}
    return out | {f"iou/c{c}": v for c, v in iou.items()} | {f"acc/c{c}": v for c, v in acc.items()}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 6),
    images=st.integers(1, 4),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    absent=st.booleans(),
)
def test_scores_are_those_of_one_confusion_matrix(seed, classes, images, ignored, absent):
    rng, pairs = np.random.default_rng(seed), []
    for i in range(images):
        shape = tuple(rng.integers(1, 7, 2))
        found, truth = rng.integers(0, classes - absent, shape), rng.integers(0, classes - absent, shape)
        # The first image always has a label; the others may be ignored whole.
        truth = np.where(rng.random(shape) < (0.0 if i == 0 else ignored), 255, truth)
        pairs.append((found, truth))
    total = sum(areas(torch.from_numpy(f), torch.from_numpy(t), classes) for f, t in pairs)
    found = scores(total, [f"c{c}" for c in range(classes)])
    expected = reference(pairs, classes)
    assert found.keys() == expected.keys()  # what does not exist is left out, not 0
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_the_mean_over_images_is_not_the_score():
    one, other = (torch.zeros(1, 4), torch.zeros(1, 4)), (torch.tensor([[1, 0]]), torch.tensor([[0, 1]]))
    pooled = scores(areas(one[0].long(), one[1].long(), 2) + areas(*other, 2), ["a", "b"])
    assert pooled["mIoU"] == pytest.approx((4 / 6 + 0 / 2) / 2)


def test_counts_beyond_float32_stay_exact(monkeypatch):
    big, step = (
        torch.tensor([[2.0**24, 0]]).double().expand(4, 2),
        areas(torch.zeros(1, 3).long(), torch.zeros(1, 3).long(), 2),
    )
    assert (big + step)[0, 0].item() == 2**24 + 3
    rng = torch.Generator().manual_seed(0)
    found, truth = (torch.randint(0, 3, (7, 9), generator=rng) for _ in range(2))
    whole = areas(found, truth, 3)
    monkeypatch.setattr(segmenting, "EXACT", 10)
    assert torch.equal(areas(found, truth, 3), whole)


def test_nothing_labelled_is_an_error():
    with pytest.raises(UserError, match="every pixel of the test split is ignored"):
        scores(areas(torch.zeros(2, 2).long(), torch.full((2, 2), 255), 3), ["a", "b", "c"])


# ---- predictions and losses


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), height=st.integers(1, 12), width=st.integers(1, 12))
def test_predictions_are_those_of_bilinear_logits_at_full_size(rows, columns, height, width):
    logits = torch.randn(
        3, rows, columns, generator=torch.Generator().manual_seed(rows + 10 * columns), dtype=torch.float64
    )
    full = F.interpolate(logits[None], size=(height, width), mode="bilinear")[0]
    top = full.topk(2, dim=0).values
    clear = top[0] - top[1] > 1e-6  # elsewhere rounding decides
    assert torch.equal(predicted(logits, (height, width))[clear], full.argmax(dim=0)[clear])


def test_strips_change_no_prediction(monkeypatch):
    logits = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    whole = predicted(logits, (37, 23))
    monkeypatch.setattr(segmenting, "STRIP", 4 * 23 * 5)
    assert torch.equal(predicted(logits, (37, 23)), whole)


def test_the_loss_at_all_pixels_is_the_whole_maps_loss():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=rng, requires_grad=True)
    labels = torch.randint(0, 3, (2, 14, 14), generator=rng)
    labels[0, :5] = 255
    place = torch.arange(14 * 14).expand(2, -1)
    drawn = torch.stack([place, labels.flatten(1)], dim=-1)
    ((maps, truth),) = batches_at_pixels([({"a": logits}, drawn)], 14)
    at_drawn = loss_of_pixels(maps["a"], truth)
    everywhere = loss_everywhere(logits, labels)
    direct = F.cross_entropy(F.interpolate(logits, size=(14, 14), mode="bilinear"), labels, ignore_index=255)
    torch.testing.assert_close(at_drawn, direct)
    torch.testing.assert_close(everywhere, direct)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (at_drawn, direct)]
    torch.testing.assert_close(*gradients)


def test_a_linear_head_at_pixels_is_the_heads_own_map_read_there():
    torch.manual_seed(0)
    maps, place = torch.randn(2, 5, 4, 4), torch.randint(0, 14 * 14, (2, 30))
    head = segmentation._head_of(3)(5).eval()
    torch.testing.assert_close(head(at_pixels(maps, place, 14)), at_pixels(head(maps), place, 14))
    whole = F.interpolate(maps, size=(14, 14), mode="bilinear").flatten(2)
    torch.testing.assert_close(
        at_pixels(maps, place, 14)[:, :, 0], whole.gather(2, place[:, None].expand(-1, 5, -1)), atol=1e-5, rtol=1e-5
    )


def test_tokens_read_around_pixels_are_whole_maps_read_there():
    rng = np.random.default_rng(0)
    patches = rng.random((3, 12, 5)).astype(np.float16)
    maps = TokenMaps([Tokens({1: patches}, {}, (3, 4))], [1])
    index, place = np.array([2, 0]), np.stack([np.arange(196), rng.integers(0, 196, 196)])
    expected = at_pixels(maps.take(index), torch.from_numpy(place), 14)
    torch.testing.assert_close(pixels_of_tokens(maps, index, place, 14), expected, atol=1e-5, rtol=1e-5)


def test_a_batch_of_ignored_pixels_gives_no_loss_and_no_gradient():
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = loss_everywhere(logits, torch.full((1, 6, 6), 255))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_drawn_pixels_have_their_labels_in_mirrored_images_too():
    masks = np.random.default_rng(0).integers(0, 200, (3, 5, 5)).astype(np.uint8)
    truth = PixelDraws(masks, 50, seed=1)(np.array([0, 2, 5]))  # 5: the third, mirrored
    seen = [masks[0], masks[2], masks[2][:, ::-1]]
    for pixels, mask in zip(truth.numpy(), seen, strict=True):
        np.testing.assert_array_equal(mask.ravel()[pixels[:, 0]], pixels[:, 1])
        assert len(np.unique(pixels[:, 0])) > 15
    again = PixelDraws(masks, 50, seed=1)
    assert torch.equal(again(np.array([0, 2, 5])), truth) and not torch.equal(again(np.array([0, 2, 5])), truth)


# ---- the task


def test_an_encoder_that_sees_finds_the_colours_and_a_blind_one_does_not():
    seeing, blind = task(steps=80).evaluate(encoder(), seed=0), task(steps=80).evaluate(encoder(blind=True), seed=0)
    assert seeing["mIoU"] > 0.7 and blind["mIoU"] < 0.15
    assert {f"iou/colour {i}" for i in range(4)} <= seeing.keys()
    assert seeing["mIoU"] == pytest.approx(np.mean([seeing[f"iou/colour {i}"] for i in range(4)]))


def test_cached_and_fresh_tokens_give_the_same_numbers(tmp_path):
    fresh = task().evaluate(encoder(), seed=0)
    for _ in range(2):
        assert task().evaluate(encoder(cache=tmp_path), seed=0) == fresh


class Poisoned(Patches):
    """The labels of each image turned to the next class."""

    def read(self, index: int) -> Sample:
        sample = super().read(index)
        sample.mask = np.where(sample.mask == 255, 255, (sample.mask + 1) % 4).astype(np.uint8)
        return sample


@pytest.mark.parametrize("options", [{}, {"views": 2}, {"protocol": "full", "crop": 16, "stride": 8}])
def test_poisoned_test_labels_change_no_choice(options):
    of = wide_vit() if "protocol" in options else encoder()
    options = {"steps": 25 if "protocol" in options else 60} | options
    clean = task(**options).evaluate(of, seed=0)
    poisoned = task(test=Poisoned(8, {}, split="test"), **options).evaluate(of, seed=0)
    choice = [k for k in clean if k.startswith(("held_out", "chosen"))]
    assert len(choice) == 10 and all(clean[k] == poisoned[k] for k in choice)
    assert clean["mIoU"] != poisoned["mIoU"]


def test_no_held_out_image_is_trained_on():
    """Other images in the held-out tenth: heads judge differently, and are the same heads."""
    _, held = hold_out_images(24)
    changed = {int(i): Patchwork(24, split="other").read(int(i)) for i in held}
    clean, other = (task(train=Patches(24, c)).evaluate(encoder(), seed=0) for c in ({}, changed))
    assert clean["held_out_mIoU"] != other["held_out_mIoU"]
    same = {"chosen_lr", "chosen_decay"}
    assert {clean[k] == other[k] for k in same} == {True} and clean["mIoU"] == other["mIoU"]


def test_fewer_than_two_images_cannot_choose():
    with pytest.raises(UserError, match="two or more"):
        task(train=Patchwork(1)).evaluate(encoder(), seed=0)


def test_images_takes_them_evenly_from_the_whole_split():
    used: set[str] = set()

    class Watched(Patches):
        def read(self, index: int) -> Sample:
            used.add(self.sample_name(index))
            return super().read(index)

    task(train=Watched(24, {}), images=6).evaluate(encoder(), seed=0)
    assert sorted(int(name.partition("/")[2]) // 4 for name in used) == list(range(6))


def test_blocks_are_the_last_and_the_last_four():
    assert feature_blocks(12) == {"last block": [11], "last 4 blocks": [8, 9, 10, 11]}
    assert feature_blocks(2) == {"last block": [1], "last 2 blocks": [0, 1]} and list(feature_blocks(1)) == [
        "last block"
    ]


def test_the_best_of_the_heads_that_are_left_is_chosen():
    heads = [
        segmentation.DenseHead(n, "last block", torch.nn.Identity(), r, 0.0) for n, r in (("a", 1e-3), ("b", 1e-2))
    ]
    assert choose(heads, {"a": 0.2, "b": 0.3})[0].name == "b" and choose(heads, {"a": 0.3, "b": 0.3})[0].name == "a"
    heads[1].failed = True
    best, details = choose(heads, {"a": 0.2})
    assert best.name == "a" and details["diverged_heads"] == 1
    heads[0].failed = True
    with pytest.raises(UserError, match="every segmentation head diverged"):
        choose(heads, {})


def test_published_trains_one_head_before_the_norm_on_all_of_train():
    found = task(protocol="published", steps=150).evaluate(encoder(), seed=0)
    assert found["mIoU"] > 0.7 and not any(k.startswith(("chosen", "held_out")) for k in found)
    seen: list[bool] = []

    class Normless(Encoder):
        def tokens(self, *args, norm=True, **options):
            seen.append(norm)
            return super().tokens(*args, norm=norm, **options)

    task(protocol="published").evaluate(Normless(PixelVit(), identity="n", cache=None), seed=0)
    assert seen == [False, False]


def test_seeds_differ_and_one_seed_repeats_itself():
    first, again, other = (task().evaluate(encoder(), seed=s) for s in (0, 0, 1))
    assert first == again != other


def test_protocols_say_all_that_differs():
    found = [
        task(**o).protocol() for o in ({}, {"protocol": "published"}, {"protocol": "full"}, {"views": 2}, {"steps": 41})
    ]
    found += [
        Segmentation(data=data_of()).protocol(),
        task(images=5).protocol(),
        task(protocol="full", crop=64).protocol(),
    ]
    assert len({str(p) for p in found}) == len(found)
    assert all("mIoU over the whole test split" in p["summary"] for p in found)


# ---- full scale


def test_windows_cover_all_and_end_with_the_image():
    assert windows(512, 512, 341) == [0] and windows(683, 512, 341) == [0, 171] and windows(300, 512, 341) == [0]
    assert windows(1024, 512, 341) == [0, 341, 512]
    for length in range(1, 60):
        starts = windows(length, 16, 11)
        covered = {p for s in starts for p in range(s, min(s + 16, length))}
        assert covered == set(range(length)) and (length < 16 or starts[-1] == length - 16)


def test_slid_logits_are_the_mean_over_the_windows_that_see_a_pixel():
    vit = Encoder(toy_vit(), identity="v", cache=None)
    features, head = {"last block": [1]}, linear_head(32, 4).eval()
    torch.nn.init.normal_(head[1].weight)
    image = torch.rand(3, 32, 50, generator=torch.Generator().manual_seed(0))
    ((_, found),) = slid_logits(vit, features, {"h": ("last block", head)}, image, 10)
    total, count = torch.zeros(4, 32, 50), torch.zeros(50)
    with torch.no_grad():
        for x in (0, 10, 18):
            maps = window_maps(vit, features, image[None, :, :, x : x + 32])["last block"]
            total[:, :, x : x + 32] += F.interpolate(head(maps), size=(32, 32), mode="bilinear")[0]
            count[x : x + 32] += 1
    torch.testing.assert_close(found, total / count, atol=1e-5, rtol=1e-5)


def test_a_small_image_is_padded_and_its_logits_cut_back():
    vit = Encoder(toy_vit(), identity="v", cache=None)
    head = linear_head(32, 4).eval()
    ((_, found),) = slid_logits(vit, {"l": [1]}, {"h": ("l", head)}, torch.rand(3, 20, 40), 16)
    assert found.shape == (4, 20, 40)
    image = padded(torch.zeros(3, 2, 5), 4, (0.1, 0.2, 0.3))
    assert (
        image.shape == (3, 4, 5)
        and not image[:, :2].any()
        and torch.allclose(image[:, 3, 0], torch.tensor([0.1, 0.2, 0.3]))
    )


def test_uncached_window_tokens_are_the_cached_ones():
    vit, source, view = wide_vit(), Patchwork(3), segmentation.whole_view(32)
    kept = segmentation.TokenMaps([vit.tokens(source, view, [0, 1])], [0, 1]).take(np.arange(3))
    fresh = window_maps(vit, {"both": [0, 1]}, torch.stack([view(source.read(i).image) for i in range(3)]))["both"]
    torch.testing.assert_close(fresh, kept, atol=2e-3, rtol=2e-3)


def test_crops_show_what_their_labels_name():
    """Colours survive scaling, cropping and flipping, and, mostly, distortion: the channel above the middle tells."""
    vit, source = toy_vit(), Patchwork(12, classes=8, size=64, cell=32, ignored=0.0)
    index, right, seen = np.arange(12), 0, 0
    for images, labels in crop_batches(source, index, vit, steps=6, batch=4, seed=0):
        assert images.shape == (4, 3, 32, 32) and labels.shape == (4, 32, 32) and labels.dtype == np.uint8
        assert images.min() >= 0 and images.max() <= 1
        for image, label in zip(images.numpy(), labels, strict=True):
            for c in set(np.unique(label)) & {1, 2, 4, 3, 5, 6}:
                mean = image[:, label == c].mean(axis=1)
                bits = np.array([c >> bit & 1 for bit in range(3)])
                right += mean[bits == 1].min() > mean[bits == 0].max()
                seen += 1
    assert seen > 20 and right / seen > 0.9


def test_crops_are_the_same_for_any_number_of_workers_and_differ_between_steps():
    vit, source, index = toy_vit(), Patchwork(6), np.arange(6)
    alone, forked = (list(crop_batches(source, index, vit, steps=3, batch=6, seed=0, num_workers=w)) for w in (0, 2))
    for (a, b), (c, d) in zip(alone, forked, strict=True):
        assert torch.equal(a, c) and np.array_equal(b, d)
    assert not torch.equal(alone[0][0].sum(dim=0), alone[1][0].sum(dim=0))


def test_global_streams_are_left_alone():
    before = np.random.get_state()[1].copy()
    with own_streams(5):
        first = np.random.rand()
    with own_streams(5):
        assert np.random.rand() == first
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_the_short_side_is_brought_to_the_crop():
    assert short_side_to(np.zeros((40, 60, 3), np.uint8), 32).shape == (3, 32, 48)
    assert short_side_to(np.zeros((40, 400, 3), np.uint8), 32).shape == (
        3,
        13,
        128,
    )  # the long side is at most four times


def test_full_learns_and_measures_at_the_labels_own_size():
    def of(vit: TimmVit) -> dict[str, float]:
        sources = Patchwork(16, size=64, cell=32), Patchwork(4, size=64, cell=32, split="test")
        options = {"protocol": "full", "crop": 64, "stride": 32, "steps": 40, "batch": 4}
        return task(*sources, **options).evaluate(Encoder(vit, identity="v", cache=None), seed=0)

    blind = toy_vit()
    torch.nn.init.zeros_(blind.model.patch_embed.proj.weight)
    seeing = of(toy_vit())
    assert seeing["mIoU"] > 0.7 and of(blind)["mIoU"] < 0.3
    assert of(toy_vit()) == seeing


# ---- another size


def test_another_size_is_a_copy_whose_weights_are_those_of_timm():
    vit = toy_vit(reg_tokens=2)
    before = {k: v.clone() for k, v in vit.model.state_dict().items()}
    large = at_size(vit, 48)
    assert (large.grid, large.image_size, large.num_prefix_tokens) == ((6, 6), (48, 48), vit.num_prefix_tokens)
    assert all(torch.equal(v, before[k]) for k, v in vit.model.state_dict().items()) and vit.grid == (4, 4)
    same = at_size(vit, 32)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(same(image, [1]).tokens[1], vit(image, [1]).tokens[1])
    assert large(torch.rand(1, 3, 48, 48), [1]).tokens[1].shape == (1, 36 + 3, 32)
    assert not any(p.requires_grad for p in large.model.parameters())


def test_sizes_and_vits_that_do_not_fit_are_told():
    with pytest.raises(UserError, match="nearest sizes are 48 and 56"):
        at_size(toy_vit(), 50)
    with pytest.raises(UserError, match="PixelVit works at 32 px only"):
        task(protocol="full").evaluate(encoder(), seed=0)


# ---- mistakes


def test_a_source_without_masks_is_refused_and_those_that_have_them_named():
    with pytest.raises(UserError, match=r"'colours' has no segmentation masks; scenes, array .* mmseg have them"):
        task(train=Colours(10)).evaluate(encoder(), seed=0)


def test_other_classes_in_test_are_refused():
    with pytest.raises(UserError, match=r"do not have the same segmentation classes.*colour 4"):
        checked_classes(Patchwork(3), Patchwork(3, classes=5))
    with pytest.raises(UserError, match="test split of the data is empty"):
        checked_classes(Patchwork(3), Patchwork(0))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (None, "has no segmentation mask"),
        (np.zeros((8, 9), np.uint8), "9 x 8 pixels, the image 32 x 32"),
        (np.full((32, 32), 4, np.uint8), "holds class 4, but there are 4 classes, 0 .. 3"),
    ],
)
def test_a_wrong_mask_is_told_with_its_image(mask, said):
    bad = Sample(Image.new("RGB", (32, 32)), mask=mask)
    for where in ({"train": Patches(8, {5: bad})}, {"test": Patches(8, {5: bad}, split="test")}):
        with pytest.raises(UserError, match="/5'.*" + said):
            task(**where).evaluate(encoder(), seed=0)


def test_a_broken_image_is_told_by_name_in_crops_and_windows():
    broken = Patches(8, {3: OSError("image file is truncated")})
    with pytest.raises(UserError, match="'train/3' cannot be read: image file is truncated"):
        read_masks(broken, 8)
    with pytest.raises(UserError, match="'train/3' cannot be read"):
        task(train=broken, protocol="full", crop=32).evaluate(wide_vit(), seed=0)
    with pytest.raises(UserError, match="'train/3' cannot be read"):
        read_sample(broken, 3)


def test_only_ignored_test_labels_are_an_error():
    with pytest.raises(UserError, match="every pixel of the test split is ignored"):
        task(test=Patchwork(3, split="test", ignored=1.1)).evaluate(encoder(), seed=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps of the segmentation task is 0"),
        ({"crop": 64}, "crop and stride are of protocol 'full'"),
        ({"protocol": "full", "crop": 64, "stride": 65}, "stride 65 is larger than crop 64"),
        ({"protocol": "full", "views": 2}, "views is 2 under protocol 'full'"),
        ({"views": 3}, "views is 3"),
        ({"protocol": "liner"}, "did you mean 'linear'"),
    ],
)
def test_options_that_cannot_be_are_told(options, said):
    with pytest.raises(UserError, match=said):
        task(**options)
