"""The load of the machine."""

import math
import os
import sys
import types

import pytest

from learnit_r8.dashboard.state.system import Gpu, Load, SystemMonitor
from learnit_r8.dashboard.state.ui_state import Scene
from learnit_r8.dashboard.state.view import View
from learnit_r8.testing import FakeClock
from tests.dashboard.state.told import start, steps
from tests.screen_common import screen


def write(proc, busy, idle, own):
    (proc / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1\n")
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 400 kB\n")
    (proc / "7").mkdir(exist_ok=True)
    (proc / "7" / "stat").write_text(f"7 (a b) c) S {'0 ' * 10}{own} 0 0 0\n")
    (proc / "7" / "statm").write_text("100 25 0 0 0 0 0\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs sysconf")
def test_load_is_that_between_two_looks(tmp_path):
    """Use is counted between two looks, which are at least two seconds apart."""
    ticks, clock = os.sysconf("SC_CLK_TCK"), FakeClock()
    write(tmp_path, 100, 100, 0)
    monitor = SystemMonitor(7, clock=clock, proc=str(tmp_path))
    first = monitor.load()
    write(tmp_path, 175, 125, 3 * ticks)
    clock.advance(1.0)
    assert monitor.load() is first
    clock.advance(1.0)
    second = monitor.load()

    assert math.isnan(first.cpu)
    assert (second.cpu, second.own_cpu) == (0.75, 1.5)
    assert (second.used, second.total) == (600 * 1024, 1000 * 1024)
    assert second.own == 25 * os.sysconf("SC_PAGE_SIZE")


def test_system_that_tells_nothing(tmp_path):
    """Where there is no such folder, nothing is known and nothing raises."""
    load = SystemMonitor(7, clock=FakeClock(), proc=str(tmp_path / "none")).load()

    assert math.isnan(load.cpu)
    assert math.isnan(load.used)


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
