"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs and published schedules that lie beside the checkout; a user's clone has none."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which lies beside a developer's checkout only")
    return SHARED
