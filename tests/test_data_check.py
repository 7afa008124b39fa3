"""`singer-bench data check`: what is whole passes; whatever is wrong is told at once, with where to get it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest

from harness.class_maps import class_map
from harness.datasets.check import check_data
from harness.datasets.suites import parse_suite
from harness.errors import UserError

CLASSES = ("ant", "bee", "cat")
ABOUT = {
    "title": "Animals",
    "where": "https://example.org/animals",
    "licence": "none",
    "layout": ["train/CLASS/*.jpg", "test/CLASS/*.jpg"],
    "counts": {"train": {"images": 12, "classes": 3}, "test": {"images": 6, "classes": 3}},
}


def suite(root: Path, **changes: Any):
    data = {"source": "folder", "root": str(root), **changes.pop("data", {})}
    return parse_suite({"task": "classification", "data": data, "about": ABOUT, **changes}, "animals")


@pytest.fixture
def animals(tmp_path) -> Path:
    """12 training and 6 test images of three classes."""
    published.folders(tmp_path, {"train": CLASSES}, 4)
    published.folders(tmp_path, {"test": CLASSES}, 2)
    return tmp_path


# ---- what is whole


def test_whole_data_are_described_and_nothing_is_missing(animals):
    report = check_data(suite(animals))
    assert report.faults == []
    assert report.good == [
        "train: 12 images, 3 classes; 3 of its images opened",
        "test: 6 images, 3 classes; 3 of its images opened",
    ]


def test_tars_are_checked_like_folders(animals):
    tars = animals / "tars"
    published.tars(tars, {"train": CLASSES}, 4)
    published.tars(tars, {"test": CLASSES}, 2)
    report = check_data(suite(tars, data={"source": "tar", "train": "train.tar", "test": "test.tar"}))
    assert report.faults == [] and len(report.good) == 2


@pytest.mark.parametrize("name", ["cifar10", "inat2019", "food101", "fgvc_aircraft", "oxford_pets", "flowers102"])
def test_published_layouts_lack_nothing_but_most_of_their_images(name, tmp_path, monkeypatch):
    write: dict[str, Callable[[], None]] = {
        "cifar10": lambda: published.cifar(tmp_path, 10, monkeypatch),
        "flowers102": lambda: published.flowers102(tmp_path, monkeypatch),
    }
    write.get(name, lambda: getattr(published, name)(tmp_path))()
    from harness.datasets.suites import read_suite

    raw = read_suite(name)
    raw["data"] = {**raw["data"], "root": str(tmp_path)}
    report = check_data(parse_suite(raw, name))
    assert len(report.faults) == 2 and all("images instead of" in fault for fault in report.faults)
    del raw["about"]["counts"]
    assert check_data(parse_suite(raw, name)).faults == []


def test_masks_and_depth_are_looked_at_too(tmp_path):
    arrays = {"labels": np.full(3, -1), "depth_m": np.full((3, 8, 8), 2, np.float32)}
    for split in ("train", "test"):
        arrays["masks"] = np.full((3, 8, 8), 1, np.uint8)
        arrays["images"] = np.full((3, 8, 8, 3), len(split), np.uint8)
        np.savez(tmp_path / f"{split}.npz", **arrays)
    about = {**ABOUT, "counts": {}}
    report = check_data(suite(tmp_path, data={"source": "array"}, about=about))
    assert report.faults == []
    assert report.good[0] == "train: 3 images, 2 classes of pixels, depth from 2 to 2 m; 3 of its images opened"
    arrays["depth_m"][1] = 0
    np.savez(tmp_path / "test.npz", **arrays)
    (fault,) = check_data(suite(tmp_path, data={"source": "array"}, about=about)).faults
    assert fault == "test: 1 of 3 opened images are broken: 'test[1]' (it has no depth); replace them"


# ---- what is not


def emptied(root: Path) -> None:
    shutil.rmtree(root / "test")


def one_less(root: Path) -> None:
    next(iter((root / "train" / "bee").iterdir())).unlink()


def one_more(root: Path) -> None:
    published.image(root / "test" / "bee" / "more.jpg", 1)


def swapped(root: Path) -> None:
    (root / "train").rename(root / "x")
    (root / "test").rename(root / "train")
    (root / "x").rename(root / "test")


def cut_off(root: Path) -> None:
    path = min((root / "test" / "cat").iterdir())
    path.write_bytes(path.read_bytes()[:300])


def other_class(root: Path) -> None:
    (root / "test" / "cat").rename(root / "test" / "cow")


def wrong_layout(root: Path) -> None:
    for name in CLASSES:
        for path in (root / "train" / name).iterdir():
            path.rename(root / "train" / f"{name}-{path.name}")
        (root / "train" / name).rmdir()


def the_same_twice(root: Path) -> None:
    shutil.rmtree(root / "test")
    shutil.copytree(root / "train", root / "test")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (emptied, ["test (split 'test'): ", "does not exist", "There: train"]),
        (one_less, ["train: 11 images instead of 12; unpack the archive again, whole"]),
        (one_more, ["test: 7 images instead of 6; remove what does not belong there"]),
        (swapped, ["train and test are swapped: they have 6 and 12 images"]),
        (cut_off, ["test: 1 of 3 opened images are broken: 'cat/test-0.jpg' ("]),
        (other_class, ["only in train: 'cat'; only in test: 'cow'"]),
        (wrong_layout, ["train (split 'train'): ", "class folder"]),
        (the_same_twice, ["test: 12 images instead of 6", "train and test hold the same images"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_damage_is_named(damage, said, animals):
    damage(animals)
    faults = "\n".join(check_data(suite(animals)).faults)
    assert all(words in faults for words in said), faults


def test_everything_that_is_wrong_is_told_at_once(animals):
    one_less(animals)
    cut_off(animals)
    other_class(animals)
    faults = check_data(suite(animals)).faults
    assert [fault.partition(":")[0] for fault in faults[:2]] == ["train", "test"]
    assert len(faults) == 3


def test_a_missing_split_does_not_hide_what_the_other_lacks(animals):
    emptied(animals)
    one_less(animals)
    faults = check_data(suite(animals)).faults
    assert len(faults) == 2 and faults[0].startswith("test (") and "11 images" in faults[1]


def test_mended_data_pass_in_the_same_process(animals):
    one_more(animals)
    assert check_data(suite(animals)).faults
    (animals / "test" / "bee" / "more.jpg").unlink()
    assert check_data(suite(animals)).faults == []


def test_listed_images_that_are_not_there_are_counted(tmp_path):
    published.inat2019(tmp_path)
    shutil.rmtree(tmp_path / "train_val2019" / "Plants" / "1")
    data = {"source": "inaturalist", "train": "train2019", "test": "val2019"}
    faults = "\n".join(check_data(suite(tmp_path, data=data, about={**ABOUT, "counts": {}})).faults)
    assert "4 of 12 listed images are not in" in faults and "1 of 3 listed images" in faults


def test_unlabelled_images_and_empty_classes_are_told(tmp_path):
    for split in ("train", "test"):
        images = np.full((4, 8, 8, 3), len(split), np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.array([0, 0, 2, 2]))
    faults = check_data(suite(tmp_path, data={"source": "array"}, about={**ABOUT, "counts": {}})).faults
    assert faults == ["train: 1 classes have no image: '1'", "test: 1 classes have no image: '1'"]


def test_a_task_that_does_not_exist_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="did you mean 'classification'"):
        check_data(suite(tmp_path / "nowhere", task="clasification"))


# ---- classes of shifted test sets


def test_numbered_folders_are_places_in_trains_order(tmp_path):
    published.folders(tmp_path, {"train": CLASSES}, 2)
    published.folders(tmp_path, {"test": ("2", "0")}, 2)
    about = {**ABOUT, "counts": {}}
    shifted: dict[str, Any] = {"task": "shifted", "about": about}
    assert check_data(suite(tmp_path, options={"test_classes": "index"}, **shifted)).faults == []
    (fault,) = check_data(suite(tmp_path, options={"test_classes": "subset"}, **shifted)).faults
    assert "2 test classes are none of train's: '0', '2'" in fault


def test_class_maps_by_hand():
    train = ("ant", "bee", "cat", "dog")
    assert class_map(train, ("dog", "bee"), "subset").tolist() == [3, 1]
    assert class_map(train, ("0", "3"), "index").tolist() == [0, 3]
    assert class_map(train, train, "same").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("test", "how", "said"),
    [
        (("bee", "ant", "cat"), "same", "another order"),
        (("ant", "bee", "cow"), "same", "3 against 3; only in train: 'cat'; only in test: 'cow'"),
        (("cow",), "subset", "1 test classes are none of train's: 'cow'"),
        (("3",), "index", "no numbers from 0 to 2"),
        (("-1",), "index", "no numbers from 0 to 2"),
        (("1", "01"), "index", "mean one number"),
        (("ant",), "sbuset", "did you mean 'subset'"),
    ],
)
def test_classes_that_cannot_be_mapped_are_told(test, how, said):
    with pytest.raises(UserError, match=said):
        class_map(("ant", "bee", "cat"), test, how)
