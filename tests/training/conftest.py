"""Small runs draw no learning curves, except for tests with ``drawn_curves``."""

from __future__ import annotations

import pytest


@pytest.fixture
def drawn_curves() -> None:
    """The curves of the runs of a test are drawn."""


@pytest.fixture(autouse=True)
def quick_runs(request: pytest.FixtureRequest) -> None:
    if "drawn_curves" not in request.fixturenames:
        request.getfixturevalue("undrawn_curves")
