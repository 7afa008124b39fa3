"""Segmentation data through mmsegmentation: files in the layouts of ADE20K, Cityscapes, Pascal Context and CamVid."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import UserError
from harness.mmseg_guard import COMPILED, mmseg, operators_compiled
from tasks.datasets.mmseg_source import Mmseg

ROOT = Path(__file__).parents[1]
CAMVID = ROOT.parent / "shared" / "data" / "camvid"
SIZE = (14, 20)  # height, width
OWN = {"classes": ("wall", "floor", "door")}


def image_bytes(kind: str = "JPEG", size: tuple[int, int] = SIZE, **options) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def label_bytes(labels: np.ndarray, palette: bool = False) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(labels)
    if palette:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(stream, "PNG")
    return stream.getvalue()


def drawn(classes: int, seed: int = 0, first: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(first, first + classes, SIZE).astype(np.uint8)


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def folder(root: Path, labels: dict[str, np.ndarray] | None = None, split: str = "train") -> Path:
    labels = {"a": drawn(3), "b": drawn(3, 1)} if labels is None else labels
    files = {f"images/{split}/{k}.jpg": image_bytes() for k in labels}
    return write(root, files | {f"annotations/{split}/{k}.png": label_bytes(v) for k, v in labels.items()})


def error_of(root: Path, split: str = "train", **options) -> str:
    with pytest.raises(UserError) as raised:
        Mmseg(root, split, **OWN | options)
    return str(raised.value)


# ---- layouts


def test_ade20k_ignores_label_0_and_counts_from_1(tmp_path):
    labels = drawn(151)
    files = {
        "images/validation/ADE_val_1.jpg": image_bytes(),
        "annotations/validation/ADE_val_1.png": label_bytes(labels),
    }
    source = Mmseg(write(tmp_path, files), "validation", type="ADE20KDataset")
    assert len(source.segmentation_classes) == len(set(source.segmentation_classes)) == 150
    assert source.segmentation_classes[:2] == ("wall", "building") and len(source) == 1
    mask = source.read(0).mask
    assert mask is not None and mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.where(labels == 0, 255, labels.astype(int) - 1))


def test_cityscapes_finds_its_pairs_by_city_and_suffix(tmp_path):
    labels = {
        "ulm/ulm_000000_000019": drawn(19),
        "bonn/bonn_000001_000019": np.where(drawn(2) > 0, 255, 18).astype(np.uint8),
    }
    files = {f"leftImg8bit/val/{k}_leftImg8bit.png": image_bytes("PNG") for k in labels}
    files |= {f"gtFine/val/{k}_gtFine_labelTrainIds.png": label_bytes(v) for k, v in labels.items()}
    files |= {f"gtFine/val/{k}_gtFine_labelIds.png": label_bytes(v) for k, v in labels.items()}  # another suffix
    source = Mmseg(write(tmp_path, files), "val", type="CityscapesDataset")
    assert [source.sample_name(i) for i in range(2)] == [f"{k}_leftImg8bit.png" for k in sorted(labels)]
    assert source.segmentation_classes[0] == "road" and len(source.segmentation_classes) == 19
    for i, name in enumerate(sorted(labels)):
        np.testing.assert_array_equal(source.read(i).mask, labels[name])


def test_pascal_context_reads_what_its_list_names(tmp_path):
    labels = {name: drawn(60, i) for i, name in enumerate(("2008_1", "2008_2", "2008_3"))}
    files = {f"JPEGImages/{k}.jpg": image_bytes() for k in (*labels, "not_labelled")}
    files |= {f"SegmentationClassContext/{k}.png": label_bytes(v, palette=True) for k, v in labels.items()}
    files |= {"ImageSets/SegmentationContext/val.txt": b"2008_3\n2008_1\n"}
    source = Mmseg(write(tmp_path, files), "val", type="PascalContextDataset59")
    assert [source.sample_name(i) for i in range(2)] == ["2008_3.jpg", "2008_1.jpg"]
    np.testing.assert_array_equal(
        source.read(0).mask, np.where(labels["2008_3"] == 0, 255, labels["2008_3"].astype(int) - 1)
    )


def test_a_folder_of_ones_own_needs_names_alone(tmp_path):
    source = Mmseg(folder(tmp_path), "train", **OWN)
    assert source.segmentation_classes == OWN["classes"] and source.labels().tolist() == [-1, -1]
    sample = source.read(1)
    assert sample.image.size == SIZE[::-1] and sample.image.mode == "RGB"
    np.testing.assert_array_equal(sample.mask, drawn(3, 1))
    assert "give data.options.classes" in error_of(tmp_path, classes=None)


def test_folders_list_and_suffixes_can_be_told(tmp_path):
    files = {"rgb/test/x_i.png": image_bytes("PNG"), "gt/x_l.png": label_bytes(drawn(3)), "lists/test.txt": b"x\n"}
    options = {"images": "rgb/{split}", "annotations": "gt", "listing": "lists/{split}.txt"}
    source = Mmseg(write(tmp_path, files), "test", image_suffix="_i.png", label_suffix="_l.png", **options, **OWN)
    np.testing.assert_array_equal(source.read(0).mask, drawn(3))


def test_a_choice_of_classes_ignores_the_rest(tmp_path):
    labels = np.array([[0, 1, 2, 3] * 5] * SIZE[0], dtype=np.uint8)  # road, sidewalk, building, wall
    files = {
        "leftImg8bit/val/c_leftImg8bit.png": image_bytes("PNG"),
        "gtFine/val/c_gtFine_labelTrainIds.png": label_bytes(labels),
    }
    write(tmp_path, files)
    source = Mmseg(tmp_path, "val", type="CityscapesDataset", classes=("wall", "road"))
    np.testing.assert_array_equal(source.read(0).mask[0, :4], [1, 255, 255, 0])
    assert "subset" in error_of(tmp_path, "val", type="CityscapesDataset", classes=("wall", "moon"))


def test_reduce_zero_label_can_be_told(tmp_path):
    source = Mmseg(folder(tmp_path, {"a": drawn(4)}), "train", reduce_zero_label=True, **OWN)
    np.testing.assert_array_equal(source.read(0).mask, np.where(drawn(4) == 0, 255, drawn(4).astype(int) - 1))


def test_an_image_is_turned_as_its_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "images/train/a.jpg": image_bytes(size=SIZE[::-1], exif=exif),
        "annotations/train/a.png": label_bytes(drawn(3)),
    }
    assert Mmseg(write(tmp_path, files), "train", **OWN).read(0).image.size == SIZE[::-1]


# ---- mistakes


def test_an_unknown_type_is_told_with_the_nearest(tmp_path):
    assert "did you mean 'ADE20KDataset'?" in error_of(tmp_path, type="ADE20K")
    assert "no segmentation data set" in error_of(tmp_path, type="MultiImageMixDataset")  # lists no pairs


def test_missing_places_and_pairs_are_named(tmp_path):
    folder(tmp_path)
    assert "no 'tain'" in error_of(tmp_path, "tain") and "did you mean 'train'?" in error_of(tmp_path, "tain")
    assert "no image ending in '.bmp'" in error_of(tmp_path, image_suffix=".bmp")
    (tmp_path / "images/train/a.jpg").unlink()
    assert "1 label maps" in error_of(tmp_path) and "'a.png'" in error_of(tmp_path)
    (tmp_path / "annotations/train/b.png").unlink()
    assert "1 of 1 label maps are missing" in error_of(tmp_path) and "'b.png'" in error_of(tmp_path)


def test_a_list_that_names_what_is_not_there_or_twice_is_refused(tmp_path):
    folder(tmp_path)
    for text, said in (("a\nc\n", "1 of 2 images are missing"), ("a\nb\na\n", "'a.jpg'")):
        (tmp_path / "list.txt").write_text(text)
        assert said in error_of(tmp_path, listing="list.txt")


BROKEN = {
    "a cut label map": (
        ("annotations", "png"),
        lambda data: data[: len(data) // 2],
        "label map 'a.png' cannot be read",
    ),
    "an empty label map": (("annotations", "png"), lambda data: b"", "label map 'a.png' cannot be read"),
    "a cut image": (("images", "jpg"), lambda data: data[: len(data) // 2], "runcated"),
    "another size": (
        ("annotations", "png"),
        lambda data: label_bytes(drawn(3).T.copy()),
        "14 x 20 pixels, the image 20 x 14",
    ),
    "a strange class": (("annotations", "png"), lambda data: label_bytes(drawn(3) + np.uint8(1)), "holds class 3"),
    "16 bits": (("annotations", "png"), lambda data: label_bytes(drawn(3).astype(np.uint16) + 256), "values up to 258"),
    "colours": (("annotations", "png"), lambda data: image_bytes("PNG"), "pixels are RGB"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_named_and_not_read(tmp_path, fault):
    (where, suffix), breaking, said = BROKEN[fault]
    path = folder(tmp_path) / where / "train" / f"a.{suffix}"
    path.write_bytes(breaking(path.read_bytes()))
    source = Mmseg(tmp_path, "train", **OWN)
    with pytest.raises((OSError, ValueError)) as raised:
        source.read(0)
    assert said in str(raised.value)
    source.read(1)  # the other one is whole


def test_16_bits_that_hold_small_numbers_are_read(tmp_path):
    source = Mmseg(folder(tmp_path, {"a": drawn(3).astype(np.uint16)}), "train", **OWN)
    np.testing.assert_array_equal(source.read(0).mask, drawn(3))


# ---- identity, workers


def test_identity_holds_names_sizes_and_meaning_and_no_path(tmp_path):
    here, there = (Mmseg(folder(tmp_path / place), "train", **OWN).identity() for place in ("here", "there"))
    assert here == there
    assert Mmseg(tmp_path / "here", "train", classes=("wall", "door", "floor")).identity() != here
    assert Mmseg(tmp_path / "here", "train", reduce_zero_label=True, **OWN).identity() != here
    path = tmp_path / "here/annotations/train/a.png"
    path.write_bytes(path.read_bytes() + b" ")
    assert Mmseg(tmp_path / "here", "train", **OWN).identity() != here
    (tmp_path / "there/images/train/a.jpg").rename(tmp_path / "there/images/train/c.jpg")
    (tmp_path / "there/annotations/train/a.png").rename(tmp_path / "there/annotations/train/c.png")
    assert Mmseg(tmp_path / "there", "train", **OWN).identity() != here


def test_a_source_goes_through_pickle_to_a_worker(tmp_path):
    source = pickle.loads(pickle.dumps(Mmseg(folder(tmp_path), "train", **OWN)))
    np.testing.assert_array_equal(source.read(0).mask, drawn(3))


@pytest.mark.skipif(not CAMVID.is_dir(), reason="../shared/data is absent")
def test_camvid_reads_whole():
    names = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
    sources = {split: Mmseg(CAMVID, split, classes=names) for split in ("train", "val", "test")}
    assert {split: len(source) for split, source in sources.items()} == {"train": 367, "val": 101, "test": 233}
    sample = sources["test"].read(0)
    assert sample.image.size == (480, 360) and sample.mask.shape == (360, 480)
    assert set(np.unique(sample.mask)) <= {*range(11), 255}


# ---- the import guard


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(operators_compiled(), reason="the full mmcv is installed, nothing is put in its place")
def test_the_stand_in_is_gone_and_an_operator_that_is_called_says_what_is_missing():
    mmseg("mmseg.datasets")
    assert COMPILED not in sys.modules
    import torch

    focal = mmseg("mmseg.models.losses.focal_loss")._sigmoid_focal_loss
    with pytest.raises(RuntimeError, match="install the full mmcv"):
        focal(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 2.0, 0.25, None, "mean")


def test_where_mmcv_has_its_operators_nothing_is_put_in_their_place():
    """A made-up compiled module on the path: it is the one that mmsegmentation gets."""
    code = """
import sys, types, importlib.machinery, mmcv
class Compiled(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return lambda *a, **k: 'compiled ' + name
class Finder:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == 'mmcv._ext' else None
    def create_module(self, spec):
        return Compiled(spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Finder())
from harness.mmseg_guard import mmseg, operators_compiled
mmseg('mmseg.datasets')
assert operators_compiled()
print(sys.modules['mmcv._ext'].nms())
"""
    done = run_python(code)
    assert done.stdout.strip() == "compiled nms", done.stderr


def test_without_mmsegmentation_the_error_says_what_to_install():
    code = """
import sys
sys.modules['mmseg'] = None
from harness.errors import UserError
from harness.mmseg_guard import mmseg
try:
    mmseg('mmseg.datasets')
except UserError as error:
    print(error)
assert 'mmcv._ext' not in sys.modules
"""
    done = run_python(code)
    assert "mmsegmentation cannot be imported" in done.stdout and "mmcv-lite 2.1" in done.stdout, done.stderr
