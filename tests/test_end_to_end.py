"""The command line on real images with the real teacher: a few hundred of them, from a tar, to a table."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from harness.records import read_records

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
WEIGHTS = SHARED / "weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"

pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason="../shared/data is absent")


def small_tar(source: Path, target: Path, classes: int, each: int) -> None:
    """The first `each` images of the first `classes` classes."""
    with tarfile.open(source) as whole, tarfile.open(target, "w") as part:
        taken: dict[str, int] = {}
        for member in sorted((m for m in whole.getmembers() if m.isfile()), key=lambda m: m.name):
            name = member.name.split("/")[-2]
            if len(taken) == classes and name not in taken:
                continue
            if taken.setdefault(name, 0) < each:
                taken[name] += 1
                part.addfile(member, whole.extractfile(member))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    small_tar(SHARED / "tiny-imagenet/train.tar", folder / "train.tar", classes=5, each=40)
    small_tar(SHARED / "tiny-imagenet/val.tar", folder / "val.tar", classes=5, each=20)
    return folder


def singer_bench(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)


def test_real_images_and_teacher_to_a_table(data, tmp_path):
    config = {
        "base": str(ROOT / "configs/tiny-imagenet.yaml"),
        "name": "small",
        "teacher": {"checkpoint": str(WEIGHTS)},
        "data": {"root": str(data)},
        "training": {"steps": 4, "batch_size": 16, "warmup_epochs": 0},
        "methods": ["logit_kd", "target_norm", {"method": "singer", "hyperparameters": {"rank": 16}}],
        "seeds": [0],
        "tasks": [{"task": "classification", "options": {"steps": 60}}, "artifacts"],
        "runtime": {"num_workers": 0, "log_steps": 2},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    done = singer_bench("run", "small.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for row in ("*teacher*", "*untrained*", "logit_kd", "target_norm", "singer"):
        assert f"| {row}" in done.stdout
    records, problems = read_records(tmp_path / "workspace/small/records")
    assert not problems and len(records) == 10
    values = {(r.run.label, r.task): r for r in records}
    teacher, untrained = values["teacher", "classification"], values["untrained", "classification"]
    assert teacher.values["top1"] > 0.9 > untrained.values["top1"] + 0.3  # five classes of ImageNet
    assert teacher.details["own_head_top1"] > 0.9  # its logits, mapped onto the five wnids
    artifacts = values["teacher", "artifacts"]
    assert artifacts.values["max_over_median"] > 10  # its artifacts are there at 160 px
    assert artifacts.details["outlier_share/block3"] < artifacts.details["outlier_share/block9"]
    again = singer_bench("run", "small.yaml", cwd=tmp_path)
    assert again.returncode == 0 and "nothing is pending" in again.stderr
    for command in (("status", "workspace/small"), ("plan", "small.yaml"), ("table", "workspace/small")):
        assert singer_bench(*command, cwd=tmp_path).returncode == 0
    student = next((tmp_path / "workspace/small/students").iterdir())
    exported = singer_bench("export", str(student), "-o", "exported", cwd=tmp_path)
    assert exported.returncode == 0 and (tmp_path / "exported/model.safetensors").is_file()


def test_mistakes_with_real_files_are_one_message_each(data, tmp_path):
    base = str(ROOT / "configs/tiny-imagenet.yaml")
    checkpoint = f"teacher.checkpoint={WEIGHTS}"
    for settings, said in [
        ([f"data.root={data}", "teacher.checkpoint=nowhere.safetensors"], "nowhere.safetensors"),
        ([f"data.root={data}", checkpoint, "data.train=trian.tar"], "train.tar"),
        ([f"data.root={tmp_path / 'nothing'}", checkpoint], "nothing"),
        ([f"data.root={data}", checkpoint, "teacher.width=96"], "does not load"),
    ]:
        options = [part for s in settings for part in ("--set", s)]
        done = singer_bench("run", base, *options, "--workspace", str(tmp_path / "w"), cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr and "Traceback" not in done.stderr
