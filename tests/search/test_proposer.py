"""Optuna's proposals: gains by hand, one log one proposal, killed at any record, and that they learn."""

import asyncio
import json
from dataclasses import replace
from random import Random
from statistics import fmean

import pytest
from made_searches import SPACE, HashWorker, hashed, made_rule, new_life, open_jobs

from rolekd_ray.errors import RunDirectoryError
from rolekd_ray.policy.evolvable import ChoiceSpec
from rolekd_ray.policy.jobs import policies_to_dict
from rolekd_ray.policy.points import check_policies
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.space import OpSpec, SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.search.dispatcher import Dispatcher
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.local import run_local
from rolekd_ray.search.log import LOG, read_log, read_population
from rolekd_ray.search.proposer import gains, propose, proposer_of

SAMPLERS = pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow)])
MODES = pytest.mark.parametrize("synchronous", [True, False])


def rule_of(**overrides):
    """6 members, 4 intervals, policies by Optuna."""
    return made_rule(**{"population_size": 6, "epochs": 12, "explorer": "optuna", **overrides})


def score_of(job) -> float:
    """Better, the likelier the student's ops fire; a little of chance."""
    bins = [setting.probability_bin for setting in job.policies[Role.STUDENT].settings]
    return 0.1 * job.generation + fmean(bins) / 50 + 0.02 * hashed(job.state)


def play(ledger: Ledger, order: Random | None = None) -> None:
    """Score all that is left: the least advanced member first, or in an order that is drawn."""
    while jobs := open_jobs(ledger.population):
        job = order.choice(jobs) if order else min(jobs, key=lambda job: (job.generation, job.member))
        ledger.score(job, {"score": score_of(job)})


def told(folder) -> list[dict]:
    """The records without their times."""
    return [{key: value for key, value in record.items() if key != "time"} for record in read_log(folder)]


def straight(folder, rule, order: Random | None = None) -> Ledger:
    with Ledger(folder, rule) as ledger:
        play(ledger, order)
    return ledger


# ---- what a study is told


def test_gains_are_what_an_interval_added_beyond_its_generation():
    life = new_life(made_rule(population_size=4, epochs=9))
    scores = {(0, 0): 0.1, (1, 0): 0.3, (2, 0): 0.5, (3, 0): 0.7}
    for (member, _), score in scores.items():
        life.score(life.population.ask(member), score)
    assert life.population.jobs[0, 1].donor == 3  # the worst of four copies the best
    for member, score in {0: 0.75, 1: 0.4, 2: 0.5}.items():
        life.score(life.population.ask(member), score)
    expected = {(0, 0): -0.3, (1, 0): -0.1, (2, 0): 0.1, (3, 0): 0.3}  # of 0.4, from fresh networks
    expected |= {(0, 1): 0.0, (1, 1): 0.05, (2, 1): -0.05}  # 0.05, 0.1 and 0.0 of 0.05
    assert gains(life.population) == pytest.approx(expected)


def test_late_generations_do_not_look_worse_than_early_ones():
    life = new_life(made_rule(population_size=4, epochs=30))
    while jobs := open_jobs(life.population):
        job = jobs[0]
        life.score(job, 1 - 0.5**job.generation + 0.01 * hashed(job.state))  # ever less to gain
    found = gains(life.population)
    by_generation = [fmean(gain for (_, g), gain in found.items() if g == generation) for generation in range(10)]
    assert by_generation == pytest.approx([0.0] * 10)


# ---- proposals


def test_only_optuna_proposes():
    assert proposer_of(made_rule()) is None and proposer_of(made_rule(explorer="factor")) is None
    assert proposer_of(rule_of()) is propose


CHOICE = ChoiceSpec("agents", Role.STUDENT, "policy", ("policy", "randaugment", "none"))


@SAMPLERS
def test_proposals_lie_in_the_space_and_differ_from_member_to_member(tmp_path, sampler):
    space = replace(SPACE, choices=(CHOICE,))
    rule = rule_of(space=space, optuna_sampler=sampler, population_size=8, quantile=0.5)
    ledger = straight(tmp_path, rule)
    proposed = [record["policies"] for record in told(tmp_path) if record["kind"] == "propose"]
    assert len(proposed) == 3 * 4 and len({json.dumps(one) for one in proposed}) == 12
    for job in ledger.population.jobs.values():
        check_policies(job.policies, space, rule.roles)
    assert {one["student"]["agents"]["chain"] for one in proposed} == set(CHOICE.values)


@SAMPLERS
def test_the_same_log_gives_the_same_proposal(tmp_path, sampler):
    ledger = straight(tmp_path, rule_of(optuna_sampler=sampler, population_size=8))
    records = told(tmp_path)
    last = max(i for i, record in enumerate(records) if record["kind"] == "propose")
    population, member = Population.replay(records[:last]), records[last]["member"]
    assert policies_to_dict(propose(population, member), SPACE) == records[last]["policies"]
    population.rule = replace(population.rule, seed=1)
    assert policies_to_dict(propose(population, member), SPACE) != records[last]["policies"], "another seed"
    assert ledger.population.finished


def test_in_which_order_scores_come_changes_no_proposal_of_a_synchronous_search(tmp_path):
    rule = rule_of(population_size=8, epochs=21)  # long: of few trials Optuna does not weigh late ones higher
    ledgers = [straight(tmp_path / str(i), rule, Random(i)) for i in range(2)]
    assert told(tmp_path / "0") != told(tmp_path / "1")
    assert ledgers[0].population.jobs == ledgers[1].population.jobs


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_proposals_learn_what_gains(sampler):
    """Gain is what the chance of one op says; random proposals have a mean bin of 5."""
    space = SearchSpace("one", (OpSpec("rotate", (0.0,) * 10), OpSpec("invert")), copies=1)
    rule = rule_of(space=space, roles=(Role.STUDENT,), population_size=24, optuna_sampler=sampler, quantile=0.5)
    life = new_life(rule)
    for member in range(24):
        job = life.population.ask(member)
        life.score(job, job.policies[Role.STUDENT].settings[0].probability_bin + 0.1 * hashed(member))
    members = sorted(life.population.pending)[: 12 if sampler == "tpe" else 2]
    proposed = [propose(life.population, member)[Role.STUDENT].settings[0].probability_bin for member in members]
    assert fmean(proposed) > 7.5, proposed


# ---- the log is the state


@MODES
def test_a_search_killed_after_any_record_ends_as_one_that_was_not(tmp_path, synchronous):
    """Between a score and the proposal it calls for, between two proposals, anywhere."""
    rule = rule_of(synchronous=synchronous, epochs=9, quantile=0.25 if synchronous else 0.5)
    straight(tmp_path / "straight", rule)
    lines = (tmp_path / "straight" / LOG).read_bytes().splitlines(keepends=True)
    expected = told(tmp_path / "straight")
    lineage = (tmp_path / "straight" / "lineage.jsonl").read_text()
    assert sum(record["kind"] == "propose" for record in expected) >= 3 and lineage
    for count in range(1, len(lines) + 1):
        folder = tmp_path / str(count)
        folder.mkdir()
        torn = lines[count][:20] if count < len(lines) and count % 2 else b""
        (folder / LOG).write_bytes(b"".join(lines[:count]) + torn)
        straight(folder, rule)
        assert told(folder) == expected
        assert (folder / "lineage.jsonl").read_text() == lineage


def test_what_was_not_proposed_is_proposed_before_anything_else_happens(tmp_path):
    rule = rule_of()
    straight(tmp_path / "a", rule)
    lines = (tmp_path / "a" / LOG).read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"propose"' in line)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / LOG).write_bytes(b"".join(lines[:first]))
    waiting = read_population(tmp_path / "b")
    assert waiting is not None and len(waiting.pending) == 2, "a reader sees who waits"
    heard: list[str] = []

    class Listener:
        def scored(self, job, record, population): ...

        def perturbed(self, perturbation, population):
            heard.append(f"{perturbation.recipient}")

        def dropped(self, record, population): ...

        def caught_up(self, population):
            heard.append("caught up")

        def close(self): ...

    with Ledger(tmp_path / "b", replace(rule, epochs=18), [Listener()], prolong=True) as ledger:
        assert not ledger.population.pending
    kinds = [record["kind"] for record in told(tmp_path / "b")[first:]]
    assert kinds == ["propose", "propose", "extend"] and len(heard) == 3 and heard[-1] == "caught up"
    assert [r["policies"] for r in told(tmp_path / "b")[first : first + 2]] == [
        r["policies"] for r in told(tmp_path / "a")[first : first + 2]
    ]


def test_a_member_that_scored_without_its_proposal_is_an_error(tmp_path):
    straight(tmp_path, rule_of())
    lines = (tmp_path / LOG).read_bytes().splitlines(keepends=True)
    without = [line for line in lines if b'"propose"' not in line]
    (tmp_path / LOG).write_bytes(b"".join(without))
    with pytest.raises(RunDirectoryError, match="a record does not fit those before it"):
        Ledger(tmp_path, rule_of())


@MODES
def test_the_lineage_file_holds_what_was_proposed(tmp_path, synchronous):
    straight(tmp_path, rule_of(synchronous=synchronous))
    rows = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    proposed = [record for record in told(tmp_path) if record["kind"] == "propose"]
    assert [(row["recipient"], row["generation"], row["after"]) for row in rows] == [
        (record["member"], record["generation"], record["policies"]) for record in proposed
    ]
    order = [(record["generation"], record["member"]) for record in proposed]
    assert order == sorted(order) or not synchronous, "the lower member first"


# ---- who trains


@MODES
def test_one_process_trains_such_a_search_and_keeps_the_states_it_needs(tmp_path, synchronous):
    ledger = Ledger(tmp_path, rule_of(synchronous=synchronous))
    run_local(ledger, HashWorker(tmp_path / "states"))  # fails when the state it starts from is gone
    ledger.close()
    assert ledger.population.finished and ledger.population.live == set(range(6))
    assert any(record["kind"] == "propose" for record in told(tmp_path))


def test_members_that_wait_for_a_proposal_are_woken_by_it(tmp_path):
    """The dispatcher reads the log; between score and proposal it may look at any moment."""
    ledger = straight(tmp_path / "a", rule_of())
    lines = (tmp_path / "a" / LOG).read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"propose"' in line)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / LOG).write_bytes(b"".join(lines[:first]))
    member = json.loads(lines[first])["member"]
    trained = []

    async def search():
        dispatcher = Dispatcher(tmp_path / "b", [], 0)

        async def train(job):
            trained.append(job)
            return {"generation": job.generation}

        dispatcher._train = train
        await dispatcher.refresh()
        waiting = asyncio.ensure_future(dispatcher.interval(member, 0))
        await asyncio.sleep(0.02)
        assert not waiting.done() and member not in {job.member for job in trained}
        with open(tmp_path / "b" / LOG, "ab") as log:
            log.write(lines[first])
        await dispatcher.refresh()
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(search()) == {"generation": 1}
    assert trained[-1] == ledger.population.jobs[member, 1]
