"""The load of the machine that a run trains on, as far as the system tells it without a package."""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

EVERY_SECONDS = 2.0
"""Least time between two looks."""

_LOST = 3
"""Failed looks at the GPUs after which they are not asked any more."""


class Gpu(NamedTuple):
    """A GPU: its use in [0, 1], bytes in use and in all, degrees Celsius; NaN where unknown."""

    use: float
    used: float
    total: float
    celsius: float


class Load(NamedTuple):
    """The load of a machine.

    Attributes:
        cpu: Share of all cores in use, in [0, 1]; NaN where unknown.
        own_cpu: Cores that the process uses; NaN before the second look.
        num_cpus: Number of cores.
        used, total: Bytes of memory in use, and in all; NaN where unknown.
        own: Bytes of memory of the process; NaN where unknown.
        gpus: The GPUs of NVIDIA, where ``nvidia-ml-py`` is installed.
    """

    cpu: float
    own_cpu: float
    num_cpus: int
    used: float
    total: float
    own: float
    gpus: tuple[Gpu, ...] = ()


class SystemMonitor:
    """Looks at the load of this machine, at most every two seconds.

    Args:
        process: The process that trains; by default this one.
        clock: Returns seconds, monotonic.
        proc: The folder in which Linux tells the load.
    """

    def __init__(
        self, process: int | None = None, *, clock: Callable[[], float] = time.monotonic, proc: str = "/proc"
    ) -> None:
        self._process = os.getpid() if process is None else process
        self._clock, self._proc = clock, proc
        self._next = -math.inf
        self._before: tuple[float, float, float, float] | None = None
        self._load: Load | None = None
        self._gpus: list[Any] | None = None
        self._num_failed = 0
        self._nvml: Any = None

    def load(self) -> Load:
        """The load now, or of the last look."""
        now = self._clock()
        if self._load is None or now >= self._next:
            self._next = now + EVERY_SECONDS
            self._load = self._look(now)
        return self._load

    def _look(self, now: float) -> Load:
        busy, whole = self._cpu_times()
        own = self._own_seconds()
        cpu = own_cpu = math.nan
        if self._before is not None:
            since, busy_before, whole_before, own_before = self._before
            if whole > whole_before:
                cpu = (busy - busy_before) / (whole - whole_before)
            if now > since:
                own_cpu = max(0.0, (own - own_before) / (now - since))
        self._before = now, busy, whole, own
        used, total = self._memory()
        return Load(cpu, own_cpu, os.cpu_count() or 1, used, total, self._own_bytes(), self._look_at_gpus())

    def _read(self, name: str) -> str:
        try:
            with open(os.path.join(self._proc, name), encoding="utf-8", errors="replace") as file:
                return file.read(65536)
        except OSError:
            return ""

    def _cpu_times(self) -> tuple[float, float]:
        times = [float(text) for text in self._read("stat").partition("\n")[0].split()[1:9]]
        # Idle and waiting for disks are no use.
        return (sum(times) - sum(times[3:5]), sum(times)) if len(times) >= 5 else (math.nan, math.nan)

    def _own_seconds(self) -> float:
        parts = self._read(f"{self._process}/stat").rpartition(")")[2].split()
        if len(parts) > 12:
            return (float(parts[11]) + float(parts[12])) / os.sysconf("SC_CLK_TCK")
        return time.process_time() if self._process == os.getpid() else math.nan

    def _memory(self) -> tuple[float, float]:
        lines = (line.split() for line in self._read("meminfo").splitlines())
        sizes = {line[0]: 1024.0 * float(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
        total = sizes.get("MemTotal:", math.nan)
        return total - sizes.get("MemAvailable:", math.nan), total

    def _own_bytes(self) -> float:
        parts = self._read(f"{self._process}/statm").split()
        return float(parts[1]) * os.sysconf("SC_PAGE_SIZE") if len(parts) > 1 else math.nan

    def _look_at_gpus(self) -> tuple[Gpu, ...]:
        if self._num_failed >= _LOST:
            return ()
        try:
            if self._gpus is None:
                self._gpus = self._open_gpus()
            return tuple(self._look_at(gpu) for gpu in self._gpus)
        except Exception:
            # A driver that goes away must not take the screen with it.
            self._num_failed += 1
            return ()

    def _open_gpus(self) -> list[Any]:
        try:
            nvml: Any = importlib.import_module("pynvml")
        except ImportError:
            return []
        self._nvml = nvml
        nvml.nvmlInit()
        return [nvml.nvmlDeviceGetHandleByIndex(place) for place in range(nvml.nvmlDeviceGetCount())]

    def _look_at(self, gpu: Any) -> Gpu:
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
        use = nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
        celsius = nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
        return Gpu(float(use), float(memory.used), float(memory.total), float(celsius))
