"""The search in one process: the same whether it was stopped, killed or left alone."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_searches import HashWorker, made_rule, score_of

from rolekd_ray.errors import StorageError, TrainingError
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.local import run_local
from rolekd_ray.search.log import read_log

ROOT = Path(__file__).parents[2]
MODES = pytest.mark.parametrize("synchronous", [True, False])


class Stop(BaseException):
    """Ends a search at any point, as Ctrl-C does."""


def search(folder: Path, rule, **worker_options) -> Ledger:
    """Run a search, or go on with it, until its end or until the worker raises."""
    ledger = Ledger(folder, rule)
    try:
        run_local(ledger, HashWorker(folder / "states", **worker_options))
    finally:
        ledger.close()
    return ledger


def scores(folder: Path) -> list[tuple[int, int, float]]:
    """The scores in the order of the log."""
    return [(r["member"], r["generation"], r["score"]) for r in read_log(folder) if r["kind"] == "score"]


def outcome(folder: Path):
    """All that must not depend on stops."""
    states = sorted(state.name for state in (folder / "states").iterdir() if not state.name.startswith("."))
    return scores(folder), (folder / "lineage.jsonl").read_text(), states


@MODES
def test_everyone_reaches_the_goal(tmp_path, synchronous):
    ledger = search(tmp_path, made_rule(synchronous=synchronous))
    assert ledger.population.finished
    assert scores(tmp_path) == [(m, g, score_of(ledger.population.jobs[m, g])) for g in range(4) for m in range(8)]
    assert len((tmp_path / "lineage.jsonl").read_text().splitlines()) >= 3
    assert outcome(tmp_path)[2] == [f"{m:03d}-0003" for m in range(8)], "what is not needed is collected"


def stop_at(count: int):
    """Raise before the count-th job."""
    left = [count]

    def act(job):
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    return act


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 31), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_a_stopped_search_ends_as_one_left_alone(tmp_path_factory, count, synchronous, between, seed):
    """`between`: stopped after the state was written and before its score counted."""
    rule = made_rule(synchronous=synchronous, seed=seed)
    stopped, straight = tmp_path_factory.mktemp("stopped"), tmp_path_factory.mktemp("straight")
    with pytest.raises(Stop):
        search(stopped, rule, **{"torn" if between else "act": stop_at(count)})
    assert len(scores(stopped)) == count
    again = HashWorker(stopped / "states")
    ledger = Ledger(stopped, rule)
    run_local(ledger, again)
    ledger.close()
    assert len(again.trained) == 32 - count - between, "nothing is trained twice"
    reference = search(straight, rule)
    assert outcome(stopped) == outcome(straight)
    assert ledger.population.jobs == reference.population.jobs


KILLED = """
    import sys, time
    from pathlib import Path
    from made_searches import HashWorker, made_rule
    from rolekd_ray.search.ledger import Ledger
    from rolekd_ray.search.local import run_local

    folder, synchronous = Path(sys.argv[1]), sys.argv[2] == "True"
    ledger = Ledger(folder, made_rule(synchronous=synchronous))
    say = lambda job: (print(job.state, flush=True), time.sleep(0.004))
    run_local(ledger, HashWorker(folder / "states", act=say))
    ledger.close()
    print("end", flush=True)
"""


@MODES
def test_a_search_killed_again_and_again_ends_as_one_left_alone(tmp_path, synchronous):
    """kill -9 of a real process at moments drawn by chance, until one gets through."""
    rng, kills, last = Random(5), 0, ""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    while last != "end":
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "killed"), str(synchronous)],
            env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in range(rng.randrange(4, 22)):
            last = process.stdout.readline().strip()
            assert last, "the search ended by an error"
            if last == "end":
                break
        else:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills >= 2
    search(tmp_path / "straight", made_rule(synchronous=synchronous))
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")


@MODES
def test_an_interval_that_cannot_be_trained_is_given_up_and_a_copy_takes_its_place(tmp_path, synchronous):
    def diverge(job):
        if job.state == "002-0001":
            raise TrainingError("002-0001: loss: got nan; expected a finite number")

    ledger = search(tmp_path, made_rule(synchronous=synchronous), act=diverge)
    population = ledger.population
    assert population.finished and population.live == set(range(8))
    (fail,) = [record for record in read_log(tmp_path) if record["kind"] == "fail"]
    assert (fail["member"], fail["reason"]) == (2, "002-0001: loss: got nan; expected a finite number")
    assert len(scores(tmp_path)) == 8 * 4 - 1 and population.jobs[2, 2].donor != 2


def test_if_nobody_can_be_trained_the_search_ends(tmp_path):
    def diverge(job):
        raise TrainingError("loss: got nan")

    ledger = search(tmp_path, made_rule(), act=diverge)
    assert not ledger.population.live and not scores(tmp_path)


@pytest.mark.parametrize("error", [StorageError("states/001-0000: no space"), RuntimeError("bug")])
def test_other_errors_are_no_members_fault_and_end_the_search(tmp_path, error):
    def fail(job):
        if job.member == 1:
            raise error

    with pytest.raises(type(error)):
        search(tmp_path, made_rule(), act=fail)
    assert [record["kind"] for record in read_log(tmp_path)] == ["init", "score"]
    assert search(tmp_path, made_rule()).population.live == set(range(8))


@MODES
def test_a_finished_search_can_be_prolonged(tmp_path, synchronous):
    rule = made_rule(synchronous=synchronous)
    search(tmp_path, rule)
    ledger, worker = Ledger(tmp_path, rule), HashWorker(tmp_path / "states")
    run_local(ledger, worker)
    assert not worker.trained, "nothing to do"
    ledger.extend(14)
    run_local(ledger, worker)
    ledger.close()
    assert ledger.population.finished and len(worker.trained) == 2 * 8
    assert ledger.population.ends == [3, 6, 9, 10, 13, 14]
