"""What the documents tell works as it stands there, and the site of them can be built."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from experiments import run, tiny, write
from safetensors.numpy import save_file
from typer.main import get_command

from harness.cli.main import app
from harness.config import Experiment, load, merge, parse
from harness.parsing.yaml_files import read_yaml
from harness.results import check, remember
from harness.runs import Workspace, student_runs

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
WRITTEN = {"my_method.py": "add-a-method.md", "my_task.py": "add-a-task.md"}  # files that are documented whole
LONGEST = {"my_method.py": 50, "my_task.py": 60}  # lines


def documented(name: str) -> str:
    """The code block that stands under the mark `file: NAME`."""
    text = (ROOT / "docs" / WRITTEN[name]).read_text()
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", text, flags=re.DOTALL))[name]


class Written(NamedTuple):
    """A command as a document has it. arguments: behind singer-bench."""

    document: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{Path(self.document).name}: {shlex.join(self.arguments)}"


def lines_of(document: str) -> list[str]:
    """Lines of fenced and of indented code without a language, continued ones in one."""
    lines, fence, begun = [], None, ""
    for line in (ROOT / document).read_text().splitlines():
        if line.startswith("```"):
            fence = line if fence is None else None
        elif fence in ("```", "```bash") or (fence is None and line.startswith("    ")):
            begun += line.strip()
            if begun.endswith("\\"):
                begun = begun[:-1]
                continue
            lines.append(begun)
            begun = ""
    return lines


def settings_of(document: str) -> list[str]:
    """Every block of YAML."""
    return re.findall(r"```yaml\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


COMMANDS = [
    Written(document, tuple(shlex.split(found[1], comments=True)))
    for document in DOCUMENTS
    for line in lines_of(document)
    if (found := re.fullmatch(r"(?:\w+=\S+ )*\S*singer-bench (.*)", line)) is not None
]


def understood(written: Written) -> tuple[str, dict[str, Any]]:
    """The command's name and its parameters, by the real command line. Raises what that raises."""
    command, name, rest = get_command(app), "", list(written.arguments)
    while (inner := getattr(command, "commands", None)) is not None:
        assert rest and rest[0] in inner, f"{written}: no such command; known: {sorted(inner)}"
        command, name, rest = inner[rest[0]], f"{name} {rest[0]}".strip(), rest[1:]
    return name, command.make_context(name, rest).params


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which documented commands find what they name: files, configurations, a workspace with results."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "configs").symlink_to(ROOT / "configs")
    for name in WRITTEN:
        (folder / name).write_text(documented(name))
    (folder / "DIR").mkdir()
    save_file({}, folder / "FILE.safetensors")
    [(folder / "mine.yaml").write_text(block) for block in settings_of("docs/start.md") if "name: mine" in block]
    small = {"method": "singer", "hyperparameters": {"rank": 8}}
    experiment = tiny(folder, methods=["fitnet", small], tasks=["artifacts"])
    write(folder, methods=["fitnet", small], tasks=["artifacts"]).rename(folder / "CONFIG")
    workspace = Workspace(folder / "WORKSPACE")
    run(experiment, workspace.root)
    remember(experiment, workspace)
    (folder / "workspace").mkdir()
    (folder / "workspace" / "demo").symlink_to(workspace.root)
    workspace.student("ID").symlink_to(workspace.student(student_runs(experiment)[0].id))
    return folder


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_documented_whole_is_short_and_passes_the_checks(name, place):
    assert len(documented(name).splitlines()) < LONGEST[name]
    lines, good = check(str(place / name), [])
    assert good, "\n".join(lines)


def test_what_is_documented_whole_runs_as_plugins_from_outside(place):
    command = [sys.executable, "-m", "harness.cli", "run", "CONFIG", "--workspace", "outside"]
    command += ["--plugin", "my_method.py", "--plugin", "my_task.py"]
    command += ["--set", "methods=[fitnet, cosine]", "--set", "tasks=[nearest_mean]"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| cosine" in done.stdout and "| fitnet" in done.stdout and "nearest_mean top1" in done.stdout


def test_there_are_documented_commands():
    assert {w.arguments[0] for w in COMMANDS} >= {"run", "check", "plan", "status", "table", "list", "export", "submit"}


@pytest.mark.parametrize("written", dict.fromkeys(COMMANDS), ids=str)
def test_a_documented_command_is_one_of_the_command_line_and_its_configuration_is_valid(written, place, monkeypatch):
    monkeypatch.chdir(place)
    name, params = understood(written)
    config = params.get("config")
    if name in ("run", "plan", "submit", "tune") and not str(config).endswith("tuned.yaml"):
        load(config, params.get("settings") or (), [str(p) for p in params.get("plugin") or ()])


QUICK = ("list", "plan", "status", "table", "check", "data list", "protocols list", "export", "diagnose")
QUICK += ("compare", "page", "publish", "verify", "merge")
NAMES_WHAT_TOYS_LACK = re.compile(
    r"--(rows|tasks|metrics|exclude|reported|gap|difference|methods|run|watch|model)\b|CONFIG|/data/|workspace/(?!demo)"
)


def runs_here(written: Written) -> bool:
    """Whether a command takes seconds on toys."""
    text = shlex.join(written.arguments)
    return text.startswith(QUICK) and not NAMES_WHAT_TOYS_LACK.search(text)


@pytest.mark.parametrize("written", {w.arguments: w for w in COMMANDS if runs_here(w)}.values(), ids=str)
def test_a_documented_command_that_takes_seconds_does_what_it_says(written, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["singer-bench", *written.arguments])
    assert not app(list(written.arguments), standalone_mode=False), capsys.readouterr()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_settings_are_valid(document, place, monkeypatch):
    monkeypatch.chdir(place)
    for block in settings_of(document):
        raw = yaml.safe_load(block)
        assert set(raw) <= {"base", *Experiment.model_fields}, f"{document}: {sorted(raw)}"
        base = read_yaml(ROOT / "configs/demo.yaml")
        for part, exclusive in (("teacher", {"model"}), ("training", {"steps", "epochs"})):
            if exclusive & raw.get(part, {}).keys():
                del base[part]
        parse(merge(base, {k: v for k, v in raw.items() if k != "base"}), document)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_inside_the_project_lead_somewhere(document):
    path = ROOT / document
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), link


def test_commands_inside_sentences_exist_with_their_options():
    for document in DOCUMENTS:
        text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`(?:\S*/)?singer-bench ([^`]+)`", text):
            command, words = get_command(app), code.split()
            while (inner := getattr(command, "commands", None)) is not None:
                assert words[0] in inner, f"{document}: {code}"
                command = inner[words.pop(0)]
            known = {option for param in command.params for option in param.opts}
            assert {w.split("=")[0] for w in words if w.startswith("-")} <= known, f"{document}: {code}"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site of docs/, warnings being errors."""
    build = pytest.importorskip("mkdocs.commands.build", reason="needs mkdocs")
    from mkdocs.config import load_config

    pytest.importorskip("material", reason="needs mkdocs-material")
    folder = tmp_path_factory.mktemp("site")
    build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_is_on_the_site_and_in_its_menu(site):
    menu = (site / "index.html").read_text()
    menu += (site / "reference" / "index.html").read_text().replace('href="../', 'href="')
    for document in DOCUMENTS[1:]:
        page = str(Path(document).relative_to("docs").with_suffix(".html"))
        assert (site / page).is_file()
        assert f'href="{page}"' in menu or f'href="{Path(page).name}"' in menu or page in ("index.html",), page


def test_the_site_loads_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe|source|video|object|embed)\b[^>]*>", path.read_text()):
            assert not re.search(r"""(?:src|href|srcset|data)=["']?(?:https?:)?//""", tag), f"{path.name}: {tag}"
    for path in site.rglob("*.css"):
        assert not re.search(r"""url\(["']?(?:https?:)?//|@import""", path.read_text()), path.name


def test_a_link_to_a_file_of_the_repository_shows_that_file_on_the_site(site):
    page = (site / "add-a-method.html").read_text()
    for name in ("baselines/fitnet.py", "harness/api.py"):
        assert f'href="source/{name}.html"' in page
        assert "Source" not in (shown := (site / "source" / f"{name}.html").read_text())[:20] and name in shown
    listed = (site / "source/configs/tasks.html").read_text()
    assert 'href="tasks/ade20k.yaml.html"' in listed and (site / "source/configs/tasks/ade20k.yaml.html").is_file()


def test_the_reference_is_made_of_docstrings(site):
    page = re.sub(r"<[^>]+>", "", (site / "reference/api.html").read_text())
    assert "The weighted scalar terms; the harness sums and logs them." in page
    assert "num_prefix_tokens" in page and "how many of the N tokens come before the patches" in page
