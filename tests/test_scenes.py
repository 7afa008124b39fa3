"""Scenes: the same bits everywhere, exact geometry, and classes that only the dominant solid gives away."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pickle
from collections import Counter

import numpy as np
import pytest

from harness.errors import UserError
from harness.sources import Sample
from tasks.datasets import raycast
from tasks.datasets.raycast import GROUND, KINDS, SKY, Camera, Scene, render
from tasks.datasets.scenes import BASE, CACHE_BYTES, NOVEL, Scenes
from tasks.datasets.textures import Texture

PLAIN = Texture("plain", (0.8, 0.5, 0.3), (0.1, 0.1, 0.1))
SPLITS = ("train", "test", "novel")


def digest(sample: Sample) -> str:
    assert sample.mask is not None and sample.depth_m is not None
    return hashlib.sha256(sample.image.tobytes() + sample.mask.tobytes() + sample.depth_m.tobytes()).hexdigest()


def digests(split: str) -> list[str]:
    source = Scenes(split=split, size=32)
    return [digest(source.read(i)) for i in range(30)]


def scene_of(*solids: raycast.Solid, height: float = 1.0, direction=(0.0, 1.0, 0.0), tan_half: float = 0.5) -> Scene:
    camera = Camera.looking(height, direction, tan_half)
    return Scene(camera, solids, PLAIN, ((0.9, 0.9, 1.0), (0.4, 0.5, 0.9)), (0.0, -0.6, 0.8))


def test_every_process_and_machine_draws_the_same_bits() -> None:
    # If this changes on purpose, raise scenes.VERSION; if it changes by itself, numpy's random stream has moved.
    found = {split: hashlib.sha256("".join(digests(split)).encode()).hexdigest()[:16] for split in SPLITS}
    assert found == {"train": "b9720183cf443568", "test": "9145950ef098f693", "novel": "c6d2d4bf597e82a2"}


def test_a_sample_depends_on_neither_order_nor_count_nor_cache() -> None:
    one, other = Scenes(size=32, count=40), Scenes(size=32, count=7)
    backwards = [digest(one.read(i)) for i in range(6, -1, -1)][::-1]
    assert backwards == [digest(other.read(i)) for i in range(7)] == [digest(one.read(i)) for i in range(7)]


def test_what_a_reader_does_to_its_sample_stays_with_it() -> None:
    source = Scenes(size=32, count=1)
    first = source.read(0)
    before = digest(first)
    assert first.mask is not None and first.depth_m is not None
    first.mask[:], first.depth_m[:] = 9, 9
    first.image.putpixel((0, 0), (1, 2, 3))
    assert digest(source.read(0)) == before


def test_the_cache_is_bounded_and_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    sample_bytes = 32 * 32 * (3 + 1 + 4)
    monkeypatch.setattr("tasks.datasets.scenes.CACHE_BYTES", 5 * sample_bytes)
    source = Scenes(size=32, count=20)
    assert [digest(source.read(i)) for i in range(20)] == [digest(source.read(i)) for i in range(20)]
    assert len(source._cache) == 5
    assert len(pickle.dumps(source)) < 5000
    assert CACHE_BYTES >= 4000 * 64 * 64 * 8  # the default train split fits


@pytest.mark.parametrize("option", [{"seed": 1}, {"size": 40}, {"count": 12}])
def test_every_option_is_part_of_the_identity(option: dict) -> None:
    given = {"size": 32, "count": 10, **option}
    assert Scenes(**given).identity() != Scenes(size=32, count=10).identity()
    assert Scenes(**given).identity() == Scenes(**given).identity()


def test_splits_and_seeds_share_no_image() -> None:
    sources = [Scenes(size=16, count=20, split=split, seed=seed) for split in SPLITS for seed in (0, 1)]
    assert len({digest(source.read(i)) for source in sources for i in range(20)}) == 120
    assert len({source.identity() for source in sources}) == 6


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_and_need_no_rendering(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Scenes(split=split, size=16)
    seen = [source.read(i).label for i in range(25)]
    monkeypatch.setattr(raycast, "render", None)
    labels = source.labels()
    assert labels.dtype == np.int64 and len(labels) == len(source) and labels[:25].tolist() == seen
    counts = Counter(labels.tolist())
    assert set(counts) == set(range(len(source.classes))) and max(counts.values()) - min(counts.values()) <= 1


def test_only_the_novel_split_shows_the_novel_classes() -> None:
    assert not set(BASE) & set(NOVEL) and len(BASE) + len(NOVEL) == 25
    for split in ("train", "test"):
        source = Scenes(split=split)
        shown = {(solid.kind, solid.texture.family) for i in range(400) for solid in source.scene(i).solids}
        assert shown == set(BASE)
    novel = Scenes(split="novel")
    assert {(s.solids[0].kind, s.solids[0].texture.family) for s in map(novel.scene, range(60))} == set(NOVEL)
    # what is novel is the combination: every kind and every family is known from the base classes
    assert all({c[part] for c in BASE} == {c[part] for c in NOVEL} for part in (0, 1))


@pytest.mark.parametrize("split", SPLITS)
def test_the_class_is_that_of_the_nearest_and_largest_solid(split: str) -> None:
    source = Scenes(split=split, size=32)
    for index in range(45):
        scene = source.scene(index)
        first = scene.solids[0]
        assert source.classes[source.read(index).label] == f"{first.texture.family} {first.kind}"
        alone = [render(dataclasses.replace(scene, solids=(solid,)), 32)[1:] for solid in scene.solids]
        areas = [int((mask >= 2).sum()) for mask, _ in alone]
        assert areas[0] >= 60 and all(area < 0.6 * areas[0] for area in areas[1:])
        nearest = [float(depth_m[mask >= 2].min(initial=99)) for mask, depth_m in alone]
        assert all(nearest[0] < other for other in nearest[1:])
        _, mask, depth_m = render(scene, 32)
        shown = alone[0][0] >= 2  # nothing stands before it
        assert (mask[shown] == 2 + KINDS.index(first.kind)).all()
        np.testing.assert_array_equal(depth_m[shown], alone[0][1][shown])


@pytest.mark.parametrize("split", SPLITS)
def test_depth_is_unknown_exactly_in_the_sky(split: str) -> None:
    source = Scenes(split=split)
    low, high = source.depth_range_m
    skies = 0
    for index in range(60):
        sample = source.read(index)
        assert sample.mask is not None and sample.depth_m is not None
        assert sample.mask.dtype == np.uint8 and sample.depth_m.dtype == np.float32
        np.testing.assert_array_equal(sample.mask == SKY, sample.depth_m == 0)
        known = sample.depth_m[sample.mask != SKY]
        assert low <= known.min() and known.max() <= high and sample.mask.max() < len(source.segmentation_classes)
        skies += bool((sample.mask == SKY).any())
    assert skies > 40


def test_ground_depth_follows_the_pinhole_formula() -> None:
    size, height, tan_half, pitch = 48, 1.4, 0.6, math.radians(25)
    scene = scene_of(height=height, direction=(0.3, math.sqrt(0.91), -math.tan(pitch)), tan_half=tan_half)
    _, mask, depth_m = render(scene, size)
    for row in range(size):
        v = (1 - (2 * row + 1) / size) * tan_half  # height of the pixel's centre on the plane at distance 1
        drop = math.sin(pitch) - v * math.cos(pitch)  # how far the ray falls a metre of depth
        expected = height / drop if drop > 0 and height / drop <= raycast.FAR_M else 0
        np.testing.assert_allclose(depth_m[row], expected, rtol=1e-6)
        assert (mask[row] == (GROUND if expected else SKY)).all()


@pytest.mark.parametrize(
    ("solid", "expected"),
    [
        (raycast.sphere(0, 5, 1.0, PLAIN), 4.0),
        (raycast.cylinder(0, 5, 0.7, 2.0, PLAIN), 4.3),
        (raycast.cone(0, 5, 0.8, 2.0, PLAIN), 4.6),  # half-way up the cone is half as wide
        (raycast.hourglass(0, 5, 0.8, 0.2, 2.0, PLAIN), 4.8),
        (raycast.box(0, 5, (0.6, 0.5), 2.0, PLAIN), 4.5),
        (raycast.box(0, 5, (0.6, 0.5), 2.0, PLAIN, turn=(0.0, 1.0)), 4.4),
        (raycast.box(0, 5, (0.5, 0.5), 2.0, PLAIN, turn=(math.sqrt(0.5), math.sqrt(0.5))), 5 - math.sqrt(0.5)),
    ],
)
def test_the_middle_ray_meets_each_solid_where_geometry_says(solid: raycast.Solid, expected: float) -> None:
    _, mask, depth_m = render(scene_of(solid), 33)  # odd: the middle pixel looks straight ahead, one metre high
    assert depth_m[16, 16] == pytest.approx(expected, rel=1e-6)
    assert mask[16, 16] == 2 + KINDS.index(solid.kind)


@pytest.mark.parametrize("kind", ["cylinder", "hourglass", "box"])
def test_flat_tops_are_seen_from_above(kind: str) -> None:
    solids = {
        "cylinder": raycast.cylinder(0, 4, 0.7, 1.0, PLAIN),
        "hourglass": raycast.hourglass(0, 4, 0.7, 0.2, 1.0, PLAIN),
        "box": raycast.box(0, 4, (0.7, 0.7), 1.0, PLAIN),
    }
    _, mask, depth_m = render(scene_of(solids[kind], height=3.0, direction=(0.0, 4.0, -2.0)), 33)
    assert depth_m[16, 16] == pytest.approx(math.sqrt(20), rel=1e-6)  # aimed at the middle of the top
    assert mask[16, 16] == 2 + KINDS.index(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_seen_point_lies_on_its_solid(kind: str) -> None:
    source = Scenes(split="train", size=40)
    index = next(i for i in range(15) if source.scene(i).solids[0].kind == kind)
    scene = dataclasses.replace(source.scene(index), solids=source.scene(index).solids[:1])
    solid, camera = scene.solids[0], scene.camera
    _, mask, depth_m = render(scene, 40)
    x, y, z = (ray[0][mask >= 2] * depth_m[mask >= 2] for ray in camera.rays(40))
    x, y, z = *solid.local(x - solid.x, y - solid.y), z + camera.height_m
    top = z >= solid.height_m - 1e-5
    if kind == "box":
        gap = np.maximum(np.abs(x) - solid.half_m[0], np.abs(y) - solid.half_m[1])
    else:
        p0, p1, p2 = solid.profile
        gap = x * x + y * y - (p0 + p1 * z + p2 * z * z)
    assert np.abs(gap[~top]).max() < 1e-5 and (gap[top] < 1e-5).all()
    assert z.min() > -1e-5 and z.max() < solid.height_m + 1e-5 and len(z) > 100


def test_normals_are_unit_and_point_at_the_camera() -> None:
    for index in range(15):
        scene = Scenes().scene(index)
        solid, camera = scene.solids[0], scene.camera
        x, y, z = camera.rays(24)
        t = raycast.intersect(solid, 0.0, 0.0, camera.height_m, x, y, z)
        hit = np.isfinite(t)
        px, py = solid.local(x[hit] * t[hit] - solid.x, y[hit] * t[hit] - solid.y)
        nx, ny, nz = raycast.normals(solid, px, py, camera.height_m + z[hit] * t[hit])
        dx, dy = solid.local(x[hit], y[hit])
        np.testing.assert_allclose(nx * nx + ny * ny + nz * nz, 1, rtol=1e-6)
        assert (nx * dx + ny * dy + nz * z[hit]).max() < 1e-6


def test_looking_only_where_a_solid_can_be_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [Scenes().scene(i) for i in range(40)]
    windowed = [render(scene, 24) for scene in scenes]
    monkeypatch.setattr(raycast, "_window", lambda camera, solid, size: (slice(None),) * 3)
    for scene, expected in zip(scenes, windowed, strict=True):
        for found, part in zip(render(scene, 24), expected, strict=True):
            np.testing.assert_array_equal(found, part)


def test_a_shadow_falls_away_from_the_sun() -> None:
    scene = dataclasses.replace(scene_of(raycast.box(0, 6, (0.5, 0.5), 1.0, PLAIN), height=2.0), sun=(0.8, 0.0, 0.6))
    image = render(scene, 64)[0].astype(int)
    bare = render(dataclasses.replace(scene, solids=()), 64)[0].astype(int)
    darker = (image.sum(-1) < bare.sum(-1) - 20) & (render(scene, 64)[1] == GROUND)
    assert darker[:, :32].sum() > 20 and darker[:, 40:].sum() == 0


def test_the_background_does_not_give_the_class_away_and_raw_pixels_are_not_enough() -> None:
    def features(split: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        source = Scenes(split=split, size=32, count=count)
        around, pixels = [], []
        for index in range(count):
            sample = source.read(index)
            image = np.asarray(sample.image, np.float64) / 255
            around.append(
                [image[sample.mask == c].mean(0) if (sample.mask == c).any() else [0] * 3 for c in (SKY, GROUND)]
            )
            pixels.append(image.reshape(16, 2, 16, 2, 3).mean((1, 3)))
        return np.array(around).reshape(count, -1), np.array(pixels).reshape(count, -1), source.labels()

    seen, asked = features("train", 450), features("test", 225)
    chance = 1 / 15
    accuracy = []
    for known, queries in zip(seen[:2], asked[:2], strict=True):
        distance = (known**2).sum(1)[None] - 2 * queries @ known.T
        accuracy.append((seen[2][distance.argmin(1)] == asked[2]).mean())
    assert accuracy[0] < chance + 4 * math.sqrt(chance / 225)  # four standard errors
    assert 1.5 * chance < accuracy[1] < 0.5  # a nearest neighbour in pixels sees something, and far from all


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"split": "tets"}, "did you mean 'test'"),
        ({"split": "val"}, "Known: novel, test, train"),
        ({"size": 0}, "size 0"),
        ({"count": -3}, "count -3"),
    ],
)
def test_a_mistake_is_named(given: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Scenes(**given)


def test_there_is_no_sample_beyond_the_last() -> None:
    source = Scenes(count=3)
    for index in (3, -1):
        with pytest.raises(IndexError):
            source.read(index)
    assert "000002" in source.sample_name(2)
