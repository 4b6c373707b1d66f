"""What NVML says of the GPUs that this process may use (extra ``gpu``); nothing, where it is not there."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

LOGGER = logging.getLogger("mlbalance_client")
_EVERY_S = 1.0
_UNUSED_S = 10.0


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """Of all visible GPUs: mean utilization (0 to 1), sums of memory."""

    utilization: float | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None


_UNKNOWN = GpuFigures()


class Gauge:
    """Reads about once a second, in a thread of its own (a read may take milliseconds), while anyone asks."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted and importlib.util.find_spec("pynvml") is not None
        self._found = _UNKNOWN
        self._asked_at = 0.0
        self._thread: threading.Thread | None = None

    def figures(self, now: float) -> GpuFigures:
        """The newest figures; the first call only starts the reading."""
        if not self._wanted:
            return _UNKNOWN
        self._asked_at = now
        if self._thread is None:
            self._start()
        return self._found

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="mlbalance gpu", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            handles = visible(nvml)
        except Exception as error:  # whatever a driver or its binding may raise: there are no figures then
            LOGGER.debug("no GPU figures: %r", error)
            handles = []
        if not handles:
            self._wanted = False
            return
        asked_at, unused_s = None, 0.0
        while unused_s < _UNUSED_S:
            self._found = read(nvml, handles)
            unused_s = 0.0 if self._asked_at != asked_at else unused_s + _EVERY_S
            asked_at = self._asked_at
            time.sleep(_EVERY_S)
        self._thread = None


def visible(nvml: Any) -> list[Any]:
    """Handles of the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, by index or UUID; MIG slices are left out."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    handles = []
    for name in filter(None, (part.strip() for part in named.split(","))):
        if name.isdigit():
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(name)))
        elif name.startswith("GPU-"):
            handles.append(nvml.nvmlDeviceGetHandleByUUID(name))
        else:
            break  # as CUDA does: an invalid entry hides all after it
    return handles


def read(nvml: Any, handles: list[Any]) -> GpuFigures:
    """One reading; what a GPU does not tell is left out of all."""
    used: int | None = None
    total: int | None = None
    try:
        memory = [nvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        used, total = sum(int(m.used) for m in memory), sum(int(m.total) for m in memory)
    except Exception as error:
        LOGGER.debug("no GPU memory figures: %r", error)
    try:
        rates = [nvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in handles]
        utilization: float | None = round(sum(rates) / len(rates) / 100, 4)
    except Exception as error:
        LOGGER.debug("no GPU utilization: %r", error)
        utilization = None
    return GpuFigures(utilization, used, total)
