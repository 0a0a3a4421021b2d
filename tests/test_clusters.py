"""The descriptions of clusters: valid for Ray, safe, the same wherever providers do not differ; the scripts' syntax."""

import copy
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "launch" / "clusters"
BY_RAY = {"aws": ROOT / "cluster.yaml", "gcp": CLUSTERS / "gcp.yaml", "local": CLUSTERS / "onprem.yaml"}
KUBERNETES = CLUSTERS / "kuberay.yaml"
EQUAL = "# ---- Equal for all providers\n"
PROVIDERS_OWN = ("head_setup_commands", "initialization_commands", "head_start_ray_commands")
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), *CLUSTERS.glob("*.sh")])


def load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def check(description: dict[str, Any]) -> None:
    """Check a description by Ray's own schema; asks no provider. In this order, or sound ones are refused too."""
    validate_config(prepare_config(copy.deepcopy(description)))


def pinned(package: str) -> str:
    return re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]


@pytest.fixture(params=BY_RAY)
def description(request) -> dict[str, Any]:
    found = load(BY_RAY[request.param])
    assert found["provider"]["type"] == request.param
    return found


def test_ray_accepts_it(description):
    check(description)


@pytest.mark.parametrize(
    "change",
    [
        {"max_worker": 3},
        {"provider": {}},
        {"setup_commands": "one"},
        {"head_node_type": "x", "available_node_types": {"x": {}}},
    ],
)
def test_the_check_finds(change):
    with pytest.raises(BaseException):  # noqa: B017 - Ray raises errors of jsonschema, click and its own
        check(load(BY_RAY["local"]) | change)


def test_the_common_parts_are_equal():
    common = {name: file.read_text().split(EQUAL)[1] for name, file in BY_RAY.items()}
    parsed = {name: yaml.safe_load(text) for name, text in common.items()}
    for part in parsed["aws"].keys() - set(PROVIDERS_OWN):
        assert parsed["aws"][part] == parsed["gcp"][part] == parsed["local"][part], part
    starts = {name: part["head_start_ray_commands"][-1].split() for name, part in parsed.items()}
    assert starts["aws"] == starts["gcp"]
    # Ray's second autoscaler leaves one of one's own machines out; clouds keep slots off the head
    assert set(starts["aws"]) ^ set(starts["local"]) == {"--num-cpus=0", "RAY_enable_autoscaler_v2=0"}


@pytest.mark.parametrize("file", [*BY_RAY.values(), KUBERNETES], ids=lambda file: file.name)
def test_a_file_repeats_no_block(file):
    """No four lines of settings stand twice in a file: that is what anchors are for."""
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip() and "#" not in line.strip()[:1]]
    blocks = list(zip(lines, lines[1:], lines[2:], lines[3:]))
    assert len(blocks) == len(set(blocks))


def test_the_token_goes_to_every_node_and_the_dashboard_listens_on_the_head_alone(description):
    assert description["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert [word for word in _words(description["head_start_ray_commands"]) if "dashboard" in word] == [
        "--dashboard-host=127.0.0.1"
    ]
    assert not [word for word in _words(description["worker_start_ray_commands"]) if "dashboard" in word]
    assert description["setup_commands"] == ["bash ~/rolekd/launch/clusters/node_setup.sh"]  # it turns the token on


def _words(commands: list[str]) -> list[str]:
    return " ".join(commands).split()


def test_what_is_shipped_exists_and_is_what_an_install_needs(description):
    mounts = {remote: local for remote, local in description["file_mounts"].items() if "auth_token" not in remote}
    assert all((ROOT / local).exists() and remote == f"~/rolekd/{local}" for remote, local in mounts.items())
    project = (ROOT / "pyproject.toml").read_text()
    needed = {*re.findall(r'^(?:readme|license-files) = \W*"(.+?)"', project, re.M), "rolekd_ray", "searchspaces"}
    assert needed | {"pyproject.toml", "constraints.txt", "launch"} == set(mounts.values())


def test_clouds_scale_gpu_workers_on_the_spot_market():
    for name in ("aws", "gcp"):
        worker = load(BY_RAY[name])["available_node_types"]["gpu_worker"]
        assert worker["resources"]["GPU"] >= 1 and worker["min_workers"] < worker["max_workers"]
        assert {"MarketType: spot", "preemptible: true"} & set(
            re.findall(r"MarketType: spot|preemptible: true", yaml.safe_dump(worker))
        )


# ---- Kubernetes


def test_the_custom_resource_is_whole():
    resource = load(KUBERNETES)
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", "RayCluster")
    spec = resource["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"] and workers["groupName"]
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], workers)]
    assert {container["image"] for pod in pods for container in pod["containers"]} == {
        f"REGISTRY/rolekd_ray:{pinned('ray')}"
    }
    for pod in pods:
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    for group in (spec["headGroupSpec"], workers):  # the operator and Ray take text alone
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert "nvidia.com/gpu" in pods[1]["containers"][0]["resources"]["limits"]


def test_the_image_has_the_pinned_ray():
    assert load(KUBERNETES)["spec"]["rayVersion"] == pinned("ray")
    dockerfile = (CLUSTERS / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned('ray')}-" in dockerfile and "-c project/constraints.txt" in dockerfile


# ---- Scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-x", "-S", "warning", str(script)], cwd=ROOT, capture_output=True)
        assert done.returncode == 0, done.stdout.decode()


@pytest.fixture
def node(tmp_path) -> Path:
    """The home of a node as file_mounts leave it, and an interpreter whose pip only takes notes."""
    home = tmp_path / "home"
    for remote, local in load(BY_RAY["aws"])["file_mounts"].items():
        target = home / remote.removeprefix("~/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if "auth_token" in remote:
            target.write_text("secret")
            target.chmod(0o644)
        elif (ROOT / local).is_dir():
            shutil.copytree(ROOT / local, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / local, target)
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\necho "$*" >> "$HOME/calls"\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi\n'
    )
    python.chmod(0o755)
    return home


def set_up(home: Path) -> list[str]:
    """Set a node up; return what its interpreter was asked to do, ever."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHON": str(home.parent / "python")}
    subprocess.run(["bash", str(home / "rolekd/launch/clusters/node_setup.sh")], env=environment, check=True)
    return (home / "calls").read_text().splitlines()


def test_setting_a_node_up_twice_changes_nothing(node):
    first = set_up(node)
    assert [call.split()[1] for call in first] == ["venv", "pip"]
    assert "-c constraints.txt" in first[1]
    shell = (node / ".bashrc").read_text()
    assert set_up(node) == first
    assert (node / ".bashrc").read_text() == shell and shell.count("\n") == 1
    assert (node / ".ray/auth_token").stat().st_mode & 0o777 == 0o600


def test_a_shell_on_a_node_has_the_token_on_and_finds_ray(node):
    set_up(node)
    command = ["bash", "-c", "source ~/.bashrc; echo $RAY_AUTH_MODE; echo $PATH"]
    environment = {"HOME": str(node), "PATH": os.environ["PATH"]}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    mode, path = printed.splitlines()
    assert mode == "token" and path.startswith(f"{node}/rolekd/.venv/bin:")


def test_a_node_with_other_code_is_installed_again(node):
    first = set_up(node)
    (node / "rolekd/rolekd_ray/roles.py").write_text("")
    assert len(set_up(node)) == len(first) + 1


def test_ray_is_started_again_where_it_did_not_start(tmp_path):
    """A busy machine fails once, and is used all the same; one that never starts is told."""
    ray = tmp_path / "ray"
    ray.write_text(
        f'#!/usr/bin/env bash\necho "$*" >> {tmp_path}/calls\n'
        f'[ "$1" = stop ] || [ "$(grep -c start {tmp_path}/calls)" -ge "$WORKS" ]\n'
    )
    ray.chmod(0o755)
    command = ["bash", str(CLUSTERS / "node_start.sh"), "--address=head:6379"]
    for works, code, calls in (("2", 0, ["stop", "start --address=head:6379"] * 2), ("9", 1, ["stop", "start"] * 3)):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKS": works}
        assert subprocess.run(command, env=environment).returncode == code
        found = (tmp_path / "calls").read_text().splitlines()
        assert len(found) == len(calls) and all(map(str.startswith, found, calls))
        (tmp_path / "calls").unlink()


def test_a_failed_install_is_done_again(node):
    python = node.parent / "python"
    sound = python.read_text()
    python.write_text(sound + 'if [ "$2" = pip ]; then exit 1; fi\n')
    with pytest.raises(subprocess.CalledProcessError):
        set_up(node)
    (node / "rolekd/.venv/bin/python").write_text(sound)
    assert set_up(node)[-1].split()[1] == "pip"
    assert len(set_up(node)) == 3
