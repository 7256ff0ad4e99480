"""Fixtures of the tests of stage 1."""

import pytest

from tests.features.world import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)
