"""NYU's labelled file as folders: the same pixels and metres, the official split, and a conversion that was killed."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from harness.datasets import nyuv2
from harness.datasets.nyuv2 import prepare_nyuv2, read_splits
from harness.errors import UserError
from tasks.datasets.depth_folder import DepthFolder

COUNT, HEIGHT, WIDTH = 5, 6, 8
TRAINING = [2, 3, 5]


def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Images [N, H, W, 3] uint8 and depths [N, H, W] metres with holes, as a person sees them."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (COUNT, HEIGHT, WIDTH, 3)).astype(np.uint8)
    depths = draw.uniform(0.7, 9.9, (COUNT, HEIGHT, WIDTH)).astype(np.float32)
    depths[:, 0, :3] = 0
    return images, depths


def matlab_file(path: Path, **changes: np.ndarray) -> Path:
    """As MATLAB writes it: every array's axes in reverse."""
    images, depths = arrays()
    parts = {
        "images": images.transpose(0, 3, 2, 1),
        "rawDepths": depths.transpose(0, 2, 1),
        "depths": depths.transpose(0, 2, 1) + 0.01,
    }
    with h5py.File(path, "w") as file:
        for key, array in (parts | changes).items():
            file[key] = array
    return path


def splits_file(path: Path, training: list[int], testing: list[int]) -> Path:
    scipy.io.savemat(path, {"trainNdxs": np.array([training]).T, "testNdxs": np.array([testing]).T})
    return path


@pytest.fixture
def given(tmp_path) -> tuple[Path, Path]:
    file = matlab_file(tmp_path / "nyu_depth_v2_labeled.mat")
    return file, splits_file(tmp_path / "splits.mat", TRAINING, [1, 4])


def read_back(root: Path) -> dict[str, DepthFolder]:
    return {split: DepthFolder(root, split, scale=0.001, max_m=10.0) for split in ("train", "test")}


def test_what_is_read_back_are_the_same_pixels_and_metres(tmp_path, given):
    assert prepare_nyuv2(tmp_path / "nyu", *given) == COUNT
    images, depths = arrays()
    found = read_back(tmp_path / "nyu")
    for split, numbers in (("train", TRAINING), ("test", [1, 4])):
        assert [found[split].sample_name(i) for i in range(len(numbers))] == [f"{n:05d}.png" for n in numbers]
        for i, number in enumerate(numbers):
            sample = found[split].read(i)
            np.testing.assert_array_equal(np.asarray(sample.image), images[number - 1])
            np.testing.assert_allclose(sample.depth_m, depths[number - 1], atol=0.00051)
            assert (sample.depth_m[0, :3] == 0).all()


def test_the_filled_depths_are_another_choice(tmp_path, given):
    prepare_nyuv2(tmp_path / "nyu", *given, depths="depths")
    np.testing.assert_allclose(read_back(tmp_path / "nyu")["test"].read(0).depth_m, arrays()[1][0] + 0.01, atol=0.00051)


def test_a_text_file_with_training_numbers_is_as_good_as_splits_mat(tmp_path, given):
    (tmp_path / "train.txt").write_text("2 3\n5\n")
    assert read_splits(tmp_path / "train.txt", COUNT) == read_splits(given[1], COUNT) == set(TRAINING)


def test_a_file_with_groups_needs_no_splits(tmp_path):
    images, depths = arrays()
    with h5py.File(tmp_path / "nyud.hdf5", "w") as file:
        for split, part in (("train", slice(0, 3)), ("test", slice(3, 5))):
            file[f"{split}/images"], file[f"{split}/depths"] = images[part], depths[part]
    assert prepare_nyuv2(tmp_path / "nyu", tmp_path / "nyud.hdf5", depths="depths") == COUNT
    test = read_back(tmp_path / "nyu")["test"]
    np.testing.assert_array_equal(np.asarray(test.read(1).image), images[4])
    np.testing.assert_allclose(test.read(1).depth_m, depths[4], atol=0.00051)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("where", ["image", "depth map"])
def test_a_killed_conversion_is_not_there_and_goes_on(tmp_path, given, monkeypatch, after, where):
    save, written = Image.Image.save, []

    def killed_while_writing(self, path, *args, **options):
        save(self, path, *args, **options)
        written.append(path)
        if len(written) == 2 * after + (1 if where == "image" else 2):
            path.write_bytes(path.read_bytes()[:20])  # half a file, under its temporary name
            monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # nobody cleans up after a kill
            raise Killed

    monkeypatch.setattr(Image.Image, "save", killed_while_writing)
    with pytest.raises(Killed):
        prepare_nyuv2(tmp_path / "nyu", *given)
    monkeypatch.undo()
    assert not (tmp_path / "nyu").exists()
    kept = sorted((tmp_path / ".nyu.unfinished").rglob("annotations/*/0*.png"))
    assert len(kept) == after
    times = [path.stat().st_mtime_ns for path in kept]

    seen = []
    assert prepare_nyuv2(tmp_path / "nyu", *given, progress=lambda done, total: seen.append((done, total))) == COUNT
    assert seen[-1] == (COUNT, COUNT) and not (tmp_path / ".nyu.unfinished").exists()
    moved = [tmp_path / "nyu" / path.relative_to(tmp_path / ".nyu.unfinished") for path in kept]
    assert [path.stat().st_mtime_ns for path in moved] == times  # what was whole was not written again
    prepare_nyuv2(tmp_path / "straight", *given)
    for split, source in read_back(tmp_path / "nyu").items():
        assert source.identity() == read_back(tmp_path / "straight")[split].identity()


def test_a_finished_folder_is_left_alone_and_another_is_never_overwritten(tmp_path, given):
    root = tmp_path / "nyu"
    prepare_nyuv2(root, *given)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert prepare_nyuv2(root, *given) == COUNT
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(UserError, match="other splits or depths; remove it"):
        prepare_nyuv2(root, *given, depths="depths")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match="mine holds something else"):
        prepare_nyuv2(tmp_path / "mine", *given)
    (tmp_path / "empty").mkdir()
    assert prepare_nyuv2(tmp_path / "empty", *given) == COUNT


def test_what_is_left_of_another_file_is_not_continued(tmp_path, given):
    left = tmp_path / ".nyu.unfinished"
    left.mkdir()
    (left / nyuv2.DONE).write_text(json.dumps({"file": "another"}))
    with pytest.raises(UserError, match="left of a conversion of another file; remove it"):
        prepare_nyuv2(tmp_path / "nyu", *given)


@pytest.mark.parametrize(
    ("depth", "said"), [(-0.5, r"-0.5 \.\. "), (np.nan, r"nan"), (99.0, r"\.\. 99 m"), (np.inf, "inf")]
)
def test_a_depth_that_is_none_names_the_image(tmp_path, given, depth, said):
    wrong = arrays()[1].transpose(0, 2, 1).copy()
    wrong[2, 4, 4] = depth
    file = matlab_file(tmp_path / "wrong.mat", rawDepths=wrong)
    with pytest.raises(UserError, match=rf"depth map 3 of train holds .*{said}"):
        prepare_nyuv2(tmp_path / "nyu", file, given[1])
    assert not (tmp_path / "nyu").exists()


@pytest.mark.parametrize(
    ("training", "testing", "said"),
    [
        ([1, 2], [3, 4], "2 training and 2 test images of 5"),
        ([1, 2, 3], [3, 4, 5], "an image twice"),
        ([0, 1, 2], [3, 4], "names image 0; the file has images 1 .. 5"),
        ([1, 2, 3, 4, 5], [], "5 training and 0 test"),
    ],
)
def test_splits_that_are_none_are_told(tmp_path, training, testing, said):
    with pytest.raises(UserError, match=said):
        read_splits(splits_file(tmp_path / "splits.mat", training, testing), COUNT)


def test_all_1449_images_must_be_split_as_the_official_file_splits_them(tmp_path):
    everything = list(range(1, 1450))
    assert len(read_splits(splits_file(tmp_path / "a.mat", everything[:795], everything[795:]), 1449)) == 795
    with pytest.raises(UserError, match="794 training and 655 test images; NYU's official split has 795 and 654"):
        read_splits(splits_file(tmp_path / "b.mat", everything[:794], everything[794:]), 1449)


def test_files_that_are_not_nyus_are_told(tmp_path, given):
    file, splits = given
    root = tmp_path / "nyu"
    with pytest.raises(UserError, match=r"no NYU file .*did you mean 'nyu_depth_v2_labeled.mat'"):
        prepare_nyuv2(root, tmp_path / "nyu_depth_v2_labelled.mat", splits)
    (tmp_path / "cut.mat").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"cut.mat is no HDF5 file.*cut off"):
        prepare_nyuv2(root, tmp_path / "cut.mat", splits)
    with pytest.raises(UserError, match=r"does not say which images are for testing; give the data set's splits.mat"):
        prepare_nyuv2(root, file)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["images"] = arrays()[0]
    with pytest.raises(UserError, match=r"has no 'rawDepths' in '/', only images"):
        prepare_nyuv2(root, tmp_path / "other.h5", splits)
    with pytest.raises(UserError, match="do not belong together"):
        prepare_nyuv2(root, matlab_file(tmp_path / "turned.mat", images=arrays()[0]), splits)
    (tmp_path / "words.txt").write_text("one two")
    with pytest.raises(UserError, match=r"words\.txt holds no splits"):
        read_splits(tmp_path / "words.txt", COUNT)
