import functools
import os
from types import SimpleNamespace

import numpy as np
import pytest

from learnit_r8.bridge.driven_state import DrivenState
from learnit_r8.state.callbacks import Callbacks, call_load, call_save, check_callback, join_callbacks
from learnit_r8.state.tree import clone
from tests.drive import make


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
    ("callback", "call"),
    [
        ("two", ({"k": 1}, "path")),
        ("two_and_more", ({"k": 1}, "path")),
        ("one", ("path",)),
        ("one_and_more", ("path",)),
        ("anything", ({"k": 1}, "path")),
        ("__call__", ({"k": 1}, "path")),
        (lambda recorder: recorder, ({"k": 1}, "path")),
        (lambda recorder: functools.partial(recorder.two, {"mine": 1}), ({"mine": 1}, "path")),
        (lambda recorder: lambda whatever: recorder.calls.append(whatever), "path"),
        (lambda recorder: lambda state, path="model.pt": recorder.calls.append((state, path)), ({"k": 1}, "path")),
    ],
)
def test_save_callback_is_told_apart_by_what_it_requires(recorder, callback, call):
    """One required argument is the path; otherwise the state comes first. It may be an object, or a partial.

    One parameter is the path, whatever its name; a path that may be left out is not required.
    """
    call_save(getattr(recorder, callback) if isinstance(callback, str) else callback(recorder), {"k": 1}, "path")

    assert recorder.calls == [call]


@pytest.mark.parametrize(
    ("form", "call"),
    [("source", ("backup",)), ("source_from_ram", ("backup", True)), ("source_keyword", ("backup", True))],
)
def test_load_callback_gets_from_ram_if_it_takes_it(recorder, form, call):
    """from_ram is passed only to callbacks that have that keyword; not through ``**more``, nor to what has no
    signature.
    """
    got, more = {}, []
    call_load(getattr(recorder, form), "backup", from_ram=True)
    call_load(recorder.source_from_ram, "path", from_ram=False)
    call_load(got.update, {"k": 1}, from_ram=True)
    call_load(lambda source, **given: more.append(given), "backup", from_ram=True)

    assert recorder.calls == [call, ("path", False)]
    assert (got, more) == ({"k": 1}, [{}])


def test_failing_load_callback_says_what_it_was_given():
    """The error after a failing load callback names the kind of source it was given."""
    with pytest.raises(RuntimeError, match="from the RAM backup, a dict, but raised AttributeError"):
        call_load(lambda source: source.seek(0), {"w": 1}, from_ram=True)
    with pytest.raises(RuntimeError, match=r"from the path 'a\.pt', but raised FileNotFoundError"):
        call_load(os.stat, "a.pt", from_ram=False)


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


class Both:
    """A state that an adapter keeps, and callbacks of the user's own beside it."""

    def __init__(self, *, is_alone=False, **own):
        self.place = SimpleNamespace(state={"w": np.ones(2)})
        self.own, self.heard = {"count": 1}, []
        given = {} if is_alone else {"state": lambda: dict(self.own), "load": self.load}
        self.called = join_callbacks(DrivenState(self.place).callbacks(), Callbacks(**given | own))

    def load(self, state, from_ram, is_resume):
        self.heard.append((state, from_ram, is_resume, self.place.state["w"].tolist()))

    def saved(self, folder):
        """The file of a checkpoint."""
        path = str(folder / "model")
        call_save(self.called.save, {"scheduler": {}, "model": self.called.model_state(None)}, path)
        return path

    def change(self):
        self.place.state, self.own["count"] = {"w": np.zeros(2)}, 2


def test_the_adapter_and_then_the_user_get_what_is_theirs(tmp_path):
    """From RAM and from files, where the user's callback gets its state too, and hears when it is a resume."""
    both = Both()
    backup, path = clone(both.called.state()), both.saved(tmp_path)
    both.change()
    call_load(both.called.load, backup, from_ram=True)
    both.change()
    call_load(both.called.load, path, from_ram=False, is_resume=True)

    assert both.heard == [({"count": 1}, True, False, [1, 1]), ({"count": 1}, True, True, [1, 1])]


def test_a_state_without_the_users_part_says_so(tmp_path):
    """The model alone is loaded from a checkpoint that was written without the user's callbacks."""
    alone, both = Both(is_alone=True), Both()
    both.change()
    for source, from_ram in ((alone.saved(tmp_path), False), (clone(alone.called.state()), True)):
        with pytest.warns(RuntimeWarning, match="the saved state holds nothing of state_callback"):
            call_load(both.called.load, source, from_ram=from_ram)
        assert both.place.state["w"].tolist() == [1, 1]
    assert both.heard == []


def test_a_file_with_the_users_part_is_loaded_without_callbacks(tmp_path):
    """So a run can go on with the model alone."""
    alone, both = Both(is_alone=True), Both()
    alone.change()
    call_load(alone.called.load, both.saved(tmp_path), from_ram=False)

    assert alone.place.state["w"].tolist() == [1, 1]


def test_files_of_a_save_callback_are_wholly_the_users(tmp_path):
    """It gets what its own state callback returns, and its load callback the path; backups hold both."""
    wrote = []
    both = Both(save=lambda state_dict, filepath: wrote.append(state_dict["model"]))
    backup, path = clone(both.called.state()), both.saved(tmp_path)
    both.change()
    call_load(both.called.load, path, from_ram=False)
    call_load(both.called.load, backup, from_ram=True)

    assert wrote == [{"count": 1}]
    assert both.heard == [(path, False, False, [0, 0]), ({"count": 1}, True, False, [1, 1])]


def test_a_save_callback_alone_gets_the_state_of_the_adapter(tmp_path):
    """As there is no other."""
    wrote = []
    Both(is_alone=True, save=lambda state_dict, filepath: wrote.append(state_dict["model"])).saved(tmp_path)

    assert wrote[0]["state"]["w"].tolist() == [1, 1]


def test_a_state_of_update_cpu_backup_goes_to_the_user():
    """It is of no kind that the adapter knows."""
    both = Both()
    call_load(both.called.load, {"mine": 3}, from_ram=True)

    assert both.heard == [({"mine": 3}, True, False, [1, 1])]


def test_what_a_file_cannot_hold_of_the_users_state_keeps_its_present_value(tmp_path):
    """A warning names it."""
    both = Both()
    both.own["thing"] = first = object()
    with pytest.warns(RuntimeWarning, match=r"checkpoints cannot hold thing \(object .* of state_callback"):
        path = both.saved(tmp_path)
    both.change()
    call_load(both.called.load, path, from_ram=False)

    assert both.heard[0][0] == {"count": 1, "thing": first}


def test_an_error_of_the_users_load_callback_is_that_of_the_restore():
    """So the next backup is tried."""

    def fail(state):
        raise KeyError("count")

    both = Both(load=fail)
    with pytest.raises(RuntimeError, match=r"load_callback must restore .* but raised KeyError\('count'\)"):
        call_load(both.called.load, clone(both.called.state()), from_ram=True)


def test_a_model_that_an_adapter_has_saved_waits_for_one_until_the_run_starts(tmp_path):
    """The user's load callback gets its file only if no adapter has come by then."""
    first = make(checkpoint_dir=tmp_path)
    first.host.adopt(DrivenState(SimpleNamespace(state={"w": np.ones(2)})).callbacks())
    saved = first.save_checkpoint()
    heard, place = [], SimpleNamespace(state={"w": np.zeros(2)})
    more = {"checkpoint_dir": tmp_path, "backup_dir": False, "resume": "auto"}

    alone = make(**more, load_callback=lambda source: heard.append(source))
    assert heard == []
    alone.draw()
    assert heard == [str(saved.model_path)]

    joined = make(**more, state_callback=dict, load_callback=heard.append)
    with pytest.warns(RuntimeWarning, match="the saved state holds nothing of state_callback"):
        joined.host.adopt(DrivenState(place).callbacks())
    joined.draw()
    assert place.state["w"].tolist() == [1, 1]
    assert len(heard) == 1
