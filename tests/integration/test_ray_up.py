"""The scripts for clusters, on three hosts of one machine: up, a search that loses a host, its best schedule, down."""

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from namespace_hosts import Host, borrow_environment, missing, network
from ray_helpers import TINY

from rolekd_ray.policy.population import Population
from rolekd_ray.policy.schedule import load_schedule
from rolekd_ray.search.log import read_log

ROOT = Path(__file__).parents[2]
SHIPPED = ("rolekd_ray", "searchspaces", "launch", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
EPOCHS = 12

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=f"hosts as namespaces: {missing()}")]


class Site:
    """A checkout of the project on the machine that a person sits at, and the hosts it may use."""

    def __init__(self, folder: Path, hosts: list[Host]):
        self.folder, self.hosts, self.storage = folder, hosts, folder / "shared"
        self.project, self.home = folder / "project", folder / "launcher"
        for path in (self.storage, self.project, self.home / "temporary"):
            path.mkdir(parents=True)
        for name in SHIPPED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.project / name)
        self._constrain_to_what_is_here()
        borrow_environment(self.project)
        (self.project / ".venv" / "installed").touch()
        for host in hosts:
            self._prepare(host)
        self._describe()

    def _constrain_to_what_is_here(self) -> None:
        """The hosts install without a network, so the versions that were tested must be those that are installed."""
        file = self.project / "constraints.txt"
        names = re.findall(r"^([\w-]+)==", file.read_text(), re.M)
        here = {found.metadata["Name"].lower(): found.version for found in distributions()}
        file.write_text("".join(f"{name}=={here[name.lower()]}\n" for name in names if name.lower() in here))

    def _prepare(self, host: Host) -> None:
        """Give a host the heavy packages, and a pip that asks no network; node_setup.sh does the rest."""
        borrow_environment(host.home / "rolekd")
        settings = host.home / ".config" / "pip" / "pip.conf"
        settings.parent.mkdir(parents=True)
        settings.write_text("[install]\nno-index = true\nno-build-isolation = false\n")

    def _describe(self) -> None:
        """Adapt the description of one's own machines: addresses, key, and one CPU per host."""
        file = self.project / "launch" / "clusters" / "onprem.yaml"
        settings = yaml.safe_load(file.read_text())
        settings["cluster_name"] = self.hosts[0].name  # Ray keeps ssh connections in a folder of this name
        head, *workers = (host.address for host in self.hosts)
        settings["provider"] |= {"head_ip": head, "worker_ips": workers}
        settings["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.folder / "key")}
        for commands in (settings["head_start_ray_commands"], settings["worker_start_ray_commands"]):
            commands[-1] += " --num-cpus=1 --object-store-memory=100000000"
        file.write_text(yaml.safe_dump(settings))

    def run(self, script: str, *arguments: str, check: bool = True, storage: Path | None = None) -> str:
        """Run a script of launch/ as a person would, and say how long it took; return what it printed."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON"))} | {
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "temporary"),
            "CLUSTER": "launch/clusters/onprem.yaml",
            "STORAGE": str(storage or self.storage),
            "NODES": "3",
        }
        command = ["bash", str(self.project / "launch" / script), *arguments]
        started = time.monotonic()
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=1200,
        )  # fmt: skip
        print(f"\n{script}: {time.monotonic() - started:.0f} s, exit code {done.returncode}\n{done.stdout}")
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def scores(self, name: str) -> int:
        """How many intervals of a run are done."""
        log = self.storage / name / "log.jsonl"
        return len(re.findall(r'"kind": ?"score"', log.read_text())) if log.exists() else 0


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with network(folder, 3, private=folder / "own") as hosts:
        yield Site(folder, hosts)


def test_up_search_lose_a_host_export_down(site):
    site.run("cluster_up.sh")
    _only_who_has_the_token_is_let_in(site.hosts[0])
    _a_folder_of_each_hosts_own_is_refused(site)
    assert {(host.home / ".ray" / "auth_token").stat().st_mode & 0o777 for host in site.hosts} == {0o600}
    lost = site.hosts[2]
    killer = threading.Thread(target=_kill_when, args=(lost, lambda: site.scores("a1") >= 2))
    killer.start()
    overrides = [part for setting in (*TINY, f"search.epochs={EPOCHS}") for part in ("--set", setting)]
    printed = site.run("submit_search.sh", "a1", *overrides)
    killer.join()
    assert printed.count("writable, the same for all") >= 3 and printed.count("MB/s") >= 3
    assert lost.process.returncode is not None and site.scores("a1") == 4 * EPOCHS
    population = Population.replay(read_log(site.storage / "a1"))
    assert population.finished and population.live == {0, 1, 2, 3}

    site.run("resume.sh", "a1", "--epochs", str(EPOCHS + 1))  # on what is left of the cluster
    assert site.scores("a1") == 4 * (EPOCHS + 1)
    site.run("export_best.sh", "a1", str(site.home / "best.yaml"))
    assert load_schedule(site.home / "best.yaml").epochs == EPOCHS + 1
    _down(site, site.hosts[:2])


def _only_who_has_the_token_is_let_in(head: Host) -> None:
    ray = str(head.home / "rolekd" / ".venv" / "bin" / "ray")
    jobs = [ray, "job", "list", "--address", "http://127.0.0.1:8265"]
    assert head.run(*jobs, RAY_AUTH_MODE="token").returncode == 0
    assert "oken authentication is enabled" in head.run(*jobs, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="guess").stderr
    assert head.run(*jobs, RAY_AUTH_MODE="disabled").returncode != 0
    assert head.run(ray, "status", "--address", f"{head.address}:6379", RAY_AUTH_MODE="disabled").returncode != 0
    with pytest.raises(ConnectionRefusedError):  # the dashboard, from the network
        socket.create_connection((head.address, 8265), timeout=5)


def _a_folder_of_each_hosts_own_is_refused(site: Site) -> None:
    printed = site.run("submit_search.sh", "a0", check=False, storage=site.folder / "own" / "runs")
    assert all(f"{host.address} " in printed for host in site.hosts)
    assert "to be the same on all nodes: mount it everywhere" in printed
    assert not [host for host in site.hosts if (host.folder / "private" / "runs" / "a0").exists()]


def _kill_when(host: Host, ready: Callable[[], bool], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not ready():
        time.sleep(0.1)
    host.kill()
    print(f"{host.name} died", flush=True)


def _down(site: Site, left: list[Host]) -> None:
    assert all(host.ray_processes() for host in left)
    site.run("cluster_down.sh")
    end = time.monotonic() + 30  # agents notice within seconds that their raylet is gone
    while (rest := [process for host in left for process in host.ray_processes()]) and time.monotonic() < end:
        time.sleep(1)
    assert not rest
