"""The load of the machine."""

import math
import sys
import types

import pytest

from learnit_r8.dashboard.state.ui_state import Scene
from learnit_r8.dashboard.state.view import View
from learnit_r8.events.system import Gpu, Load, SystemMonitor
from learnit_r8.testing import FakeClock
from tests.dashboard.state.told import start, steps
from tests.screen_common import screen


def system(*, cpu=0.0, own=0.0, process=None):
    """psutil of a machine with four cores; the process is gone where that raises."""

    class Error(Exception):
        pass

    class Process:
        def __init__(self, pid):
            if process is not None and pid != process:
                raise Error(pid)

        def cpu_percent(self):
            return names["own"]

        def memory_info(self):
            return types.SimpleNamespace(rss=25e6)

    names = {
        "own": own, "cpu": cpu, "Process": Process, "Error": Error, "cpu_percent": lambda: names["cpu"],
        "cpu_count": lambda: 4, "virtual_memory": lambda: types.SimpleNamespace(total=1000, available=400),
    }  # fmt: skip
    return names, types.SimpleNamespace(**names)


def test_load_is_that_between_two_looks(monkeypatch):
    """Use is counted between two looks, which are at least two seconds apart."""
    names, module = system()
    monkeypatch.setitem(sys.modules, "psutil", module)
    clock = FakeClock()
    monitor = SystemMonitor(7, clock=clock)
    first = monitor.load()
    names.update(cpu=75.0, own=150.0)
    clock.advance(1.0)
    assert monitor.load() is first
    clock.advance(1.0)
    second = monitor.load()

    assert math.isnan(first.cpu)
    assert math.isnan(first.own_cpu)
    assert (second.cpu, second.own_cpu, second.num_cpus) == (0.75, 1.5, 4)
    assert (second.used, second.total, second.own) == (600, 1000, 25e6)


def test_count_begins_with_the_first_look(monkeypatch):
    """psutil's own first answer on a thread is 0, as it only begins to count; it is never taken for the load."""
    module = system()[1]
    answers = iter([0.0, 75.0])
    module.cpu_percent = lambda: next(answers)
    monkeypatch.setitem(sys.modules, "psutil", module)
    clock = FakeClock()
    monitor = SystemMonitor(7, clock=clock)
    monitor.load()
    clock.advance(2.0)

    assert monitor.load().cpu == 0.75


def test_process_that_has_ended(monkeypatch):
    """A process that cannot be looked at tells nothing; the machine is shown all the same."""
    monkeypatch.setitem(sys.modules, "psutil", system(process=8)[1])
    load = SystemMonitor(7, clock=FakeClock()).load()

    assert math.isnan(load.own)
    assert load.total == 1000


def test_without_psutil_nothing_is_known(monkeypatch):
    """Without the extra there are no cores and no memory on the screen, and nothing raises."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    load = SystemMonitor(clock=FakeClock()).load()
    view = View()
    view.fold(start())

    assert math.isnan(load.cpu)
    assert math.isnan(load.used)
    assert "memory" not in "\n".join(screen(view, 120, 30, scene=Scene(load=load)))


def test_this_machine_has_a_load():
    """psutil itself tells the memory of this process, and its use of cores from the second look on."""
    pytest.importorskip("psutil")
    clock = FakeClock()
    monitor = SystemMonitor(clock=clock)
    assert 0 < monitor.load().own < monitor.load().total
    clock.advance(3.0)
    load = monitor.load()

    assert 0 <= load.cpu <= 1
    assert load.own_cpu >= 0


def nvml(**more):
    """A driver with one GPU."""
    names = {
        "nvmlInit": lambda: None, "nvmlDeviceGetCount": lambda: 1, "nvmlDeviceGetHandleByIndex": lambda place: place,
        "nvmlDeviceGetMemoryInfo": lambda gpu: types.SimpleNamespace(used=30e9, total=80e9),
        "nvmlDeviceGetUtilizationRates": lambda gpu: types.SimpleNamespace(gpu=97),
        "nvmlDeviceGetTemperature": lambda gpu, kind: 64, "NVML_TEMPERATURE_GPU": 0,
    }  # fmt: skip
    return types.SimpleNamespace(**names | more)


def test_gpus_are_asked_where_the_package_is(monkeypatch):
    """With nvidia-ml-py installed, use, memory and temperature of each GPU are told."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml())

    assert SystemMonitor().load().gpus == (Gpu(0.97, 30e9, 80e9, 64.0),)


def test_driver_that_goes_away_is_left_alone(monkeypatch):
    """A driver that raises is asked three times, and the screen goes on."""
    asked, clock = [], FakeClock()

    def gone(gpu):
        asked.append(gpu)
        raise OSError("driver unloaded")

    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetMemoryInfo=gone))
    monitor = SystemMonitor(clock=clock)
    for _ in range(6):
        assert monitor.load().gpus == ()
        clock.advance(3.0)

    assert len(asked) == 3


def test_strip_shows_the_load():
    """Overview shows cores, memory, waiting for data and GPUs; without a load there is no such line."""
    view = View()
    view.fold(start())
    for step in range(1, 20):
        view.fold(steps(step, float(step), data_seconds=0.4))
    load = Load(0.5, 1.25, 8, 4e9, 16e9, 1e9, (Gpu(0.97, 30e9, 80e9, 64.0),))
    frame = "\n".join(screen(view, 120, 30, scene=Scene(load=load)))

    assert "cpu 50% (ours 1.2 of 8)  memory 4.0 of 16 GB (ours 1.0)  data wait 40%  gpu 97% 30 of 80 GB 64 C" in frame
    assert "memory" not in "\n".join(screen(view, 120, 30))
