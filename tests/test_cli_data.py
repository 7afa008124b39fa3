"""The command `singer-bench data`: exit codes, words on the right stream, conversion, nothing heavy without need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import yaml

from harness.cli import main as cli

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


@pytest.fixture
def animals(tmp_path) -> Path:
    """12 training and 6 test images of three classes."""
    published.folders(tmp_path, {"train": CLASSES}, 4)
    published.folders(tmp_path, {"test": CLASSES}, 2)
    return tmp_path


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
    (animals / "train" / "bee" / "train-0.jpg").unlink()
    path = animals / "test" / "cat" / "test-0.jpg"
    path.write_bytes(path.read_bytes()[:300])
    code, out, err = here("check", file_of(animals), "--root", animals)
    assert code == 2 and "ready:" not in out
    for words in ("11 images instead of 12", "cat/test-0.jpg", "https://example.org/animals", "train/CLASS/*.jpg"):
        assert words in err
    assert "Traceback" not in err


def test_settings_change_what_is_checked(animals, here):
    (animals / "train" / "bee" / "train-0.jpg").unlink()
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
        "import sys\nfrom harness.cli.main import main\n"
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
