"""Where a run stands, read from its logs while others may be writing them."""

import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live

from rolekd_ray.policy.population import Population
from rolekd_ray.reporting.tables import population_table

SEARCHES = {"teacher": "teacher's search", ".": "search"}


def show_status(run: Path, console: Console, *, watch: bool) -> None:
    """Print one table per search of a run; with `watch`, again every 2 seconds until all are at their goal."""
    if not watch:
        console.print(_tables(run)[0])
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            tables, finished = _tables(run)
            live.update(tables, refresh=True)
            if finished:
                return
            time.sleep(2)


def _tables(run: Path) -> tuple[Group, bool]:
    # here, for `reporting` stands beside `search`, not above it: it needs the reader of the log and nothing else
    from rolekd_ray.search.log import LOG, read_log

    tables: list[RenderableType] = []
    finished = False
    for folder, title in SEARCHES.items():
        if (run / folder / LOG).is_file() and (records := read_log(run / folder)):
            population = Population.replay(records)
            tables.append(population_table(title, population))
            finished = population.finished and folder == "."  # the student's search comes after the teacher's
    networks = [file.parent.name for file in sorted((run / "best").glob("*/checkpoint.json"))]
    if networks:
        tables.append(f"trained to the end: {', '.join(networks)}")
    return Group(*(tables or ["no interval has been trained yet"])), finished
