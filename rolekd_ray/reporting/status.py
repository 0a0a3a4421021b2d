"""Where a run stands, read from its logs while others may be writing them."""

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live

from rolekd_ray.reporting.tables import population_table
from rolekd_ray.storage import Place, children

SEARCHES = {"teacher": "teacher's search", ".": "search"}


def show_status(run: Place, console: Console, *, watch: bool) -> None:
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


def _tables(run: Place) -> tuple[Group, bool]:
    # here, for `reporting` stands beside `search`, not above it: it needs the reader of the log and nothing else
    from rolekd_ray.search.log import has_log, read_population

    tables: list[RenderableType] = []
    finished = False
    for folder, title in SEARCHES.items():
        if has_log(run / folder) and (population := read_population(run / folder)):
            tables.append(population_table(title, population))
            finished = population.finished and folder == "."  # the student's search comes after the teacher's
    networks = _networks(run / "best")
    if networks:
        tables.append(f"trained to the end: {', '.join(networks)}")
    return Group(*(tables or ["no interval has been trained yet"])), finished


def _networks(best: Place) -> list[str]:
    return [folder.name for folder in children(best) if (folder / "checkpoint.json").is_file()]
