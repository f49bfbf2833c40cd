"""The flow, for real: a Prefect server, a DVC repository, an MLflow store, stages of no work."""

from __future__ import annotations

import pytest

from flows.distill import distill
from tests.flows.conftest import Project


pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon:DeprecationWarning")


def test_all(project: Project, prefect_url: str) -> None:
    state = distill("tiny", project.root, return_state=True)
    print(repr(state))
    assert state.name == "Promoted"
