"""Paths of 0.1: what the documents named can be imported from where it was, with a warning that says where it is."""

import importlib
import subprocess
import sys
import warnings

import pytest

import learnit_r8
import learnit_r8.table.label_noise

OLD = sorted(learnit_r8._MOVED)


def fresh(old, monkeypatch):
    """Whatever an earlier import of an old path has left is forgotten."""
    monkeypatch.delitem(sys.modules, f"learnit_r8.{old}", raising=False)
    folder, _, name = old.rpartition(".")
    owner = importlib.import_module(f"learnit_r8.{folder}" if folder else "learnit_r8")
    monkeypatch.delattr(owner, name, raising=False)


def by_old_paths():
    from learnit_r8.suspects import find_suspects

    from learnit_r8.recovery import Recovery

    return Recovery, find_suspects


@pytest.mark.parametrize("old", OLD)
def test_old_paths_lead_to_the_same_objects(old, monkeypatch):
    """An old path gives what the new one gives, not a copy, and warns."""
    if old.startswith(("flax.", "keras.")):
        pytest.importorskip(f"learnit_r8.{old.partition('.')[0]}", exc_type=ImportError)
    fresh(old, monkeypatch)
    folder, _, name = old.rpartition(".")
    home = importlib.import_module(f"learnit_r8.{learnit_r8._MOVED[old]}")
    with pytest.warns(DeprecationWarning, match=rf"^learnit_r8\.{old} has moved to learnit_r8\."):
        found = importlib.import_module(f"learnit_r8.{old}")

    assert found is (getattr(home, name, home) if folder else home)


def test_from_imports_of_old_paths(monkeypatch):
    """`from` works with a module that is elsewhere and with a name in a module that is a folder now."""
    fresh("suspects", monkeypatch)
    fresh("recovery.Recovery", monkeypatch)
    with pytest.warns(DeprecationWarning, match="has moved to") as caught:
        found = by_old_paths()

    assert found == (learnit_r8.Recovery, learnit_r8.table.label_noise.find_suspects)
    assert {warning.filename for warning in caught} == {__file__}


def test_an_old_path_warns_once(monkeypatch):
    """Importing it again is an ordinary import."""
    fresh("ticket", monkeypatch)
    with pytest.warns(DeprecationWarning, match="sampling"):
        importlib.import_module("learnit_r8.ticket")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from learnit_r8.ticket import Ticket

    assert Ticket is learnit_r8.Ticket


@pytest.mark.parametrize("name", ["nothing", "table.nothing", "sampling.suspects"])
def test_paths_that_never_were(name):
    """What never was a module is not found, as anywhere."""
    with pytest.raises(ModuleNotFoundError, match=rf"^No module named 'learnit_r8\.{name}'$"):
        importlib.import_module(f"learnit_r8.{name}")


def test_new_paths_warn_of_nothing(tmp_path):
    """Every module of the package can be imported without its old path."""
    code = (
        "import importlib, learnit_r8\n"
        "for name in learnit_r8.__all__:\n    getattr(learnit_r8, name)\n"
        "for name in learnit_r8._MOVED.values():\n    importlib.import_module('learnit_r8.' + name)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
