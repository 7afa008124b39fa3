"""The depth task: what decides a head, what a test depth can change, units, and what a user's mistake says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from harness.data import Data
from harness.dense import TokenMaps, hold_out_images, make_heads, spread, whole_view
from harness.errors import UserError
from harness.features import Encoder
from harness.registry import source_class
from harness.sources import Sample, Source
from harness.toys import Colours, PixelVit, Slopes
from tasks.datasets.array import Array
from tasks.depth import Depth
from tasks.depth_fitting import RATES, _Lesson, best_head, fit_linear
from tasks.depth_heads import bin_head
from tasks.depth_truth import WITH_DEPTH, TrainingDepths, check_scale


class Changed(Source):
    """A source whose depth maps are changed. change: (depth [H, W], index) -> depth, or None for no map."""

    name = "changed"
    needs_root = False

    def __init__(self, parent: Source, change) -> None:
        self.parent, self.change = parent, change
        self.classes, self.depth_range_m = parent.classes, parent.depth_range_m
        self.read_ones: list[int] = []

    def __len__(self) -> int:
        return len(self.parent)

    def read(self, index: int) -> Sample:
        sample = self.parent.read(index)
        self.read_ones.append(index)
        assert sample.depth_m is not None
        return Sample(sample.image, depth_m=self.change(sample.depth_m, index))

    def labels(self) -> np.ndarray:
        return self.parent.labels()

    def sample_name(self, index: int) -> str:
        return self.parent.sample_name(index)

    def identity(self) -> str:
        return "changed " + self.parent.identity()


def encoder(blind: bool = False, **options) -> Encoder:
    cache = options.pop("cache", None)
    return Encoder(PixelVit(blind=blind, **options), identity=f"pixels {blind} {options}", cache=cache)


def task(train: Source | None = None, test: Source | None = None, **options) -> Depth:
    sources = {"train": train or Slopes(20), "test": test or Slopes(6, split="test")}
    data = Data.of_sources(sources, image_size=32, name="slopes")
    return Depth(data=data, **({"steps": 20, "batch": 8} | options))


@pytest.mark.parametrize(("protocol", "steps"), [("linear", 60), ("published", 200)])
def test_who_sees_the_image_beats_who_sees_none_and_the_constant(protocol, steps):
    given = task(Slopes(40), Slopes(12, split="test"), protocol=protocol, steps=steps, batch=8)
    found, blind = (given.evaluate(encoder(b), seed=0) for b in (False, True))
    assert found["rmse"] < 0.8 * blind["rmse"] and found["rmse"] < 0.8 * found["rmse_of_constant"]
    assert found["delta1"] > blind["delta1"] and found["abs_rel"] < blind["abs_rel"]
    assert {*Depth.metrics} <= {*found}
    assert found["rmse_of_constant"] == blind["rmse_of_constant"] and 1.5 < found["constant_m"] < 3.5


def depths_and_maps(views: int = 1) -> tuple[TrainingDepths, dict[str, TokenMaps]]:
    source, seen = Slopes(12), encoder()
    tokens = [seen.tokens(source, whole_view(32, mirror=bool(i)), [0, 1]) for i in range(views)]
    maps = {"a": TokenMaps(tokens, [1], cls=True), "b": TokenMaps(tokens, [0, 1], cls=True)}
    return TrainingDepths(source, 32, 0.5, 4.5), maps


def test_a_head_among_others_ends_as_it_does_alone():
    truth, maps = depths_and_maps()
    index = np.arange(12)
    together = fit_linear(maps, truth, index, steps=8, batch=4, seed=0)
    assert len(together) == len(RATES) * 2
    for head in (together[0], together[-1]):
        alone = {head.features: maps[head.features]}
        (own,) = fit_linear(alone, truth, index, steps=8, batch=4, seed=0, rates=[head.rate])
        for a, b in zip(head.module.parameters(), own.module.parameters(), strict=True):
            assert torch.equal(a, b)


def test_features_from_a_cache_change_no_number(tmp_path):
    once, again = (task(views=2).evaluate(encoder(cache=tmp_path / "features"), seed=0) for _ in range(2))
    assert once == again == task(views=2).evaluate(encoder(), seed=0)


@pytest.mark.parametrize("protocol", ["linear", "published"])
def test_poisoned_test_depths_change_no_choice_and_no_training(protocol):
    def choice(found: dict[str, float]) -> dict[str, float]:
        return {k: v for k, v in found.items() if k.startswith(("held_out", "chosen", "constant"))}

    wrong = Changed(Slopes(6, split="test"), lambda depth, i: np.where(depth > 0, 5.0 - depth, 0).astype(np.float32))
    clean, poisoned = (
        task(test=test, protocol=protocol).evaluate(encoder(), seed=0) for test in (Slopes(6, split="test"), wrong)
    )
    assert choice(clean) == choice(poisoned) and clean["rmse"] != poisoned["rmse"]


def test_held_out_images_train_no_head():
    held = hold_out_images(20)[1]
    poisoned = Changed(Slopes(20), lambda depth, i: np.full_like(depth, 4.5) if i in held else depth)
    clean, wrong = (task(train=t).evaluate(encoder(), seed=0) for t in (Slopes(20), poisoned))
    judged = [k for k in clean if k.startswith("held_out_rmse/")]
    assert len(judged) == len(RATES) * 2 and all(clean[k] != wrong[k] for k in judged)
    # Of one rate and one feature set there is nothing to choose, so the same head must come out.
    truth, maps = depths_and_maps()
    kept, _ = hold_out_images(12)
    parts = [truth, TrainingDepths(Changed(Slopes(12), lambda d, i: d if i in kept else d + 1), 32, 0.5, 4.5)]
    ends = [fit_linear(maps, t, kept, steps=5, batch=4, seed=0)[0].module.state_dict() for t in parts]
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_windows_hold_the_tokens_and_the_depths_of_one_place():
    truth, maps = depths_and_maps(views=2)
    heads = make_heads(bin_head, maps, (1e-3,), (0.0,), 0)
    lesson = _Lesson(maps, truth, 40, "cpu")
    draws = [np.array([i % 24]) for i in range(40)]
    whole, edges = truth(np.arange(24)), 0
    rows, columns = lesson.grid
    cells = whole[:, [(2 * i + 1) * 32 // (8 * rows) for i in range(4 * rows)]]
    cells = cells[:, :, [(2 * i + 1) * 32 // (8 * columns) for i in range(4 * columns)]]
    # A place beyond the edge repeats the outermost token, and its cells have no depth.
    padded = {n: F.pad(m.take(np.arange(24)), (1, 1, 1, 1), mode="replicate") for n, m in maps.items()}
    cells = F.pad(cells, (4, 4, 4, 4))
    for draw, (found, depth_m) in zip(draws, lesson.windows(heads, draws, 0), strict=True):
        image, (h, w) = int(draw[0]), lesson.sides
        at = [
            (i, j)
            for i in range(rows + 3 - h)
            for j in range(columns + 3 - w)
            if all(torch.equal(found[n][0], padded[n][image, :, i : i + h, j : j + w]) for n in maps)
            and torch.equal(depth_m[0], cells[image, 4 * i + 2 : 4 * (i + h) - 2, 4 * j + 2 : 4 * (j + w) - 2])
        ]
        assert at, draw
        edges += (depth_m == 0).any().item()
    assert 0 < edges < 40


def test_mirrored_images_come_with_mirrored_depths():
    truth, maps = depths_and_maps(views=2)
    both = truth(np.array([3, 12 + 3]))
    assert torch.equal(both[1], both[0].flip(-1)) and not torch.equal(both[0], both[1])
    plain, mirrored = maps["a"].take(np.array([3, 12 + 3]))
    torch.testing.assert_close(plain[:12].mean(dim=0).flip(-1), mirrored[:12].mean(dim=0), atol=1e-2, rtol=0)


def test_only_known_pixels_of_the_range_and_crop_are_measured():
    holes = Changed(Slopes(6, split="test"), lambda depth, i: np.where(depth > 2.5, 0, depth) if i % 2 else depth * 0)
    found = task(test=holes).evaluate(encoder(), seed=0)
    kept = [d[(d > 0) & (d <= 2.5)].size for d in (Slopes(6, split="test").read(i).depth_m for i in (1, 3, 5))]
    assert found["pixels"] == sum(kept) and found["images_without_depth"] == 3 + kept.count(0)
    whole = task().evaluate(encoder(), seed=0)
    assert task(max_m=2.5).evaluate(encoder(), seed=0)["pixels"] < whole["pixels"]
    for crop in ("eigen", "garg"):
        assert task(crop=crop).evaluate(encoder(), seed=0)["pixels"] < whole["pixels"]


def test_a_prediction_takes_no_pixel_out():
    pixels = {task().evaluate(encoder(blind), seed=0)["pixels"] for blind in (False, True)}
    assert len(pixels) == 1


def test_the_seed_decides_and_the_global_stream_does_not():
    torch.manual_seed(1)
    one = task().evaluate(encoder(), seed=0)
    torch.manual_seed(2)
    assert one == task().evaluate(encoder(), seed=0) != task().evaluate(encoder(), seed=1)


def test_fewer_images_are_one_of_each_stretch():
    few = spread(Slopes(100), 10)
    names = [int(few.sample_name(i).partition("/")[2]) for i in range(10)]
    assert [n // 10 for n in names] == list(range(10)) and len({n % 10 for n in names}) > 3
    assert spread(Slopes(100), 100) is not few and len(spread(Slopes(5), 9)) == 5
    train = Changed(Slopes(40), lambda depth, i: depth)
    task(train=train, images=5).evaluate(encoder(), seed=0)
    assert len(set(train.read_ones)) == 5


# ---- units


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1000, r"look like millimetres \(multiply by 0\.001\).*`scale`"),
        (0.001, r"\(multiply by 1000\)"),
        (100, r"centimetres \(multiply by 0\.01\)"),
    ],
)
def test_a_wrong_scale_is_told_with_its_factor(factor, said):
    wrong = Changed(Slopes(12), lambda depth, i: depth * np.float32(factor))
    with pytest.raises(UserError, match=said):
        task(train=wrong).evaluate(encoder(), seed=0)


def test_the_scale_of_the_data_is_what_is_to_be_changed():
    with pytest.raises(
        UserError, match=r"look like millimetres \(scale 0\.001\).*change data.options.scale, which is 1;"
    ):
        check_scale(2400.0, 0.001, 10.0, {"scale": 1})
    with pytest.raises(UserError, match=r"or 1/256 m, KITTI's \(scale 0\.00390625\)"):
        check_scale(3500.0, 1.0, 80.0, {"scale": 1.0})
    with pytest.raises(UserError, match=r"is 1e-07 m, outside 1 .. 2 m; give depths in metres, or min_m and max_m"):
        check_scale(1e-7, 1.0, 2.0, {})
    for inside in (0.5, 3.0, 4.5):
        check_scale(inside, 0.5, 4.5, {})


# ---- mistakes


def test_data_without_depth_name_the_sources_that_have_it():
    with pytest.raises(UserError, match=r"source 'colours'\) have no depth; the sources scenes, array, depth_folder"):
        task(train=Colours(20)).evaluate(encoder(), seed=0)
    with pytest.raises(UserError, match="have no depth"):
        task(test=Colours(20)).evaluate(encoder(), seed=0)


def test_the_sources_that_are_named_have_depth(tmp_path):
    image, depth_m = np.zeros((4, 6, 6, 3), np.uint8), np.full((4, 6, 6), 2.0, np.float32)
    for kind in ("images", "annotations"):
        (tmp_path / kind / "train").mkdir(parents=True)
    Image.fromarray(image[0]).save(tmp_path / "images/train/a.png")
    Image.fromarray(np.full((6, 6), 2000, np.uint16)).save(tmp_path / "annotations/train/a.png")
    made = {
        "scenes": lambda cls: cls(None, "train", size=16),
        "array": lambda cls: cls.of(image, [-1] * 4, depth_m=depth_m),
        "depth_folder": lambda cls: cls(tmp_path, "train", scale=0.001, max_m=10.0),
    }
    assert set(made) == set(WITH_DEPTH)
    for name, make in made.items():
        source = make(source_class(name))
        assert source.depth_range_m is not None and source.read(0).depth_m is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda depth: depth[:-1], r"'train/3' is \[31, 32\] and its image \[32, 32\]"),
        (lambda depth: depth - 9, r"'train/3' has values that are negative or not finite"),
        (lambda depth: depth / 0, r"'train/3' has values that are negative or not finite"),
        (lambda depth: None, r"'train/3' has no depth map"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_a_depth_map_that_is_none_names_its_image(change, said):
    wrong = Changed(Slopes(12), lambda depth, i: change(depth) if i == 3 else depth)
    with pytest.raises(UserError, match=said):
        task(train=wrong).evaluate(encoder(), seed=0)


def test_a_broken_depth_file_names_its_image(tmp_path):
    for i in range(4):
        for kind, array in (("images", np.zeros((32, 32, 3), np.uint8)), ("annotations", np.full((32, 32), 900 + i))):
            (tmp_path / kind / "train").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8 if kind == "images" else np.uint16)).save(
                tmp_path / kind / "train" / f"{i}.png"
            )
    broken = tmp_path / "annotations/train/2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    options = {"scale": 0.001, "max_m": 10.0}
    data = Data("depth_folder", "kitchen", str(tmp_path), test="train", image_size=32, options=options)
    with pytest.raises(UserError, match=r"'2\.png'"):
        Depth(data=data, steps=2).evaluate(encoder(), seed=0)


def test_splits_without_a_known_depth_are_told():
    nothing = Changed(Slopes(6), lambda depth, i: depth * 0)
    with pytest.raises(UserError, match="not one depth of the training split is known"):
        task(train=nothing).evaluate(encoder(), seed=0)
    with pytest.raises(UserError, match="not one depth of the test split counts: none of its 6 images"):
        task(test=nothing).evaluate(encoder(), seed=0)
    held = Changed(Slopes(12), lambda depth, i: depth * 0 if i in hold_out_images(12)[1] else depth)
    with pytest.raises(UserError, match="no held-out training image has a depth that counts"):
        task(train=held).evaluate(encoder(), seed=0)
    with pytest.raises(UserError, match="the split has 1; give two"):
        task(train=Slopes(1)).evaluate(encoder(), seed=0)


def test_the_best_head_is_the_smallest_finite_error():
    truth, maps = depths_and_maps()
    heads = fit_linear(maps, truth, np.arange(12), steps=1, batch=4, seed=0)
    head, details = best_head(heads, [0.5, float("inf"), 0.3, float("nan"), 0.3, 0.9])
    assert head is heads[2] and details["held_out_rmse"] == 0.3 and details["chosen_lr_at_edge"] == 1
    assert details["chosen/a"] == 1 and details["chosen/b"] == 0
    assert f"held_out_rmse/{heads[1].name}" not in details


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps of the depth task is 0"),
        ({"images": -1}, "images of the depth task is -1"),
        ({"views": 3}, "views of the depth task is 3"),
        ({"min_m": 2.0, "max_m": 1.0}, "min_m 2.0 and max_m 1.0"),
    ],
)
def test_options_out_of_range(options, said):
    with pytest.raises(UserError, match=said):
        task(**options)


@pytest.mark.parametrize(("option", "near"), [("protocol", "published"), ("crop", "eigen")])
def test_a_name_that_is_none_is_told_with_the_nearest(option, near):
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        task(**{option: near[:-1]})


def test_any_change_of_the_protocol_shows():
    changes = [{}, {"protocol": "published"}, {"steps": 21}, {"batch": 9}, {"images": 5}, {"views": 2}]
    changes += [{"min_m": 0.7}, {"max_m": 4.0}, {"crop": "garg"}, {"protocol": "published", "steps": None}]
    assert len({str(task(**change).protocol()) for change in changes}) == len(changes)


def test_depths_in_memory_need_no_range_of_their_own():
    images = np.stack([np.asarray(Slopes(10).read(i).image) for i in range(10)])
    depth_m = np.stack([Slopes(10).read(i).depth_m for i in range(10)])
    source = Array.of(images, [-1] * 10, depth_m=depth_m)
    found = task(train=source, test=source).evaluate(encoder(), seed=0)
    assert found["pixels"] == (depth_m > 0).sum()
