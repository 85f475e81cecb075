"""Hooks of mkdocs: pages made here of the root's documents and of the examples, links out of docs/, and a last look.

A strict build fails where a page shows the output of another version of its example, or where a search finds nothing.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
"""Documents of the repository's root that are pages of the site, too."""
STYLE = Path(__file__).with_name("site.css")
SEARCHES = ("notebook", "jupyter", "colab", "early stopping", "resume", "best model", "compare", "mislabelled", "agent")
"""What people look for; each must lead to a guide."""

_log = logging.getLogger("mkdocs")
_spec = importlib.util.spec_from_file_location("record_examples", Path(__file__).with_name("record_examples.py"))
assert _spec is not None
assert _spec.loader is not None
_examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_examples)


def on_config(config: Any) -> Any:
    """Put the examples behind the guides."""
    pages = [{_title(name): _page_of(name)} for name in _examples.records()]
    guides = next(place for place, part in enumerate(config.nav) if "Guides" in part)
    config.nav.insert(guides + 1, {"Examples": [{"All examples": "examples/index.md"}, *pages]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that lie outside of docs/."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    for picture in (ROOT / "assets").glob("*.*"):
        if picture.suffix in (".svg", ".png"):
            files.append(File.generated(config, f"assets/{picture.name}", abs_src_path=str(picture)))
    files.append(File.generated(config, f"assets/{STYLE.name}", abs_src_path=str(STYLE)))
    recorded = _examples.records()
    for name, record in recorded.items():
        if record["digest"] != _examples.digest(name):
            _log.warning("%s has changed since it was recorded; run python docs/site/record_examples.py", name)
        files.append(File.generated(config, _page_of(name), content=_example(name, record)))
    files.append(File.generated(config, "examples/index.md", content=_list(recorded)))
    return files


def on_page_markdown(markdown: str, config: Any, page: Any, **_: Any) -> str:
    """Rewrite links that begin with ../ in a guide, and let the names of examples lead to their pages."""

    def address(match: re.Match[str]) -> str:
        target = match[1]
        if not (ROOT / target).exists():
            _log.warning("a guide links to ../%s, which is not in the repository", target)
        if target.startswith("assets/"):
            return f"]({target}"
        return f"]({PAGES.get(target) or config.repo_url.rstrip('/') + '/blob/main/' + target}"

    def example(match: re.Match[str]) -> str:
        return f"[{match[0]}]({_page_of(match[1])})" if match[1] in _examples.COMMANDS else match[0]

    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation", "toc"]
    if "::: " in markdown or "/" in page.file.src_uri:
        return markdown
    markdown = re.sub(r"\]\(\.\./(?!reference/)([^)#\s]+)", address, markdown)
    return re.sub(r"(?<!\[)`(examples/[\w/]+\.py)`", example, markdown)


def on_post_build(config: Any) -> None:
    """Look whether a search for what people look for finds a guide."""
    index = json.loads((Path(config.site_dir) / "search" / "search_index.json").read_text(encoding="utf-8"))
    texts = {
        entry["location"]: re.sub(r"<[^>]*>", " ", f"{entry['title']} {entry['text']}").lower()
        for entry in index["docs"]
        if not entry["location"].startswith(("reference/", "changes.", "contributing."))
    }
    for words in SEARCHES:
        if not any(words in text for text in texts.values()):
            _log.warning("a search for %r finds no guide", words)


def _page_of(name: str) -> str:
    return f"examples/{Path(name).stem}.md"


def _docstring(name: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8"))) or ""


def _title(name: str) -> str:
    return Path(name).stem.replace("_", " ").capitalize()


def _plain(text: str) -> str:
    """A docstring as Markdown: its double backticks are single ones there, and its brackets are no links."""
    return re.sub(r"(`[^`]*`)|(\[)", lambda found: found[1] or r"\[", text.replace("``", "`"))


def _example(name: str, record: Any) -> str:
    parts = [f"# {_title(name)}", _plain(_docstring(name)), "## What it prints"]
    for run in record["runs"]:
        parts.append(f"```text\n$ {run['command']}\n{run['printed']}```")
    source = (ROOT / name).read_text(encoding="utf-8")
    return "\n\n".join([*parts, f"## The program, `{name}`", f"```python\n{source}```"]) + "\n"


def _list(recorded: Any) -> str:
    rows = (
        f"| [{_title(name)}]({Path(_page_of(name)).name}) | {_plain(_docstring(name)).splitlines()[0]} |"
        for name in recorded
    )
    text = "Programs of the repository, each with what it printed when `docs/site/record_examples.py` ran it."
    return "\n".join(["# Examples", "", text, "", "| example | |", "|---|---|", *rows, ""])
