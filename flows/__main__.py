"""`python -m flows` is `stillhouse`."""

from __future__ import annotations

from flows.cli import main

main()
