"""Small files that are never seen half-written; YAML as people mean it; the wording of errors."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolekd_ray import errors
from rolekd_ray.errors import ConfigError, InputError, RolekdError, StorageError, TrainingError, suggest, unknown_name
from rolekd_ray.files import dump_yaml, parse_yaml, read_text, read_yaml, write_atomically

ROOT = Path(__file__).parents[1]


def python(code: str, *arguments: object) -> subprocess.Popen:
    """Start a Python that finds this checkout."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


# ---- writing


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    file = tmp_path / "new" / "folder" / "file"
    write_atomically(file, "first")
    write_atomically(file, "zweites: ä")
    assert file.read_bytes() == "zweites: ä".encode()
    write_atomically(file, b"\x00\xff")
    assert file.read_bytes() == b"\x00\xff"
    assert os.listdir(file.parent) == ["file"]


def test_colleagues_may_read_it(tmp_path):
    write_atomically(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_what_was_there(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"folder: cannot be written: Is a directory"):
        write_atomically(tmp_path / "folder", "text")
    with pytest.raises(StorageError, match=r"file/below: cannot be written: "):
        write_atomically(tmp_path / "folder" / "file", "") or write_atomically(tmp_path / "folder/file/below", "text")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["file"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """The kernel itself refuses the write: a limit on the size of files."""
    file = tmp_path / "file"
    write_atomically(file, "before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(StorageError, match=r"file: cannot be written: File too large"):
            write_atomically(file, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_readers_see_whole_files_even_if_the_writer_is_killed(tmp_path):
    file = tmp_path / "file"
    writer = python(
        """
        import sys
        from pathlib import Path
        from rolekd_ray.files import write_atomically
        number = 0
        while True:
            number += 1
            write_atomically(Path(sys.argv[1]), f"{number:07d}" * 300_000)
            print(number, flush=True)
        """,
        file,
    )
    seen = set()
    writer.stdout.readline()
    while len(seen) < 4:
        content = file.read_text()
        assert len(content) == 7 * 300_000 and content == content[:7] * 300_000
        seen.add(content[:7])
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    content = file.read_text()
    assert content == content[:7] * 300_000


# ---- reading


def test_unreadable_files_are_clear_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml: no such file"):
        read_text(tmp_path / "missing.yaml", ConfigError)
    with pytest.raises(InputError, match=r"cannot be read as text: it is a directory; expected a file$"):
        read_yaml(tmp_path)
    (tmp_path / "image").write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match="image: cannot be read as text: "):
        read_text(tmp_path / "image")


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("-2e3", -2e3), ("+1.5e-3", 1.5e-3), ("1_000e-3", 1.0), ("1.e2", 100.0),
        ("1.0e-5", 1e-5), ("'1e-5'", "1e-5"), ("1e", "1e"), ("e5", "e5"), ("1e5x", "1e5x"), ("1-e5", "1-e5"),
        ("a1e5", "a1e5"), ("1e-5-2", "1e-5-2"), (".5", 0.5), ("5", 5), ("[1e-5, 2]", [1e-5, 2]),
        ("{1e1: 2}", {10.0: 2}), ("null", None), ("", None),
    ],
)  # fmt: skip
def test_numbers_are_what_everybody_means(text, value):
    found = parse_yaml(text, where="here")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: {a: 1, a: 1}", "x: [{1: 2, 1: 3}]", "a: 1\n? a\n: 2"])
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(ConfigError, match=r"here: not valid YAML: .*key .* stands twice"):
        parse_yaml(text, where="here", error=ConfigError)


def test_anchors_and_merges_work():
    text = "base: &base {a: 1, b: 2}\nmore:\n  <<: *base\n  b: 3\nlist: [*base]"
    assert parse_yaml(text, where="here") == {
        "base": {"a": 1, "b": 2},
        "more": {"a": 1, "b": 3},
        "list": [{"a": 1, "b": 2}],
    }


@pytest.mark.parametrize("text", ["{a: 1", "a: b: c", "[1, 2", "\tx: 1", "{[1]: 2}", "*nobody", "%x"])
def test_what_is_no_yaml_is_refused(text):
    with pytest.raises(InputError, match="here: not valid YAML: "):
        parse_yaml(text, where="here")


def test_yaml_runs_no_code(tmp_path):
    with pytest.raises(InputError, match="could not determine a constructor"):
        parse_yaml(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']", where="here")
    assert not os.listdir(tmp_path)


# PyYAML loses rare line breaks such as U+0085
text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]) | st.sampled_from("\n\t"))
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
tricky = st.sampled_from(["1e5", "-1e-5", "1.5e3", "null", "yes", "1:30", "0x1f", "<<", "=", "~", "2020-01-01", ""])
data = st.recursive(
    leaves | tricky, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(tricky | text, inner, max_size=4)
)


@settings(max_examples=150, deadline=None)
@given(data)
def test_what_is_dumped_is_parsed_back(value):
    found = parse_yaml(dump_yaml(value), where="here")
    assert found == value and repr(found) == repr(value)


def test_the_order_of_keys_stays():
    assert list(parse_yaml(dump_yaml({"b": 1, "a": 2, "c": 0}), where="here")) == ["b", "a", "c"]


# ---- errors


ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, InputError)]


def test_the_kinds_are_found():
    assert {InputError, ConfigError, StorageError} <= set(ALL) and len(ALL) >= 8


@pytest.mark.parametrize("kind", ALL)
def test_input_errors_travel_between_processes_with_every_problem(kind):
    error = kind("a: wrong", "b: wrong too")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and again.problems == ("a: wrong", "b: wrong too") == error.problems
    assert str(again) == "a: wrong\nb: wrong too"


def test_exit_codes():
    assert (RolekdError.exit_code, TrainingError.exit_code) == (1, 1)
    assert {kind.exit_code for kind in ALL} == {2}
    assert str(pickle.loads(pickle.dumps(TrainingError("loss: nan")))) == "loss: nan"


def test_the_nearest_name_is_suggested():
    names = ["rotate", "translate_x", "invert"]
    assert suggest("rotat", names) == " Did you mean 'rotate'?"
    assert suggest("zzz", names) == suggest(5, names) == suggest(None, []) == ""
    assert unknown_name("mine: ops", "op", "rotat", iter(names)) == (
        "mine: ops: unknown op 'rotat'; expected one of rotate, translate_x, invert. Did you mean 'rotate'?"
    )


def test_of_many_names_the_nearest_are_listed():
    names = [f"network_{number}" for number in range(200)]
    message = unknown_name("student.model", "network", "netwrk_7", names)
    assert "expected one of 200, such as network_7, " in message and message.endswith("Did you mean 'network_7'?")
    assert len(message) < 250
