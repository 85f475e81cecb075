import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import learnit_r8

PACKAGE = Path(learnit_r8.__file__).parent
NUMERIC = {"triggers",
    "order", "estimators", "suspects", "table", "views", "guard", "backup", "copies", "budget", "lr", "events",
    "range_test", "humps", "container", "signals",
    "tally", "wire", "losses", "checks", "durable", "kinds", "records", "condense", "figures", "running_losses",
    "early", "untrained", "ladder",
}  # fmt: skip
MIDDLE = {"announcer", "restoring", "moment", "diagnosis", "chunk", "draft", "plan", "planner", "policies", "recovery",
    "checkpoint", "sweep", "survey", "telling", "journal", "outlook", "requests", "saves", "resume",
    "quarantine", "rescue", "incident",
}  # fmt: skip
VIEWERS = {"dashboard", "report", "cli"}
FOLLOWERS = {"watch", "replay"}
LAYERS = ["standing", "resumable", "drawing", "engine", "scheduler"]
TOP = {"parts", *LAYERS, "dashboard"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def is_lazy(node):
    """Whether what a statement imports is not loaded with the file."""
    for_types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return for_types_only or isinstance(node, (ast.FunctionDef, ast.ClassDef))


def imports(path, *, lazy=True):
    """Top-level packages imported by a file, and those of its own package as ".name"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not lazy:
        tree.body = [node for node in tree.body if not is_lazy(node)]
    folders = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [name.name for name in node.names]
            home = folders[0] + "." if node.level <= len(folders) else ""
            found |= {"." + (home + name).split(".")[0] for name in names}
    return found


def files_of(name):
    """The file of a module, or all of its folder."""
    folder = PACKAGE / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{name}.py"]


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
    assert {".events", ".parts", ".dashboard", "numpy"} <= imports(PACKAGE / "scheduler.py")
    assert ".dashboard" not in imports(PACKAGE / "scheduler.py", lazy=False)
    assert imports(PACKAGE / "dashboard" / "plain.py") >= {".events", "sys"}


@pytest.mark.parametrize("name", sorted(NUMERIC))
def test_numeric_core_stands_alone(name):
    """The numeric core imports numpy, the standard library and itself."""
    allowed = {"numpy", *sys.stdlib_module_names, *("." + other for other in NUMERIC)}

    assert [imports(path) - allowed for path in files_of(name)] == [set()] * len(files_of(name))


@pytest.mark.parametrize("name", sorted(NUMERIC | MIDDLE))
def test_imports_point_down(name):
    """Nothing below the scheduler imports the scheduler or the dashboard."""
    assert [imports(path) & {"." + top for top in TOP} for path in files_of(name)] == [set()] * len(files_of(name))


@pytest.mark.parametrize("number", range(len(LAYERS)), ids=LAYERS)
def test_layers_of_the_engine_use_those_below(number):
    """Of the layers that R8Scheduler consists of, none imports one above it."""
    above = {"." + name for name in LAYERS[number + 1 :]}

    assert not imports(PACKAGE / f"{LAYERS[number]}.py") & above


def test_recovery_and_checkpoint_are_handed_what_they_need():
    """Recovery knows no policy, store or backup; the store knows no scheduler part."""
    own = {
        name
        for module in ("recovery", "checkpoint", "written")
        for name in imports(PACKAGE / f"{module}.py")
        if name[0] == "."
    }

    assert own <= {".checks", ".durable", ".container", ".written"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_only_numpy_is_needed(path):
    """No file imports anything outside numpy, the standard library and the package, but for some folders.

    Streams and loops load what they need when it is used; the adapters for Flax, Keras and torch are only imported
    by name; curses is loaded when a screen is opened.
    """
    outside = {name for name in imports(path) if name[0] != "."}
    lazily = outside - {name for name in imports(path, lazy=False) if name[0] != "."}
    if path.parent.name == "streams":
        outside -= lazily & {"torch", "pandas"}
    if path.parent.name == "loops":
        outside -= lazily & {"tqdm"}
    if path.parent.name == "flax":
        outside -= {"jax", "flax", "optax"}
    if path.parent.name == "keras":
        outside -= {"keras"} | lazily & {"tensorflow"}
    if path.parent.name == "torch":
        outside -= {"torch"} | lazily & {"safetensors"}

    if path.name == "terminal.py":
        outside -= lazily & {"curses"}

    assert outside <= {"numpy", *sys.stdlib_module_names}
    assert not outside & {"curses", "pickle"}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if not VIEWERS & {*path.parts[-3:-1]}], ids=lambda path: path.stem
)
def test_only_the_scheduler_loads_the_dashboard(path):
    """The dashboard is imported by one lazy import in the scheduler, by the report and by the commands."""
    if path.stem == "scheduler":
        assert ".dashboard" not in imports(path, lazy=False)
    else:
        assert ".dashboard" not in imports(path)


def test_dashboard_knows_events_only():
    """The dashboard imports the events of the package, as they are or condensed; those that follow a folder, it too."""
    for path in (PACKAGE / "dashboard").rglob("*.py"):
        own = {name for name in imports(path) if name[0] == "."}

        assert own <= {".events", ".condense", ".dashboard"} | ({".journal"} if path.stem in FOLLOWERS else set())


def test_nothing_heavy_is_loaded(tmp_path):
    """Using the scheduler loads no framework, no curses, no plotting."""
    loaded = run("import sys, learnit_r8; learnit_r8.R8Scheduler; print(*sys.modules)", tmp_path)
    heavy = {"torch", "tensorflow", "jax", "keras", "flax", "curses", "matplotlib", "sklearn", "scipy", "pandas"}

    assert "learnit_r8.scheduler" in loaded
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


@pytest.mark.parametrize("name", sorted(NUMERIC | MIDDLE | TOP | {"streams", "loops"}))
def test_nothing_below_imports_the_adapters(name):
    """Only the flax adapter itself imports the flax adapter; loops are imported by adapters only."""
    adapters = {".flax"} if name == "loops" else {".flax", ".loops"}

    assert [imports(path) & adapters for path in files_of(name)] == [set()] * len(files_of(name))


def test_plain_import_loads_nothing(tmp_path):
    """`import learnit_r8` alone loads no part of the package and no numpy."""
    loaded = run("import sys, learnit_r8; print(*sys.modules)", tmp_path)

    assert not [name for name in loaded if name.startswith("learnit_r8.")]
    assert "numpy" not in loaded


def test_building_a_scheduler_loads_no_dashboard(tmp_path):
    """Without use_curses the dashboard stays out of memory."""
    code = "import sys, learnit_r8; learnit_r8.R8Scheduler(4, batch_size=2, num_steps=1); print(*sys.modules)"

    assert "learnit_r8.dashboard" not in run(code, tmp_path)


@pytest.mark.parametrize("name", learnit_r8.__all__)
def test_public_names_exist(name):
    """Every public name can be had, and is listed."""
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
