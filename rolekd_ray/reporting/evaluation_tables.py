"""Tables of what `evaluate` measured."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from rolekd_ray.reporting.tables import plain_table, titled

SPLITS = ("validation", "test")
MOST_CLASSES = 20
"""Of more classes, the ten worst are shown."""
NOTHING = "–"


def evaluation_tables(title: str, results: Mapping[str, Any]) -> Iterator[Group]:
    """Yield all tables that results of `evaluate_checkpoint` fill."""
    yield evaluation_table(title, results)
    yield class_table(results)
    if "robust_images" in results:
        yield robustness_table(results)
    if "corruptions" in results:
        yield corruption_table(results)


def evaluation_table(title: str, results: Mapping[str, Any]) -> Group:
    """Return one network's metrics: validation beside test."""
    table = plain_table("metric", *SPLITS, numbers=SPLITS)
    names = {
        "accuracy": "accuracy",
        "top5_accuracy": "top-5 accuracy",
        "lowest_class_accuracy": "lowest class accuracy",
        "loss": "loss (negative log-likelihood), nats",
        "calibration_error": "calibration error",
        "entropy": "mean entropy, nats",
        "teacher_agreement": "agreement with teacher",
        "images": "images",
    }
    with_teacher = "test_teacher_agreement" in results
    for name, words in names.items():
        values = [results.get(f"{split}_{name}") for split in SPLITS]
        if name == "teacher_agreement" and not with_teacher:
            table.add_row(words, "no teacher", "no teacher")
        elif any(value is not None for value in values):
            table.add_row(words, *map(_number, values))
    return titled(title, table)


def class_table(results: Mapping[str, Any]) -> Group:
    """Return the accuracy on each class, or on the worst ones."""
    table = plain_table("class", *SPLITS, numbers=SPLITS)
    rows = list(zip(results["class_names"], *(results[f"{split}_class_accuracy"] for split in SPLITS)))
    title = "Accuracy by class"
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: 2 if row[2] is None else row[2])[:10]
        title = f"Accuracy by class, the {len(rows)} worst of {len(results['class_names'])} on test images"
    for name, *values in rows:
        table.add_row(name, *map(_number, values))
    return titled(title, table)


def robustness_table(results: Mapping[str, Any]) -> Group:
    """Return similarity to the teacher, attacks and decision boundaries, or why they are lacking."""
    table = plain_table("metric", "value", "of", numbers=("value",))
    with_teacher, attacked = "test_teacher_agreement" in results, "pgd_accuracy" in results
    images = f"{results['robust_images']:d} images"
    for pair in results.get("cka", ()):
        layers = " and ".join(dict.fromkeys([pair["student"], pair["teacher"]]))
        table.add_row(f"linear CKA with teacher: {layers}", _number(pair["cka"]), images)
    if (attacked and not with_teacher) or results.get("cka") == []:
        why = "no stages known: --layers" if with_teacher else "no teacher"
        table.add_row("linear CKA with teacher", NOTHING, why)
    if attacked:
        table.add_row("accuracy under PGD-20, ε 8/255", _number(results["pgd_accuracy"]), images)
        for name, words, count, unit in (
            ("teacher_pgd_accuracy", "the same of the teacher", "robust_images", "images"),
            ("transferability", "attacks on the teacher that fool it too", "transfer_attacks", "attacks"),
            ("boundary_magnitude", "boundaries: MagSim", "boundary_pairs", "image–class pairs"),
            ("boundary_angle", "boundaries: AngSim", "boundary_pairs", "image–class pairs"),
        ):
            of = f"{results[count]:d} {unit}" if with_teacher else "no teacher"
            table.add_row(words, _number(results.get(name)), of)
    if "corruption_accuracy" in results:
        table.add_row("accuracy on corrupted images, mean", _number(results["corruption_accuracy"]), images)
    return titled("On the first test images", table)


def corruption_table(results: Mapping[str, Any]) -> Group:
    """Return accuracy by corruption and severity."""
    severities = tuple(str(severity) for severity in range(1, 6))
    table: Table = plain_table("corruption", *severities, "mean", numbers=(*severities, "mean"))
    for name, values in results["corruptions"].items():
        table.add_row(name.replace("_", " "), *map(_number, values), _number(_mean(values)))
    columns = list(zip(*results["corruptions"].values()))
    table.add_section()
    table.add_row("mean", *(_number(_mean(column)) for column in columns), _number(results["corruption_accuracy"]))
    return titled(f"Accuracy by severity, {results['robust_images']:d} images each", table)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:d}" if isinstance(value, int) else f"{value:.4f}"
