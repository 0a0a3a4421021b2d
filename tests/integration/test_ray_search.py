"""The search on a real Ray: equal to the one-process search, whatever dies on the way."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
from ray_helpers import (
    BOTH,
    NoOpWorker,
    facts,
    lineage,
    processes,
    rule,
    same_tree,
    tiny_settings,
    weights,
)

from rolekd_ray.errors import ConfigError, RolekdError, StorageError
from rolekd_ray.policy.population import Population
from rolekd_ray.search.cluster import slot_count
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.log import read_log
from rolekd_ray.search.population_search import search_population
from rolekd_ray.search.tune_search import run_on_ray


class Listener:
    """Calls `act` after the n-th score."""

    def __init__(self, *acts):
        self.acts, self.scores = dict(acts), 0

    def scored(self, job, record, population):
        self.scores += 1
        if self.scores in self.acts:
            self.acts[self.scores]()

    def perturbed(self, perturbation, population): ...
    def dropped(self, record, population): ...
    def caught_up(self, population): ...
    def close(self): ...


def kill(name: str, killed: list):
    """SIGKILL one of Ray's processes of a kind."""
    found = sorted(processes(name))
    assert found, f"no process {name}"
    os.kill(found[0], signal.SIGKILL)
    killed.append(name)


def test_ray_equals_one_process_though_a_slot_a_trial_and_the_dispatcher_die(ray, reference, tmp_path):
    killed: list[str] = []
    listener = Listener(
        (3, partial(kill, "ray::Slot", killed)),
        (6, partial(kill, "ray::Member", killed)),
        (9, partial(kill, "ray::Dispatcher", killed)),
    )
    _, population = search_population(tmp_path, tiny_settings(), BOTH, observers=[listener])
    assert killed == ["ray::Slot", "ray::Member", "ray::Dispatcher"]
    assert population.finished and population.live == {0, 1, 2, 3}
    assert facts(tmp_path) == facts(reference)
    assert sorted(lineage(tmp_path)) == sorted(lineage(reference)) and lineage(reference)
    assert same_tree(weights(tmp_path), weights(reference))


@pytest.mark.slow
def test_trials_import_no_torch_and_show_policies_and_donors(ray, tmp_path):
    torch_free: list[bool] = []

    def look():
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in processes("ray::Member")]
        torch_free.extend("libtorch" not in text for text in maps)

    ledger = Ledger(tmp_path, rule(population_size=4, epochs=9), [Listener((8, look))])
    settings = tiny_settings()
    run_on_ray(ledger, partial(NoOpWorker, tmp_path / "states"), search=settings.search, slots=settings.slots)
    ledger.close()
    assert torch_free and all(torch_free)
    rows = sorted((tmp_path / "tune").rglob("member-001/result.json"))[0].read_text()
    last = json.loads(rows.splitlines()[-1])
    job = Population.replay(read_log(tmp_path)).jobs[1, 2]
    assert (last["generation"], last["donor"], last["training_iteration"]) == (2, job.donor, 3)
    assert [setting["magnitude_bin"] for setting in last["policies"]["student"]["policy"]] == [
        setting.magnitude_bin for setting in job.policies["student"].settings
    ]


@pytest.mark.slow
def test_asynchronous_search_reaches_the_goal_and_replays(ray, tmp_path):
    ledger = Ledger(tmp_path, rule(population_size=4, epochs=18, mode="asynchronous", quantile=0.5))
    settings = tiny_settings()
    run_on_ray(ledger, partial(NoOpWorker, tmp_path / "states"), search=settings.search, slots=settings.slots)
    ledger.close()
    assert ledger.population.finished
    assert len(facts(tmp_path)) == 4 * 6
    again = Population.replay(read_log(tmp_path))
    assert again.jobs == ledger.population.jobs
    # Who reports last is chance; that nobody is ever among the worst half is not to be expected (1 in 8,000)
    assert any(job.donor not in (None, job.member) for job in again.jobs.values())


class Broken(NoOpWorker):
    """Member 2 cannot be trained; `kind` says how."""

    def __init__(self, states, kind):
        super().__init__(states)
        self.kind = kind

    def train(self, job):
        if job.member == 2 and job.generation == 1:
            if self.kind == "disk":
                raise StorageError("states/002-0001: cannot write the checkpoint: No space left on device")
            raise RuntimeError("out of luck")
        return super().train(job)


def test_a_copy_takes_the_place_of_a_member_that_keeps_failing(ray, tmp_path):
    ledger = Ledger(tmp_path, rule(population_size=4, epochs=9))
    settings = tiny_settings("search.max_failures=1")
    run_on_ray(ledger, partial(Broken, tmp_path / "states", "luck"), search=settings.search, slots=settings.slots)
    ledger.close()
    (fail,) = [record for record in read_log(tmp_path) if record["kind"] == "fail"]
    assert (fail["member"], fail["generation"]) == (2, 1) and "out of luck" in fail["reason"]
    assert ledger.population.live == {0, 1, 2, 3} and ledger.population.finished
    assert facts(tmp_path).keys() == {(m, g) for m in range(4) for g in range(3)} - {(2, 1)}
    (copied,) = [line for line in map(json.loads, lineage(tmp_path)) if line["reason"]]
    assert (copied["recipient"], copied["recipient_score"]) == (2, None) and "out of luck" in copied["reason"]


class Slow(NoOpWorker):
    """Member 2's second interval takes long enough to kill its trial in it twice."""

    def train(self, job):
        time.sleep(25 if job.state == "002-0001" else 0.05)
        return super().train(job)


@pytest.mark.slow
def test_a_copy_takes_the_place_of_a_member_whose_trial_keeps_dying(ray, tmp_path):
    """All trials are killed whenever they have come up, until one has failed; three of the four only wait."""

    def kill_until_one_fails():
        while not any(record["kind"] == "fail" for record in read_log(tmp_path)):
            for pid in processes("ray::Member.train"):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.5)

    ledger = Ledger(tmp_path, rule(population_size=4, epochs=15))
    ledger.observers = [
        Listener((7, Thread(target=kill_until_one_fails).start))
    ]  # only member 2's interval is under way
    settings = tiny_settings("search.max_failures=1")
    run_on_ray(ledger, partial(Slow, tmp_path / "states"), search=settings.search, slots=settings.slots)
    ledger.close()
    fails = [record for record in read_log(tmp_path) if record["kind"] == "fail"]
    assert [(fail["member"], fail["generation"]) for fail in fails] == [(2, 1)]
    assert fails[0]["reason"] == "002-0001: its trial process died 2 times"
    assert ledger.population.live == {0, 1, 2, 3} and ledger.population.finished
    assert facts(tmp_path).keys() == {(m, g) for m in range(4) for g in range(5)} - {(2, 1)}


@pytest.mark.slow
def test_a_full_disk_stops_the_search_with_its_own_message(ray, tmp_path):
    ledger = Ledger(tmp_path, rule(population_size=4, epochs=9))
    settings = tiny_settings()
    with pytest.raises(StorageError, match="No space left on device"):
        run_on_ray(ledger, partial(Broken, tmp_path / "states", "disk"), search=settings.search, slots=settings.slots)
    ledger.close()
    assert not [record for record in read_log(tmp_path) if record["kind"] == "drop"]


def test_slots_that_do_not_fit_are_refused_with_the_numbers(ray):
    with pytest.raises(ConfigError, match=r"count auto of 1 CPUs and 1 GPUs each; expected at most 0") as refusal:
        slot_count(tiny_settings("slots.resources_per_worker.gpus=1").slots, 4)
    assert "0 GPUs" in str(refusal.value)
    with pytest.raises(ConfigError, match="expected at most"):
        slot_count(tiny_settings("slots.count=999").slots, 4)


@pytest.mark.slow  # the same without Ray is a default test
def test_every_member_dropped_is_an_error(ray, tmp_path):
    with pytest.raises(RolekdError, match="every member was dropped"):
        search_population(tmp_path, tiny_settings("training.learning_rate=1e30", "search.max_failures=0"), BOTH)
