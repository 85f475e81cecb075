import functools
import os
import sys

import pytest

from learnit_r8.checkpoint.callbacks import call_load, call_save, check_callback


class Recorder:
    """Writes down the calls that arrive, in the form that each method has."""

    def __init__(self):
        self.calls = []

    def two(self, state_dict, filepath):
        self.calls.append((state_dict, filepath))

    def two_and_more(self, state_dict, filepath, verbose=False):
        self.calls.append((state_dict, filepath))

    def one(self, filepath):
        self.calls.append((filepath,))

    def one_and_more(self, filepath, verbose=False):
        self.calls.append((filepath,))

    def anything(self, *args):
        self.calls.append(args)

    def source(self, source):
        self.calls.append((source,))

    def source_from_ram(self, source, from_ram=None):
        self.calls.append((source, from_ram))

    def source_keyword(self, source, *, from_ram):
        self.calls.append((source, from_ram))

    def __call__(self, state_dict, filepath):
        self.calls.append((state_dict, filepath))


@pytest.fixture
def recorder():
    return Recorder()


@pytest.mark.parametrize(
    ("form", "call"),
    [
        ("two", ({"k": 1}, "path")),
        ("two_and_more", ({"k": 1}, "path")),
        ("one", ("path",)),
        ("one_and_more", ("path",)),
        ("anything", ({"k": 1}, "path")),
        ("__call__", ({"k": 1}, "path")),
    ],
)
def test_save_callback_is_told_apart_by_what_it_requires(recorder, form, call):
    """One required argument is the path; otherwise the state comes first."""
    call_save(getattr(recorder, form), {"k": 1}, "path")

    assert recorder.calls == [call]


def test_save_callback_may_be_an_object(recorder):
    """An object with __call__ is called like a function."""
    call_save(recorder, {"k": 1}, "path")

    assert recorder.calls == [({"k": 1}, "path")]


def test_save_callback_may_be_partial(recorder):
    """A partial counts what is left to fill in."""
    call_save(functools.partial(recorder.two, {"mine": 1}), {"k": 1}, "path")

    assert recorder.calls == [({"mine": 1}, "path")]


def test_builtin_without_signature_gets_the_documented_form():
    """A callable that cannot be inspected is called with the source alone."""
    got = {}
    call_load(got.update, {"k": 1}, from_ram=True)

    assert got == {"k": 1}


@pytest.mark.parametrize(
    ("form", "call"),
    [
        ("source", ("backup",)),
        ("source_from_ram", ("backup", True)),
        ("source_keyword", ("backup", True)),
    ],
)
def test_load_callback_gets_from_ram_if_it_takes_it(recorder, form, call):
    """from_ram is passed only to callbacks that have that keyword."""
    call_load(getattr(recorder, form), "backup", from_ram=True)

    assert recorder.calls == [call]


def test_from_ram_is_false_for_a_path(recorder):
    """A callback that gets a path gets from_ram=False."""
    call_load(recorder.source_from_ram, "path", from_ram=False)

    assert recorder.calls == [("path", False)]


@pytest.mark.parametrize("callback", ["save", 3, {}])
def test_callback_is_callable(callback):
    """An object that cannot be called is refused; the error names the argument."""
    with pytest.raises(TypeError, match=rf"save_callback must be a function or None, got {callback!r}"):
        check_callback("save_callback", callback)


@pytest.mark.parametrize("callback", [None, print])
def test_callback_may_be_missing(callback):
    """None stands for no callback."""
    check_callback("save_callback", callback)


def test_load_callback_that_passes_keywords_on_gets_none():
    """A callback with **kwargs, which it may pass to another function, is called with the source alone."""
    got = []
    call_load(lambda source, **more: got.append((source, more)), "backup", from_ram=True)

    assert got == [("backup", {})]


def test_failing_load_callback_says_what_it_was_given():
    """The error after a failing load callback names the kind of source it was given."""
    with pytest.raises(RuntimeError, match="from the RAM backup, a dict, but raised AttributeError"):
        call_load(lambda source: source.seek(0), {"w": 1}, from_ram=True)
    with pytest.raises(RuntimeError, match=r"from the path 'a\.pt', but raised FileNotFoundError"):
        call_load(os.stat, "a.pt", from_ram=False)


@pytest.mark.parametrize(
    ("callback", "path_only"),
    [
        (lambda filepath: None, True),
        (lambda anything: None, True),
        (lambda filepath, verbose=False: None, True),
        (lambda state, path="model.pt": None, False),
        (lambda state_dict, filepath: None, False),
        (lambda *given: None, False),
    ],
)
def test_form_of_a_save_callback(callback, path_only):
    """A callback with one parameter, or one required parameter named like a path or file, gets the path alone."""
    got = []

    def tracing(frame, event, argument):
        if event == "call" and frame.f_code is callback.__code__:
            got.append(dict(frame.f_locals))

    sys.setprofile(tracing)
    try:
        call_save(callback, {"model": 1}, "a.pt")
    finally:
        sys.setprofile(None)

    first = next(iter(got[0].values()))
    assert (first in ("a.pt", ("a.pt",))) is path_only


def wrapped(outer, inner):
    """A function with the signature of another one, as functools.wraps makes it."""
    return functools.wraps(inner)(outer)


@pytest.mark.parametrize(
    ("name", "callback", "form"),
    [
        (
            "load_callback",
            lambda: None,
            r"\(source\), with the keywords from_ram= and is_resume= or without, got .*<lambda>.* signature \(\)",
        ),
        ("load_callback", lambda *, from_ram: None, r"\(source\).* signature \(\*, from_ram\)"),
        ("load_callback", lambda source, model: None, r"\(source\).* signature \(source, model\)"),
        (
            "load_callback",
            wrapped(lambda source: None, lambda source, from_ram: None),
            r"signature \(source\)",
        ),
        ("save_callback", lambda: None, r"\(state_dict, filepath\) or \(filepath\), got .* signature \(\)"),
        ("save_callback", lambda state, path, model: None, r"signature \(state, path, model\)"),
        ("state_callback", lambda model: None, r"\(\), got .* signature \(model\)"),
    ],
)
def test_callback_with_a_wrong_signature_is_refused(name, callback, form):
    """A callback that cannot accept its arguments is refused; the error gives the accepted signatures."""
    with pytest.raises(TypeError, match=f"{name} must take .*{form}"):
        check_callback(name, callback)


@pytest.mark.parametrize(
    ("name", "callback"),
    [
        ("load_callback", lambda source, model=None: None),
        ("load_callback", lambda *given: None),
        ("load_callback", lambda source, **given: None),
        ("load_callback", {}.update),
        ("load_callback", dict),
        ("load_callback", functools.partial(lambda model, source: None, 1)),
        ("load_callback", wrapped(lambda *given: None, lambda: None)),
        ("save_callback", print),
        ("save_callback", lambda filepath: None),
        ("save_callback", lambda state, path="a": None),
        ("state_callback", lambda model=None: None),
        ("state_callback", dict),
    ],
)
def test_callback_with_an_accepted_signature_is_taken(name, callback):
    """A callback that accepts its arguments is taken, and so is one whose signature is unknown."""
    check_callback(name, callback)
