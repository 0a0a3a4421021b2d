"""Hosts of a small network on one machine: namespaces for network, processes, mounts and name, each with its own sshd.

The process namespace matters: Ray's start commands begin with `ray stop`, which ends every Ray process it can see.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
TOOLS = ("ip", "nsenter", "unshare", "rsync", "ssh", "ssh-keygen")


def missing() -> str | None:
    """What this machine lacks to make hosts; None: nothing."""
    if os.geteuid() != 0:
        return "needs root, to make namespaces"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None] + ([] if SSHD else ["sshd"])
    if lacking:
        return f"needs {', '.join(lacking)}: iproute2, util-linux, rsync, openssh"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"may make no namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class Host:
    """One host: its address, its private folder (home and Ray's files), and the process that keeps it alive."""

    name: str
    address: str
    folder: Path
    process: subprocess.Popen

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def kill(self) -> None:
        """Pull the plug: every process of the host dies at once."""
        self.process.kill()
        self.process.wait()

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess:
        """Run a command on this host, as its user would with a few more environment variables."""
        (init,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        inside = ["nsenter", f"--target={init}", "--pid", "--mount", "--net", *command]
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"]} | variables
        return subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=120)

    def ray_processes(self) -> list[str]:
        """Command lines of Ray's processes on this host; those that merely wait to be collected do not count."""
        lines = self.run("ps", "-eo", "stat,args").stdout.splitlines()
        names = ("raylet", "gcs_server", "ray::", "ray/dashboard", "ray/_private", "ray/autoscaler")
        return [line for line in lines if not line.startswith("Z") and any(name in line for name in names)]


@contextmanager
def network(folder: Path, count: int, private: Path) -> Iterator[list[Host]]:
    """Start hosts that see this machine's files, but have their own home and their own files at `private`.

    Args:
        folder: where their files go; gets `key`, the ssh key that opens all of them.
        count: how many, at most 9.
        private: a folder that has the same name on all hosts, and lies on each of them.
    """
    tag = f"{os.getpid() % 10000:04d}"
    key = folder / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    private.mkdir(parents=True)
    Path(get_default_ray_temp_dir()).mkdir(exist_ok=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    bridge = f"rk{tag}"
    run("ip", "link", "add", bridge, "type", "bridge")
    hosts: list[Host] = []
    try:
        run("ip", "addr", "add", f"{subnet(tag)}.1/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        for number in range(1, count + 1):
            hosts.append(_start(folder, tag, number, key, private))
        yield hosts
    finally:
        for host in hosts:
            host.kill()
        for number in range(1, count + 1):
            subprocess.run(["ip", "netns", "delete", f"rk{tag}-{number}"], capture_output=True)
        run("ip", "link", "delete", bridge)


def subnet(tag: str) -> str:
    """A private network that hardly anybody uses, another for every process."""
    return f"10.77.{int(tag) % 250}"


def _start(folder: Path, tag: str, number: int, key: Path, private: Path) -> Host:
    name, address = f"rk{tag}-{number}", f"{subnet(tag)}.{10 + number}"
    run("ip", "netns", "add", name)
    run("ip", "link", "add", f"v{tag}{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
    run("ip", "link", "set", f"v{tag}{number}", "master", f"rk{tag}", "up")
    # Without a route outwards Ray takes 127.0.0.1 for the host's address
    route = f"route add default via {subnet(tag)}.1"
    for command in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up", route):
        run("ip", "-netns", name, *command.split())
    own = folder / name
    for part in ("home", "ray", "private"):
        (own / part).mkdir(parents=True)
    _write_files(own, address, key)
    isolated = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-e"]
    boot = [str(own / "boot.sh"), name, str(private)]
    process = subprocess.Popen(["nsenter", f"--net=/run/netns/{name}", *isolated, *boot])
    return Host(name, address, own, process)


def _write_files(own: Path, address: str, key: Path) -> None:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(own / "host_key"))
    (own / "passwd").write_text(
        f"root:x:0:0:root:{own / 'home'}:/bin/bash\nsshd:x:74:74::/run/sshd:/usr/sbin/nologin\n"
    )
    (own / "sshd_config").write_text(
        f"ListenAddress {address}\nHostKey {own / 'host_key'}\nAuthorizedKeysFile {key}.pub\nPidFile none\n"
        "PermitRootLogin yes\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nMaxStartups 100\n"
    )
    packages = sysconfig.get_path("purelib")
    (own / "boot.sh").write_text(
        f"""hostname "$1"
mount --bind {own}/passwd /etc/passwd
mount --bind {own}/ray {get_default_ray_temp_dir()}
mount --bind {own}/private "$2"
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount --bind {packages} {packages} && mount -o remount,bind,ro {packages}  # what is tested installs beside it
{SSHD} -D -f {own}/sshd_config -E {own}/sshd.log &
wait  # not exec: sshd as the first process would not collect the dead, and `ray stop` would wait for them
"""
    )


def borrow_environment(project: Path) -> None:
    """Make `.venv` in a project's folder, with all packages of this interpreter's: torch is not copied."""
    run(sys.executable, "-m", "venv", "--without-pip", str(project / ".venv"))
    (packages,) = (project / ".venv" / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    ray = project / ".venv" / "bin" / "ray"
    ray.write_text(f"#!{project}/.venv/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)


def run(*command: str) -> None:
    """Run a command; its complaint is part of the error."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
