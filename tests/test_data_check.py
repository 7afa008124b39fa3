"""`singer-bench data check`: what is whole passes; whatever is wrong is told at once, with where to get it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import yaml

from harness import cli
from harness.class_maps import class_map
from harness.data_check import check_data
from harness.errors import UserError
from harness.suites import parse_suite

ROOT = Path(__file__).parents[1]
TINY_IMAGENET = ROOT.parent / "shared" / "data" / "tiny-imagenet"
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
    from harness.suites import read_suite

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


# ---- the command


@pytest.fixture
def here(monkeypatch, capsys):
    """The command in this process: exit code, what it printed, what it complained of."""

    def called(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["singer-bench", "data", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as done:
            code = int(done.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return called


def file_of(folder: Path, **changes: Any) -> Path:
    path = folder / "animals.yaml"
    path.write_text(yaml.safe_dump({"task": "classification", "data": {"source": "folder"}, "about": ABOUT, **changes}))
    return path


def test_the_command_says_that_whole_data_are_ready(animals, here):
    path = file_of(animals)
    code, out, err = here("check", path, "--root", animals)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"ready: tasks: [{{suite: {path}, root: {animals}}}]"


def test_what_is_missing_is_exit_code_2_with_where_to_get_it(animals, here):
    one_less(animals)
    cut_off(animals)
    code, out, err = here("check", file_of(animals), "--root", animals)
    assert code == 2 and "ready:" not in out
    for words in ("11 images instead of 12", "cat/test-0.jpg", "https://example.org/animals", "train/CLASS/*.jpg"):
        assert words in err
    assert "Traceback" not in err


def test_settings_change_what_is_checked(animals, here):
    one_less(animals)
    path = file_of(animals)
    assert here("check", path, "--root", animals, "--set", "about.counts.train.images=11")[0] == 0
    code, _, err = here("check", path, "--root", animals, "--set", "data.tset=x")
    assert code == 2 and "did you mean 'test'?" in err


def test_a_root_that_does_not_exist_says_what_to_put_there(tmp_path, here):
    code, _, err = here("check", "cifar10", "--root", tmp_path / "nowhere")
    assert code == 2 and "cifar-10-batches-py" in err


def test_an_unknown_suite_is_named_with_the_nearest(tmp_path, here):
    code, _, err = here("check", "imagenet-1k", "--root", tmp_path)
    assert code == 2 and "did you mean 'imagenet1k'?" in err


def test_help_and_the_list_of_suites_import_nothing_heavy():
    code = (
        "import sys\nfrom harness.cli import main\n"
        "for args in (['data', '--help'], ['data', 'list'], ['data', 'check', '--help']):\n"
        "    sys.argv = ['singer-bench', *args]\n"
        "    try:\n        main()\n    except SystemExit as done:\n        assert not done.code\n"
        "print([m for m in ('torch', 'torchvision', 'timm', 'numpy', 'h5py') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]" and "food101" in done.stdout


def test_preparing_writes_what_the_depth_source_reads(tmp_path, here):
    import h5py

    from tasks.datasets.depth_folder import DepthFolder

    mat, splits, out = tmp_path / "nyu.mat", tmp_path / "train.txt", tmp_path / "nyu"
    with h5py.File(mat, "w") as file:
        file["images"] = np.arange(4 * 3 * 8 * 6, dtype=np.uint32).reshape(4, 3, 8, 6).astype(np.uint8)
        file["rawDepths"] = np.full((4, 8, 6), 2.5, np.float32)
    splits.write_text("1 3\n")
    code, said, err = here("prepare", "nyuv2", "--mat", mat, "--splits", splits, "-o", out, "--quiet")
    assert (code, err) == (0, "") and "4 images with depth" in said
    train = DepthFolder(out, "train", scale=0.001, max_m=10.0)
    depth = train.read(0).depth_m
    assert len(train) == 2 and depth is not None and depth.shape == (6, 8) and np.allclose(depth, 2.5)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nyu",), "did you mean 'nyuv2'"),
        (("nyuv2", "--depths", "rawdepth"), "did you mean 'rawDepths'"),
        (("nyuv2",), "no.mat"),
    ],
)
def test_what_cannot_be_prepared_is_told(args, said, tmp_path, here):
    code, _, err = here("prepare", *args, "--mat", tmp_path / "no.mat", "-o", tmp_path / "out")
    assert code == 2 and said in err and "Traceback" not in err


@pytest.mark.skipif(not TINY_IMAGENET.is_dir(), reason="needs ../shared/data/tiny-imagenet")
def test_real_tars_are_checked(tmp_path, here):
    counts = {"train": {"images": 15000, "classes": 100}, "test": {"images": 3000, "classes": 100}}
    data = {"source": "tar", "train": "train.tar", "test": "val.tar"}
    path = file_of(tmp_path, data=data, about={**ABOUT, "counts": counts})
    code, out, err = here("check", path, "--root", TINY_IMAGENET)
    assert (code, err) == (0, "") and "train: 15,000 images, 100 classes; 100 of its images opened" in out
    code, _, err = here("check", path, "--root", TINY_IMAGENET, "--set", "data.test=novel.tar")
    assert code == 2 and "1,200 images instead of 3,000 and 40 classes instead of 100" in err
