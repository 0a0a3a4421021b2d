"""The whole job on a few hundred real photographs."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from rolekd_ray import Role, load_schedule, load_settings, start_run
from rolekd_ray.search.log import read_log


def some_photographs(source: Path, folder: Path) -> Path:
    """The first photographs of each split, in files like the real ones: all 60,000 are read in test_data_sources."""
    folder.mkdir()
    for split, count in (("train", 400), ("test", 200)):
        (file,) = source.glob(f"{split}*.parquet")
        pq.write_table(pq.read_table(file).slice(0, count), folder / file.name)
    return folder


def test_search_and_replay_on_photographs(shared_data, tmp_path):
    data = some_photographs(shared_data / "cifar10", tmp_path / "cifar10")
    few = [f"data.path={data}", "data.train=128", "data.validation=100", "final.train=128"]
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
    assert all(row["test_images"] == 200 and 0 < row["test_accuracy"] < 1 for row in outcome.rows)
