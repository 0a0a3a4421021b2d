"""Who may import whom; what stays light; nothing in the repository belongs to one machine."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rolekd_ray"
MODULES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))

WORDS = {"roles", "errors", "progress", "storage", "files"}
BASE = WORDS | {"config"}
# room -> rooms that it may import beside itself
MAY = {
    "roles": set(),
    "errors": set(),
    "progress": set(),
    "storage": {"errors"},
    "files": {"errors", "storage"},
    "config": WORDS | {"policy"},
    "policy": WORDS,
    "augment": BASE | {"policy"},
    "data": BASE | {"policy", "augment"},
    "models": BASE | {"policy", "augment"},
}
MAY["distill"] = MAY["data"] | {"data", "models"}
MAY["training"] = MAY["distill"] | {"distill"}
MAY["slots"] = MAY["training"] | {"training"}
MAY["reporting"] = BASE | {"policy"}
MAY["search"] = MAY["slots"] | {"slots", "reporting"}
MAY["cli"] = MAY["search"] | {"search"}
MAY["__main__"] = {"cli"}
MAY["__init__"] = MAY["cli"]
LAZILY = {("reporting", "rolekd_ray.search.log")}  # it needs the reader of the log and nothing else of that room
# library -> rooms that may import it; in the starred ones inside functions only
LIBRARIES = {
    "ray": {"slots", "search", "cli*"},
    "optuna": {"search"},
    "torch": {"augment", "data", "models", "distill", "training", "slots", "search", "reporting", "cli*"},
    "torchvision": {"augment", "data", "models", "distill", "training", "slots", "search", "cli*"},
}


def room_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every imported module, as `package.module`, and whether it is imported inside a function."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are written in full"
            whole = node.module in ("rolekd_ray", *(f"rolekd_ray.{room}" for room in MAY))
            yield from ((f"{node.module}.{alias.name}" if whole else node.module, lazy) for alias in node.names)
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy)

    yield from visit(ast.parse(source), False)


def violations(room: str, source: str) -> list[str]:
    """What a module of a room imports and must not."""
    found = []
    for name, lazy in imports(source):
        library, _, rest = name.partition(".")
        if library == "rolekd_ray":
            other = rest.split(".")[0]
            may = other in MAY[room] | {room} or (lazy and (room, name) in LAZILY) or other not in MAY
            found += [] if may else [f"{room} imports {name}"]
        elif library in LIBRARIES:
            rooms = LIBRARIES[library]
            may = room in rooms or (lazy and f"{room}*" in rooms)
            found += [] if may else [f"{room} imports {name}"]
    return found


def test_the_rooms_are_known():
    assert {room_of(module) for module in MODULES} == set(MAY)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_room_imports_only_rooms_before_it(module):
    assert not violations(room_of(module), (PACKAGE / module).read_text())


@pytest.mark.parametrize(
    "room, source",
    [
        ("policy", "import torch"),
        ("policy", "def f():\n    import torch.nn as nn"),
        ("policy", "from rolekd_ray.config import Settings"),
        ("policy", "from rolekd_ray import config"),
        ("config", "from rolekd_ray.search.log import read_log"),
        ("data", "from rolekd_ray.models.zoo import build_network"),
        ("models", "from rolekd_ray.data.images import ImageSet"),
        ("augment", "class A:\n    def f(self):\n        from rolekd_ray.data.images import ImageSet"),
        ("distill", "from rolekd_ray.training import epochs"),
        ("training", "import ray"),
        ("training", "from ray import train"),
        ("reporting", "from rolekd_ray.search.log import read_log"),
        ("reporting", "def f():\n    from rolekd_ray.search.ledger import Ledger"),
        ("slots", "if True:\n    import optuna"),
        ("slots", "import rolekd_ray.search.ledger"),
        ("search", "from rolekd_ray.cli import app"),
        ("cli", "import ray"),
        ("cli", "from torch import Tensor"),
    ],
)
def test_the_check_finds(room, source):
    assert violations(room, source)


def test_the_check_lets_pass():
    assert not violations("reporting", "def f():\n    from rolekd_ray.search.log import read_log")
    assert not violations("cli", "def f():\n    import ray")
    assert not violations("search", "import ray, optuna\nfrom rolekd_ray.reporting.history import History")
    assert not violations("policy", "from rolekd_ray.errors import suggest\nfrom rolekd_ray import policy")


# ---- what an import brings along

LIGHT = {
    "rolekd_ray": {"torch", "ray", "pydantic", "numpy"},
    "rolekd_ray.cli": {"torch", "ray", "optuna", "pyarrow", "tensorboard"},
    "rolekd_ray.storage": {"torch", "ray", "pydantic", "numpy", "pyarrow"},
    "rolekd_ray.policy.schedule": {"torch", "ray", "pydantic", "numpy", "pyarrow"},
    "rolekd_ray.config": {"pyarrow", "torch", "ray", "numpy"},
    "rolekd_ray.search.log": {"torch", "ray", "pyarrow"},
    "rolekd_ray.search.ledger": {"torch", "ray", "optuna"},
    "rolekd_ray.search.local": {"torch", "ray"},
    "rolekd_ray.search.member": {"torch"},
    "rolekd_ray.search.dispatcher": {"torch"},
    "rolekd_ray.search.population_search": {"torch", "ray", "optuna", "scipy"},
    "rolekd_ray.slots.actor": {"torch"},
    "rolekd_ray.slots.interface": {"torch", "ray"},
    "rolekd_ray.reporting.status": {"torch", "ray"},
}


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_bring_nothing_heavy_along(module):
    code = f"import sys, {module}\nprint(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & LIGHT[module]


# ---- nothing of one machine

# Brackets keep this file from finding itself
FOLDERS = "wo[r]k|ho[m]e|ro[o]t|Use[r]s|tm[p]/venv|mn[t]|scrat[c]h"
MACHINES = re.compile(rf"(?<![\w.~])/(?:{FOLDERS})\b|pypi[.]or[g]|pythonhoste[d]")


def tracked_text() -> dict[str, str]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("needs a git checkout")
    texts = {}
    for name in filter(None, listed.stdout.split("\0")):
        try:
            texts[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # pictures and tables; a file that is being deleted
    return texts


def test_no_file_names_a_path_of_a_machine_or_a_registry():
    texts = tracked_text()
    assert {"pyproject.toml", "rolekd_ray/cli/__init__.py", "searchspaces/quickstart.yaml"} <= texts.keys()
    found = [f"{name}: {match.group()}" for name, text in texts.items() for match in MACHINES.finditer(text)]
    assert not found


@pytest.mark.parametrize("text", ["cd /wor_k/main", "/tm_p/venv/bin", "'/hom_e/me'", "https://pypi.or_g/x"])
def test_the_search_for_machines_finds(text):
    assert MACHINES.search(text.replace("_", ""))
    assert not MACHINES.search(text)
