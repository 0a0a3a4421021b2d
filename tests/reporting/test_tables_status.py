"""Tables fit a terminal of 80 columns and tell the truth; the status follows a run to its end."""

import re
from io import StringIO
from types import SimpleNamespace

import pytest
from made_searches import BOTH, SPACE, live_through, made_rule, play, score_of
from rich.console import Console

from rolekd_ray.policy.lineage import schedule_of
from rolekd_ray.policy.policy import OpSetting, Policy
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.policy.space import load_space
from rolekd_ray.reporting import status
from rolekd_ray.reporting.evaluation_tables import evaluation_table
from rolekd_ray.reporting.tables import intervals, population_table, results_table, schedule_table
from rolekd_ray.roles import Role
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.log import Log


def printed(thing, width=80) -> list[str]:
    text = StringIO()
    Console(file=text, width=width).print(thing)
    lines = text.getvalue().rstrip("\n").split("\n")
    assert all(len(line) <= width for line in lines)
    return lines


def cells(lines) -> list[list[str]]:
    """The rows whose first cell is a number."""
    split = [re.split(r"\s{2,}|\s*[│┃|]\s*", line.strip(" │┃|")) for line in lines]
    return [row for row in split if row[0].isdigit()]


# ---- the population


def test_before_the_first_score_everyone_trains():
    lines = printed(population_table("search", Population(made_rule(population_size=3))))
    assert "search: 0 of 12 intervals, 3 of 3 lineages alive" in " ".join(lines)
    assert cells(lines) == [[str(member), "0", "–", "–", "training"] for member in range(3)]


def test_members_are_listed_best_first_with_where_they_stand(tmp_path):
    ledger = Ledger(tmp_path, made_rule(population_size=4))
    play(ledger, 4)
    job = ledger.population.ask(0)
    ledger.score(job, {"score": 0.98765})
    ledger.drop(3, "fire")
    population = ledger.population
    rows = cells(printed(population_table("search", population)))
    assert sorted(row[0] for row in rows) == ["0", "1", "2", "3"]
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)
    assert rows[0][:3] == ["0", "6", "0.9877"] and rows[0][4] == "training"
    for row in rows[1:]:
        member = int(row[0])
        donor = population.jobs[member, 1].donor
        assert row[1:] == [
            "3",
            f"{population.scores[0][member]:.4f}",
            "–" if donor == member else str(donor),
            "dropped" if member == 3 else "training",
        ]
    assert any(row[3] != "–" for row in rows)
    ledger.close()


def test_who_failed_is_shown_so_until_a_copy_takes_its_place(tmp_path):
    with Ledger(tmp_path, made_rule(population_size=4)) as ledger:
        population = ledger.population
        ledger.fail(population.ask(3), "fire")
        states = {row[0]: row[4] for row in cells(printed(population_table("search", population)))}
        assert states == {"0": "training", "1": "training", "2": "training", "3": "failed"}
        assert intervals(population) == (0, 15)
        play(ledger, 3)
        rows = {row[0]: row for row in cells(printed(population_table("search", population)))}
        assert rows["3"][3:] == [str(population.jobs[3, 1].donor), "training"]
        play(ledger)
        assert intervals(population) == (15, 15)


def test_at_the_end_all_are_at_the_goal():
    life = live_through(made_rule(population_size=16), 0)
    lines = printed(population_table("teacher's search", life.population))
    assert "teacher's search: 64 of 64 intervals, " in " ".join(lines)
    assert [row[1] for row in cells(lines)] == ["10"] * 16
    assert {row[4] for row in cells(lines)} == {"at the goal"}


def test_intervals_never_exceed_their_total():
    for seed in range(20):
        life = live_through(made_rule(seed=seed), seed, drop_chance=0.05)
        done, total = intervals(life.population)
        assert done == total == sum(map(len, life.population.scores.values()))
    assert intervals(Population(made_rule())) == (0, 32)


def test_lineages_are_counted_when_a_generation_is_complete():
    """The first score of a generation does not make its lineage the only one."""
    population = Population(made_rule(population_size=4))
    for generation in range(2):
        for member in range(4):
            job = population.ask(member)
            population.tell({"kind": "score", "member": member, "generation": generation, "score": score_of(job)})
            (alive,) = re.findall(r"(\d) of 4 lineages", " ".join(printed(population_table("search", population))))
            assert alive == ("3" if (generation, member) == (1, 3) else "4")  # one copy after generation 0


# ---- schedules and results


def test_schedules_are_shown_by_segment_most_likely_ops_first():
    policy = Policy(
        (OpSetting("rotate", 2, 7), OpSetting("invert", 0, 1), OpSetting("cutout", 9, 3)), {"temperature": 3.14159}
    )
    schedule = Schedule(SPACE, {Role.STUDENT: (Segment(4, Policy()), Segment(56, policy))})
    text = "\n".join(printed(schedule_table(schedule)))
    assert "Schedule of 60 epochs over three_ops" in text
    assert re.search(r"student\W+1–4\W+none", text)
    assert re.search(r"student\W+5–60\W+cutout 0\.9/3, rotate 0\.2/7; temperature 3\.14", text)
    assert "invert" not in text


def test_schedules_are_shown_with_their_chains():
    policy = Policy((), {"temperature": 2.0}, {"agents": "policy+cutmix"})
    text = "\n".join(printed(schedule_table(Schedule(SPACE, {Role.STUDENT: (Segment(4, policy),)}))))
    assert re.search(r"student\W+1–4\W+none; temperature 2; agents policy\+cutmix", text)


@pytest.mark.parametrize(
    ("value", "said"), [(30000.0, "30000"), (1000.0, "1000"), (12345.67, "12346"), (950.4, "950"), (0.0213, "0.0213")]
)
def test_weights_that_evolved_are_shown_without_exponents(value, said):
    schedule = Schedule(SPACE, {Role.STUDENT: (Segment(1, Policy((), {"losses.pkt": value})),)})
    assert re.search(rf"losses\.pkt {said}(\s|$)", "\n".join(printed(schedule_table(schedule))), re.M)


def test_long_schedules_fit():
    rule = made_rule(epochs=60, space=load_space("cifar10_pba"))
    population = live_through(rule, 0).population
    schedule = schedule_of(population, *population.best())
    lines = printed(schedule_table(schedule))
    text = " ".join(lines)
    assert text.count("teacher") == text.count("student") == len(schedule.firing().roles[Role.STUDENT])
    assert re.search(r"\+\d+", text), "what does not fit is counted"
    assert set(schedule.roles) == set(BOTH)


def test_results_are_shown_per_network():
    row = {"validation_accuracy": 0.912345, "test_accuracy": 0.87654, "test_loss": 0.45678}
    names = ["teacher", "student distilled, no augmentation"]
    rows = [{"network": name, **row, "seconds": seconds} for name, seconds in zip(names, (None, 12.6))]
    lines = printed(results_table(rows))
    assert any(re.search(r"teacher\W+0\.9123\W+0\.8765\W+0\.457\W+–", line) for line in lines)
    assert any(re.search(r"no augmentation\W+0\.9123\W+0\.8765\W+0\.457\W+13", line) for line in lines)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_evaluations_are_shown_per_split(with_teacher):
    results = {
        f"{split}_{name}": value
        for split in ("validation", "test")
        for name, value in (
            ("accuracy", 0.9 if split == "test" else 0.8),
            ("loss", 0.25),
            ("calibration_error", 0.0312),
        )
    } | {"validation_images": 500, "test_images": 1797}
    if with_teacher:
        results["test_teacher_agreement"] = 0.875
    text = "\n".join(printed(evaluation_table("runs/a/best/student", results)))
    assert re.search(r"accuracy\W+0\.8000\W+0\.9000", text)
    assert re.search(r"calibration error\W+0\.0312\W+0\.0312", text)
    assert re.search(r"images\W+500\W+1797", text)
    assert bool(re.search(r"agreement with teacher\W+–\W+0\.8750", text)) == with_teacher


# ---- status


def status_of(folder, watch=False) -> str:
    text = StringIO()
    status.show_status(folder, Console(file=text, width=80), watch=watch)
    return text.getvalue()


def test_the_status_of_a_run_that_has_not_begun(tmp_path):
    assert status_of(tmp_path) == "no interval has been trained yet\n"
    Log(tmp_path).close()
    assert status_of(tmp_path) == "no interval has been trained yet\n", "a log without any record"


def test_the_status_while_others_write(tmp_path):
    searches = [Ledger(tmp_path / "teacher", made_rule()), Ledger(tmp_path, made_rule(population_size=3))]
    play(searches[0])
    play(searches[1], 4)
    text = status_of(tmp_path)
    assert "teacher's search: 32 of 32 intervals" in text and "\nsearch: 4 of 12 intervals" in text.replace("  ", "")
    assert text.count("at the goal") == 8 and text.count("training") == 3
    for ledger in searches:
        ledger.close()


def test_watching_ends_with_the_last_search_not_with_the_teachers(tmp_path, monkeypatch):
    """Between two looks another interval is trained; the student's search begins after the teacher's."""
    ledgers = [Ledger(tmp_path / "teacher", made_rule(population_size=2))]

    def another_interval(seconds):
        if ledgers[-1].population.finished:
            assert len(ledgers) == 1, "watching goes on after the end"
            ledgers.append(Ledger(tmp_path, made_rule(population_size=2)))
        play(ledgers[-1], 1)

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=another_interval))
    text = status_of(tmp_path, watch=True)
    assert len(ledgers) == 2 and ledgers[1].population.finished
    assert "search: 8 of 8 intervals" in text
    for ledger in ledgers:
        ledger.close()
