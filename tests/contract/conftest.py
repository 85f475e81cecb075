"""The columns as a fixture; the tests of a framework stand one after the other, so that few workers import it."""

import importlib

import pytest

from .cells import COLUMNS


def load(name):
    """The driver of a column."""
    return importlib.import_module(f"tests.contract.{COLUMNS[name].module}").COLUMNS[name]()


@pytest.fixture
def column(request):
    """The driver of this name."""
    pytest.importorskip(COLUMNS[request.param].framework)
    return load(request.param)


def pytest_collection_modifyitems(items):
    frameworks = [place.framework for place in COLUMNS.values()]
    places = [at for at, item in enumerate(items) if "contract" in item.path.parts]

    def group(item):
        name = getattr(item, "callspec", None) and item.callspec.params.get("column")
        return frameworks.index(COLUMNS[name].framework) if name in COLUMNS else -1

    for at, item in zip(places, sorted((items[at] for at in places), key=group), strict=True):
        items[at] = item
