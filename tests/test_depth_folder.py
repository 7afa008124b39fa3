"""The source of images with depth maps: metres out of integers, pairs by name or list, and what mistakes say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import UserError
from harness.registry import source_class
from tasks.datasets.depth_folder import DepthFolder, read_depth

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
MILLIMETRES = {"scale": 0.001, "max_m": 10.0}


def write(root: Path, name: str, depth: np.ndarray, *, ending: str = ".jpg", split: str = "train") -> None:
    for kind in ("images", "annotations"):
        (root / kind / split / name).parent.mkdir(parents=True, exist_ok=True)
    grey = np.full((*depth.shape[:2], 3), 90, np.uint8)
    Image.fromarray(grey).save(root / "images" / split / (name + ending))
    Image.fromarray(depth).save(root / "annotations" / split / f"{name}.png")


def folder(root: Path, **options) -> DepthFolder:
    return DepthFolder(root, "train", **(MILLIMETRES | options))


def small(root: Path) -> Path:
    for i, name in enumerate(("b", "a", "kitchen/c")):
        write(root, name, np.array([[0, 1000, 2500], [65535, 1, 300 + i]], dtype=np.uint16))
    return root


def test_a_depth_is_its_integer_times_the_scale_and_0_stays_unknown(tmp_path):
    source = folder(small(tmp_path))
    depth_m = source.read(0).depth_m
    assert depth_m is not None and depth_m.dtype == np.float32
    np.testing.assert_allclose(depth_m, [[0, 1, 2.5], [65.535, 0.001, 0.301]], rtol=1e-6)
    kitti = folder(tmp_path, scale=1 / 256, max_m=80.0).read(0).depth_m
    assert kitti is not None and kitti[0, 1] == pytest.approx(1000 / 256)


def test_pairs_are_sorted_by_name_and_have_no_label(tmp_path):
    source = folder(small(tmp_path))
    assert [source.sample_name(i) for i in range(3)] == ["a.jpg", "b.jpg", "kitchen/c.jpg"]
    assert source.labels().tolist() == [-1, -1, -1] and source.classes == ()
    assert source.depth_range_m == (0.001, 10.0)
    assert [round(float(source.read(i).depth_m[1, 2]), 3) for i in range(3)] == [0.301, 0.3, 0.302]
    assert source_class("depth_folder").name == "depth_folder"


def test_identity_follows_content_and_units_and_never_the_place(tmp_path):
    here, there = folder(small(tmp_path / "here")), folder(small(tmp_path / "there"))
    assert here.identity() == there.identity()
    others = [folder(tmp_path / "here", scale=0.01), folder(tmp_path / "here", max_m=9.0)]
    write(tmp_path / "there", "d", np.ones((2, 3), np.uint16))
    others.append(folder(tmp_path / "there"))
    (tmp_path / "here" / "images/train/a.jpg").write_bytes(b"longer than it was" * 99)
    others.append(folder(tmp_path / "here"))
    assert len({here.identity(), *(o.identity() for o in others)}) == 5


def test_a_list_file_decides_pairs_and_their_order(tmp_path):
    small(tmp_path)
    lines = ["/b.jpg /a.png 518.8", "# a remark", "", "a.jpg None 518.8", "kitchen/c.jpg kitchen/c.png"]
    (tmp_path / "train_files.txt").write_text("\n".join(lines))
    source = folder(tmp_path, pairs="{split}_files.txt")
    assert source.pairs == [("b.jpg", "a.png"), ("kitchen/c.jpg", "kitchen/c.png")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.jpg", r"line 1: 'a.jpg' names one file"),
        ("a.jpg zz.png", r"line 1: no file 'zz.png'"),
        ("../a.jpg a.png", r"line 1: '../a.jpg' leads out of"),
        ("# nothing", r"names no pair"),
    ],
)
def test_a_list_file_with_a_mistake_names_the_line(tmp_path, line, said):
    small(tmp_path)
    (tmp_path / "l.txt").write_text(line)
    with pytest.raises(UserError, match=said):
        folder(tmp_path, pairs="l.txt")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": None}, "needs data.options.scale.*0.001 for millimetres"),
        ({"scale": 0.0}, "scale .* is 0"),
        ({"max_m": None}, "needs data.options.max_m.*10 for NYU"),
        ({"min_m": 10.0}, "min_m 10 and max_m 10"),
        ({"images": "imagse/{split}"}, "did you mean 'images'"),
        ({"pairs": "l.txt"}, "l.txt' in .*pairs"),
    ],
)
def test_units_and_places_that_are_not_right_are_told(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        folder(small(tmp_path), **options)


def test_an_image_without_depth_map_and_a_depth_map_without_image_are_named(tmp_path):
    small(tmp_path)
    (tmp_path / "annotations/train/a.png").rename(tmp_path / "annotations/train/a_depth.png")
    with pytest.raises(UserError, match=r"1 of 3 images .*'a.jpg'; did you mean 'a_depth.png'\?.*pairs"):
        folder(tmp_path)
    (tmp_path / "images/train/a.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 depth maps .*'a_depth.png'"):
        folder(tmp_path)


def test_two_images_of_one_name_and_empty_folders_are_errors(tmp_path):
    write(small(tmp_path), "a", np.ones((2, 3), np.uint16), ending=".png")
    with pytest.raises(UserError, match=r"both 'a\.(jpg|png)' and 'a\.(jpg|png)'"):
        folder(tmp_path)
    (tmp_path / "images/other").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        folder(tmp_path, images="images/other")


def test_a_depth_map_of_another_size_names_both(tmp_path):
    write(tmp_path, "a", np.ones((4, 6), np.uint16))
    Image.fromarray(np.ones((2, 3), np.uint16)).save(tmp_path / "annotations/train/a.png")
    with pytest.raises(ValueError, match=r"'a.png' is 3 x 2 pixels and the image 6 x 4"):
        folder(tmp_path).read(0)


def test_eight_bits_are_no_depth(tmp_path):
    write(tmp_path, "a", np.ones((4, 6), np.uint8))
    with pytest.raises(ValueError, match=r"'a.png' has pixels of mode 'L'.*16-bit"):
        folder(tmp_path).read(0)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_a_truncated_depth_map_is_named(tmp_path, share):
    noise = np.random.default_rng(0).integers(0, 9000, (60, 80)).astype(np.uint16)
    write(tmp_path, "a", noise)
    path = tmp_path / "annotations/train/a.png"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"'a.png' cannot be read"):
        read_depth(path, 0.001)


@pytest.mark.skipif(not (SHARED / "nyu_kitti_samples").is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize(
    ("kind", "names", "scale", "max_m", "shape", "known", "median"),
    [
        ("nyu_demo", "rgb_{}.jpg sync_depth_{}.png", 0.001, 10.0, (480, 640), (0.5, 1.0), (0.7, 6.0)),
        ("kitti_demo", "00000{}.png 00000{}.png", 1 / 256, 80.0, (375, 1242), (0.02, 0.3), (5.0, 30.0)),
    ],
)
def test_real_nyu_and_kitti_maps_come_out_in_metres(tmp_path, kind, names, scale, max_m, shape, known, median):
    numbers = ["00000", "00050", "00100"] if kind == "nyu_demo" else ["00005", "00050", "00100"]
    (tmp_path / "rgb").symlink_to(SHARED / "nyu_kitti_samples" / kind / "rgb")
    (tmp_path / "depth").symlink_to(SHARED / "nyu_kitti_samples" / kind / "depth")
    (tmp_path / "train.txt").write_text("\n".join(names.format(n, n) for n in numbers))
    options = {"images": "rgb", "annotations": "depth", "pairs": "{split}.txt", "scale": scale, "max_m": max_m}
    source = DepthFolder(tmp_path, "train", **options)
    assert len(source) == 3
    for i in range(3):
        sample = source.read(i)
        assert sample.depth_m is not None and sample.depth_m.shape == (sample.image.height, sample.image.width)
        assert sample.depth_m.shape == shape
        seen = sample.depth_m[sample.depth_m > 0]
        assert known[0] < seen.size / sample.depth_m.size < known[1]
        assert median[0] < np.median(seen) < median[1]
        assert (seen <= max_m).mean() > 0.99  # lidar sees a little farther than 80 m


@pytest.mark.skipif(not (SHARED / "redkitchen").is_dir(), reason="../shared/data is absent")
def test_the_red_kitchen_is_between_eighty_centimetres_and_four_metres():
    source = DepthFolder(SHARED / "redkitchen", "test", scale=0.001, min_m=0.5, max_m=4.5)
    assert len(source) == 67
    depth_m = source.read(33).depth_m
    assert depth_m is not None and depth_m.shape == (240, 320)
    assert 0.8 < np.median(depth_m[depth_m > 0]) < 4.0 and 0 < (depth_m == 0).mean() < 0.4
