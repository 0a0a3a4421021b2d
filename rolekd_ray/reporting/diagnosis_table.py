"""The table of `rolekd diagnose`."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

from rolekd_ray.reporting.tables import plain_table, titled

NOTHING = "–"
CAVEAT = (
    "Not a fitness: destroyed images get a low T. stddev, too. Where the guard says no, the number means nothing; "
    "elsewhere students decide."
)


def diagnosis_table(found: Mapping[str, Any]) -> Group:
    """Return all chains of a diagnosis as plain data (`Diagnosis.to_dict`), lowest T. stddev first."""
    with_students = any(row["students"] for row in found["rows"])
    headings = ["T. stddev", "to none", "entropy", "kept", "guard", *(["test loss"] if with_students else [])]
    table: Table = plain_table("agents", *headings, numbers=headings)
    table.columns[0].overflow = "fold"  # a chain is one long word
    for column in table.columns[1:]:
        column.no_wrap = True
    for row in found["rows"]:
        cells = [
            _within(row["interval"], 1e3, ".3g"),
            _within(row["ratio"], 1, ".3f"),
            f"{row['entropy']:.3f}",
            f"{row['kept']:.3f}",
            "yes" if row["passes_guard"] else "no",
        ]
        if with_students:
            cells.append(NOTHING if row["test_loss"] is None else f"{row['test_loss']:.4f}")
        table.add_row(row["agents"], *cells)
    title = f"{found['images']} images x {found['epochs']} epochs, batches of {found['batch_size']}"
    return titled(f"Teacher's answers to agents' views: {title}", table)


def diagnosis_notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what must be read with the table: the level of chance, correlations, what it cannot be."""
    row = found["rows"][0]
    yield (
        f"T. stddev in 1e-3; ±: 95 %. A teacher sure of {row['classes']} balanced classes, without augmentation: "
        f"{1e3 * row['one_hot_level']:.3g} ({row['groups']} groups of {row['rows_per_group']} answers)."
    )
    correlation = found["correlation"]
    if correlation is not None:
        parts = ", ".join(f"{name} {_correlation(correlation[name])}" for name in ("pearson", "spearman", "kendall"))
        yield f"With test losses, of the {correlation['count']} that have students and pass the guard: {parts}."
    yield CAVEAT


def _within(interval: Mapping[str, float] | None, factor: float, digits: str) -> str:
    """Word a number and half its 95 % interval."""
    if interval is None:
        return NOTHING
    value, above = (factor * interval[key] for key in ("value", "high"))
    return f"{value:{digits}} ± {above - value:{'.2g' if digits == '.3g' else digits}}"


def _correlation(found: Mapping[str, Any]) -> str:
    if found["coefficient"] is None:
        return NOTHING
    return f"{found['coefficient']:.2f} (p {found['p_value']:.2g})"
