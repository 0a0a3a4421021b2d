"""A small disk of a test's own, an ext4 image in a private view of the disks: it can fill up, and turn read-only."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from own_cluster import ROOT

TOOLS = ("unshare", "nsenter", "mount", "losetup", "mkfs.ext4", "e2fsck")


def missing() -> str | None:
    """What this machine lacks to make such a disk; None: nothing."""
    if os.geteuid() != 0:
        return "needs root, to mount"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"needs {', '.join(lacking)}: util-linux, e2fsprogs"
    loop = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    return f"has no loop devices: {loop.stderr.strip()}" if loop.returncode else None


class BreakableDisk:
    """Mounted at `at`, for processes that `start` starts; `see` gives this process's way to a path on it."""

    def __init__(self, folder: Path, megabytes: int = 64):
        self.image, self.at = folder / "disk.img", folder / "disk"
        self.at.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(megabytes * 2**20)
        self._run("mkfs.ext4", "-q", "-m", "0", str(self.image))
        command = ["unshare", "--mount", "sh", "-c", 'mount -o loop,errors=remount-ro "$0" "$1" && exec sleep inf']
        self.holder = subprocess.Popen([*command, str(self.image), str(self.at)])
        deadline = time.monotonic() + 30
        while not self.see(self.at / "lost+found").exists():
            assert self.holder.poll() is None and time.monotonic() < deadline, "no disk"
            time.sleep(0.05)

    def see(self, path: Path) -> Path:
        """Return the name by which this process sees a path on the disk."""
        return Path("/proc", str(self.holder.pid), "root", path.relative_to("/"))

    def start(self, *arguments: object) -> subprocess.Popen:
        """Start the command line where the disk is seen."""
        command = [sys.executable, "-m", "rolekd_ray", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        there = ["sh", "-c", 'cd "$0" && exec "$@"', str(self.at)]  # nsenter's --wd would be what the disk hides
        inside = ["nsenter", f"--target={self.holder.pid}", "--mount", *there, *command]
        return subprocess.Popen(inside, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def fill(self) -> None:
        """Leave no room at all."""
        with open(self.see(self.at / "filler"), "wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue

    def make_room(self) -> None:
        """Take back what `fill` did."""
        self.see(self.at / "filler").unlink()

    def turn_read_only(self) -> None:
        """Make the kernel find an error on the disk; from then on nobody writes, whatever file is open."""
        device = subprocess.run(["losetup", "-j", self.image], capture_output=True, text=True, check=True).stdout
        Path("/sys/fs/ext4", Path(device.partition(":")[0]).name, "trigger_fs_error").write_text("a test")

    def repair(self) -> None:
        """Check the disk and mount it again, as an operator does; nobody may have a file open."""
        self._inside("umount", str(self.at))
        subprocess.run(["e2fsck", "-fy", str(self.image)], capture_output=True, check=False)  # 1: it has corrected
        self._inside("mount", "-o", "loop,errors=remount-ro", str(self.image), str(self.at))

    def close(self) -> None:
        """Let the disk go with the view it was mounted in."""
        self.holder.kill()
        self.holder.wait()

    def _inside(self, *command: str) -> None:
        self._run("nsenter", f"--target={self.holder.pid}", "--mount", *command)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@contextmanager
def breakable_disk(folder: Path) -> Iterator[BreakableDisk]:
    """Give a disk; nothing of it is left afterwards but its image."""
    disk = BreakableDisk(folder)
    try:
        yield disk
    finally:
        disk.close()
