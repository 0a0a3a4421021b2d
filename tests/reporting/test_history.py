"""The history: every score of the log as a row, whatever was stopped, dropped or deleted on the way."""

import shutil
from dataclasses import replace
from random import Random

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_searches import SPACE, hashed, made_rule, open_jobs, play

from rolekd_ray.policy.distance import policy_distance
from rolekd_ray.policy.policy import Policy, policy_from_list
from rolekd_ray.policy.space import ChoiceSpec
from rolekd_ray.reporting.history import History
from rolekd_ray.roles import Role
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.log import read_log


def new_ledger(folder, **overrides):
    return Ledger(folder, made_rule(**overrides), [History(folder)])


def files(folder):
    return sorted(file.name for file in (folder / "history").iterdir()) if (folder / "history").exists() else []


def rows(folder):
    return pq.read_table(folder / "history").to_pylist()


def check_against_the_log(folder, ledger):
    """One row per score, with everything that is known about it."""
    found = {(row["member"], row["generation"]): row for row in rows(folder)}
    records = [record for record in read_log(folder) if record["kind"] == "score"]
    assert len(rows(folder)) == len(found) == len(records)

    def founder(member, generation):
        return member if generation == 0 else founder(found[member, generation]["donor"], generation - 1)

    for record in records:
        job = ledger.population.jobs[record["member"], record["generation"]]
        row = found[job.member, job.generation]
        assert (row["epoch"], row["donor"], row["score"], row["time"]) == (
            job.end_epoch, job.donor, record["score"], record["time"]
        )  # fmt: skip
        assert {name: row[name] for name in record["metrics"]} == record["metrics"]
        assert row["lineages"] == len({founder(*place) for place in found if place[1] == job.generation})
        for role, policy in job.policies.items():
            problems = []
            settings = policy_from_list(row[f"{role}/policy"], SPACE, "row", problems)
            scalars = {scalar.name: row[f"{role}/{scalar.name}"] for scalar in SPACE.scalars_of(role)}
            assert not problems and Policy(settings, scalars) == policy


def test_choices_are_columns_of_text_and_the_roles_distance_one_of_numbers(tmp_path):
    chains = ("policy", "policy+cutmix", "randaugment")
    choices = (ChoiceSpec("agents", Role.STUDENT, "policy", chains), ChoiceSpec("mode", Role.TEACHER, "a", ("a", "b")))
    space = replace(SPACE, choices=choices)
    ledger = new_ledger(tmp_path, space=space)
    play(ledger)
    ledger.close()
    seen = set()
    for row in rows(tmp_path):
        policies = ledger.population.jobs[row["member"], row["generation"]].policies
        assert row["student/agents"] == policies[Role.STUDENT].choices["agents"]
        assert row["teacher/mode"] == policies[Role.TEACHER].choices["mode"]
        assert row["policy_distance"] == policy_distance(policies[Role.STUDENT], policies[Role.TEACHER], space)
        seen.add(row["student/agents"])
    assert seen == set(chains)


def test_one_role_alone_has_no_distance(tmp_path):
    ledger = new_ledger(tmp_path, roles=(Role.STUDENT,))
    play(ledger)
    ledger.close()
    assert "policy_distance" not in rows(tmp_path)[0]


@pytest.mark.parametrize("synchronous", [True, False])
def test_all_generations_read_as_one_table(tmp_path, synchronous):
    ledger = new_ledger(tmp_path, synchronous=synchronous)
    play(ledger)
    assert files(tmp_path) == [f"generation-{g:04d}.parquet" for g in range(4)]
    check_against_the_log(tmp_path, ledger)
    ledger.close()
    names = ["member", "generation", "epoch", "donor", "score", "time", "loss"]
    policies = ["teacher/policy", "teacher/weight_decay", "student/policy", "student/temperature"]
    policies += ["policy_distance", "lineages"]
    assert {tuple(row) for row in rows(tmp_path)} == {(*names, *policies)}
    assert {row["donor"] for row in rows(tmp_path) if row["generation"] == 0} == {None}


def test_a_generation_is_written_as_soon_as_it_is_complete_and_the_rest_on_close(tmp_path):
    ledger = new_ledger(tmp_path)
    play(ledger, 7)
    assert files(tmp_path) == []
    play(ledger, 1)
    assert files(tmp_path) == ["generation-0000.parquet"]
    play(ledger, 3)
    assert len(rows(tmp_path)) == 8
    ledger.close()
    check_against_the_log(tmp_path, ledger)
    ledger = new_ledger(tmp_path)
    play(ledger, 5)
    assert len(rows(tmp_path)) == 16, "the incomplete file was replaced"
    ledger.close()


def test_a_dropped_members_rows_stay(tmp_path):
    """Dropped after it scored: the generation is complete without it, and not with as many rows as members."""
    ledger = new_ledger(tmp_path, population_size=4)
    population = ledger.population
    ledger.score(population.ask(3), {"score": 0.5})
    ledger.drop(3, "fire")
    for member in (0, 1, 2):
        ledger.score(population.ask(member), {"score": 0.1 * member})
    ledger.close()
    assert sorted(row["member"] for row in rows(tmp_path)) == [0, 1, 2, 3]
    check_against_the_log(tmp_path, ledger)


def test_a_drop_that_completes_a_generation_writes_it(tmp_path):
    ledger = new_ledger(tmp_path, population_size=4)
    play(ledger, 3)
    assert files(tmp_path) == []
    ledger.drop(3, "fire")
    assert files(tmp_path) == ["generation-0000.parquet"] and len(rows(tmp_path)) == 3
    ledger.close()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([0.0, 0.06]), st.sampled_from([0.0, 0.06]))
def test_no_row_is_lost_or_doubled(tmp_path_factory, seed, synchronous, drop_chance, stop_chance):
    folder, rng = tmp_path_factory.mktemp("search"), Random(seed)
    overrides = {"population_size": 4, "seed": seed, "synchronous": synchronous}
    ledger = new_ledger(folder, **overrides)
    while jobs := open_jobs(ledger.population):
        if rng.random() < drop_chance:
            ledger.drop(rng.choice(sorted(ledger.population.live)), "drawn")
        elif rng.random() < stop_chance:
            if rng.random() < 0.5:
                ledger.close()
            else:
                ledger._log.close()  # as a killed process leaves it: nobody is told to finish
            ledger = new_ledger(folder, **overrides)
        else:
            job = rng.choice(jobs)
            ledger.score(job, {"score": hashed(seed, job.state), "loss": 0.5})
    ledger.close()
    assert all(name.startswith("generation-") for name in files(folder)), "nothing is left aside"
    if ledger.population.scores:
        check_against_the_log(folder, ledger)
    shutil.rmtree(folder)


def test_what_was_deleted_comes_back_and_what_is_there_stays(tmp_path):
    ledger = new_ledger(tmp_path)
    play(ledger)
    ledger.close()
    before = rows(tmp_path)
    (tmp_path / "history" / "generation-0001.parquet").unlink()
    kept = (tmp_path / "history" / "generation-0002.parquet").stat().st_mtime_ns
    new_ledger(tmp_path).close()
    assert rows(tmp_path) == before
    assert (tmp_path / "history" / "generation-0002.parquet").stat().st_mtime_ns == kept
    shutil.rmtree(tmp_path / "history")
    new_ledger(tmp_path).close()
    assert rows(tmp_path) == before


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"nothing of the kind"])
def test_what_was_damaged_is_made_anew(tmp_path, damage):
    ledger = new_ledger(tmp_path)
    play(ledger)
    ledger.close()
    before = rows(tmp_path)
    (tmp_path / "history" / "generation-0001.parquet").write_bytes(damage)
    new_ledger(tmp_path).close()
    assert rows(tmp_path) == before


def test_metrics_by_class_are_one_column(tmp_path):
    ledger = new_ledger(tmp_path, population_size=2, roles=(Role.STUDENT,))
    values = [[0.5, None, 1.0], [None, 0.25, 0.75]]
    for member in range(2):
        ledger.score(ledger.population.ask(member), {"score": 0.5, "student/class_accuracy": values[member]})
    ledger.close()
    assert [row["student/class_accuracy"] for row in rows(tmp_path)] == values


def test_metrics_that_only_some_rows_have_are_columns(tmp_path):
    ledger = new_ledger(tmp_path, population_size=2, roles=(Role.STUDENT,))
    for member in range(2):
        ledger.score(ledger.population.ask(member), {"score": 0.5} | ({"extra": 1.5} if member else {}))
    ledger.close()
    assert [(row["member"], row["extra"]) for row in rows(tmp_path)] == [(0, None), (1, 1.5)]
    assert not any(name.startswith("teacher") for name in rows(tmp_path)[0])
