"""Settings and fixtures shared by all tests: hypothesis draws the same examples every time."""

import gc
import os
import re
import signal
import sys
import time

import pytest
from hypothesis import HealthCheck, Phase, settings

# Small models are not worth threads; read when jax is first imported.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

# Hundreds of tests start a program, which would compile the whole package anew: half of its time. So would each worker
# rewrite the assertions of all tests, ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pytest.register_assert_rewrite("tests.common")

# What an import makes is no garbage: to look for some takes a third of the time in which the tests are collected.
gc.disable()


@pytest.fixture
def python_handles_ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, as in a terminal: a shell lets what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """``-n auto``: one more than there are cores, as many tests wait for programs on terminals."""
    return 1 + (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


WHOLLY_MARKED = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.(slow|program)\b", re.MULTILINE)


def pytest_ignore_collect(collection_path, config):
    """A file of slow tests or programs alone is not imported for the default tests: its frameworks take seconds."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    if is_test and config.option.markexpr == "not slow and not program":
        return bool(WHOLLY_MARKED.search(collection_path.read_text(encoding="utf-8"))) or None
    return None


@pytest.fixture(autouse=True, scope="session")
def _runs(tmp_path_factory):
    """Runs that are shown get their folders outside the repository."""
    os.environ["R8_RUNS"] = str(tmp_path_factory.mktemp("runs"))
    # A run of one test must not sweep what another test has left in the system's shared memory.
    os.environ["R8_BACKUPS"] = str(tmp_path_factory.mktemp("backups"))


@pytest.fixture(autouse=True, scope="module")
def _frameworks_are_no_garbage():
    """A collection looks at a million objects where other tests have loaded the frameworks: half a second each."""
    # First what is garbage: a scheduler that was frozen would keep its signal handlers to the end.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def _no_power_cut(request):
    """No test cuts the power: a flush of the disk, ten milliseconds and more for each checkpoint, shows nothing.

    The tests of what is flushed, and when, do flush.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_durable_io.py":
            patch.setattr(os, "fsync", os.fstat)
        yield


class CountingClock:
    """Stands in for ``time.monotonic``; counts how often it is read."""

    def __init__(self):
        self.now = 1000.0
        self.readings = 0

    def __call__(self):
        self.readings += 1
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The clock of whoever reads `time.monotonic`."""
    fake = CountingClock()
    monkeypatch.setattr(time, "monotonic", fake)
    return fake


@pytest.fixture
def one_thread():
    """Batches of torch are too small to share among threads; on a busy machine that costs seconds."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("repeatable", REPEATABLE)
# With --hypothesis-profile thorough.
settings.register_profile("thorough", REPEATABLE, max_examples=400)
settings.load_profile("repeatable")
