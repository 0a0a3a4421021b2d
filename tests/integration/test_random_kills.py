"""A dozen of the searches of `random_kills.py`; `python tests/integration/random_kills.py 100` runs a hundred."""

import pytest
from random_kills import WHOLE, WITHIN, make_reference, one_run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return make_reference(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.slow
@pytest.mark.parametrize("seed, kind", list(enumerate((*WITHIN, *WITHIN[:3], *WHOLE))))
def test_a_kill_at_a_random_moment_changes_nothing(ray, undisturbed, tmp_path, seed, kind):
    what, told, differs = one_run(seed, tmp_path / "run", undisturbed, kind)
    assert not differs, f"{what}: {told}"
