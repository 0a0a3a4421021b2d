"""Compare the distillation methods: one student by each, beside students from labels alone, on CIFAR-10 photographs.

    python launch/compare_methods.py --data FOLDER            # train what is not there yet, then the table
    python launch/compare_methods.py --data FOLDER --report   # the table of what is there
    python launch/compare_methods.py --data FOLDER --report --write   # into docs/comparison.md too

It may be stopped at any moment and goes on where it was. FOLDER holds CIFAR-10 as Parquet in Hugging Face's convention.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from comparing import Job, difference, evaluated, put, side_by_side, spread, train

import rolekd_ray
from rolekd_ray import FinalTraining, Role, Settings, load_settings
from rolekd_ray.distill import known_methods

PAGE = Path(__file__).parents[1] / "docs" / "comparison.md"
SEEDS = (0, 1, 2)
ALONE, FEW_BITS = "labels alone", "2 bits, "
NINE = ("hinton", "attention", "bss", "fsp", "hint", "mutual", "one", "rkd", "similarity")  # of arXiv 2007.01922
TEACHER_EPOCHS, STUDENT_EPOCHS = 40, 10

# What all trainings share: `cifar10_reduced` with more images, which are halved in size so that two CPU cores suffice
# for some eighty trainings; the crop's padding is halved with them. The teacher is larger and is trained for longer.
PROTOCOL = (
    "data.image_size=16", "data.validation=1000", "final.train=4000", "base_augmentation.crop_padding_pixels=2",
    "teacher.model=resnet20", "student.model=resnet8", "training.learning_rate=0.05", "training.precision=float32",
    "search.perturbation_interval_epochs=8",
)  # fmt: skip

# Authors' temperatures where they differ from 4.
TEMPERATURES = {"bss": 3.0, "mutual": 1.0, "one": 3.0}


def arms() -> dict[str, list[str]]:
    """Return what is compared, the most telling first: names and settings."""
    # Three things to beat, or to understand the rest by: no teacher at all, targets that are soft without one, Hinton
    found = {
        ALONE: losses(cross_entropy=1.0),
        "label smoothing": losses(label_smoothing=1.0),
        "hinton": losses(cross_entropy=0.1, hinton=0.9),
    }
    # Every other method beside a cross-entropy of weight 1, with the literature's weight
    for name, method in sorted(known_methods().items(), key=lambda item: (item[0] not in NINE, item[0])):
        if method.distils and name not in found:
            found[name] = losses(cross_entropy=1.0, **{name: method.weight})
    for name, temperature in TEMPERATURES.items():
        found[name] += [f"distill.options.{name}.temperature={temperature}"]
    # The peer is a second student
    found["mutual"] += ["teacher.model=resnet8"]
    # role-kd's sum of methods, clipped as its code clips it; what else changes how any method acts; fewer bits
    together = losses(cross_entropy=1.0, mhgd=1.0, rkd=50.0, svd=1.0)
    few_bits = ["student.model=resnet8_w2a2"]
    found |= {
        "mhgd + rkd + svd, clipped": [*together, "distill.clip_to_task=true"],
        "hinton, standardised logits": [*found["hinton"], "distill.standardise_logits=true"],
        "hinton, clipped": [*found["hinton"], "distill.clip_to_task=true"],
        f"{FEW_BITS}{ALONE}": [*found[ALONE], *few_bits],
        f"{FEW_BITS}hinton": [*found["hinton"], *few_bits],
    }
    return found


def losses(**weights: float) -> list[str]:
    """Return the setting of these weights."""
    return [f"distill.losses={json.dumps(weights)}"]


def trainings(options: argparse.Namespace) -> Iterator[Job]:
    """Yield (arm, seed, training): the teachers, then arm by arm; who needs no teacher has none."""
    for arm, overrides in {"teacher": losses(cross_entropy=1.0), **arms()}.items():
        if arm not in ("teacher", ALONE, FEW_BITS + ALONE) and not re.search(options.arms, arm):
            continue
        for seed in options.seeds:
            epochs = TEACHER_EPOCHS if arm == "teacher" else STUDENT_EPOCHS
            own = [*PROTOCOL, f"data.path={options.data}", f"seed={seed}", f"final.epochs={epochs}", *overrides]
            settings = load_settings("cifar10_reduced", own)
            folder = options.storage / f"{re.sub('[^a-z0-9]+', '-', arm)}-{seed}"
            role = Role.TEACHER if arm == "teacher" else Role.STUDENT
            teacher = options.storage / f"teacher-{seed}" if taught(settings, role) else None
            yield arm, seed, FinalTraining(settings, role, folder, teacher=teacher)


def taught(settings: Settings, role: Role) -> bool:
    """Return whether a training needs a finished teacher: not if all it has is labels, itself or a peer."""
    methods = [known_methods()[name] for name in settings.distill.losses]
    return role == Role.STUDENT and any(m.needs_teacher for m in methods) and all(m.online != "peer" for m in methods)


def table(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return the lines of the table, the best on test images first, and which arms are below the student alone."""
    lines = [
        "| arm | test | validation | above its student alone (SE) | agrees with its teacher | seconds |",
        "|---|---|---|---|---|---|",
    ]
    below = []
    for arm, metrics in sorted(found.items(), key=lambda item: -statistics.mean(m["test_accuracy"] for m in item[1])):
        # Pairs of one seed: they share the order of images and, of one architecture, the first weights
        alone = found[f"{FEW_BITS}{ALONE}" if arm.startswith(FEW_BITS) else ALONE]
        higher, error = difference(*([100 * m["test_accuracy"] for m in ms] for ms in (metrics, alone)))
        agreement = [100 * m["test_teacher_agreement"] for m in metrics if "test_teacher_agreement" in m]
        cells = [spread([100 * m[f"{split}_accuracy"] for m in metrics]) for split in ("test", "validation")]
        cells += [f"{higher:+.2f} ({error:.2f})", spread(agreement) if agreement else "–"]
        lines.append(f"| {arm} | {' | '.join(cells)} | {statistics.mean(m['seconds'] for m in metrics):.0f} |")
        if higher < 0:
            below.append(f"{arm} by {-higher:.2f} points (standard error {error:.2f})")
    return [*lines, "", f"Below the student from labels alone: {'; '.join(below) or 'none'}."]


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 as Parquet")
    parser.add_argument("--storage", type=Path, default=Path("runs/comparison"), help="where networks go")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument(
        "--arms", default="", help="a regular expression; teachers and students alone are there in any case"
    )
    parser.add_argument("--processes", type=int, default=2, help="trainings side by side, one core each")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    options = parser.parse_args()
    jobs = list(trainings(options))
    # Those who need no teacher do not wait for the last one's end
    for waiting in (False, True) if not options.report else ():
        side_by_side(train, [job for job in jobs if (job[2].teacher is not None) == waiting], options.processes)
    results = side_by_side(evaluated, [training for _, _, training in jobs], options.processes)
    found: dict[str, list[dict[str, float]]] = {}
    for (arm, _, _), metrics in zip(jobs, results, strict=True):
        if metrics is not None:
            found.setdefault(arm, []).append(metrics)
    dropped = [arm for arm in dict.fromkeys(arm for arm, _, _ in jobs) if len(found.get(arm, ())) < len(options.seeds)]
    if not {ALONE, f"{FEW_BITS}{ALONE}"} <= found.keys() - set(dropped):
        sys.exit(f"not finished: {', '.join(dropped)}; expected the students from labels alone at least")
    lines = table({arm: metrics for arm, metrics in found.items() if arm not in dropped})
    print("\n".join(lines), f"\nnot finished with all seeds: {', '.join(dropped) or 'none'}")
    if options.write:
        put(PAGE, lines)


if __name__ == "__main__":
    print(f"rolekd_ray {rolekd_ray.__version__}", file=sys.stderr)
    main()
