"""Tables for people."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rolekd_ray.policy.lineage import effective_lineages
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.schedule import Schedule


def titled(title: str, table: Table) -> Group:
    """Return a table below its title and a blank line after both; rich would wrap the title to the table's width."""
    return Group(Text(title, style="bold"), "", table, "")


def plain_table(*headings: str, numbers: Sequence[str] = ()) -> Table:
    """Return an empty table; the columns named in `numbers` are aligned to the right."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numbers else "left")
    return table


def results_table(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Return the final comparison, one line per network: accuracy on both splits, and seconds of training."""
    numbers = ("validation", "test", "test loss", "seconds")
    table = plain_table("network", *numbers, numbers=numbers)
    for row in rows:
        seconds = row.get("seconds")
        table.add_row(
            row["network"],
            f"{row['validation_accuracy']:.4f}",
            f"{row['test_accuracy']:.4f}",
            f"{row['test_loss']:.3f}",
            "–" if seconds is None else f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}",
        )
    return titled("Accuracy of the finished networks", table)


def methods_table(methods: Iterable[Any]) -> Group:
    """Return one row per `distill.registry.Method`: the layers it takes, its weight in the literature, its options."""
    table = plain_table("method", "layers", "weight", "options", numbers=("weight",))
    for method in sorted(methods, key=lambda one: one.name):
        options = ", ".join(f"{name}: {_setting(value)}" for name, value in method.options.items())
        table.add_row(method.name, "–" if method.layers == "none" else method.layers, f"{method.weight:g}", options)
    return titled("Methods for distill.losses, with the weights of the literature", table)


def _setting(value: Any) -> str:
    """Word a value as a configuration has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _three_digits(value: float) -> str:
    """Word an evolved number, large ones without an exponent: weights of losses go up to 30000."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def layers_table(title: str, rows: Sequence[tuple[str, str, tuple[int, ...] | str]]) -> Group:
    """Return a network's modules: name, kind, shape of the output without the batch."""
    table = plain_table("layer", "kind", "output", numbers=("output",))
    for name, kind, shape in rows:
        table.add_row(Text(name), Text(kind), Text(shape if isinstance(shape, str) else "x".join(map(str, shape))))
    return titled(title, table)


def population_table(title: str, population: Population) -> Group:
    """Return where each member stands, best first."""
    complete = [g for g in population.scores if population.complete(g)]
    lineages = effective_lineages(population, max(complete)) if complete else population.rule.population_size
    done, total = intervals(population)
    numbers = ("member", "epoch", "score", "copied from")
    table = plain_table(*numbers, "state", numbers=numbers)
    for member, epoch, score, donor, state in sorted(_standings(population), key=lambda row: -(row[2] or 0)):
        table.add_row(str(member), str(epoch), "–" if score is None else f"{score:.4f}", donor, state)
    size = population.rule.population_size
    return titled(f"{title}: {done} of {total} intervals, {lineages} of {size} lineages alive", table)


def intervals(population: Population) -> tuple[int, int]:
    """Return how many intervals are done, and how many there will be: what failed or was dropped is not made up for."""
    scored = [member for scores in population.scores.values() for member in scores]
    of_dropped = sum(member not in population.live for member in scored)
    failed = sum(member in population.live for failed in population.failed.values() for member in failed)
    return len(scored), len(population.live) * population.generations + of_dropped - failed


def _standings(population: Population) -> list[tuple[int, int, float | None, str, str]]:
    rows = []
    for member in range(population.rule.population_size):
        scored = [g for g, scores in population.scores.items() if member in scores]
        newest = max(scored, default=None)
        score = population.scores[newest][member] if newest is not None else None
        epoch = population.ends[newest] if newest is not None else 0
        donor = population.jobs[member, population.newest[member]].donor
        at_goal = newest == population.generations - 1
        state = "at the goal" if at_goal else "training"
        if member not in population.live:
            state = "dropped"
        elif member in population.failed.get(population.newest[member], ()):
            state = "failed"
        rows.append((member, epoch, score, "–" if donor in (None, member) else str(donor), state))
    return rows


def schedule_table(schedule: Schedule) -> Group:
    """Return a schedule's segments, most likely ops first; epochs count from 1."""
    table = plain_table("role", "epochs", "ops that can fire: chance/magnitude bin")
    for role, segments in schedule.firing().roles.items():
        start = 0
        for segment in segments:
            chain = segment.policy.choices.get("agents", "policy").split("+")
            acting = segment.policy.settings if "policy" in chain else ()  # no other agent looks at the ops
            settings = sorted(acting, key=lambda s: -s.probability_bin)
            ops = [
                f"{s.op} {schedule.space.probability(s.probability_bin):.1f}/{s.magnitude_bin}" for s in settings[:6]
            ]
            more = f", +{len(settings) - 6} more" if len(settings) > 6 else ""
            scalars = "".join(f"; {name} {_three_digits(value)}" for name, value in segment.policy.scalars.items())
            choices = "".join(f"; {name} {value}" for name, value in segment.policy.choices.items())
            first, last = start + 1, start + segment.epochs
            epochs = f"{first}–{last}" if first < last else str(first)
            table.add_row(str(role), epochs, (", ".join(ops) or "none") + more + scalars + choices)
            start += segment.epochs
    return titled(f"Schedule of {schedule.epochs} epochs over {schedule.space.name}", table)
