"""Small data sets in the layouts in which the real ones are published, for tests: one colour a class."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5


def image(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (255 * (colour & 1), 255 * (colour >> 1 & 1), 8 * (colour % 30))).save(path)


def folders(root: Path, splits: Mapping[str, Sequence[str]], each: int) -> None:
    """root/SPLIT/CLASS/0.jpg ...: `each` images of every class."""
    for split, classes in splits.items():
        for number, name in enumerate(classes):
            for i in range(each):
                image(root / split / name / f"{split}-{i}.jpg", number)


def tars(root: Path, splits: Mapping[str, Sequence[str]], each: int) -> None:
    """root/SPLIT.tar with the same inside."""
    folders(root / "unpacked", splits, each)
    for split in splits:
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            tar.add(root / "unpacked" / split, arcname=".")


def food101(root: Path) -> None:
    meta = root / "food-101" / "meta"
    meta.mkdir(parents=True)
    for split, numbers in (("train", (1, 2, 3)), ("test", (4,))):
        listed = {name: [f"{name}/{i}" for i in numbers] for name in ("pie", "soup")}
        (meta / f"{split}.json").write_text(json.dumps(listed))
        for number, names in enumerate(listed.values()):
            for name in names:
                image(root / "food-101" / "images" / f"{name}.jpg", number)


def fgvc_aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    (data / "variants.txt").write_text("707-320\nDR-400\n")
    for split, numbers in (("trainval", range(4)), ("test", range(4, 6))):
        lines = [f"{i:07d} {('707-320', 'DR-400')[i % 2]}" for i in numbers]
        (data / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
        for i in numbers:
            image(data / "images" / f"{i:07d}.jpg", i % 2)


def oxford_pets(root: Path) -> None:
    annotations = root / "oxford-iiit-pet" / "annotations"
    annotations.mkdir(parents=True)
    for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
        lines = [f"{name}_{i} {label} 1 1" for label, name in ((1, "Abyssinian"), (2, "pug")) for i in numbers]
        (annotations / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            image(root / "oxford-iiit-pet" / "images" / f"{line.split()[0]}.jpg", int(line.split()[1]))


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Two flowers; torchvision knows its files by their MD5, which is replaced by that of these."""
    base = root / "flowers-102"
    for i in range(1, 7):
        image(base / "jpg" / f"image_{i:05d}.jpg", i % 2)
    savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]])})
    savemat(base / "setid.mat", {"trnid": np.array([[1, 2]]), "valid": np.array([[3, 4]]), "tstid": np.array([[5, 6]])})
    known = {
        key: (name, calculate_md5(base / name)) for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    patch.setattr(datasets.Flowers102, "_file_dict", {**datasets.Flowers102._file_dict, **known})
    patch.setattr(datasets.Flowers102, "classes", ["rose", "lotus"])


def cifar(root: Path, classes: int, patch: pytest.MonkeyPatch) -> None:
    """Two images of every class in the first batch and one in the test batch, as pickles with replaced MD5s."""
    cls = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    base = root / cls.base_folder
    base.mkdir(parents=True)
    key = "labels" if classes == 10 else "fine_labels"

    def batch(name: str, each: int) -> list[str]:
        labels = list(range(classes)) * each
        pixels = np.repeat(np.array(labels, np.uint8)[:, None], 3 * 32 * 32, axis=1)
        (base / name).write_bytes(pickle.dumps({"data": pixels, key: labels}))
        return [name, calculate_md5(base / name)]

    patch.setattr(cls, "train_list", [batch(cls.train_list[0][0], 2)])
    patch.setattr(cls, "test_list", [batch(cls.test_list[0][0], 1)])
    meta = base / cls.meta["filename"]
    meta.write_bytes(pickle.dumps({cls.meta["key"]: [f"thing {i}" for i in range(classes)]}))
    patch.setattr(cls, "meta", {**cls.meta, "md5": calculate_md5(meta)})


def inat2019(root: Path) -> None:
    categories = [{"id": i, "name": f"species {i}"} for i in (0, 1, 2)]
    for split, numbers in (("train2019", (0, 1, 2, 3)), ("val2019", (4,))):
        listed = [(100 * c + i, c, f"train_val2019/Plants/{c}/{i}.jpg") for c in (2, 0, 1) for i in numbers]
        raw = {
            "categories": categories,
            "images": [{"id": i, "file_name": name} for i, _, name in listed],
            "annotations": [{"id": i, "image_id": i, "category_id": c} for i, c, _ in reversed(listed)],
        }
        (root / f"{split}.json").write_text(json.dumps(raw))
        for _, c, name in listed:
            image(root / name, c)
