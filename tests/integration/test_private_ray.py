"""Ray's ports listen on every address of a machine, and nothing can change that: the token keeps strangers out."""

import os
import subprocess
import sys

import pytest
import ray as ray_api

VISIT = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print('came in')"


def visit(**environment: str) -> subprocess.CompletedProcess:
    address = ray_api.get_runtime_context().gcs_address
    command = [sys.executable, "-c", VISIT, address]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("RAY_AUTH_MODE") == "disabled", reason="asked by RAY_AUTH_MODE=disabled to let all in"
)
def test_a_private_ray_lets_nobody_in_who_lacks_its_token(ray):
    assert "came in" in visit().stdout
    for stranger in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        assert "came in" not in visit(**stranger).stdout
