"""Suites: every shipped file is whole and opens the data that it describes; what an experiment makes of a suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import yaml

from harness.catalogue import catalogue
from harness.config import Experiment, load, parse
from harness.datasets.suites import parse_suite, read_suite, shipped_suites, suite_file
from harness.errors import ConfigError, UserError
from harness.registry import source_class
from harness.runs import Workspace, task_runs
from harness.training.builder import open_data
from tasks.datasets.inaturalist import INaturalist
from tasks.datasets.torchvision_source import TorchvisionSource

NAMES = sorted(shipped_suites())
BASE: dict[str, Any] = {
    "teacher": {"width": 48},
    "student": {},
    "data": {"image_size": 96},
    "training": {"epochs": 1},
    "methods": ["none"],
}
WNIDS = ("n01", "n02", "n03")
# Name of a suite -> its data written small; the number of images in train and in test, and its classes.
LAYOUTS = {
    "imagenet1k": (lambda root, _: published.folders(root, {"train": WNIDS, "val": WNIDS}, 2), 6, 6, 3),
    "imagenet_v2": (
        lambda root, _: (
            published.folders(root, {"train": WNIDS}, 2),
            published.folders(root, {"imagenetv2-matched-frequency-format-val": "012"}, 1),
        ),
        6,
        3,
        3,
    ),
    "imagenet_r": (
        lambda root, _: published.folders(root, {"train": WNIDS, "imagenet-r": ("n03", "n01")}, 2),
        6,
        4,
        3,
    ),
    "inat2019": (lambda root, _: published.inat2019(root), 12, 3, 3),
    "fgvc_aircraft": (lambda root, _: published.fgvc_aircraft(root), 4, 2, 2),
    "oxford_pets": (lambda root, _: published.oxford_pets(root), 4, 2, 2),
    "food101": (lambda root, _: published.food101(root), 6, 2, 2),
    "flowers102": (published.flowers102, 4, 2, 2),
    "cifar10": (lambda root, patch: published.cifar(root, 10, patch), 20, 10, 10),
    "cifar100": (lambda root, patch: published.cifar(root, 100, patch), 200, 100, 100),
}


def experiment(*tasks: Any, **changes: Any) -> Experiment:
    return parse({**BASE, "tasks": list(tasks), **changes})


def mistakes(*tasks: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        experiment(*tasks)
    return error.value.mistakes


# ---- the shipped files


def test_the_recognition_suites_are_shipped():
    assert set(LAYOUTS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_suite_says_where_its_data_are_and_names_what_exists(name):
    suite = parse_suite(read_suite(name), name)
    known = catalogue()
    known.resolve("task", suite.task, suite.options)
    known.resolve("source", suite.data.source, suite.data.options)
    assert suite.about.where.startswith(("https://", "http://")) and suite.about.licence and suite.about.layout
    assert suite.data.root is None  # no path of a machine
    assert suite.data.name  # so that a record says which data, wherever they lie
    counts = suite.about.counts
    assert counts.train is not None and counts.test is not None


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_suite_is_packaged(name):
    patterns = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert "tasks/*.yaml" in patterns and suite_file(name).parent.name == "tasks"


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_suite_opens_the_layout_that_it_describes(name, tmp_path, monkeypatch):
    write, train, test, classes = LAYOUTS[name]
    write(tmp_path, monkeypatch)
    spec = experiment({"suite": name, "root": str(tmp_path)}).tasks[0]
    assert spec.data is not None
    data = open_data(spec.data)
    assert type(data.open("train")) is source_class(spec.data.source)
    assert (len(data.open("train")), len(data.open("test"))) == (train, test)
    assert len(data.open("train").classes) == classes
    for split in ("train", "test"):
        source = data.open(split)
        labels = source.labels()
        assert labels.min() >= 0 and labels.max() < len(source.classes)
        for i in range(len(source)):
            sample = source.read(i)
            assert sample.label == labels[i] and sample.image.mode == "RGB"


# ---- what an experiment makes of one


def test_a_suite_stands_for_what_its_file_says():
    spec = experiment({"suite": "food101", "root": "here"}).tasks[0]
    assert (spec.task, spec.title()) == ("classification", "food101")
    assert spec.data is not None and spec.data.root == "here" and spec.data.options == {"dataset": "food101"}
    assert spec.data.crop_share == 0.875


def test_it_is_the_same_task_as_written_out():
    short = experiment({"suite": "food101", "root": "here"})
    written = experiment(short.tasks[0].model_dump(mode="json"))
    assert [t.key for t in task_runs(short)] == [t.key for t in task_runs(written)]


def test_where_the_data_lie_decides_nothing():
    here, there = (experiment({"suite": "food101", "root": root}) for root in ("here", "there"))
    assert [t.key for t in task_runs(here)] == [t.key for t in task_runs(there)]


def test_images_have_the_size_of_the_experiments_unless_said():
    for item, size in (({}, 96), ({"data": {"image_size": 32}}, 32)):
        data = experiment({"suite": "food101", "root": "here", **item}).tasks[0].data
        assert data is not None and data.image_size == size


def test_the_entrys_other_keys_are_laid_over_the_file():
    entry = {"suite": "food101", "root": "here", "label": "food", "options": {"steps": 7}, "data": {"limit": 9}}
    spec = experiment(entry).tasks[0]
    assert spec.data is not None
    assert (spec.title(), spec.options, spec.data.limit) == ("food", {"steps": 7}, 9)
    assert spec.data.options == {"dataset": "food101"}


def test_another_source_takes_no_options_of_the_first():
    entry = {"suite": "food101", "root": "here", "data": {"source": "folder"}}
    data = experiment(entry).tasks[0].data
    assert data is not None and (data.source, data.options, data.train) == ("folder", {}, "train")


def test_another_task_takes_no_options_of_the_first():
    spec = experiment({"suite": "imagenet_r", "root": "here", "task": "few_shot"}).tasks[0]
    assert (spec.task, spec.options) == ("few_shot", {})


def test_a_suite_may_be_a_file_of_ones_own(tmp_path):
    raw = read_suite("food101") | {"label": None}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(raw))
    assert experiment({"suite": str(path), "root": "here"}).tasks[0].title() == "mine"


def test_one_setting_of_a_suite_can_be_changed_from_outside(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({**BASE, "tasks": [{"suite": "cifar10", "root": "a"}]}))
    data = load(path, ["tasks.0.root=b", "tasks.0.data.limit=3"]).tasks[0].data
    assert data is not None and (data.root, data.limit) == ("b", 3)


def test_a_remembered_experiment_needs_the_suite_no_more(tmp_path):
    from harness.results import remember

    remember(experiment({"suite": "cifar10", "root": "a"}), Workspace(tmp_path))
    (path,) = (tmp_path / "experiments").glob("*.yaml")
    raw = yaml.safe_load(path.read_text())
    assert "suite" not in raw["tasks"][0] and Path(raw["tasks"][0]["data"]["root"]).is_absolute()


# ---- mistakes


def test_an_unknown_suite_names_the_nearest():
    (said,) = mistakes({"suite": "food1o1", "root": "here"})
    assert said.startswith("tasks.0: no suite 'food1o1'; did you mean 'food101'?")


def test_a_suite_may_wait_for_its_root_until_its_data_are_read():
    data = experiment({"suite": "food101"}).tasks[0].data
    assert data is not None and data.root is None
    with pytest.raises(UserError, match=r"needs data\.root"):
        open_data(data).open("test")


def test_mistakes_of_suites_and_of_others_come_at_once():
    found = mistakes({"suite": "cifra10", "root": "a"}, {"suite": "cifar10", "rot": "a"}, "artefacts", {"suite": 3})
    assert [said.partition(":")[0] for said in found] == ["tasks.0", "tasks.1", "tasks.3", "tasks.2"]
    assert "did you mean 'root'?" in found[1] and "not 3" in found[2] and "'artifacts'" in found[3]


def test_two_suites_of_one_name_need_labels():
    (said,) = mistakes({"suite": "cifar10", "root": "a"}, {"suite": "cifar10", "root": "b"})
    assert "'cifar10' stands there twice" in said


def test_a_wrong_value_in_an_entry_is_refused_in_its_place():
    (said,) = mistakes({"suite": "cifar10", "root": "a", "data": {"image_size": "big"}})
    assert said == "tasks.0.data.image_size: must be a whole number, not 'big'"


def test_a_file_that_is_no_suite_lists_its_mistakes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: classification\nabuot: {}\ndata: {source: folder}\n")
    found = mistakes({"suite": str(path), "root": "a"})
    assert len(found) == 2 and all(said.startswith(f"tasks.0: {path}: ") for said in found)
    assert any("did you mean 'about'?" in said for said in found)


# ---- sources of published lists


def test_labels_of_a_torchvision_set_are_its_lists(tmp_path):
    published.food101(tmp_path)
    source = TorchvisionSource(tmp_path, "train", dataset="food101")
    assert source.classes == ("pie", "soup") and source.labels().tolist() == [0, 0, 0, 1, 1, 1]
    assert source.sample_name(4) == "food-101/images/soup/2.jpg"


def test_joined_splits_are_one_after_the_other(tmp_path, monkeypatch):
    published.flowers102(tmp_path, monkeypatch)
    joined = TorchvisionSource(tmp_path, "train+val", dataset="flowers102")
    parts = [TorchvisionSource(tmp_path, split, dataset="flowers102") for split in ("train", "val")]
    assert joined.labels().tolist() == [label for part in parts for label in part.labels().tolist()]
    assert len({joined.identity(), *(part.identity() for part in parts)}) == 3
    with pytest.raises(UserError, match="stand in 'train\\+train' twice"):
        TorchvisionSource(tmp_path, "train+train", dataset="flowers102")


@pytest.mark.parametrize(("split", "said"), [("tset", "tset.*test"), ("train+tset", "tset.*test")])
def test_an_unknown_split_of_a_torchvision_set_names_those_there_are(split, said, tmp_path):
    published.food101(tmp_path)
    with pytest.raises(UserError, match=said):
        TorchvisionSource(tmp_path, split, dataset="food101")


def test_inaturalist_labels_go_by_the_lists_image_numbers(tmp_path):
    published.inat2019(tmp_path)
    source = INaturalist(tmp_path, "train2019")
    assert source.classes == ("0", "1", "2")
    for i, label in enumerate(source.labels()):
        assert source.sample_name(i).split("/")[2] == str(label)
    assert len(np.unique(source.labels())) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.pop("images"), "images"),
        (lambda raw: raw["annotations"].append(raw["annotations"][0]), "several labels"),
        (lambda raw: raw["annotations"].pop(), "KeyError"),
        (lambda raw: raw["images"][0].update(file_name="../secret.jpg"), "leads out of"),
    ],
)
def test_a_list_that_is_not_as_published_is_told(change, said, tmp_path):
    published.inat2019(tmp_path)
    path = tmp_path / "val2019.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=said):
        INaturalist(tmp_path, "val2019")


def test_the_identity_of_listed_images_moves_with_their_files_and_not_with_their_place(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        published.inat2019(tmp_path / place)
    one, other = (INaturalist(tmp_path / place, "val2019") for place in ("a", "b"))
    assert one.identity() == other.identity()
    with open(tmp_path / "b" / other.sample_name(0), "ab") as file:
        file.write(b"more")
    assert one.identity() != other.identity()


@pytest.mark.parametrize("name", ["\x00.yaml", "folder/\x00", "nowhere.yaml", "..", ""])
def test_what_no_suite_can_be_called_is_a_users_error(name):
    with pytest.raises(UserError):
        read_suite(name)
