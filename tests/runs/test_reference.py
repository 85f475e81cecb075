"""The API reference has an entry for every public name, and the site a place for every page."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import learnit_r8
from learnit_r8 import R8Scheduler, SampleTable, events

ROOT = Path(__file__).parents[2]
PAGES = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
ENTRIES = set(re.findall(r"^::: (\S+)$", PAGES, re.MULTILINE))
FOLDERS = ["flax", "keras", "lightning", "loops", "streams", "torch", "transformers", "triggers"]


def public_names(folder):
    """What ``__all__`` of a folder lists; read, not imported, as its framework may be missing."""
    tree = ast.parse((ROOT / "learnit_r8" / folder / "__init__.py").read_text(encoding="utf-8"))
    (listed,) = [
        each.value for each in tree.body if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__all__"
    ]
    return ast.literal_eval(listed)


@pytest.mark.parametrize("folder", FOLDERS)
def test_public_names_of_a_folder_are_in_the_reference(folder):
    missing = [name for name in public_names(folder) if f"learnit_r8.{folder}.{name}" not in ENTRIES]

    assert missing == []


def test_every_folder_with_public_names_is_looked_at():
    """A new adapter is not forgotten."""
    modules = (ROOT / "learnit_r8").glob("*/__init__.py")
    with_names = [path.parent.name for path in modules if "\n__all__ = " in path.read_text(encoding="utf-8")]

    assert set(with_names) - {"dashboard"} == set(FOLDERS)


def test_public_names_of_the_package_are_in_the_reference():
    names = set(learnit_r8.__all__) - {"__version__"}

    assert [name for name in sorted(names) if f"learnit_r8.{name}" not in ENTRIES] == []


def test_events_are_in_the_reference():
    """Every kind that a listener may hear."""
    entries = {entry.rpartition(".")[2] for entry in ENTRIES if entry.startswith("learnit_r8.events.")}

    assert len(events.EVENTS) > 20
    assert set(events.EVENTS) <= entries


def test_settings_and_public_methods_are_documented():
    """R8Scheduler shows what a loop calls; the rest is for adapters."""
    shown = set(re.findall(r"^        - (\w+)$", PAGES, re.MULTILINE))
    called = {"epoch_iterator", "batch_iterator", "update_with_loss", "draw", "report", "log", "close", "summary"}

    assert called <= shown
    assert [each for each in shown if not hasattr(R8Scheduler, each) and not hasattr(SampleTable, each)] == []


def test_parameters_of_public_methods_are_documented():
    """What is called with arguments lists them all, so that the reference has a table of them."""
    shown = {each for each in re.findall(r"^        - (\w+)$", PAGES, re.MULTILINE) if hasattr(R8Scheduler, each)}
    found = {}
    for name in shown:
        method = getattr(R8Scheduler, name)
        names = [each for each in inspect.signature(method).parameters if each != "self"] if callable(method) else []
        listed = (inspect.getdoc(method) or "").partition("Args:")[2]
        found[name] = [each for each in names if not re.search(rf"^ *\*{{0,2}}{each}\b.*:", listed, re.MULTILINE)]

    assert len(shown) > 20
    assert {name: missing for name, missing in found.items() if missing} == {}


def test_every_page_of_the_site_is_there():
    """The navigation names existing pages, or those that are made of documents of the root."""
    pages = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    made = {"contributing.md", "changes.md"}

    assert len(pages) > 30
    assert [page for page in pages if page not in made and not (ROOT / "docs" / page).exists()] == []


def test_no_public_name_is_hidden_by_a_module_of_its_name():
    """The entry `learnit_r8.torch.attach` shows the function; a module of that path would be shown in its place."""
    paths = {name: ROOT.joinpath(*name.split(".")) for name in ENTRIES}

    assert len(paths) > 100
    assert [name for name, path in paths.items() if path.is_dir() or path.with_suffix(".py").is_file()] == []
