"""Omniglot read from its archives."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import UserError
from tasks.datasets.omniglot import Omniglot

DATA = Path(__file__).parents[2] / "shared" / "data" / "omniglot"


def drawing(value: bool) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((5, 5), value)).save(stream, "png")
    return stream.getvalue()


def archive(place: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(place / "small.zip", "w") as file:
        for name, data in names.items():
            file.writestr(name, data)
    return place


def test_a_class_is_a_character_of_an_alphabet(tmp_path):
    names = {f"small/{a}/character0{c}/{i}.png": drawing(c == 1) for a in "BA" for c in (1, 2) for i in (1, 2)}
    source = Omniglot(archive(tmp_path, {"small/": b"", **names}), "small")
    assert source.classes == ("A/character01", "A/character02", "B/character01", "B/character02")
    assert source.labels().tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and len(source) == 8
    assert source.read(0).image.getpixel((0, 0)) == (255, 255, 255) and source.read(2).label == 1
    assert source.read(2).image.mode == "RGB" and source.read(2).image.getpixel((0, 0)) == (0, 0, 0)
    before = source.identity()
    archive(tmp_path, {**names, "small/A/character01/1.png": drawing(False)})
    assert Omniglot(tmp_path, "small").identity() != before


@pytest.mark.parametrize(
    ("names", "words"),
    [({}, "holds no .png"), ({"small/A/1.png": b""}, "holds 'small/A/1.png'"), (None, "cannot be read as a zip")],
)
def test_what_is_no_omniglot_is_named(tmp_path, names, words):
    archive(tmp_path, names or {})
    if names is None:
        (tmp_path / "small.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match=words):
        Omniglot(tmp_path, "small")


def test_a_missing_archive_names_the_nearest(tmp_path):
    archive(tmp_path, {"small/A/character01/1.png": drawing(True)})
    with pytest.raises(UserError, match=r"did you mean 'small\.zip'"):
        Omniglot(tmp_path, "smal")


def test_a_damaged_drawing_is_a_broken_image(tmp_path):
    data = drawing(True)
    place = archive(tmp_path, {"small/A/character01/1.png": data})
    raw = bytearray((place / "small.zip").read_bytes())
    raw[raw.index(data) + len(data) - 6] ^= 255
    (place / "small.zip").write_bytes(raw)
    with pytest.raises(ValueError, match="CRC"):
        Omniglot(place, "small").read(0)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs {DATA.name} of the shared data")
def test_the_published_archives_have_twenty_drawings_of_every_character():
    for split, classes in (("images_background_small1", 136), ("images_background_small2", 156)):
        source = Omniglot(DATA, split)
        assert len(source.classes) == classes and (np.bincount(source.labels()) == 20).all()
        assert source.read(7).image.size == (105, 105)
