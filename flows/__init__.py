"""Running things: the Prefect flow, the command line and the two servers behind `make ui`."""

from __future__ import annotations

from flows.environment import set_defaults

set_defaults()
