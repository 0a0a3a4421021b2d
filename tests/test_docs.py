"""What the documents say exists."""

import re
from pathlib import Path

import pytest

import rolekd_ray

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text()
    headings = {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in text.splitlines()
                if line.startswith("#")}  # fmt: skip
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (document.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_verbs_and_scripts_exist(document):
    from rolekd_ray.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    text = document.read_text()
    assert set(re.findall(r"rolekd ([a-z]+)\b", "\n".join(re.findall(r"`[^`]+`|^rolekd .*$", text, re.M)))) <= verbs
    for script in re.findall(r"launch/[\w./]*\w", text):
        assert (ROOT / script).is_file(), script


def test_everything_public_can_be_imported():
    for name in rolekd_ray.__all__:
        assert getattr(rolekd_ray, name).__doc__, name


def test_every_search_space_names_its_source_and_passes_check():
    from rolekd_ray.config import load_settings
    from rolekd_ray.search.preflight import check_names

    names = sorted(file.stem for file in (ROOT / "searchspaces").glob("*.yaml"))
    assert {"quickstart", "cifar10_pba", "cifar100_rolekd", "cifar10_reduced"} <= set(names)
    for name in names:
        settings = load_settings(name)
        assert settings.source
        check_names(settings)
