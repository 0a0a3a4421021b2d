"""Fixtures of the tests with a real Ray."""

from pathlib import Path

import pytest
from ray_helpers import BOTH, tiny_settings

from rolekd_ray.search.cluster import ray_session
from rolekd_ray.search.population_search import search_population


@pytest.fixture(scope="module")
def ray():
    """A private Ray whose slots find this folder's workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with ray_session():
            yield


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    """The small search in one process by one worker, never interrupted; only to be read."""
    folder = tmp_path_factory.mktemp("reference")
    search_population(folder, tiny_settings(), BOTH, local=True)
    return folder
