"""Switches that must be in the environment before Prefect, MLflow and DVC are imported.

A user's own settings are left alone. Each library spells "send nothing home" in its own way.
"""

from __future__ import annotations

import os

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

PREFECT_DEFAULTS = {
    # DVC decides what is up to date. A stored Prefect result would be a second, pickled opinion.
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    # A flow called from Python without a configured server gets Prefect's own temporary one.
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": (
        "%(asctime)s | %(levelname)-7s | %(flow_run_name)s | %(message)s"
    ),
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": (
        "%(asctime)s | %(levelname)-7s | %(task_run_name)s | %(message)s"
    ),
}

# MLflow's job runner takes ten processes and 2 GB, and nothing here uses it.
MLFLOW_DEFAULTS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def set_defaults() -> None:
    """Set each switch that the user has not set."""
    for name, value in {**TELEMETRY_OFF, **PREFECT_DEFAULTS, **MLFLOW_DEFAULTS}.items():
        os.environ.setdefault(name, value)
