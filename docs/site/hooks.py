"""Hooks of mkdocs: links of the guides that lead out of docs/ lead to the repository, or to a page made here."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
"""Documents of the repository's root that are pages of the site, too."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that lie outside of docs/."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    for picture in (ROOT / "assets").glob("*.*"):
        if picture.suffix in (".svg", ".png"):
            files.append(File.generated(config, f"assets/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Rewrite links that begin with ../ in a guide."""

    def address(match: re.Match[str]) -> str:
        target = match[1]
        if not (ROOT / target).exists():
            logging.getLogger("mkdocs").warning("a guide links to ../%s, which is not in the repository", target)
        if target.startswith("assets/"):
            return f"]({target}"
        return f"]({PAGES.get(target) or config.repo_url.rstrip('/') + '/blob/main/' + target}"

    return re.sub(r"\]\(\.\./(?!reference/)([^)#\s]+)", address, markdown) if "::: " not in markdown else markdown
