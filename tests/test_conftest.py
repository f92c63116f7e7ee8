"""Which process runs a test."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all")
def test_a_test_carries_its_group_to_the_process_that_spreads_them(
    request: pytest.FixtureRequest,
) -> None:
    assert request.node.nodeid.endswith("@tests/test_conftest.py")
