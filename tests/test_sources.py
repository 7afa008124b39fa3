"""File sources: what is read is what was written, whatever the format, and every mistake is named."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from harness.errors import UserError
from harness.sources import Source
from tasks.datasets.array import Array
from tasks.datasets.folder import Folder
from tasks.datasets.images import decode, to_rgb
from tasks.datasets.tar import Tar
from tasks.datasets.timm_source import TimmSource

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
CLASSES = ("cat2", "cat10", "dog")  # natural order: 2 before 10


def encoded(value: int, kind: str = "PNG", size: int = 12) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(stream, kind)
    return stream.getvalue()


def files() -> dict[str, bytes]:
    """Two images a class; the grey value of image j of class i is 40 i + 10 j."""
    return {f"{name}/{j}.png": encoded(40 * i + 10 * j) for i, name in enumerate(CLASSES) for j in range(2)}


def write_folder(folder: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_tar(path: Path, contents: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def as_folder(root: Path, contents: dict[str, bytes]) -> Source:
    write_folder(root / "train", contents)
    return Folder(root, "train")


def as_tar(root: Path, contents: dict[str, bytes]) -> Source:
    write_tar(root / "train.tar", contents)
    return Tar(root, "train.tar")


def as_folder_of_tars(root: Path, contents: dict[str, bytes]) -> Source:
    for name in {name.partition("/")[0] for name in contents}:
        part = {key.partition("/")[2]: data for key, data in contents.items() if key.startswith(f"{name}/")}
        write_tar(root / "train" / f"{name}.tar", part)
    return Tar(root, "train")


def as_tar_of_tars(root: Path, contents: dict[str, bytes]) -> Source:
    as_folder_of_tars(root / "parts", contents)
    parts = sorted((root / "parts" / "train").iterdir())
    write_tar(root / "train.tar", {part.name: part.read_bytes() for part in parts})
    return Tar(root, "train.tar")


makers = pytest.mark.parametrize("make", [as_folder, as_tar, as_folder_of_tars, as_tar_of_tars])
plain_makers = pytest.mark.parametrize("make", [as_folder, as_tar])


@makers
def test_what_is_read_is_what_was_written(make: Callable, tmp_path: Path) -> None:
    source = make(tmp_path, files())
    assert source.classes == CLASSES and len(source) == 6
    for index, label in enumerate(source.labels()):
        sample, name = source.read(index), source.sample_name(index)
        folder, _, file = name.rpartition("/")
        assert sample.label == label == CLASSES.index(folder)
        assert sample.image.mode == "RGB"
        assert np.array(sample.image)[0, 0].tolist() == [40 * label + 10 * int(file[0])] * 3


@plain_makers
def test_identity_is_of_the_contents_not_of_the_place(make: Callable, tmp_path: Path) -> None:
    one, same = make(tmp_path / "one", files()), make(tmp_path / "two", dict(reversed(files().items())))
    bigger = make(tmp_path / "three", {**files(), "dog/1.png": encoded(90, size=40)})
    renamed = make(tmp_path / "four", {name.replace("dog", "fox"): data for name, data in files().items()})
    assert one.identity() == same.identity()
    assert len({one.identity(), bigger.identity(), renamed.identity()}) == 3


def test_folder_and_tar_of_the_same_files_are_the_same_data(tmp_path: Path) -> None:
    assert as_folder(tmp_path, files()).identity() == as_tar(tmp_path, files()).identity()


@plain_makers
def test_class_names_that_tie_in_natural_order_have_one_order(make: Callable, tmp_path: Path) -> None:
    # "a1" and "a01" are equal to timm's reader, which then orders them by the chance of a set
    source = make(tmp_path, {f"{name}/x.png": encoded(9) for name in ("a1", "a01", "a001", "a0001")})
    assert source.classes == ("a0001", "a001", "a01", "a1")
    assert [source.sample_name(i).partition("/")[0] for i in range(4)] == [source.classes[i] for i in source.labels()]


@makers
def test_a_cut_off_image_is_an_error_and_the_others_are_not(make: Callable, tmp_path: Path) -> None:
    whole = encoded(50, "JPEG", size=64)
    source = make(
        tmp_path, {**files(), "dog/cut.jpg": whole[: len(whole) // 2], "dog/none.png": b"", "dog/x.png": b"x"}
    )
    broken = []
    for index in range(len(source)):
        try:
            source.read(index)
        except (OSError, ValueError):
            broken.append(source.sample_name(index))
    assert broken == ["dog/cut.jpg", "dog/none.png", "dog/x.png"]


@makers
def test_worker_processes_read_the_same_as_this_one(make: Callable, tmp_path: Path) -> None:
    source = make(tmp_path, files())
    here = [np.array(source.read(i).image) for i in range(6)]
    numbers = DataLoader(range(6), batch_size=1, num_workers=2, collate_fn=lambda batch: source.read(batch[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside other threads: not what is tested here
        there = [np.array(sample.image) for sample in numbers]
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity() == source.identity() and np.array_equal(np.array(copy.read(3).image), here[3])


@makers
def test_nothing_is_written_beside_the_data(make: Callable, tmp_path: Path) -> None:
    make(tmp_path, files())
    places = [folder for folder in (tmp_path, *tmp_path.rglob("*")) if folder.is_dir()]
    before = sorted(tmp_path.rglob("*"))
    for place in places:
        place.chmod(0o555)
    try:
        kind = Folder if make is as_folder else Tar
        source = kind(tmp_path, "train" if (tmp_path / "train").is_dir() else "train.tar")
        assert source.classes[source.read(0).label] == "cat10" and source.identity()
    finally:
        for place in places:
            place.chmod(0o755)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_stale_index_beside_a_tar_is_not_believed(tmp_path: Path) -> None:
    source = as_tar(tmp_path, files())
    (tmp_path / "_train_tarinfos.pickle").write_bytes(pickle.dumps({"tartrees": []}))
    assert Tar(tmp_path, "train.tar").identity() == source.identity()


@pytest.mark.parametrize(
    ("kind", "split", "expected"),
    [
        (Folder, "trian", ["did you mean 'train'", "root/split/class/image"]),
        (Folder, "train.tar", ["is a file", "'tar'"]),
        (Folder, "empty", ["no images", ".jpeg"]),
        (Folder, "texts", ["no images", ".webp"]),
        (Folder, "flat", ["outside any class folder"]),
        (Folder, "nested", ["'a/images'", "'b/images'", "one class"]),
        (Tar, "train", ["without .tar files", "train.tar"]),
        (Tar, "trian.tar", ["did you mean 'train.tar'"]),
        (Tar, "text.tar", ["cannot be read as a tar"]),
        (Tar, "cut.tar", ["cannot be read as a tar"]),
        (Tar, "train.tar.gz", ["does not end in .tar"]),
        (Tar, "empty.tar", ["no images"]),
        (Tar, "flat.tar", ["outside any class folder"]),
    ],
)
def test_a_mistake_names_the_path_and_the_remedy(kind: type, split: str, expected: list[str], tmp_path: Path) -> None:
    as_folder(tmp_path, files())
    as_tar(tmp_path, files())
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "texts", {"a/x.webp": b"?"})
    write_folder(tmp_path / "flat", {"x.png": encoded(1)})
    write_folder(tmp_path / "nested", {"a/images/x.png": encoded(1), "b/images/y.png": encoded(1)})
    (tmp_path / "text.tar").write_text("not a tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "train.tar").read_bytes()[:1700])
    (tmp_path / "train.tar.gz").write_bytes(b"")
    write_tar(tmp_path / "empty.tar", {"readme.txt": b"nothing"})
    write_tar(tmp_path / "flat.tar", {"x.png": encoded(1)})
    with pytest.raises(UserError) as error:
        kind(tmp_path, split)
    assert all(part in str(error.value) for part in (split, *expected)), error.value


@pytest.mark.parametrize("kind", [Folder, Tar, Array])
def test_an_absent_root_names_the_first_part_that_is_absent(kind: type, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"no 'imags' in .*did you mean 'images'"):
        kind(tmp_path / "imags" / "deep", "train")
    with pytest.raises(UserError, match=r"needs data\.root"):
        kind(None, "train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@plain_makers
def test_what_may_not_be_read_is_a_users_error(make: Callable, tmp_path: Path) -> None:
    make(tmp_path, files())
    for path in (tmp_path / "train", tmp_path / "train.tar"):
        if path.exists():
            path.chmod(0)
    with pytest.raises(UserError):
        Folder(tmp_path, "train") if make is as_folder else Tar(tmp_path, "train.tar")
    (tmp_path / "train").chmod(0o755)


GREY16 = np.array([[0, 257, 32896, 65535]], np.uint16)
RGB = np.array([[[10, 20, 30], [200, 100, 0]]], np.uint8)


def palette_with_transparency() -> Image.Image:
    image = Image.fromarray(RGB).quantize(2)
    image.info["transparency"] = bytes([0, 255])
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(np.array([[7, 9]], np.uint8)), [[[7] * 3, [9] * 3]]),
        (Image.fromarray(np.array([[True, False]])), [[[255] * 3, [0] * 3]]),
        (Image.fromarray(GREY16), [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]),
        (Image.fromarray(GREY16.astype(np.int32)), [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]),
        (Image.fromarray(np.dstack([RGB, np.array([[0, 128]], np.uint8)])), RGB),
        (Image.fromarray(255 - np.dstack([RGB, np.full((1, 2, 1), 255, np.uint8)]), "CMYK"), RGB),
        (palette_with_transparency(), RGB),
    ],
    ids=["rgb", "grey", "bits", "grey16", "grey16in32", "alpha", "cmyk", "palette"],
)
def test_every_kind_of_image_becomes_rgb(image: Image.Image, expected: object) -> None:
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    np.testing.assert_array_equal(np.array(rgb), expected)


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "I;16"), ("PNG", "LA"), ("PNG", "P"), ("JPEG", "CMYK"), ("PNG", "1")]
)
def test_every_kind_of_file_is_read_as_what_it_shows(kind: str, mode: str) -> None:
    grey = np.tile(np.array([0, 255], np.uint8), (16, 8))  # black and white columns: exact in every mode
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind, quality=100) if kind == "JPEG" else image.save(stream, kind)
    stream.seek(0)
    assert np.abs(np.array(decode(stream)).astype(int) - grey[..., None]).max() <= 2


def test_values_of_unknown_range_are_refused() -> None:
    with pytest.raises(ValueError, match="32-bit"):
        to_rgb(Image.fromarray(np.array([[70000]], np.int32)))
    with pytest.raises(ValueError, match="floats"):
        to_rgb(Image.fromarray(np.array([[0.5]], np.float32)))


def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "images": draw.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8),
        "labels": np.array([0, 1, -1, 1]),
        "masks": draw.integers(0, 4, (4, 6, 5)),
        "depth_m": draw.uniform(0, 9, (4, 6, 5)),
        "class_names": np.array(["left", "right"]),
    }


def test_array_gives_back_what_the_file_holds(tmp_path: Path) -> None:
    given = arrays()
    np.savez(tmp_path / "train.npz", **given)
    source, memory = Array(tmp_path, "train"), Array.of(**given)
    assert source.classes == ("left", "right") and source.labels().tolist() == [0, 1, -1, 1]
    assert source.identity() == memory.identity() and source.sample_name(2) == "train[2]"
    for i in range(4):
        sample = source.read(i)
        assert sample.mask is not None and sample.mask.dtype == np.uint8
        assert sample.depth_m is not None and sample.depth_m.dtype == np.float32
        np.testing.assert_array_equal(np.array(sample.image), given["images"][i])
        np.testing.assert_array_equal(sample.mask, given["masks"][i])
        np.testing.assert_allclose(sample.depth_m, given["depth_m"][i], rtol=1e-6)


def test_array_says_what_its_masks_hold_and_how_far_its_depth_goes() -> None:
    source = Array.of(**arrays())
    assert source.segmentation_classes == ("0", "1", "2", "3")
    assert source.depth_range_m == pytest.approx((source.depth_m.min(), source.depth_m.max()))
    named = Array.of(**arrays(), segmentation_classes=list("abcd"), depth_range_m=(0.5, 8.0))
    assert named.segmentation_classes == tuple("abcd") and named.depth_range_m == (0.5, 8.0)
    assert len({source.identity(), named.identity()}) == 2
    bare = Array.of(arrays()["images"], arrays()["labels"])
    assert bare.segmentation_classes == () and bare.depth_range_m is None


def test_array_takes_grey_images_and_numbers_its_classes() -> None:
    source = Array.of(np.full((3, 4, 4), 7, np.uint8), [2, 0, 1])
    assert source.classes == ("0", "1", "2")
    assert np.array(source.read(1).image).shape == (4, 4, 3) and source.read(1).mask is None


@pytest.mark.parametrize("key", ["images", "labels", "masks", "depth_m", "class_names"])
def test_arrays_identity_moves_with_every_part(key: str) -> None:
    changed = arrays()
    changed[key] = np.array(["left", "wrong"]) if key == "class_names" else changed[key][::-1]
    assert Array.of(**changed).identity() != Array.of(**arrays()).identity()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": np.zeros((4, 6, 5, 4), np.uint8)}, "uint8 [N, H, W, 3]"),
        ({"images": np.zeros((4, 6, 5, 3), np.float32)}, "float32"),
        ({"images": np.zeros((0, 6, 5, 3), np.uint8)}, "nothing in them"),
        ({"labels": np.zeros(3, int)}, "int64 [3]"),
        ({"labels": np.zeros(4)}, "float64"),
        ({"labels": np.array([0, 1, 2, 0])}, "0 .. 1"),
        ({"labels": np.array([0, 1, -2, 0])}, "-2"),
        ({"masks": np.zeros((4, 5, 6), int)}, "[4, 6, 5]"),
        ({"masks": np.full((4, 6, 5), 300)}, "300"),
        ({"depth_m": np.full((4, 6, 5), -1.0)}, "negative"),
        ({"depth_m": np.full((4, 6, 5), np.nan)}, "non-finite"),
        ({"depth": np.zeros((4, 6, 5))}, "did you mean 'depth_m'"),
        ({"class_names": np.array([[1, 2]])}, "strings [C]"),
        ({"segmentation_classes": np.array(["one", "two"])}, "masks hold class 3"),
        ({"segmentation_classes": np.array(["one"]), "masks": None}, "and masks that use them"),
        ({"depth_range_m": np.array([2.0, 1.0])}, "[2.0, 1.0]"),
        ({"depth_range_m": np.array([1.0, 2.0]), "depth_m": None}, "smallest and the largest depth"),
        ({"labels": None}, "no 'labels'"),
        ({"labels": np.array([0, 1, None, 1], object)}, "allow_pickle"),
    ],
)
def test_a_wrong_array_is_named(change: dict, expected: str, tmp_path: Path) -> None:
    given = {key: value for key, value in {**arrays(), **change}.items() if value is not None}
    np.savez(tmp_path / "train.npz", **given)
    with pytest.raises(UserError) as error:
        Array(tmp_path, "train")
    assert expected in str(error.value) and "train.npz" in str(error.value)


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04broken"])
def test_a_file_that_is_no_npz_is_a_users_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"train\.npz cannot be read"):
        Array(tmp_path, "train")


def write_mnist(root: Path) -> None:
    """Raw files of torchvision's MNIST: image i is grey i, its label i modulo 10."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 20), ("t10k", 10)):
        header = np.array([2051, count, 28, 28], ">i4").tobytes()
        pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + pixels)
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(np.array([2049, count], ">i4").tobytes() + labels)


def test_timm_reads_a_torchvision_set(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    train, test = (TimmSource(tmp_path, split, dataset="torch/mnist") for split in ("train", "test"))
    assert (len(train), len(test)) == (20, 10) and train.classes[3] == "3 - three"
    assert train.labels().tolist() == [i % 10 for i in range(20)]
    sample = train.read(13)
    assert sample.label == 3 and sample.image.mode == "RGB" and np.array(sample.image)[5, 5].tolist() == [13] * 3
    assert train.identity() == TimmSource(tmp_path, "train", dataset="Torch/mnist").identity()
    assert train.identity() != test.identity() and train.sample_name(2) == "torch/mnist train[2]"


@pytest.mark.parametrize(
    ("dataset", "split", "expected"),
    [
        ("torchvision/mnist", "train", "did you mean 'torch'"),
        ("mnist", "train", "Known: hfds, torch, wds"),
        ("torch/mnist", "trian", "did you mean 'train'"),
        ("torch/cifar10", "train", "download"),
        ("torch/nonsense", "train", "nonsense"),
        ("tfds/mnist", "train", "stream"),
        ("hfids/mnist", "train", "use 'hfds/...'"),
    ],
)
def test_timms_silent_choices_are_errors_here(dataset: str, split: str, expected: str, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    with pytest.raises(UserError) as error:
        TimmSource(tmp_path, split, dataset=dataset)
    assert expected in str(error.value)


def test_timm_needs_a_root_that_exists(tmp_path: Path) -> None:
    for root in (None, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"data\.root"):
            TimmSource(root, "train", dataset="torch/mnist")


@pytest.mark.parametrize(("prefix", "package"), [("hfds", "datasets"), ("wds", "webdataset")])
def test_a_missing_library_is_named(prefix: str, package: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=f"pip install {package}"):
        TimmSource(tmp_path, "train", dataset=f"{prefix}/x")


def test_timm_reads_a_local_hugging_face_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_folder(tmp_path / "set" / "train", files())
    whole = encoded(50, "JPEG", size=64)
    write_folder(tmp_path / "set" / "train", {"dog/cut.jpg": whole[:300]})
    source = TimmSource(tmp_path / "cache", "train", dataset=f"hfds/{tmp_path / 'set'}")
    assert set(source.classes) == set(CLASSES) and len(source) == 7
    for index, label in enumerate(source.labels()):
        folder, file = Path(source.sample_name(index)).parts[-2:]
        assert source.classes[label] == folder
        if file == "cut.jpg":
            with pytest.raises((OSError, ValueError)):
                source.read(index)
        else:
            value = 40 * CLASSES.index(folder) + 10 * int(file[0])
            assert np.array(source.read(index).image)[0, 0].tolist() == [value] * 3
    for option, value in (("target_key", "lable"), ("input_key", "img")):
        with pytest.raises(UserError, match=option):
            TimmSource(tmp_path / "cache", "train", dataset=f"hfds/{tmp_path / 'set'}", **{option: value})


def test_timm_collects_a_webdataset(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    for shard in range(2):
        rows = range(3 * shard, 3 * shard + 3)
        pairs = [(f"{i:03d}.png", encoded(10 * i)) for i in rows] + [
            (f"{i:03d}.cls", f"{i % 2}".encode()) for i in rows
        ]
        write_tar(tmp_path / f"s-{shard}.tar", dict(sorted(pairs)))
    source = TimmSource(tmp_path, "s-{0..1}.tar", dataset="wds/")
    assert source.labels().tolist() == [0, 1, 0, 1, 0, 1] and source.classes == ("0", "1")
    assert [np.array(source.read(i).image)[0, 0, 0] for i in range(6)] == [0, 10, 20, 30, 40, 50]
    with pytest.raises(UserError, match="more than 5 samples"):
        TimmSource(tmp_path, "s-{0..1}.tar", dataset="wds/", limit=5)
    write_tar(tmp_path / "broken.tar", {"0.png": b"x", "0.cls": b"1", "1.png": encoded(1), "1.cls": b"1"})
    with pytest.raises(UserError, match="1 broken samples"):
        TimmSource(tmp_path, "broken.tar", dataset="wds/")


@pytest.mark.skipif(not (SHARED / "imagenet-sample").is_dir(), reason="shared/data/imagenet-sample is not here")
def test_real_class_folders_are_read() -> None:
    source = Folder(SHARED / "imagenet-sample", ".")
    assert len(source) == len(source.labels()) and source.labels().max() == len(source.classes) - 1
    for index in range(0, len(source), max(1, len(source) // 10)):
        sample = source.read(index)
        assert sample.image.mode == "RGB" and source.classes[sample.label] == source.sample_name(index).split("/")[0]
