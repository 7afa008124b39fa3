"""`singer-bench figures`: the files are there, whole and the same each time; mistakes are one sentence each."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
import pytest
from experiments import run, tiny
from PIL import Image

from harness.cli import main as cli
from harness.pictures.figures import TREATMENTS, parts
from harness.pictures.images import Pictures, evenly
from harness.pictures.page import FORMATS, Page, rendered, wrapped

PICTURES = ("norms", "pca", "similarity", "histograms")
LABEL = "fitnet, from a planted teacher"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A finished experiment: a refined teacher, a teacher of a row's own, a row without targets."""
    folder = tmp_path_factory.mktemp("figures")
    planted = {"method": "fitnet", "label": LABEL, "teacher": {"planted": {"layer": 1, "size": 10}}}
    singer = {"method": "singer", "hyperparameters": {"rank": 8}}
    run(tiny(folder, methods=["none", singer, planted], training={"steps": 2}, seeds=[3, 4]), folder / "w")
    # What the experiment is kept as for `figures`, written by `singer-bench run`.
    from harness.results import remember
    from harness.runs import Workspace

    remember(
        tiny(folder, methods=["none", singer, planted], training={"steps": 2}, seeds=[3, 4]), Workspace(folder / "w")
    )
    return folder / "w"


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Flat files and class folders, of every kind that is read."""
    folder = tmp_path / "pictures"
    (folder / "cats").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (7, 40, 56, 3), dtype=np.uint8)
    names = ("a.png", "b.jpg", "c.jpeg", "cats/d.webp", "cats/e.bmp", "cats/f.PNG", "cats/g.png")
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line in this process: exit code, standard output, standard error."""

    def run_cli(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["singer-bench", "figures", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_cli


def model(pictures: Path, output: Path, *more: object) -> tuple[object, ...]:
    """The arguments for one small model alone, with weights of its own."""
    checkpoint = output.parent / "weights.safetensors"
    if not checkpoint.is_file():
        import timm
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        save_file(timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict(), checkpoint)
    return (
        *("--model", "vit_tiny_patch16_224", "--checkpoint", checkpoint, "--size", 32),
        *("--images", pictures, "-o", output, *more),
    )


def test_a_workspace_gives_whole_pictures_and_captions_of_every_column(workspace, tmp_path, call):
    code, out, err = call(workspace, "-o", tmp_path / "out", "--count", 2, "--mark", "0,3")
    assert code == 0, err
    for name in PICTURES:
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            image.load()
            assert image.width / 250 * 25.4 <= 181  # mm
        drawn = " ".join(xml.parse(tmp_path / "out" / f"{name}.svg").getroot().itertext())  # text stays text
        assert "target of singer" in drawn and "none" in drawn
    said = (tmp_path / "out" / "captions.md").read_text()
    assert sorted(out.split()) == sorted(str(p) for p in (tmp_path / "out").iterdir())
    for column in ("teacher", f"teacher of {LABEL}", "target of singer", "none", "singer", LABEL):
        assert f"\n| {column} " in said
    assert "target of none" not in said and f"target of {LABEL}" not in said  # they imitate what the teacher has
    assert "seed 3" in said and "row 0, column 3" in said and "sample of 40" in said


def test_the_same_workspace_gives_the_same_bytes_whatever_the_users_own_matplotlib_settings(
    workspace, tmp_path, call, monkeypatch
):
    import matplotlib

    assert call(workspace, "-o", tmp_path / "one", "--count", 1, "--methods", "none")[0] == 0
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert call(workspace, "-o", tmp_path / "two", "--count", 1, "--methods", "none")[0] == 0
    names = {p.name for p in (tmp_path / "one").iterdir()}
    assert names == {"captions.md", *(f"{name}.{format}" for name in PICTURES for format in ("png", "svg"))}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert matplotlib.rcParams["font.size"] == 30.0 and matplotlib.rcParams["axes.facecolor"] == "red"


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_written_without_a_date(format):
    figure = Page(40, 20).figure
    content = rendered(figure, format)
    assert content and content == rendered(figure, format)
    assert b"Date" not in content


def test_rows_are_chosen_by_label_and_pages_of_an_earlier_call_do_not_stay(workspace, tmp_path, call):
    out = tmp_path / "out"
    out.mkdir()
    (out / "norms-2.png").touch()
    (out / "norms of mine.png").touch()
    code, _, err = call(
        workspace, "-o", out, "--methods", f'"{LABEL}", none', "--count", 1, "--layer", 1, "--format", "png"
    )
    assert code == 0, err
    said = (out / "captions.md").read_text()
    assert f"| {LABEL} " in said and "singer" not in said and "1 of 0-3" in said
    assert not (out / "norms-2.png").exists() and (out / "norms of mine.png").exists()


def test_one_model_alone_with_a_treatment_beside_it(pictures, tmp_path, call):
    planted = "planted={layer: 3, size: 20, share: 0.2}"
    code, _, err = call(*model(pictures, tmp_path / "out", "--repair", planted, "--count", 3, "--format", "png"))
    assert code == 0, err
    said = (tmp_path / "out" / "captions.md").read_text()
    assert f"| {planted} " in said and "| vit_tiny_patch16_224 " in said
    assert "`b.jpg`, `cats/d.webp`, `cats/f.PNG`" in said and "sample of 7" in said


@pytest.mark.parametrize(
    "args, said",
    [
        (["WORKSPACE", "--methods", "singr"], "no method label 'singr'; did you mean 'singer'?"),
        (["WORKSPACE", "--format", "pgn"], "no picture format 'pgn'; did you mean 'png'? Known: pdf, png, svg"),
        (["WORKSPACE", "--format", ","], "no picture format is named"),
        (["WORKSPACE", "--count", "0"], "--count is 0; show 1 image or more"),
        (["WORKSPACE", "--layer", "9"], "teacher: layer 9 does not exist; this model has blocks 0 .. 3"),
        (["WORKSPACE", "--mark", "4,0"], "--mark 4,0 is outside the grid of 4 x 4 patches; give a row in 0 .. 3"),
        (["WORKSPACE", "--mark", "middle"], "--mark 'middle' is not ROW,COLUMN of a patch"),
        (["WORKSPACE", "--experiment", "tinny"], "no experiment 'tinny'; did you mean 'tiny'?"),
        (["WORKSPACE", "--images", "EMPTY"], "holds no image (only .txt); images are .bmp,"),
        (["WORKSPACE", "--images", "NOWHERE"], "does not exist; --images names a folder"),
        (["WORKSPACE", "--images", "BROKEN"], "image 'broken.png' cannot be read: it is damaged or no image. Mend"),
        (["WORKSPACE", "--size", "32"], "--size is for a --model alone"),
        (["NOWHERE"], "no workspace"),
        (["EMPTY"], "holds no experiment; `singer-bench run CONFIG` starts one"),
        ([], "name either a WORKSPACE or a --model; neither is given"),
        (["WORKSPACE", "--model", "vit_tiny_patch16_224"], "name either a WORKSPACE or a --model; not both"),
        (["MODEL", "--repair", "plantd"], "no repair 'plantd'; did you mean 'planted'?"),
        (["MODEL", "--repair", "planted={layer: 1, sise: 3}"], "no setting 'sise'; did you mean 'size'?"),
        (["MODEL", "--repair", "planted={"], "is not valid YAML; write NAME={setting: value}"),
        (["MODEL", "--methods", "none"], "--methods chooses among a workspace's rows"),
        (["--model", "vit_tiny_patch16_224"], "name a folder of pictures with --images"),
        (["--model", "resnet18", "--images", "PICTURES", "--checkpoint", "NOWHERE"], "checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_exit_code_2(workspace, pictures, tmp_path, call, args, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.png").write_bytes(b"no picture")
    places = {
        "WORKSPACE": (workspace,),
        "EMPTY": (tmp_path / "empty",),
        "BROKEN": (tmp_path / "broken",),
        "NOWHERE": (tmp_path / "nowhere",),
        "PICTURES": (pictures,),
    }
    if "MODEL" in args:
        places["MODEL"] = model(pictures, tmp_path / "out")
    code, out, err = call(*(part for arg in args for part in places.get(arg, (arg,))))
    assert code == 2 and out == "", (out, err)
    assert err.startswith("error: ") and said in err, err
    assert not list(tmp_path.glob("out/*"))


def test_a_workspace_without_finished_students_says_so(tmp_path, call):
    from harness.results import remember
    from harness.runs import Workspace

    remember(tiny(tmp_path), Workspace(tmp_path / "w"))
    code, _, err = call(tmp_path / "w")
    assert code == 2 and "holds no finished student; `singer-bench run CONFIG` goes on" in err
    remember(tiny(tmp_path, name="other"), Workspace(tmp_path / "w"))
    code, _, err = call(tmp_path / "w")
    assert code == 2 and "name one: --experiment other | tiny" in err


def test_images_are_chosen_at_equal_distances():
    assert evenly(10, 2) == [2, 7] and evenly(3, 5) == [0, 1, 2] and evenly(1000, 4) == [125, 375, 625, 875]


def test_a_folder_is_read_flat_and_deep_whatever_the_kind(pictures):
    found = Pictures(pictures)
    assert [found.sample_name(i) for i in range(len(found))][:4] == ["a.png", "b.jpg", "c.jpeg", "cats/d.webp"]
    assert len(found) == 7 and {found.read(i).image.mode for i in range(7)} == {"RGB"}


def test_titles_are_broken_where_a_reader_expects_it():
    assert wrapped("target of singer", 27) == ["target of singer"]
    assert wrapped("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 27) == [
        "vit_tiny_patch16_",
        "224.augreg_in21k_",
        "ft_in1k",
    ]
    assert wrapped("standardise={images: 64}", 27) == ["standardise=", "{images: 64}"]
    assert "".join(wrapped("x" * 50, 27)) == "x" * 50


def test_what_can_be_done_to_a_teacher_can_be_drawn():
    assert "planted" in TREATMENTS and not {"model", "checkpoint", "fit", "classes"} & set(TREATMENTS)
    assert parts('a, "b, c" ,d') == ("a", "b, c", "d")


def test_hidden_images_leave_maps_alone(pictures, tmp_path, call):
    """The picture says nothing of the images' own pixels: there is one column less, and its heading is gone."""
    for folder, flags in (("with", ()), ("without", ("--hide-images",))):
        code, _, err = call(*model(pictures, tmp_path / folder, "--count", 2, "--format", "svg", *flags))
        assert code == 0, err
    for name in ("norms", "pca", "similarity"):
        shown, hidden = ((tmp_path / folder / f"{name}.svg").read_text() for folder in ("with", "without"))
        assert ">image<" in shown and ">image<" not in hidden
        assert shown.count("<image ") - hidden.count("<image ") == 2
        widths = [float(xml.fromstring(text).get("width", "").removesuffix("pt")) for text in (shown, hidden)]
        assert widths[1] < widths[0]
