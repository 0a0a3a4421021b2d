"""The run directory: one search and everything it wrote."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rolekd_ray.config import Settings, load_settings, settings_text
from rolekd_ray.errors import RunDirectoryError
from rolekd_ray.files import delete_tree, read_text, write_atomically, writing
from rolekd_ray.search.lock import take_lock
from rolekd_ray.storage import ObjectPath, Place, check_storage

CONFIG, ENVIRONMENT, RESULTS = "config.yaml", "environment.json", "results.json"
RUN_LOCK = "run.lock"
PACKAGES = ("rolekd_ray", "ray", "torch", "torchvision", "optuna", "pyarrow", "pydantic", "numpy", "pillow")


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run; the README explains each."""

    path: Place

    @property
    def schedule(self) -> Place:
        """The best schedule found."""
        return self.path / "best" / "schedule.yaml"

    @property
    def teacher(self) -> Place:
        """The trained teacher's checkpoint."""
        return self.path / "best" / "teacher"

    @property
    def results(self) -> Place:
        """The final table as JSON."""
        return self.path / RESULTS

    def settings(self) -> Settings:
        """Return the settings the run goes by."""
        return load_settings(self.path / CONFIG)

    def set_settings(self, settings: Settings) -> None:
        """Change the settings the run goes by."""
        write_atomically(self.path / CONFIG, settings_text(settings))

    def environment(self) -> dict[str, Any]:
        """Return what the run was started with; `verb` is `run` or `search`.

        Raises:
            RunDirectoryError: the file is damaged.
        """
        file = self.path / ENVIRONMENT
        try:
            found = json.loads(read_text(file, RunDirectoryError))
        except ValueError as error:
            raise RunDirectoryError(f"{file}: damaged: {error}") from error
        verb = found.get("verb") if isinstance(found, dict) else None
        if verb not in ("run", "search"):
            raise RunDirectoryError(f"{file}: verb: got {verb!r}; expected 'run' or 'search'")
        return found

    def sweep(self) -> None:
        """Delete what killed processes left while they wrote it aside. Only for who holds the run's lock."""
        if isinstance(self.path, ObjectPath):
            return  # nothing is written aside there
        for folder in (self.path, self.path / "best", self.path / "teacher"):
            for torn in folder.glob(".*"):
                delete_tree(torn) if torn.is_dir() else torn.unlink()

    def note_resume(self, settings: Settings) -> None:
        """Add to `environment.json` on what the run goes on."""
        found = self.environment()
        found.setdefault("resumed", []).append(environment(settings, found["verb"]))
        write_atomically(self.path / ENVIRONMENT, json.dumps(found, indent=2) + "\n")


def create_run(
    storage: Place, name: str | None, settings: Settings, *, verb: str, images: Mapping[str, Any] | None = None
) -> RunDirectory:
    """Make the directory of a new run.

    Args:
        storage: folder of runs, or a prefix in an object store.
        name: of the run; None: the moment of the start.
        settings: kept in `config.yaml`, all defaults included.
        verb: `run` or `search`; `resume` goes on with the same.
        images: what is trained on, from `describe_run_images`; kept in `environment.json`.

    Raises:
        RunDirectoryError: it exists.
        StorageError: it cannot be made.
    """
    path = storage / (name or time.strftime("%Y%m%d-%H%M%S"))
    if isinstance(path, ObjectPath):
        check_storage(path)
        with take_lock(path / RUN_LOCK):  # in place of mkdir, which two cannot both succeed in
            if any(other.name != RUN_LOCK for other in path.iterdir()):
                raise _exists(path)
            return _fill(RunDirectory(path), settings, verb, images)
    with writing(path):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise _exists(path) from None
    return _fill(RunDirectory(path), settings, verb, images)


def _exists(path: Place) -> RunDirectoryError:
    return RunDirectoryError(
        f"{path}: exists; expected a new name. Go on with it by `rolekd resume {path}`, or choose another --name."
    )


def _fill(run: RunDirectory, settings: Settings, verb: str, images: Mapping[str, Any] | None) -> RunDirectory:
    about = environment(settings, verb) | ({} if images is None else {"images": dict(images)})
    try:
        run.set_settings(settings)
        write_atomically(run.path / ENVIRONMENT, json.dumps(about, indent=2) + "\n")
    except BaseException:
        delete_tree(run.path)  # half a run could be neither gone on with nor made again
        raise
    return run


def open_run(path: Place) -> RunDirectory:
    """Open an existing run.

    Raises:
        RunDirectoryError: it is not a run directory.
    """
    check_storage(path)
    missing = [name for name in (CONFIG, ENVIRONMENT) if not (path / name).is_file()]
    if missing:
        raise RunDirectoryError(f"{path}: not a run directory, lacks {', '.join(missing)}")
    return RunDirectory(path)


def environment(settings: Settings, verb: str) -> dict[str, Any]:
    """Return versions, commit, seed and hardware: what a published number must carry."""
    return {
        "verb": verb,
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": settings.seed,
        "python": platform.python_version(),
        "packages": {package: installed_version(package) for package in PACKAGES},
        "commit": _commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
    }


def installed_version(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout this package runs from, with `+` if it was changed; None for an install."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
