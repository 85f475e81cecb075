"""Nothing that the package writes goes through a link that somebody has planted, not even at the last moment.

The list of files is not written by hand: every writer runs once under an audit hook, which notes what it opens. Then it
runs again for each of these files, and the hook plants a link under the name just before the file is opened, as the
quickest attacker could.
"""

import ast
import contextlib
import os
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from learnit_r8 import Recovery, TrainingDiverged
from learnit_r8.cli import main
from learnit_r8.dashboard.terminal.capture import Capture
from learnit_r8.journal.requests import FOLDER, RequestFolder, ask
from learnit_r8.journal.run import write_about
from learnit_r8.loops.checkpoints import save_state
from learnit_r8.report import write_report
from learnit_r8.state.durable_io import open_output
from learnit_r8.streams import collect_jsonl
from learnit_r8.testing import ToyTask
from tests.drive import NAN, Weights, make, train
from tests.source import MODULES, PACKAGE, name_of, tree_of

posix = pytest.mark.skipif(os.name != "posix", reason="links are POSIX here")
SLOW_IMPORT = pytest.mark.program
MOST_PLANTED = 3
KINDS = ("link", "dangling", "hard")


class Attacker:
    """Notes the files that are opened for writing in a folder, and plants links under the names of some.

    Folders that this user alone may enter are left out, as nobody else could plant anything there.
    """

    def __init__(self):
        self.place = self.victim = None
        self.opened, self.planted = [], []
        self.kind = self.name = ""
        self._is_busy = False

    def __call__(self, event, arguments):
        if event == "open" and self.place is not None and not self._is_busy:
            self._is_busy = True
            try:
                self._look(*arguments)
            finally:
                self._is_busy = False

    def _look(self, path, mode, flags):
        is_written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if not isinstance(path, (str, os.PathLike)) or not is_written:
            return
        path = Path(os.path.abspath(path))
        if self.place not in path.parents or not os.stat(path.parent).st_mode & 0o077:
            return
        self.opened.append(pattern_of(path))
        # Only so many: whoever looks for a free name would look for ever.
        if self.opened[-1] == self.name and len(self.planted) < MOST_PLANTED:
            self.plant(path)

    def plant(self, path):
        with contextlib.suppress(OSError):
            os.unlink(path)
        if self.kind == "hard":
            os.link(self.victim, path)
        else:
            path.symlink_to(self.victim if self.kind == "link" else self.victim.with_name("nothing"))
        self.planted.append(path)


def pattern_of(path):
    """The name of a file without what differs between two runs."""
    return re.sub(r"_[0-9a-f]{8}(?=[_.]|$)|\d+", "#", path.name)


ATTACKER = Attacker()
sys.addaudithook(ATTACKER)


@pytest.fixture
def attack(tmp_path):
    """Run a writer in a new folder that others may use, while links are planted under a name."""
    number = iter(range(10_000))

    def run(write, name="", kind="", prepare=lambda folder: None):
        place = tmp_path / f"place{next(number)}"
        place.mkdir(mode=0o755)
        prepare(place)
        victim = tmp_path / "victim"
        victim.write_text("mine")
        ATTACKER.opened, ATTACKER.planted = [], []
        ATTACKER.kind, ATTACKER.name, ATTACKER.victim = kind, name, victim
        ATTACKER.place = place
        try:
            with warnings.catch_warnings(), contextlib.suppress(OSError, ValueError, SystemExit):
                warnings.simplefilter("ignore")
                write(place)
        finally:
            ATTACKER.place = None

        assert victim.read_text() == "mine", (name, kind)
        assert not (tmp_path / "nothing").exists(), (name, kind)
        return sorted(set(ATTACKER.opened)), len(ATTACKER.planted)

    yield run
    ATTACKER.place = None


def whole_run(folder):
    """A run with all that it writes: journal, samples, checkpoints, model files, the best, backups in memory."""
    weights = Weights()
    with make(
        40, num_epochs=3, run_dir=folder / "run", checkpoint_dir=folder / "ck", backup_dir=folder / "shm",
        backup_every=3, state_callback=weights.get, load_callback=weights.load, save_callback=weights.save,
        monitor="accuracy",
    ) as r8:  # fmt: skip
        r8.log(accuracy=0.5)
        train(r8)


def diverged(folder):
    """A run that gives up leaves a record that says why, which is exported."""
    recovery = Recovery(max_refused=8)
    with contextlib.suppress(TrainingDiverged), make(40, recovery=recovery, checkpoint_dir=folder / "ck") as r8:
        train(r8, bad=range(400), value=NAN)
    main(["incidents", str(folder / "ck"), "1", "--export", str(folder / "one.r8")])


def run_of(folder):
    """A run folder, as somebody might have sent it."""
    with make(num_epochs=2, run_dir=folder / "run") as r8:
        train(r8)


def print_on_screen(folder):
    capture = Capture(folder / "output.log")
    capture.append("printed\n")


def ask_to_save(folder):
    write_about(folder, name="it", configuration={}, wall=1.0)
    ask(folder, "save")


def stream(folder):
    collect_jsonl([{"step": 1}], folder / "stream.jsonl")
    collect_jsonl([{"step": 2}], folder / "stream.jsonl", append=True)


def save_torch(folder):
    torch = pytest.importorskip("torch")
    from learnit_r8.torch import state

    state.save({"w": torch.ones(3)}, folder / "model.pt")


def save_history(folder):
    pytest.importorskip("flax")
    from learnit_r8.flax import save_metrics_history

    save_metrics_history({"loss": [1.0]}, folder / "history.json")


def save_keras(folder):
    from learnit_r8.keras.state import ModelState
    from tests.keras_common import classifier

    model = classifier()
    state = ModelState(model, model.optimizer)
    state.save({"model": state.read()}, folder / "model.npz")


def save_driven(folder):
    from learnit_r8.bridge.driven_state import DrivenState

    DrivenState(SimpleNamespace(state={"w": np.ones(3)})).save({}, folder / "state.r8")


def by_command(*arguments):
    def write(folder):
        os.chdir(folder)
        main([str(argument) for argument in arguments])

    return write


WRITERS = {
    "run": (whole_run, {"events.jsonl", "tmp_##_#_run.json", "tmp_##_#_samples-#.safetensors", "tmp_##_#_ck_#.r#",
                        "tmp_##_#_best#.json"}),
    "diverged": (diverged, {"tmp_##_#_incident.json", "one.r#"}),
    "screen": (print_on_screen, {"output.log"}),
    "ask": (ask_to_save, {"tmp_##_#_run.json"}),
    "stream": (stream, {"stream.jsonl"}),
    "state": (lambda folder: save_state(folder / "state", {"w": np.ones(3)}), {"tmp_##_#_state"}),
    "toy": (lambda folder: ToyTask(50).save({"model": ToyTask(50).state()}, folder / "toy.npz"), {"toy.npz"}),
    "torch": (save_torch, {"model.pt.safetensors"}),
    "history": (save_history, {"tmp_##_#_history.json"}),
    "driven": (save_driven, {"state.r#"}),
    "keras": (save_keras, {"model.npz"}),
}  # fmt: skip
"""What writes, and the files that it must be seen to open, so that a hook that sees nothing is noticed."""

READERS = {
    "report": (lambda folder: write_report(folder / "run", folder / "page.html"), {"page.html"}),
    "report command": (by_command("report", "run"), {"report.html"}),
    "export command": (by_command("export", "run", "--out", "steps.csv"), {"steps.csv"}),
}
"""Writers that need a run folder."""


@posix
@pytest.mark.parametrize(
    "what", [pytest.param(name, marks=SLOW_IMPORT if name == "keras" else ()) for name in [*WRITERS, *READERS]]
)
def test_no_write_follows_a_link(what, attack, monkeypatch, tmp_path):
    """Every file that is opened for writing is attacked, by links and by second names, and none is written through."""
    monkeypatch.chdir(tmp_path)
    prepare = run_of if what in READERS else lambda folder: None
    write, expected = {**WRITERS, **READERS}[what]
    opened, _ = attack(write, prepare=prepare)

    assert expected <= set(opened)
    for name in opened:
        for kind in KINDS:
            _, num_planted = attack(write, name, kind, prepare)
            assert num_planted >= 1, (name, kind)


@posix
def test_links_of_a_received_folder_are_not_followed(attack, tmp_path, capsys):
    """A received folder with links under all names that a run keeps: nothing is written to any."""

    def receive(folder):
        for name in (
            "events.jsonl",
            "run.json",
            "output.log",
            "report.html",
            "samples-000000.safetensors",
            "steps.csv",
        ):
            (folder / name).symlink_to(tmp_path / "victim")
        (folder / FOLDER).symlink_to(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    kept = tmp_path / "elsewhere" / f"{0:020d}-1.json"
    kept.write_text("mine")

    def use(folder):
        with contextlib.suppress(OSError, ValueError):
            make(run_dir=folder)
        for command in (["report", folder], ["export", folder, "--out", folder / "steps.csv"], ["ask", folder, "save"]):
            assert main([str(part) for part in command]) == 1
        write_about(folder, name="it", configuration={}, wall=1.0)
        RequestFolder(folder, None).look()
        with contextlib.suppress(OSError, ValueError):
            ask(folder, "save")

    attack(use, prepare=receive)

    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [kept.name]
    assert kept.read_text() == "mine"


@posix
def test_model_file_is_written_where_nobody_can_plant_a_link(tmp_path):
    """The callback, which opens the file as it likes, is handed a path in a folder of this user alone."""
    modes = []
    weights = Weights()

    def save(state_dict, filepath):
        modes.append(os.stat(os.path.dirname(filepath)).st_mode & 0o777)
        weights.save(state_dict, filepath)

    with make(checkpoint_dir=tmp_path, state_callback=weights.get, save_callback=save) as r8:
        train(r8)

    assert set(modes) == {0o700}
    assert sorted(path.name.split("_")[0] for path in tmp_path.iterdir()) == ["ck", "ck", "model", "model"]


@posix
@pytest.mark.parametrize("mode", ["w", "a", "r+", "x"])
def test_opener_refuses_what_is_no_file_of_ones_own(mode, tmp_path):
    """Links, second names, pipes and folders are refused by every way of opening, and are as before."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    os.link(tmp_path / "file", tmp_path / "second")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("link", "second", "fifo", "folder"):
        with pytest.raises(OSError, match=r"must be a regular file with one name|Is a directory|exists"):
            open_output(tmp_path / name, mode)

    assert (tmp_path / "file").read_text() == "mine"


@posix
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="makes a file of another user")
@pytest.mark.parametrize(("mode", "is_refused"), [(0o1777, True), (0o755, False)])
def test_file_of_another_user_is_refused_where_everybody_may_make_files(mode, is_refused, tmp_path):
    """In a folder such as /tmp, a file that somebody else has put there under our name is not written to."""
    tmp_path.chmod(mode)
    (tmp_path / "log.csv").write_text("theirs")
    os.chown(tmp_path / "log.csv", 12345, 12345)
    refusal = pytest.raises(ValueError, match="belongs to user 12345") if is_refused else contextlib.nullcontext()
    with refusal:
        os.close(open_output(tmp_path / "log.csv", "a"))

    assert (tmp_path / "log.csv").read_text() == "theirs"


OPENERS = {"open", "write_text", "write_bytes", "touch", "savez", "save", "savez_compressed", "symlink_to", "mkstemp"}
ELSEWHERE = {
    "state/durable_io.py": {"os.open", "open"},
    "cli/__init__.py": {"open", "os.open"},
    "cli/labels.py": {"open"},
    "dashboard/painter.py": {"screen.touch"},
    "engine/signals.py": {"os.open"},
    "dashboard/terminal/capture.py": {"os.open", "tempfile.mkstemp"},
    "dashboard/terminal/screen.py": {"os.open"},
    "testing/prove/launches.py": {"open", "(home / 'request.json').write_text", "target.symlink_to"},
    "testing/prove/probe.py": {"open", "os.open"},
    "testing/toy.py": {"np.savez"},
}
"""Calls beside the opener, all read for what they do: devices, temporary files, readers, and libraries that are handed
an open file. A proof writes in its own new folder only, from scripts that need not have the package."""


def opening_calls(path):
    """Calls in a file that may open one for writing, but for those of `open_output`."""
    if not re.search(rf"\b({'|'.join(OPENERS)})\(", path.read_text(encoding="utf-8")):
        return
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call) or getattr(node.func, "attr", getattr(node.func, "id", "")) not in OPENERS:
            continue
        called = ast.unparse(node.func)
        if called.startswith("self") and "stream" not in called:
            continue
        first = ast.unparse(node.args[0]) if node.args else ""
        is_by_path = called in ("open", "os.open") or called.split(".")[-1] in OPENERS - {"open", "save"}
        is_library = called in ("np.save", "torch.save")
        if (is_by_path or is_library) and not first.startswith("open_output("):
            yield called


def test_files_are_opened_by_the_one_opener():
    """No module opens a file for writing by itself: what follows no link is decided in one place."""
    found = {name_of(path): set(opening_calls(path)) for path in MODULES}

    assert {name: calls for name, calls in found.items() if calls} == ELSEWHERE


def test_every_row_of_the_security_page_names_a_test_that_exists():
    """What docs/security.md promises is held by tests; each row of its table names one."""
    root = PACKAGE.parent
    rows = [line for line in (root / "docs" / "security.md").read_text().splitlines() if line.startswith("| ")][1:]
    named = [re.search(r"`(tests/[^`]+\.py)::(test_\w+)` \|$", row) for row in rows]

    assert len(rows) >= 12
    assert all(named)
    for match in named:
        assert f"def {match[2]}(" in (root / match[1]).read_text(), match[0]
