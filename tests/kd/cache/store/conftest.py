"""What tests of stores share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import import_module

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_loader() -> Iterator[None]:
    """Descriptions of S3 are read once, not by every new driver: half of what making one takes."""
    with pytest.MonkeyPatch.context() as patch:
        loader = functools.cache(import_module("botocore.session").create_loader)
        patch.setattr("botocore.session.create_loader", loader)
        yield
