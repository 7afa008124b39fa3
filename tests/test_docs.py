"""What the documents tell works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from experiments import images, tiny

from harness.results import check

ROOT = Path(__file__).parents[1]


def files_of(document: str) -> dict[str, str]:
    """Every code block that stands under a `file:` mark."""
    text = (ROOT / "docs" / document).read_text()
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", text, flags=re.DOTALL))


@pytest.fixture
def my_method(tmp_path) -> Path:
    path = tmp_path / "my_method.py"
    path.write_text(files_of("add-a-method.md")["my_method.py"])
    return path


def test_the_documented_method_is_short_and_passes_the_checks(my_method):
    assert len(my_method.read_text().splitlines()) < 50
    lines, good = check(str(my_method), [])
    assert good, "\n".join(lines)


def test_the_documented_method_runs_as_a_plugin_from_outside(my_method, tmp_path):
    import yaml

    plain = tiny(tmp_path, tasks=["artifacts"]).model_dump(mode="json")
    plain["data"]["root"] = str(images(tmp_path / "images"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(plain))
    command = [sys.executable, "-m", "harness.cli", "run", str(tmp_path / "tiny.yaml")]
    command += ["--plugin", str(my_method), "--set", "methods=[fitnet, cosine]", "--workspace", str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| cosine" in done.stdout and "| fitnet" in done.stdout


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_links_inside_the_project_lead_somewhere(document):
    path = ROOT / document
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), link


def code_of(text: str) -> list[str]:
    """Lines inside fenced blocks without a language, and inline code."""
    lines, fence = [], None
    for line in text.splitlines():
        if line.startswith("```"):
            fence = line if fence is None else None
        elif fence == "```":
            lines.append(line)
        elif fence is None:
            lines += re.findall(r"`([^`]+)`", line)
    return lines


def test_documented_commands_exist():
    from typer.main import get_command

    from harness.cli.main import app

    known, seen = set(get_command(app).commands), set()
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for line in code_of(path.read_text()):
            for command in re.findall(r"^\S*singer-bench ([a-z]+)", line):
                assert command in known, (path.name, command)
                seen.add(command)
    assert seen >= {"run", "check", "plan", "status", "table", "list", "export"}
