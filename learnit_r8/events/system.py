"""The load of the machine that a run trains on; psutil tells it, and nvidia-ml-py that of the GPUs, where installed."""

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
"""Failed looks at the GPUs after which they are no longer asked."""


class Gpu(NamedTuple):
    """A GPU: its use in [0, 1], bytes in use and in all, degrees Celsius; NaN where unknown."""

    use: float
    used: float
    total: float
    celsius: float


class Load(NamedTuple):
    """The load of a machine.

    Attributes:
        cpu: Share of all cores in use, in [0, 1]; NaN before the second look, and without psutil.
        own_cpu: Cores that the process uses; NaN where ``cpu`` is, and where the process cannot be looked at.
        num_cpus: Number of cores.
        used, total: Bytes of memory in use, and in all; NaN without psutil.
        own: Bytes of memory of the process; NaN where it cannot be looked at.
        gpus: The GPUs of NVIDIA, where ``nvidia-ml-py`` is installed.
    """

    cpu: float = math.nan
    own_cpu: float = math.nan
    num_cpus: int = 1
    used: float = math.nan
    total: float = math.nan
    own: float = math.nan
    gpus: tuple[Gpu, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether it tells how busy cores or GPUs are."""
        return not math.isnan(self.cpu) or bool(self.gpus)


class SystemMonitor:
    """Looks at the load of this machine, at most every two seconds.

    Args:
        process: The process that trains; by default this one.
        clock: Returns seconds, monotonic.
    """

    def __init__(self, process: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pid = os.getpid() if process is None else process
        self._clock = clock
        self._next = -math.inf
        self._load: Load | None = None
        self._psutil = _find("psutil")
        self._process: Any = None
        self._gpus: list[Any] | None = None
        self._num_failed = 0
        self._nvml: Any = None

    def load(self) -> Load:
        """The load now, or of the last look."""
        now = self._clock()
        if self._load is None or now >= self._next:
            self._next = now + EVERY_SECONDS
            self._load = self._look()._replace(gpus=self._look_at_gpus())
        return self._load

    def _look(self) -> Load:
        psutil = self._psutil
        if psutil is None:
            return Load()
        # Use is counted since the look before, so the first one tells none, but begins the count.
        cpu = psutil.cpu_percent() / 100
        cpu = cpu if self._load is not None else math.nan
        memory = psutil.virtual_memory()
        own_cpu, own = self._look_at_process()
        used = float(memory.total - memory.available)
        return Load(cpu, own_cpu, psutil.cpu_count() or 1, used, float(memory.total), own)

    def _look_at_process(self) -> tuple[float, float]:
        """Cores and bytes that the process uses; NaN where it has ended or belongs to somebody else."""
        try:
            is_first = self._process is None
            if is_first:
                self._process = self._psutil.Process(self._pid)
            cores = self._process.cpu_percent() / 100
            return math.nan if is_first else cores, float(self._process.memory_info().rss)
        except self._psutil.Error:
            return math.nan, math.nan

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
        nvml = self._nvml = _find("pynvml")
        if nvml is None:
            return []
        nvml.nvmlInit()
        return [nvml.nvmlDeviceGetHandleByIndex(place) for place in range(nvml.nvmlDeviceGetCount())]

    def _look_at(self, gpu: Any) -> Gpu:
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
        use = nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
        celsius = nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
        return Gpu(float(use), float(memory.used), float(memory.total), float(celsius))


def _find(name: str) -> Any:
    """A module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
