"""The store of teacher caches, for the two stages that write and read it."""

from __future__ import annotations

import os

from tasks.kd.cache.store.store import Store, open_cache_store, store_place
from tasks.stages import Stage


def store_of(stage: Stage) -> Store:
    """The store: `.store`, or the folder or URL of STILLHOUSE_STORE."""
    place, local = store_place(os.environ, stage.root)
    copies_bytes = int(stage.compute.copies_gib * 2**30)
    return open_cache_store(place, local, copies_bytes=copies_bytes)
