"""The ledger: one fold over the log, derived files that can be lost, states that are kept exactly as long as needed."""

import copy
import json
import math
import shutil
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_searches import HashWorker, made_rule, open_jobs, play

from rolekd_ray.errors import RunDirectoryError, StorageError
from rolekd_ray.policy.jobs import state_name
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.log import read_log


class Listener:
    """Writes down what it hears, and checks that it is on disk by then."""

    def __init__(self, folder=None):
        self.folder, self.heard = folder, []

    def _note(self, *what):
        self.heard.append(what)

    def scored(self, job, record, population):
        if self.folder is not None:
            assert record in read_log(self.folder), "heard before it was on disk"
        assert population.reported(job.member, job.generation) and record["score"] == record["metrics"]["score"]
        self._note("scored", job.member, job.generation, record["score"])

    def perturbed(self, perturbation, population):
        self._note("perturbed", perturbation.generation, perturbation.recipient, perturbation.donor)

    def dropped(self, record, population):
        assert (record["member"] in population.live) == (record["kind"] == "fail")
        self._note("dropped", record["member"], record["reason"])

    def caught_up(self, population):
        self._note("caught up", sum(map(len, population.scores.values())))

    def close(self):
        self._note("close")


def facts(ledger):
    p = ledger.population
    return p.jobs, p.scores, p.live, p.newest, p.ends


# ---- opening and reopening


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("lineage", ["kept", "deleted", "torn", "of another search"])
def test_reopening_gives_the_same_population_and_lineage(tmp_path, synchronous, lineage):
    rule = made_rule(synchronous=synchronous)
    ledger = Ledger(tmp_path, rule)
    play(ledger, 12)
    ledger.drop(5, "fire")
    play(ledger, 8)
    ledger.close()
    file = tmp_path / "lineage.jsonl"
    before = file.read_bytes()
    assert before.count(b"\n") >= 3
    if lineage == "deleted":
        file.unlink()
    elif lineage == "torn":
        file.write_bytes(before[:-30])
    elif lineage == "of another search":
        file.write_bytes(before[: before.index(b"\n") + 1] * 9)
    again = Ledger(tmp_path, made_rule(seed=99, population_size=3))  # a search keeps the rule it began with
    assert again.population.rule == rule and facts(again) == facts(ledger)
    assert file.read_bytes() == before
    play(again)
    again.close()
    assert again.population.finished and again.population.live == {0, 1, 2, 3, 4, 6, 7}
    assert file.read_bytes().startswith(before)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 32), st.booleans())
def test_a_search_closed_after_any_interval_ends_as_one_that_was_not(tmp_path_factory, stop, synchronous):
    folders = [tmp_path_factory.mktemp(name) for name in ("stopped", "straight")]
    ends = []
    for folder, counts in zip(folders, [(stop, None), (None,)]):
        for count in counts:
            ledger = Ledger(folder, made_rule(synchronous=synchronous))
            play(ledger, count)
            ledger.close()
        ends.append(facts(ledger))
    assert ends[0] == ends[1]
    texts = [(folder / "lineage.jsonl").read_text() for folder in folders]
    assert texts[0] == texts[1] and texts[0]


def test_the_lineage_file_holds_every_perturbation_and_both_policies(tmp_path):
    ledger = Ledger(tmp_path, made_rule())
    play(ledger)
    ledger.close()
    rows = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    copies = {key: job for key, job in ledger.population.jobs.items() if job.donor not in (None, job.member)}
    assert {(row["recipient"], row["generation"] + 1): row["donor"] for row in rows} == {
        key: job.donor for key, job in copies.items()
    }
    assert len(rows) == len(copies) == 3 * 2  # decisions x ceil(8 / 4)
    for row in rows:
        scores = ledger.population.scores[row["generation"]]
        assert (row["recipient_score"], row["donor_score"]) == (scores[row["recipient"]], scores[row["donor"]])
        job = copies[row["recipient"], row["generation"] + 1]
        before = ledger.population.jobs[row["recipient"], row["generation"]]
        space = ledger.population.rule.space
        assert row["after"] == job.to_dict(space)["policies"] and row["before"] == before.to_dict(space)["policies"]
        assert row["after"].keys() == {"teacher", "student"}


def test_a_new_search_writes_its_rule_first(tmp_path):
    Ledger(tmp_path, made_rule(seed=7)).close()
    (record,) = read_log(tmp_path)
    assert (record["kind"], record["format"], record["rule"]["seed"]) == ("init", "rolekd.log/1", 7)
    assert (tmp_path / "lineage.jsonl").read_text() == ""


def test_two_ledgers_of_one_search_are_refused_and_the_first_goes_on(tmp_path):
    ledger = Ledger(tmp_path, made_rule())
    play(ledger, 10)
    before = (tmp_path / "lineage.jsonl").read_text()
    with pytest.raises(RunDirectoryError, match="another process is writing"):
        Ledger(tmp_path, made_rule())
    assert (tmp_path / "lineage.jsonl").read_text() == before
    play(ledger)
    ledger.close()


# ---- records


def test_a_second_report_of_an_interval_is_ignored(tmp_path):
    ledger = Ledger(tmp_path, made_rule())
    job = ledger.population.ask(3)
    ledger.score(job, {"score": 0.25, "loss": 1.5})
    ledger.score(job, {"score": 0.75})
    assert ledger.population.scores == {0: {3: 0.25}}
    (record,) = read_log(tmp_path)[1:]
    assert (record["score"], record["metrics"]) == (0.25, {"score": 0.25, "loss": 1.5})
    ledger.close()


def test_a_member_is_dropped_once(tmp_path):
    listener = Listener()
    ledger = Ledger(tmp_path, made_rule(), [listener])
    for reason in ("fire", "water"):
        ledger.drop(2, reason)
    assert [r["reason"] for r in read_log(tmp_path)[1:]] == ["fire"]
    assert [what for what in listener.heard if what[0] == "dropped"] == [("dropped", 2, "fire")]
    ledger.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["score", "student/validation_loss"])
def test_an_interval_whose_metrics_are_not_finite_has_failed_and_a_copy_takes_its_place(tmp_path, name, value):
    listener = Listener(tmp_path)
    ledger = Ledger(tmp_path, made_rule(), [listener])
    job = ledger.population.ask(2)
    for _ in range(2):  # reported again, as a restarted trial does
        ledger.score(job, {"score": 0.1, name: value})
    assert ledger.population.ask(2) is None and not ledger.population.scores
    reason = f"002-0000: got {{{name!r}: {value}}}; expected finite metrics"
    (record,) = read_log(tmp_path)[1:]
    assert (record["kind"], record["generation"], record["reason"]) == ("fail", 0, reason)
    assert ("dropped", 2, reason) in listener.heard
    play(ledger)
    assert ledger.population.finished and ledger.population.live == set(range(8))
    ledger.close()
    lines = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    (copied,) = [line for line in lines if line["reason"] is not None]
    assert (copied["recipient"], copied["generation"], copied["recipient_score"]) == (2, 0, None)
    assert copied["reason"] == reason and copied["donor"] == ledger.population.jobs[2, 1].donor


def test_a_goal_moves_and_stays_moved(tmp_path):
    ledger = Ledger(tmp_path, made_rule())
    play(ledger)
    assert ledger.population.finished and not open_jobs(ledger.population)
    ledger.extend(16)
    ledger.close()
    ledger = Ledger(tmp_path, made_rule())
    assert ledger.population.epochs == 16 and len(open_jobs(ledger.population)) == 8
    play(ledger)
    ledger.close()
    assert ledger.population.finished and ledger.population.ends == [3, 6, 9, 10, 13, 16]


def test_a_rule_with_a_further_goal_moves_it_before_anyone_is_told(tmp_path):
    ledger = Ledger(tmp_path, made_rule())
    play(ledger)
    ledger.close()
    longer = made_rule(epochs=16)
    told = []

    class Reader(Listener):
        def caught_up(self, population):
            told.append(population.epochs)

    Ledger(tmp_path, longer, [Reader(tmp_path)]).close()
    Ledger(tmp_path, longer, [Reader(tmp_path)], prolong=True).close()
    Ledger(tmp_path, longer, [Reader(tmp_path)], prolong=True).close()
    assert told == [10, 16, 16]
    assert [record["kind"] for record in read_log(tmp_path)].count("extend") == 1


# ---- observers


def test_observers_hear_the_past_once_then_what_happens(tmp_path):
    first = Listener(tmp_path)
    ledger = Ledger(tmp_path, made_rule(), [first])
    play(ledger, 11)
    ledger.drop(4, "fire")
    play(ledger, 5)
    ledger.close()
    assert first.heard[0] == ("caught up", 0) and first.heard[-1] == ("close",)
    assert [what[0] for what in first.heard].count("scored") == 16
    assert [what[0] for what in first.heard].count("perturbed") == 4

    second = Listener()
    ledger = Ledger(tmp_path, made_rule(), [second])
    assert second.heard == [*first.heard[1:-1], ("caught up", 16)], "the same, in the same order"
    play(ledger, 1)
    assert [what[0] for what in second.heard[len(first.heard) - 1 :]] == ["scored"]
    ledger.close()


class Refusing(Listener):
    """Its files cannot be written."""

    def scored(self, job, record, population):
        raise OSError(28, "No space left on device")

    def close(self):
        super().close()
        raise OSError(28, "No space left on device")


def test_an_observer_that_cannot_write_stops_with_a_clear_error_and_frees_the_log(tmp_path):
    others = [Listener(), Listener()]
    ledger = Ledger(tmp_path, made_rule(), [others[0], Refusing(), others[1]])
    with pytest.raises(StorageError, match="cannot be written: No space left on device"):
        play(ledger, 1)
    with pytest.raises(StorageError, match="cannot be written: No space left on device"):
        ledger.close()
    assert [other.heard[-1] for other in others] == [("close",)] * 2
    with Ledger(tmp_path, made_rule()) as again:
        assert again.population.reported(0, 0), "the score counted before anyone heard of it"


def test_what_went_wrong_first_is_told_though_closing_fails_too(tmp_path):
    with pytest.raises(ZeroDivisionError), Ledger(tmp_path, made_rule(), [Refusing()]):
        raise ZeroDivisionError
    with pytest.raises(StorageError, match="No space left"), Ledger(tmp_path, made_rule(), [Refusing()]):
        pass


# ---- states


def possible_sources(population) -> set[str]:
    """The states that open intervals start from, or that any decision to come could hand out.

    By what decisions can do: a live member that has to go on from generation g continues its own state of g or copies
    that of another live member.
    """
    jobs = open_jobs(population)
    needed = {job.source for job in jobs} - {None}
    open_generations = {population.newest[member] for member in population.live}
    for (member, generation), _ in population.jobs.items():
        if member in population.live and any(generation >= g for g in open_generations):
            needed.add(state_name(member, generation))
    return needed


def used_in_a_future(population, rng) -> set[str]:
    """The states that the population starts from if it lives on with these random scores."""
    future, used = copy.deepcopy(population), set()
    while jobs := open_jobs(future):
        job = rng.choice(jobs)
        used.add(job.source)
        future.tell({"kind": "score", "member": job.member, "generation": job.generation, "score": rng.random()})
    return used


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31), st.booleans(), st.integers(2, 7), st.sampled_from([0.0, 0.04]), st.sampled_from([0.0, 0.2]),
    st.booleans(), st.sampled_from([0.25, 0.5]),
)  # fmt: skip
def test_states_are_kept_exactly_as_long_as_needed(
    tmp_path_factory, seed, synchronous, size, drop_chance, fail_chance, prolong, quantile
):
    folder = tmp_path_factory.mktemp("search")
    rule = made_rule(seed=seed, population_size=size, synchronous=synchronous, quantile=quantile, epochs=12)
    ledger, rng = Ledger(folder, rule), Random(seed)
    population = ledger.population
    worker = HashWorker(folder / "states")  # fails when its source is gone
    while True:
        jobs = open_jobs(population)
        if not jobs and prolong and population.live:
            prolong = False
            ledger.extend(18)
            continue
        if not jobs:
            break
        if rng.random() < drop_chance:
            ledger.drop(rng.choice(sorted(population.live)), "drawn")
        else:
            job = rng.choice(jobs)
            if rng.random() < fail_chance:
                ledger.fail(job, "drawn")
            else:
                ledger.score(job, worker.train(job))
        ledger.collect()
        if population.live:
            left = {state.name for state in (folder / "states").iterdir()} if worker.trained else set()
            assert left == possible_sources(population) & set(worker.trained)
            if rng.random() < 0.1:
                assert used_in_a_future(population, rng) & set(worker.trained) <= left
    ledger.close()
    assert population.finished
    shutil.rmtree(folder)


def test_a_synchronous_search_keeps_few_states(tmp_path):
    ledger, worker = Ledger(tmp_path, made_rule(epochs=30)), HashWorker(tmp_path / "states")
    most = 0
    while jobs := open_jobs(ledger.population):
        ledger.score(jobs[0], worker.train(jobs[0]))
        most = max(most, len(list((tmp_path / "states").iterdir())))
        ledger.collect()
    assert most <= 2 * 8 and len(worker.trained) == 80
    assert {state.name for state in (tmp_path / "states").iterdir()} == {state_name(m, 9) for m in range(8)}
    ledger.close()


def test_when_all_were_dropped_their_states_stay_to_be_looked_at(tmp_path):
    ledger, worker = Ledger(tmp_path, made_rule(population_size=2)), HashWorker(tmp_path / "states")
    for member in range(2):
        worker.train(ledger.population.ask(member))
    for member in range(2):
        ledger.drop(member, "fire")
    ledger.collect()
    assert len(list((tmp_path / "states").iterdir())) == 2
    ledger.close()


def test_what_killed_slots_left_half_written_is_removed_and_other_files_stay(tmp_path):
    ledger = Ledger(tmp_path, made_rule())
    play(ledger, 9)
    ledger.close()
    states = tmp_path / "states"
    for name in (".003-0000.1a2b3c4d", "003-0001", "notes"):
        (states / name).mkdir(parents=True)
    ledger = Ledger(tmp_path, made_rule())
    (states / ".004-0000.1a2b3c4d").mkdir()
    ledger.close()
    assert not list(states.glob(".*")), "neither of before nor of meanwhile"
    ledger = Ledger(tmp_path, made_rule())
    assert sorted(state.name for state in states.iterdir()) == ["003-0001", "notes"]
    ledger.collect()
    assert sorted(state.name for state in states.iterdir()) == ["003-0001", "notes"]
    ledger.close()
