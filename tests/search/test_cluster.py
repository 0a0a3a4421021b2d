"""Storage that only some nodes see, and clusters that are not there, are refused before a search starts."""

import socket

import pytest

from rolekd_ray.config import load_settings
from rolekd_ray.errors import ConfigError, StorageError
from rolekd_ray.search import cluster
from rolekd_ray.search.cluster import check_nodes_see, ray_session, sees


def node(name: str, cpus: int = 2) -> dict:
    return {
        "NodeID": name,
        "Alive": True,
        "Resources": {"CPU": cpus},
        "NodeManagerHostname": name,
        "NodeManagerAddress": "10.0.0.1",
    }


@pytest.fixture
def blind(monkeypatch) -> set[str]:
    """Three nodes; those put in here look at the marker from a machine that has no such folder."""
    names: set[str] = set()

    def look_from(there, marker):
        assert marker.is_file(), "it lies there while nodes look"
        return sees(marker.with_name("elsewhere") if there["NodeID"] in names else marker)

    monkeypatch.setattr(cluster.ray, "nodes", lambda: [node("head"), node("a"), node("b"), node("small", 0)])
    monkeypatch.setattr(cluster, "_look_from", look_from)
    return names


SLOTS = load_settings("quickstart").slots


def test_storage_that_all_see_is_fine_and_left_as_it_was(tmp_path, blind):
    blind.add("small")  # no slot fits there
    check_nodes_see(tmp_path / "runs" / "a", SLOTS)
    assert not list(tmp_path.iterdir())


def test_nodes_that_do_not_see_it_are_named(tmp_path, blind):
    blind |= {"a", "b"}
    with pytest.raises(StorageError) as error:
        check_nodes_see(tmp_path / "runs", SLOTS)
    first, second, hint = error.value.problems
    assert first.startswith(f"{tmp_path / 'runs'}: not seen from node a (10.0.0.1): it has another {tmp_path}, or none")
    assert "node b (10.0.0.1)" in second and "expected storage that all 3 nodes share" in hint
    assert not list(tmp_path.iterdir()) and error.value.exit_code == 2


def test_one_node_with_a_folder_needs_no_look(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [node("head")])
    monkeypatch.setattr(cluster, "_look_from", None)
    check_nodes_see(tmp_path, SLOTS)


def test_an_address_where_no_head_listens_is_refused_at_once(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS: got '{address}', where nothing answers"), ray_session():
        pass
