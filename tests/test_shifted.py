"""Shifted test sets: the head is classification's own, classes are mapped and masked as by hand, one head does."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import published
import pytest
import torch

from harness.catalogue import catalogue
from harness.config import parse
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.head_choice import BATCH, STEPS
from harness.sources import Sample, Source, Subset
from harness.toys import Colours, PixelVit
from tasks import shifted
from tasks.classification import Classification
from tasks.shifted import Shifted, among

SHORT = {"steps": 100, "batch": 64}


class Renamed(Source):
    """Another source with other names for its classes, some of its samples, and labels that go with the names."""

    name, needs_root = "renamed", False

    def __init__(self, parent: Source, names: dict[int, str]) -> None:
        """names: class number of the parent -> name; other classes are left out; classes in alphabetical order."""
        labels = parent.labels()
        self.parent = Subset(parent, np.flatnonzero(np.isin(labels, list(names))))
        self.classes = tuple(sorted(names.values()))
        self._labels = np.array([self.classes.index(names[int(label)]) for label in self.parent.labels()])

    def __len__(self) -> int:
        return len(self.parent)

    def read(self, index: int) -> Sample:
        return self.parent.read(index)

    def labels(self) -> np.ndarray:
        return self._labels.copy()

    def sample_name(self, index: int) -> str:
        return self.parent.sample_name(index)

    def identity(self) -> str:
        return f"{self.parent.identity()} {self.classes}"


def encoder(blind: bool = False) -> Encoder:
    return Encoder(PixelVit(blind=blind), identity=f"pixels {blind}", cache=None)


def data(test: Source | None = None, classes: int = 4) -> Data:
    """Colours with noise enough that a head makes mistakes."""
    train = Colours(320, classes=classes, cast=0.2)
    other = Colours(64, classes=classes, cast=0.2, split="test") if test is None else test
    return Data.of_sources({"train": train, "test": other}, image_size=32, name="colours")


def task(test: Source | None = None, **options: Any) -> Shifted:
    return Shifted(data=data(test), **{**SHORT, **options})


def test_the_head_is_the_one_that_classification_finds():
    mine, seeing = task().evaluate(encoder(), seed=3), encoder()
    theirs = Classification(data=data(), protocol="linear", **SHORT).evaluate(seeing, seed=3)
    for name in ("top1", "top5", "held_out_top1", "chosen_lr", "chosen_lr_at_edge"):
        assert mine[name] == theirs[name], name
    assert 0.3 < mine["top1"] < 1  # so that equal numbers say something


def test_its_training_settings_are_classifications():
    theirs = Classification(data=data()).protocol()
    mine = Shifted(data=data()).protocol()
    assert (mine["steps"], mine["batch"]) == (STEPS, BATCH)
    for key in ("steps", "batch", "images", "held_out", "heads", "choice", "final_norm"):
        assert mine[key] == theirs[key], key


def test_with_all_classes_masking_changes_nothing():
    found = task().evaluate(encoder(), seed=0)
    assert found["top1"] == found["top1_masked"] and found["classes"] == 4


def test_masking_by_hand():
    # Three classes, of which the test set has 0 and 2. Over all: right, wrong (1 wins), wrong. Masked: the second, too.
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 5.0, 2.0], [4.0, 0.0, 3.0]])
    labels, classes = torch.tensor([0, 2, 2]), torch.tensor([0, 2])

    def right(known: torch.Tensor) -> float:
        return (among(logits, known) == labels).float().mean().item()

    assert right(torch.arange(3)) == pytest.approx(1 / 3)
    assert right(classes) == pytest.approx(2 / 3)
    assert right(classes.flip(0)) == pytest.approx(2 / 3)  # in whatever order they are named


def test_a_subset_is_scored_on_the_classes_of_its_names():
    everything = Colours(64, cast=0.2, split="test")
    some = Renamed(everything, {3: "colour 3", 1: "colour 1"})
    one, other = task(some, test_classes="subset"), task(Subset(everything, some.parent.indices))
    found, whole = one.evaluate(encoder(), seed=0), other.evaluate(encoder(), seed=0)
    assert found["top1"] == whole["top1"]  # over all classes it is the same question
    assert found["classes"] == 2
    assert found["top1_masked"] > found["top1"]


def test_numbered_classes_are_places_in_the_training_order():
    everything = Colours(64, cast=0.2, split="test")
    numbered = Renamed(everything, {0: "0", 1: "1", 2: "2", 3: "3"})
    found = task(numbered, test_classes="index").evaluate(encoder(), seed=0)
    assert found["top1"] == task(everything).evaluate(encoder(), seed=0)["top1"]
    moved = Renamed(everything, {0: "1", 1: "2", 2: "3", 3: "0"})
    assert task(moved, test_classes="index").evaluate(encoder(), seed=0)["top1"] < 0.2


def test_the_test_set_decides_nothing_about_the_head():
    sets = [Colours(64, cast=cast, split=split) for cast, split in ((0.2, "test"), (0.8, "far"))]
    found = [task(test).evaluate(encoder(), seed=0) for test in sets]
    own = [name for name in found[0] if name.startswith(("held_out", "chosen", "lr"))]
    assert own and all(found[0][name] == found[1][name] for name in own)
    assert found[0]["top1"] > found[1]["top1"]  # but it decides what is measured


def counted(monkeypatch) -> list[int]:
    """A list that grows with every grid of heads that is trained."""
    calls: list[int] = []
    real = shifted.choose_head

    def choose(*args: Any, **options: Any):
        calls.append(options["seed"])
        return real(*args, **options)

    monkeypatch.setattr(shifted, "choose_head", choose)
    return calls


def test_two_test_sets_of_one_training_set_need_one_head(monkeypatch):
    calls, seeing = counted(monkeypatch), encoder()
    for split in ("one", "other"):
        task(Colours(64, cast=0.2, split=split)).evaluate(seeing, seed=0)
    assert calls == [0]


def test_a_head_is_shared_with_nothing_that_differs(monkeypatch):
    calls, seeing = counted(monkeypatch), encoder()
    again = task().evaluate(seeing, seed=0)
    task().evaluate(encoder(), seed=0)  # another encoder, though of the same name
    task().evaluate(seeing, seed=1)
    task(steps=101).evaluate(seeing, seed=0)
    task(images=160).evaluate(seeing, seed=0)
    assert calls == [0, 0, 1, 0, 0]
    assert task().evaluate(seeing, seed=0) == again and len(calls) == 5


def test_a_forgotten_encoders_head_is_forgotten_too():
    seeing = encoder()
    task().evaluate(seeing, seed=0)
    before = len(shifted._HEADS)
    del seeing
    assert len(shifted._HEADS) == before - 1


def test_seeing_encoders_beat_blind_ones():
    assert task().evaluate(encoder(), seed=0)["top1"] > 0.4
    assert task().evaluate(encoder(blind=True), seed=0)["top1"] == pytest.approx(0.25)


def test_classes_that_do_not_fit_are_told_before_anything_is_trained(monkeypatch):
    calls = counted(monkeypatch)
    with pytest.raises(UserError, match="do not have the same classes"):
        task(Colours(64, classes=3, split="test")).evaluate(encoder(), seed=0)
    assert calls == []


def test_unlabelled_images_are_named():
    class Unlabelled(Colours):
        def labels(self) -> np.ndarray:
            return np.where(np.arange(len(self)) == 5, -1, super().labels())

    with pytest.raises(UserError, match=r"'test/5' of the test split has none"):
        task(Unlabelled(64, split="test")).evaluate(encoder(), seed=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps of the shifted task is 0"),
        ({"images": 0}, "images of the shifted task is 0"),
        ({"batch": -1}, "batch of the shifted task is -1"),
        ({"test_classes": "subst"}, "did you mean 'subset'"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(UserError, match=said):
        task(**options)


def test_any_change_of_the_protocol_shows():
    changes = [{}, {"steps": 101}, {"batch": 65}, {"images": 9}, {"test_classes": "subset"}]
    assert len({json.dumps(task(**change).protocol()) for change in changes}) == len(changes)


def test_suites_of_shifted_sets_run_from_folders(tmp_path):
    wnids = ("n01", "n02", "n03")
    published.folders(tmp_path, {"train": wnids}, 6)
    published.folders(
        tmp_path, {"imagenetv2-matched-frequency-format-val": ("0", "1", "2"), "imagenet-r": wnids[:1]}, 2
    )
    base = {"teacher": {"width": 48}, "student": {}, "data": {"image_size": 32}, "training": {"epochs": 1}}
    entries = [
        {"suite": name, "root": str(tmp_path), "options": SHORT, "data": {"crop_share": 1}}
        for name in ("imagenet_v2", "imagenet_r")
    ]
    experiment = parse({**base, "methods": ["none"], "tasks": entries})
    from harness.training.builder import open_data

    seeing = encoder()
    for spec, classes in zip(experiment.tasks, (3, 1), strict=True):
        assert spec.data is not None
        options = catalogue().resolve("task", "shifted", spec.options)
        found = Shifted(data=open_data(spec.data), **options).evaluate(seeing, seed=0)
        assert (found["top1"], found["top1_masked"], found["classes"]) == (1.0, 1.0, classes)
