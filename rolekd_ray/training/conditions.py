"""What noise and imbalance came to, among the images that are trained on: for records and for people."""

from collections.abc import Mapping
from typing import Any

from rolekd_ray.config import DataSettings, Settings
from rolekd_ray.data.noise import expected_wrong_share
from rolekd_ray.training.data import TrainingData, open_training_data


def describe_images(data: TrainingData, settings: DataSettings) -> dict[str, Any]:
    """Return the number of images trained on, per true class too, and how noise and imbalance were set and came out.

    `wrong` counts labels that are not the true ones, `wrong_share` and `expected_wrong_share` are fractions.
    """
    true = data.image_set.labels[data.train]
    counts = true.bincount(minlength=data.image_set.num_classes).tolist()
    described: dict[str, Any] = {"images": len(true), "class_counts": counts}
    if settings.imbalance is not None:
        described["imbalance"] = settings.imbalance.model_dump(mode="json")
    if settings.noise is not None:
        wrong = int((data.labels[data.train] != true).sum())
        described["noise"] = settings.noise.model_dump(mode="json") | {
            "wrong": wrong,
            "wrong_share": wrong / len(true),
            "expected_wrong_share": expected_wrong_share(data.image_set.num_classes, settings.noise),
        }
    return described


def describe_run_images(data: TrainingData, settings: Settings) -> dict[str, Any]:
    """Return `describe_images` of a run's `search`, whose data is given, and of its `final` trainings."""
    final = open_training_data(settings.data, train=settings.final.train)
    return {"search": describe_images(data, settings.data), "final": describe_images(final, settings.data)}


def condition_lines(described: Mapping[str, Any]) -> list[str]:
    """Word what `describe_images` returned: a line for imbalance, one for noise, none for what is not asked for."""
    lines, images = [], f"{described['images']:,}"
    if "imbalance" in described:
        counts, settings = described["class_counts"], described["imbalance"]
        rule = "ratio" if settings["kind"] == "exponential" else "gamma"
        kind = f"{settings['kind']}, {rule} {settings[rule]:g}, {settings['images']} images"
        lines.append(f"images: {images}, {max(counts):,} to {min(counts):,} per class ({kind})")
    if "noise" in described:
        noise = described["noise"]
        kind = f"{noise['kind']}, rate {noise['rate']:g}, seed {noise['seed']}"
        lines.append(f"labels: {100 * noise['wrong_share']:.1f} % of {images} wrong ({kind})")
    return lines
