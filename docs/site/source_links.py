"""Links from docs/ to other files of the repository, on the site: each such file becomes a page that shows its source.

So a link is the same in the repository and on the site, and names no host.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".md": "markdown"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside docs/ that a page names, and for those in every folder that one names."""
    for file in list(files.documentation_pages()):
        for link in LINK.findall(file.content_string):
            path = _outside(file.src_uri, link)
            for shown in [path, *_inside(path)] if path else ():
                if files.get_file_from_path(_page(shown)) is None:
                    page = File.generated(
                        config, _page(shown), content=_source(shown), inclusion=InclusionLevel.NOT_IN_NAV
                    )
                    files.append(page)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point those links at these pages."""

    def there(match: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, match[0])
        return posixpath.relpath(_page(path), posixpath.dirname(page.file.src_uri)) if path else match[0]

    return LINK.sub(there, markdown)


def _outside(page: str, link: str) -> str | None:
    """What a link of a page names, relative to the repository; None where it lies in docs/ or does not exist."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return path if (ROOT / path).exists() and path.split("/")[0] not in ("docs", "..") else None


def _inside(path: str) -> list[str]:
    folder = ROOT / path
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [f"{path}/{name}" for name in names if (folder / name).suffix in LANGUAGES]


def _page(path: str) -> str:
    return f"source/{path}.md"


def _source(path: str) -> str:
    head = f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n# `{path}`\n\n"
    if inside := _inside(path):
        here = posixpath.dirname(_page(path))
        return head + "".join(f"- [`{one}`]({posixpath.relpath(_page(one), here)})\n" for one in inside)
    file = ROOT / path
    text = file.read_text(encoding="utf-8")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{head}{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"
