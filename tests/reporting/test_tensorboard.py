"""TensorBoard: its own reader finds the right values at the right epochs, once."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_searches import SPACE, made_rule, play
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rolekd_ray.policy.lineage import effective_lineages
from rolekd_ray.policy.policy import OpSetting, Policy
from rolekd_ray.policy.space import ChoiceSpec
from rolekd_ray.reporting.tensorboard import TensorBoard, policy_scalars
from rolekd_ray.roles import Role
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.log import read_log


def curves(folder: Path, member: int | str) -> dict[str, list[tuple[int, float, float]]]:
    """Tag -> points (epoch, value, seconds since 1970), of a member or of a curve by name."""
    name = member if isinstance(member, str) else f"member-{member:03d}"
    events = EventAccumulator(str(folder / "tensorboard" / name), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value, e.wall_time) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    ledger = Ledger(folder, made_rule(population_size=4), [TensorBoard(folder)])
    play(ledger)
    ledger.close()
    return folder, ledger.population


def test_curves_hold_the_metrics_of_every_interval(finished):
    folder, population = finished
    records = [record for record in read_log(folder) if record["kind"] == "score"]
    for member in range(4):
        found = curves(folder, member)
        own = [record for record in records if record["member"] == member]
        epochs = [population.ends[record["generation"]] for record in own]
        assert epochs == [3, 6, 9, 10]
        for tag in ("score", "loss"):
            assert [(step, seconds) for step, _, seconds in found[tag]] == [
                (epoch, pytest.approx(record["time"], abs=1e-3)) for epoch, record in zip(epochs, own)
            ]
            assert [value for _, value, _ in found[tag]] == pytest.approx([r["metrics"][tag] for r in own], rel=1e-6)


def test_curves_hold_donors_and_policies(finished):
    folder, population = finished
    for member in range(4):
        found = curves(folder, member)
        jobs = [population.jobs[member, generation] for generation in range(4)]
        assert [value for _, value, _ in found["donor"]] == [-1, *(job.donor for job in jobs[1:])]
        for role in ("teacher", "student"):
            for op in ("rotate", "invert", "cutout"):
                expected = [
                    sum(s.probability_bin / 10 for s in job.policies[role].settings if s.op == op) for job in jobs
                ]
                tag = f"{role}/policy/{op}/probability"
                assert [value for _, value, _ in found[tag]] == pytest.approx(expected, rel=1e-6)
        temperatures = [job.policies["student"].scalars["temperature"] for job in jobs]
        assert [value for _, value, _ in found["student/temperature"]] == pytest.approx(temperatures, rel=1e-6)
        assert "teacher/temperature" not in found and "teacher/weight_decay" in found


def test_a_curve_of_the_population_holds_its_lineages(finished, tmp_path):
    folder, population = finished
    found = curves(folder, "population")["lineages"]
    assert [(step, value) for step, value, _ in found] == [
        (end, effective_lineages(population, generation)) for generation, end in enumerate([3, 6, 9, 10])
    ]
    assert found[0][1] == 4 > found[-1][1]
    ledger = Ledger(tmp_path, made_rule(population_size=4), [TensorBoard(tmp_path)])
    play(ledger, 3)
    ledger.drop(3, "fire")  # whom the generation waited for
    ledger.close()
    assert [(step, value) for step, value, _ in curves(tmp_path, "population")["lineages"]] == [(3, 3)]


def test_a_policy_as_numbers():
    settings = (
        OpSetting("rotate", 2, 8), OpSetting("invert", 0, 3), OpSetting("cutout", 10, 1), OpSetting("rotate", 6, 4),
    )  # fmt: skip
    assert policy_scalars("student", Policy(settings, {"temperature": 2.5}), SPACE) == pytest.approx(
        {
            "student/temperature": 2.5,
            "student/policy/rotate/probability": 0.8,
            "student/policy/rotate/magnitude_bin": 5.0,  # (0.2 * 8 + 0.6 * 4) / 0.8
            "student/policy/invert/probability": 0.0,  # cannot fire: it has no strength
            "student/policy/cutout/probability": 1.0,
            "student/policy/cutout/magnitude_bin": 1.0,
        }
    )


def test_a_choice_is_the_place_of_its_value_in_the_list():
    values = ("policy", "policy+cutmix", "none")
    of = lambda role, values: ChoiceSpec("agents", role, "policy", values)  # noqa: E731
    space = replace(SPACE, choices=(of(Role.STUDENT, values), of(Role.TEACHER, values[:2])))
    assert policy_scalars("student", Policy((), {}, {"agents": "none"}), space)["student/agents"] == 2
    assert policy_scalars("teacher", Policy((), {}, {"agents": "policy+cutmix"}), space)["teacher/agents"] == 1
    assert "teacher/agents" not in policy_scalars("teacher", Policy(), space)


def test_reopening_doubles_no_point_and_goes_on(tmp_path):
    rule = made_rule(population_size=2)
    for count in (3, 2, None):
        ledger = Ledger(tmp_path, rule, [TensorBoard(tmp_path)])
        play(ledger, count)
        ledger.close()
    for member in range(2):
        assert [step for step, *_ in curves(tmp_path, member)["score"]] == [3, 6, 9, 10]
        assert len(list((tmp_path / "tensorboard" / f"member-{member:03d}").iterdir())) == 1


def test_a_dropped_members_curve_ends(tmp_path):
    ledger = Ledger(tmp_path, made_rule(population_size=3), [TensorBoard(tmp_path)])
    play(ledger, 4)
    ledger.drop(0, "fire")
    play(ledger)
    ledger.close()
    assert [step for step, *_ in curves(tmp_path, 0)["score"]] == [3, 6]
    assert [step for step, *_ in curves(tmp_path, 1)["score"]] == [3, 6, 9, 10]
