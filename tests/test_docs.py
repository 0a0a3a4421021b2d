"""What the documents say exists."""

import re
import sys
from pathlib import Path

import pytest
from cli_helpers import TINY, environment, options, rolekd, rolekd_process, write_network

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


def test_your_own_method_is_ten_lines_that_work(tmp_path, monkeypatch):
    """The README's very lines, as a user has them: a file beside which `rolekd` is called."""
    from rolekd_ray.distill import registry
    from rolekd_ray.distill.losses import Losses

    section = (ROOT / "README.md").read_text().split("## Your own method")[1].split("\n## ")[0]
    lines, command = (re.search(rf"```{kind}\n(.*?)```", section, re.S)[1] for kind in ("python", "bash"))
    assert sum(bool(line) for line in lines.splitlines()) <= 10
    losses = re.search(r"--set '(distill\.losses=.*?)'", command)[1]
    assert command.startswith("PYTHONPATH=. ROLEKD_METHODS=my_methods rolekd run --set ")
    (tmp_path / "my_methods.py").write_text(lines)

    given = ["--set", losses, *options(TINY | {"final.epochs": 1})]
    path = f".:{ROOT}"
    shown = rolekd_process(
        "check", "quickstart", *given, cwd=tmp_path, env=environment(PYTHONPATH=path, ROLEKD_METHODS="my_methods")
    )
    assert shown.code == 0 and "cosine: 10" in shown.out, shown
    unknown = rolekd("check", "quickstart", *given)
    assert unknown.code == 2 and "unknown loss 'cosine'" in unknown.err, unknown

    registry.known_methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # the others' registry stays as it was
    monkeypatch.setenv("ROLEKD_METHODS", "my_methods")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    computed, real = [], Losses.forward
    monkeypatch.setattr(Losses, "forward", lambda *a: (computed.append(real(*a)), computed[-1])[1])
    teacher = write_network(tmp_path / "teacher", "resnet8x4")
    trained = rolekd(
        "train", "student", "-o", tmp_path / "net", "--teacher", teacher, *given, "--set", "teacher.model=resnet8x4"
    )
    assert trained.code == 0 and "validation accuracy" in trained.out, trained
    assert computed and all(set(found) == {"cross_entropy", "cosine"} for found in computed)
    assert computed[0]["cosine"].requires_grad

    import my_methods  # pyright: ignore

    my_methods.test_cosine()
    with pytest.raises(AssertionError):
        monkeypatch.setattr(my_methods, "cosine", lambda *a: my_methods.torch.ones(()))
        my_methods.test_cosine()
