"""The whole job on a few hundred real photographs."""

import json

from rolekd_ray import Role, load_schedule, load_settings, start_run
from rolekd_ray.search.log import read_log


def test_search_and_replay_on_photographs(shared_data, tmp_path):
    few = [f"data.path={shared_data / 'cifar10'}", "data.train=128", "data.validation=100", "final.train=128"]
    short = ["teacher.model=resnet8", "search.population_size=3", "search.epochs=3", "final.epochs=3"]
    settings = load_settings(
        "cifar10_reduced", [*few, *short, "search.perturbation_interval_epochs=1", "search.quantile=0.34"]
    )
    outcome = start_run(settings, storage=tmp_path, name="a", local=True)
    run = tmp_path / "a"
    exploits = (run / "lineage.jsonl").read_text().splitlines()
    assert exploits and all(json.loads(line)["donor"] != json.loads(line)["recipient"] for line in exploits)
    assert len([record for record in read_log(run) if record["kind"] == "score"]) == 9
    schedule = load_schedule(run / "best" / "schedule.yaml")
    assert schedule.epochs == 3 and set(schedule.roles) == set(Role)
    networks = [row["network"] for row in outcome.rows]
    assert networks[0] == "teacher" and networks[-1] == "student distilled, found schedule"
    assert all(row["test_images"] == 10_000 and 0 < row["test_accuracy"] < 1 for row in outcome.rows)
