"""Tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rolekd_ray.policy.lineage import effective_lineages
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.schedule import Schedule


def results_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the final comparison, one line per network: accuracy on both splits, and seconds of training."""
    table = Table(title="Accuracy of the finished networks", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("network", no_wrap=True)
    for heading in ("validation", "test", "test loss", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        seconds = row.get("seconds")
        table.add_row(
            row["network"],
            f"{row['validation_accuracy']:.4f}",
            f"{row['test_accuracy']:.4f}",
            f"{row['test_loss']:.3f}",
            f"{seconds:.0f}" if seconds is not None else "–",
        )
    return table


def evaluation_table(title: str, results: Mapping[str, Any]) -> Table:
    """Return one network's metrics: validation beside test."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("metric")
    table.add_column("validation", justify="right")
    table.add_column("test", justify="right")
    for name in ("accuracy", "loss", "calibration_error", "images"):
        values = [results[f"{split}_{name}"] for split in ("validation", "test")]
        table.add_row(name.replace("_", " "), *(f"{v:d}" if name == "images" else f"{v:.4f}" for v in values))
    if "test_teacher_agreement" in results:
        table.add_row("agreement with teacher", "–", f"{results['test_teacher_agreement']:.4f}")
    return table


def population_table(title: str, population: Population) -> Table:
    """Return where each member stands, best first."""
    complete = [g for g, scores in population.scores.items() if population.live <= scores.keys()]
    lineages = effective_lineages(population, max(complete)) if complete else population.rule.population_size
    done, total = intervals(population)
    table = Table(
        title=f"{title}: {done} of {total} intervals, {lineages} of {population.rule.population_size} lineages alive",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for heading in ("member", "epoch", "score", "copied from", "state"):
        table.add_column(heading, justify="right")
    for member, epoch, score, donor, state in sorted(_standings(population), key=lambda row: -(row[2] or 0)):
        table.add_row(str(member), str(epoch), "–" if score is None else f"{score:.4f}", donor, state)
    return table


def intervals(population: Population) -> tuple[int, int]:
    """Return how many intervals are done, and how many there will be: dropped members train no more."""
    scored = [member for scores in population.scores.values() for member in scores]
    of_dropped = sum(member not in population.live for member in scored)
    return len(scored), len(population.live) * population.generations + of_dropped


def _standings(population: Population) -> list[tuple[int, int, float | None, str, str]]:
    rows = []
    for member in range(population.rule.population_size):
        scored = [g for g, scores in population.scores.items() if member in scores]
        newest = max(scored, default=None)
        score = population.scores[newest][member] if newest is not None else None
        epoch = population.ends[newest] if newest is not None else 0
        donor = population.jobs[member, population.newest[member]].donor
        at_goal = newest == population.generations - 1
        state = "dropped" if member not in population.live else "at the goal" if at_goal else "training"
        rows.append((member, epoch, score, "–" if donor in (None, member) else str(donor), state))
    return rows


def schedule_table(schedule: Schedule) -> Table:
    """Return a schedule's segments, most likely ops first."""
    table = Table(
        title=f"schedule of {schedule.epochs} epochs over {schedule.space.name}", title_justify="left", box=SIMPLE_HEAD
    )
    for heading in ("role", "epochs", "ops that can fire (chance, magnitude bin)"):
        table.add_column(heading)
    for role, segments in schedule.firing().roles.items():
        start = 0
        for segment in segments:
            settings = sorted(segment.policy.settings, key=lambda s: -s.probability_bin)
            ops = [
                f"{s.op} {schedule.space.probability(s.probability_bin):.1f}/{s.magnitude_bin}" for s in settings[:6]
            ]
            more = f", +{len(settings) - 6} more" if len(settings) > 6 else ""
            scalars = "".join(f"; {name} {value:.3g}" for name, value in segment.policy.scalars.items())
            table.add_row(str(role), f"{start}–{start + segment.epochs}", (", ".join(ops) or "none") + more + scalars)
            start += segment.epochs
    return table
