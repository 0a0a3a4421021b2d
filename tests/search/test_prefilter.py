"""Which candidates a search begins with."""

from dataclasses import replace

import pytest
import torch
from cli_helpers import write_network
from hypothesis import given
from hypothesis import strategies as st

from rolekd_ray.augment.t_stddev import TStddev
from rolekd_ray.augment.t_stddev_meter import TStddevMeter
from rolekd_ray.config import load_settings
from rolekd_ray.errors import ConfigError
from rolekd_ray.roles import Role
from rolekd_ray.search.initial import sobol_policies
from rolekd_ray.search.population_search import search_population
from rolekd_ray.search.prefilter import filtered, filtered_first
from rolekd_ray.training.final import FinalTraining, train_final


def template() -> TStddev:
    meter = TStddevMeter(2, teacher="stub")
    for step in range(10):
        meter.add(*(torch.tensor([[float(step), 0.0]]),) * 2)
    return meter.result()


TEMPLATE = replace(template(), confidence=0.9)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([-0.1, 0.0, 0.3, 0.8]), st.booleans()), min_size=1
    ),
    data=st.data(),
)
def test_the_lowest_of_those_that_pass_then_those_that_keep_most(rows, data):
    count = data.draw(st.integers(1, len(rows)))
    scores = [replace(TEMPLATE, score=score, confidence=0.9 if sure else 0.55) for score, _, sure in rows]
    got = filtered(range(len(rows)), scores, [kept for _, kept, _ in rows], count)
    # Reference: insertion by comparing pairs, one rule after the other
    order: list[int] = []
    for place, (score, kept, sure) in enumerate(rows):
        passes = kept >= 0.2 and sure  # 0.55 is a tenth of the way from 1/2 to 1
        at = 0
        while at < len(order):
            other_score, other_kept, other_sure = rows[order[at]]
            other_passes = other_kept >= 0.2 and other_sure
            within = score < other_score if passes else kept > other_kept
            before = within if passes == other_passes else passes
            if before:
                break
            at += 1
        order.insert(at, place)
    assert got == order[:count]


def test_a_destroying_candidate_is_not_chosen_for_its_low_score():
    scores = [replace(TEMPLATE, score=score) for score in (0.1, 5.0, 4.0)]
    assert filtered(["grey", "weak", "strong"], scores, [0.0, 1.0, 0.6], 2) == ["strong", "weak"]
    assert filtered(["grey", "weak", "strong"], scores, [0.0, 1.0, 0.6], 2, floor=0.0) == ["grey", "strong"]


def test_scores_of_several_measurements_are_refused():
    with pytest.raises(ConfigError, match="cannot compare 'candidate 0' and 'candidate 1': seed"):
        filtered("ab", [TEMPLATE, replace(TEMPLATE, seed=1)], [1.0, 1.0], 1)


def test_a_students_search_begins_with_the_filtered(tmp_path):
    """What stands in its log is what the filter says of four times as many."""
    settings = load_settings("quickstart", [
        "data.validation=60", "final.epochs=2", "teacher.model=resnet8", "final.train=100",
        "search.population_size=3", "search.epochs=1", "search.initial_policies=sobol", "search.initial_filter=true",
        "data.train=100", "training.precision=float32", "student.model=resnet8",
    ])  # fmt: skip
    train_final(FinalTraining(settings, Role.TEACHER, tmp_path / "teacher"))
    _, population = search_population(
        tmp_path / "search", settings, (Role.STUDENT,), teacher=tmp_path / "teacher", local=True
    )
    first = [population.jobs[member, 0].policies[Role.STUDENT] for member in range(3)]
    drawn = [at[Role.STUDENT] for at in sobol_policies(settings.search_space(), (Role.STUDENT,), 12, settings.seed)]
    assert all(policy in drawn for policy in first) and len({str(policy) for policy in first}) == 3
    assert first != drawn[:3]
    again = filtered_first(settings, tmp_path / "teacher")
    assert [policies[Role.STUDENT] for policies in again] == first


@pytest.mark.parametrize("picking", ["{fraction: 0.25}", "{runs: 3, keep: 5}", "{scope: anchor, fraction: 1}"])
@pytest.mark.parametrize("images", [40, 150])  # batches of 2, the smallest, and of 3
def test_chains_that_pick_compare_with_those_that_do_not(tmp_path, picking, images):
    settings = load_settings("quickstart", [
        "teacher.model=resnet8", f"data.train={images}", f"agents.student.pick={picking}",
        "search.population_size=2", "search.initial_policies=sobol", "search.initial_filter=true",
        "space.choices={agents: {initial: cutmix, values: [cutmix, cutmix+pick]}}",
    ])  # fmt: skip
    write_network(tmp_path / "teacher")
    drawn = [at[Role.STUDENT] for at in sobol_policies(settings.search_space(), (Role.STUDENT,), 8, settings.seed)]
    assert {policy.choices["agents"] for policy in drawn} == {"cutmix", "cutmix+pick"}
    assert len(filtered_first(settings, tmp_path / "teacher")) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["search.initial_policies=zero"],
            "initial_filter: got true for initial_policies: zero; expected random or sobol",
        ),
        (["search.protocol=coevolve"], "initial_filter: got true for protocol: coevolve"),
    ],
)
def test_where_it_can_filter_nothing_it_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        load_settings("quickstart", ["search.initial_filter=true", *given])
