"""How the package is built: which folder may import which, how deep, how wide, and what an import loads."""

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import learnit_r8
from tests.source import MODULES, PACKAGE, name_of, tree_of

LEVELS = [
    ["_validation", "triggers"],
    ["events"],
    ["table", "guard", "schedules"],
    ["policies"],
    ["sources", "state"],
    ["recovery"],
    ["engine"],
    ["scheduler"],
    ["journal", "loggers", "bridge", "testing"],
    ["torch", "streams", "loops", "dashboard", "report", "keras", "flax"],
    ["lightning", "transformers", "cli"],
]
LAYERS = [name for level in LEVELS for name in level]
"""Folders of the package and modules of its root, lowest first; each imports those before it only."""

UPWARDS = {("scheduler.py", "journal"), ("scheduler.py", "dashboard")}
"""What a file imports from above, when it is asked for: the scheduler opens its own journal and screen, and a
configuration is compared with the settings of a recovery."""

LONGEST_CHAIN = 12
MOST_ENTRIES = {"": 26}
MOST_ENTRIES_ELSEWHERE = 16

MOST_LINES = 600
"""Of code: without docstrings, comments and blank lines."""

MOST_LINES_OF_A_FUNCTION = 60

VIEWERS = {"dashboard", "report", "cli"}
FOLLOWERS = {"watch", "replay"}


def place_of(path):
    """The folder or root module that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def is_lazy(node):
    """Whether what a statement imports is not loaded with the file."""
    for_types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return for_types_only or isinstance(node, (ast.FunctionDef, ast.ClassDef))


def statements_in(block):
    """The statements of a block and of those within it; expressions, the most of a file, import nothing."""
    for node in block:
        yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from statements_in(getattr(node, part, ()))


@functools.cache
def imports(path, *, lazy=True):
    """Top-level packages imported by a file, and files of its own package."""
    statements = [node for node in tree_of(path).body if lazy or not is_lazy(node)]
    outside, inside = set(), set()
    for node in statements_in(statements):
        if isinstance(node, ast.Import):
            outside |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            modules = [base / name.name for name in node.names] + ([base] if node.module else [])
            files = {file for each in modules for file in (each.with_suffix(".py"), each / "__init__.py")}
            inside |= {file for file in files - {path} if file.is_file()}
    return outside, inside


def places(path, *, lazy=True):
    """The folders and root modules of the package that a file imports."""
    return {place_of(file) for file in imports(path, lazy=lazy)[1]} - {"__init__"}


def longest(file, below, known, above=()):
    """The longest chain of imports that begins with a file."""
    assert file not in above, f"{name_of(file)} imports itself by way of {[name_of(one) for one in above]}"
    if file not in known:
        chains = [longest(one, below, known, (*above, file)) for one in sorted(below[file])]
        known[file] = (file, *max(chains, key=len, default=()))
    return known[file]


def run(code, cwd, *flags, path=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_imports_are_found():
    """The reading of imports that the other rules stand on sees relative, absolute and lazy ones."""
    assert {"events", "engine", "dashboard"} <= places(PACKAGE / "scheduler.py")
    assert "dashboard" not in places(PACKAGE / "scheduler.py", lazy=False)
    assert "numpy" in imports(PACKAGE / "scheduler.py")[0]
    assert PACKAGE / "sources" / "planner.py" in imports(PACKAGE / "sources" / "planned.py")[1]


def test_imports_point_down():
    """Every module has a place in the order of the layers, and imports from its own and lower places only."""
    for path in MODULES:
        place = place_of(path)
        if place in ("__init__", "__main__"):
            continue
        assert place in LAYERS, f"{name_of(path)} has no place in LAYERS"
        allowed = {*LAYERS[: LAYERS.index(place) + 1], *(to for file, to in UPWARDS if file == name_of(path))}
        assert places(path) <= allowed, name_of(path)


@pytest.mark.parametrize(("file", "above"), sorted(UPWARDS))
def test_imports_upwards_are_lazy(file, above):
    """What the scheduler takes from above it is loaded when a run asks for it."""
    assert above in places(PACKAGE / file)
    assert above not in places(PACKAGE / file, lazy=False)


def test_chains_of_imports_are_short():
    """To know what a file stands on one has to follow few others, and never comes back to it."""
    below, known = {path: imports(path, lazy=False)[1] for path in MODULES}, {}
    chain = max((longest(path, below, known) for path in MODULES), key=len)

    assert len(chain) <= LONGEST_CHAIN, " > ".join(name_of(path) for path in chain)


def test_the_engine_has_no_circle():
    """What the engine stands on does not import it back, not even lazily or for types: it reads from top to bottom."""
    below = {path: imports(path)[1] for path in MODULES if place_of(path) in ("engine", "sources", "scheduler")}
    known = {}
    for path in below:
        longest(path, {each: found & below.keys() for each, found in below.items()}, known)


def test_folders_are_small():
    """A folder has no more entries than can be read at a glance."""
    for folder in sorted({path.parent for path in MODULES}):
        modules = [path for path in folder.glob("*.py") if not path.stem.startswith("__")]
        folders = [path for path in folder.iterdir() if any(path.glob("*.py"))]
        most = MOST_ENTRIES.get("" if folder == PACKAGE else name_of(folder), MOST_ENTRIES_ELSEWHERE)
        assert len(modules) + len(folders) <= most, name_of(folder)


def docstring_lines(node):
    """The numbers of the lines of a docstring, of whatever has one."""
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return set()
    has_one = ast.get_docstring(node, clean=False) is not None
    return set(range(node.body[0].lineno, node.body[0].end_lineno + 1)) if has_one else set()


def num_code_lines(path):
    """How many lines of a file hold code, rather than docstrings, comments or nothing."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    coded = {number for number, line in lines if line.strip() and not line.lstrip().startswith("#")}
    # Most files are short whatever their lines hold.
    is_long = len(coded) > MOST_LINES
    return len(coded.difference(*map(docstring_lines, ast.walk(tree_of(path)))) if is_long else coded)


def test_files_are_short():
    """A file can be read at one sitting."""
    assert {name_of(path) for path in MODULES if num_code_lines(path) > MOST_LINES} == set()


def test_functions_are_short():
    """A function is as long as its thought, and fits on a screen without its docstring."""
    long = {
        f"{name_of(path)}: {node.name}"
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 - len(docstring_lines(node)) > MOST_LINES_OF_A_FUNCTION
    }

    assert not long


def test_parts_of_the_engine_do_not_load_it():
    """The engine uses what is below it; only the scheduler and the loops over the user's batches load the engine."""
    engine = PACKAGE / "engine" / "engine.py"
    loading = [name_of(path) for path in MODULES if path != engine and engine in imports(path, lazy=False)[1]]

    assert loading == ["engine/feed/feed.py", "scheduler.py"]


def test_recovery_and_checkpoint_are_handed_what_they_need():
    """The policy of recovery knows no backup or store; the store knows no other part, but how to warn."""
    policy = PACKAGE / "recovery" / "policy.py"
    assert places(policy) <= {"_validation", "recovery"}
    assert re.findall(r"^from \.(\w+) import", policy.read_text(encoding="utf-8"), flags=re.M) == []
    assert places(PACKAGE / "state" / "store.py") <= {"state", "events"}


def needed(path):
    """What a file imports beside numpy, the standard library and the package, but for what its folder may.

    Streams and loops load what they need when it is used; the adapters for Flax, Keras and torch are only imported
    by name; curses is loaded when a screen is opened.
    """
    outside, place = imports(path)[0], place_of(path)
    lazily = outside - imports(path, lazy=False)[0]
    if place == "streams":
        outside -= lazily & {"torch", "pandas"}
    if place == "cli":
        outside -= lazily & {"torch", "PIL"}
    if name_of(path) == "testing/prove/probe.py":
        outside -= lazily & {"torch"}
    if place == "flax":
        outside -= {"jax", "flax", "optax"}
    if place == "keras":
        outside -= {"keras"} | lazily & {"tensorflow"}
    if place == "torch":
        outside -= {"torch"} | lazily & {"accelerate"}
    if place in ("lightning", "transformers"):
        outside -= {"torch", place} | lazily & {"datasets"}
    if name_of(path) == "table/labels/frame.py":
        outside -= lazily & {"pandas", "polars"}
    if name_of(path) == "dashboard/terminal/screen.py":
        outside -= lazily & {"curses"}

    if name_of(path) == "engine/settings.py":
        # For type checkers, which bring it.
        outside -= lazily & {"typing_extensions"}

    return outside - ({"numpy", *sys.stdlib_module_names} - {"curses", "pickle"})


def test_only_numpy_is_needed():
    """No file imports anything outside numpy, the standard library and the package, but for some folders."""
    assert {name_of(path): more for path in MODULES if (more := needed(path))} == {}


def test_only_the_scheduler_loads_the_dashboard():
    """The dashboard is imported by one lazy import in the scheduler, by the report and by the commands."""
    others = [path for path in MODULES if place_of(path) not in VIEWERS]

    loading = [name_of(path) for path in others if "dashboard" in places(path, lazy=name_of(path) != "scheduler.py")]
    assert loading == []


def test_dashboard_knows_events_only():
    """The dashboard imports the events of the package, as they are or condensed; those that follow a folder, it too.

    What writes files takes the opener, and the rule for free names, from the checkpoints.
    """
    for path in (PACKAGE / "dashboard").rglob("*.py"):
        is_writer = path.stem in ("export", "capture")
        more = {"journal"} if path.stem in FOLLOWERS else {"state"} if is_writer else set()
        assert places(path) <= {"events", "dashboard"} | more, name_of(path)


def test_loops_are_imported_by_their_adapter():
    """Only the flax adapter imports the loops; whoever trains otherwise does not load them."""
    others = [path for path in MODULES if place_of(path) not in {"loops", "flax"}]

    assert [name_of(path) for path in others if "loops" in places(path)] == []


def test_nothing_heavy_is_loaded(tmp_path):
    """Using the scheduler loads no framework, no curses, no plotting, and without use_curses no dashboard."""
    code = "import sys, learnit_r8; learnit_r8.R8Scheduler(4, batch_size=2, num_steps=1); print(*sys.modules)"
    loaded = run(code, tmp_path)
    heavy = {"torch", "tensorflow", "jax", "keras", "flax", "curses", "matplotlib", "sklearn", "scipy", "pandas"}

    assert "learnit_r8.scheduler" in loaded
    assert "learnit_r8.dashboard" not in loaded
    assert not heavy & {name.split(".")[0] for name in loaded}


def test_loops_load_no_framework(tmp_path):
    """A plain Python loop needs and loads no framework, also where one is installed."""
    code = """
import sys
from learnit_r8.loops import every, logs, loop
loop(0, range(3), {every(1): lambda state, batch: (logs().add_metric("loss", 1.0), state + batch)})
print(*sys.modules)
"""
    heavy = {"torch", "tensorflow", "jax", "flax", "optax", "tqdm", "wandb", "pandas"}

    assert not heavy & {name.split(".")[0] for name in run(code, tmp_path)}


def test_flax_loads_no_tensorflow(tmp_path):
    """The flax adapter needs no TensorFlow and no torch."""
    pytest.importorskip("optax")
    loaded = run("import sys, learnit_r8.flax; print(*sys.modules)", tmp_path)

    assert "jax" in loaded
    assert not {"tensorflow", "torch"} & set(loaded)


def test_plain_import_loads_nothing(tmp_path):
    """`import learnit_r8` alone loads no part of the package and no numpy."""
    loaded = run("import sys, learnit_r8; print(*sys.modules)", tmp_path)

    assert not [name for name in loaded if name.startswith("learnit_r8.")]
    assert "numpy" not in loaded


def test_public_names_exist():
    """Every public name can be had, and is listed."""
    for name in learnit_r8.__all__:
        assert getattr(learnit_r8, name) is not None
        assert name in dir(learnit_r8)


def test_unknown_name_is_an_attribute_error():
    """A name the package does not have is named in an AttributeError."""
    with pytest.raises(AttributeError, match=r"module 'learnit_r8' has no attribute 'R9Scheduler'\."):
        _ = learnit_r8.R9Scheduler


def test_folder_can_be_copied_into_a_project(tmp_path):
    """The bare folder, without installed metadata, trains: also with the log and checkpoints."""
    shutil.copytree(PACKAGE, tmp_path / "learnit_r8", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import learnit_r8, sys
assert not any("__editable__" in str(finder) for finder in sys.meta_path)
with learnit_r8.R8Scheduler(8, batch_size=4, num_epochs=2, use_curses=True, checkpoint_dir="saved") as r8:
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            r8.update_with_loss(1.0)
print(learnit_r8.__file__, learnit_r8.__version__, r8.global_step)
"""
    where, version, num_steps = run(code, tmp_path, "-S", path=Path(numpy.__file__).parent.parent)

    assert Path(where).is_relative_to(tmp_path)
    assert (version, num_steps) == (learnit_r8.__version__, "4")
    assert len(list((tmp_path / "saved").glob("ck_*.r8"))) == 2
