"""A profile of one step: a table for people, a trace for a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from tasks.kd.digests import write_bytes

_ROWS = 40


@contextmanager
def profiled(folder: Path, name: str) -> Iterator[None]:
    """Write `<name>.txt`, the dearest operations first, and `<name>.json`, a Chrome trace."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as seen:
        yield
    folder.mkdir(parents=True, exist_ok=True)
    table = seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=_ROWS)
    write_bytes(folder / f"{name}.txt", table.encode())
    seen.export_chrome_trace(str(folder / f"{name}.json"))
