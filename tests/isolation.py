"""What isolates tests from the machine: which hosts they may reach, what they may not leave."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")
# What MLflow leaves in the working folder when it was not told where to write.
STRAYS = ("mlflow.db", "mlruns", "mlartifacts")


def find_strays(folder: Path) -> set[str]:
    """Names in a folder that only a misdirected MLflow leaves there."""
    return {name for name in STRAYS if (folder / name).exists()}


def is_loopback(host: str | bytes) -> bool:
    """Whether a host's name or address is this machine's own."""
    text = host.decode() if isinstance(host, bytes) else host
    return text.startswith(LOOPBACK)
