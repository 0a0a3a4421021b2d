"""Compare the agents: students under each, at equal student steps and at equal teacher forwards, on photographs.

    python launch/compare_agents.py --data FOLDER            # train what is not there yet, then the tables
    python launch/compare_agents.py --data FOLDER --report   # the tables of what is there
    python launch/compare_agents.py --data FOLDER --report --write   # into docs/agents.md too

It may be stopped at any moment and goes on where it was. FOLDER holds CIFAR-10 as Parquet in Hugging Face's convention.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from comparing import Job, difference, evaluated, put, side_by_side, spread, train

import rolekd_ray
from rolekd_ray import FinalTraining, Role, Settings, load_schedule, load_settings, start_run
from rolekd_ray.augment.rank_correlation import rank_correlation
from rolekd_ray.augment.t_stddev import TStddev
from rolekd_ray.policy.policy import Policy
from rolekd_ray.training.checkpoint import has_checkpoint, load_checkpoint
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.learned import new_learned
from rolekd_ray.training.networks import load_network
from rolekd_ray.training.teacher_answers import new_teacher_answers
from rolekd_ray.training.view_diagnosis import diagnose_views

PAGE = Path(__file__).parents[1] / "docs" / "agents.md"
SEEDS = (0, 1, 2)
TEACHER_EPOCHS, STUDENT_EPOCHS = 40, 12
IDENTITY, FOUND, LEARNED = "identity", "found policy", "HARD-style"

# As in compare_methods: `cifar10_reduced` with more images, halved in size so that two CPU cores suffice; padding and
# cutout are halved with them. Every step has two branches (arXiv 2012.02909): x by crop and flip, x' by the agents.
PROTOCOL = (
    "data.image_size=16", "data.validation=1000", "data.train=4000", "final.train=4000",
    "base_augmentation.crop_padding_pixels=2", "teacher.model=resnet20", "student.model=resnet8",
    "training.learning_rate=0.05", "training.precision=float32", "search.perturbation_interval_epochs=1",
    "distill.losses={cross_entropy: 0.1, hinton: 0.9}", "distill.temperature=4", "distill.branches={}",
)  # fmt: skip
# Teacher forwards of a step, in batches: x and x', or x and two candidates whose answers are kept.
FORWARDS, OF_PICKING = 2, 3
EQUAL_FORWARDS_EPOCHS = STUDENT_EPOCHS * FORWARDS // OF_PICKING


def chain(text: str, *more: str) -> list[str]:
    """Return the settings of a student role's chain."""
    return [f"agents.student.chain={text}", *(f"agents.student.{setting}" for setting in more)]


def arms() -> dict[str, list[str]]:
    """Return what is compared: names and settings."""
    pick = {"T": "teacher_entropy", "S": "student_entropy", "KL": "divergence"}
    return {
        IDENTITY: [*chain("none"), "base_augmentation.crop_padding_pixels=0", "base_augmentation.flip=false"],
        "crop + flip": chain("none"),
        "cutmix": chain("cutmix"),
        **{f"cutmix, pick {name}": chain("cutmix+pick", f"pick.criterion={rule}") for name, rule in pick.items()},
        "mixup": chain("mixup"),
        "RandAugment": chain("randaugment"),
        "TrivialAugmentWide": chain("trivial_augment_wide"),
        "AutoAugment": chain("autoaugment"),
        "AugMix": chain("augmix"),
        "cutout": chain("cutout", "cutout.pixels=8"),
        LEARNED: chain("learned", *LEARNED_SETTINGS),
        FOUND: chain("policy"),
    }


# Thresholds in nats of T² KL, chosen on a pilot (seed 99): plain distillation goes from 7 to 2. With a teacher's weight
# of 1 the agent moved the teacher as much as the student, with 3 neither.
LEARNED_SETTINGS = ("learned.lower=2.2", "learned.upper=3.5", "learned.max_steps=20", "learned.teacher_weight=2")


def trainings(options: argparse.Namespace) -> Iterator[Job]:
    """Yield (arm, seed, training), the teachers first; arms with ` =T` have equal teacher forwards, not equal steps."""
    for seed in options.seeds:
        settings = settings_of(options, seed, TEACHER_EPOCHS, [*chain("none"), "distill.branches=null"])
        yield "teacher", seed, FinalTraining(settings, Role.TEACHER, options.storage / f"teacher-{seed}")
    for arm, overrides in arms().items():
        if not re.search(options.arms, arm):
            continue
        lengths = {arm: STUDENT_EPOCHS}
        if "pick" in arm:
            lengths[f"{arm} =T"] = EQUAL_FORWARDS_EPOCHS
        if arm == LEARNED:  # its agent's steps are no student steps, but cost the teacher as much
            lengths = {arm: STUDENT_EPOCHS + options.agent_epochs, f"{arm} =T": STUDENT_EPOCHS}
        for name, epochs in lengths.items():
            for seed in options.seeds:
                folder = options.storage / f"{re.sub('[^a-z0-9=]+', '-', name.lower())}-{seed}"
                settings = settings_of(options, seed, epochs, overrides)
                schedule = load_schedule(options.storage / f"search-{seed}" / "best" / "schedule.yaml") \
                    if arm == FOUND and not options.searching else None  # fmt: skip
                teacher = options.storage / f"teacher-{seed}"
                yield name, seed, FinalTraining(settings, Role.STUDENT, folder, schedule, teacher)


def settings_of(options: argparse.Namespace, seed: int, epochs: int, overrides: list[str]) -> Settings:
    """Return an arm's settings."""
    own = [*PROTOCOL, f"data.path={options.data}", f"seed={seed}", f"final.epochs={epochs}", *overrides]
    return load_settings("cifar10_reduced", own)


def search(job: tuple[argparse.Namespace, int]) -> None:
    """Search a schedule for the student, with the arms' teacher: 8 members, as long as a student's training."""
    options, seed = job
    if (options.storage / f"search-{seed}" / "best" / "schedule.yaml").is_file():
        return
    own = [f"teacher.checkpoint={options.storage / f'teacher-{seed}'}", "data.train=1000",
           f"search.epochs={STUDENT_EPOCHS}", "search.initial_policies=random"]  # fmt: skip
    settings = settings_of(options, seed, STUDENT_EPOCHS, [*chain("policy"), *own])
    start_run(settings, storage=options.storage, name=f"search-{seed}", verb="search", local=True)
    print(f"searched, seed {seed}", file=sys.stderr, flush=True)


def teachers_view(job: Job) -> TStddev | None:
    """Return T. stddev of an arm's views for its teacher, 10 epochs as published; kept beside the network."""
    arm, seed, training = job
    plan = training.plan()
    if training.teacher is None or training.finished(plan) is None:
        return None
    kept = training.folder / "t_stddev.json"
    if kept.is_file() and (known := json.loads(kept.read_text()))["plan"] == plan:
        known["found"]["replicates"] = tuple(known["found"]["replicates"])
        return TStddev(**known["found"])
    torch.set_num_threads(1)
    settings = training.settings
    data = open_training_data(settings.data, train=4000)
    teacher, _ = load_network(training.teacher, Role.TEACHER)
    space = training.schedule.space if training.schedule is not None else settings.search_space()
    asked = new_teacher_answers(settings, data, space, teacher, torch.device("cpu"))
    # Of a found schedule the policy in the middle; its views change from interval to interval
    policies = (
        training.schedule.policies_at(Role.STUDENT, STUDENT_EPOCHS // 2) if training.schedule else [(1.0, Policy())]
    )
    built = asked.source.views.chain(settings.agents.student, policies)
    student, _ = load_network(training.folder, Role.STUDENT)
    learned = None
    if built.learned is not None:
        learned = new_learned(settings.agents.student.learned, asked.source, seed=0, vae=None)
        learned.load_tree(load_checkpoint(training.folder)[0]["learned"])
    found = diagnose_views(
        asked.plain, {arm: asked.of_chain(built, student, learned)}, data.train, classes=10, epochs=10, batch_size=64,
        seed=seed, teacher=f"teacher-{seed}",
    )  # fmt: skip
    kept.write_text(json.dumps({"plan": plan, "found": asdict(found[arm].t_stddev)}))
    return found[arm].t_stddev


def table(found: dict[str, list[dict[str, float]]], names: list[str], stddevs: dict[str, list[TStddev]]) -> list[str]:
    """Return one table's lines, the lowest student test loss first."""
    lines = [
        "| arm | student test loss | test accuracy | above crop + flip (SE) | T. stddev, 1e-3 | / identity | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    base = found["crop + flip"]
    for arm in sorted(names, key=lambda name: statistics.mean(m["test_loss"] for m in found[name])):
        own = found[arm]
        higher, error = difference(*([100 * m["test_accuracy"] for m in arms] for arms in (own, base)))
        measured = stddevs.get(arm, [])
        scores = [1e3 * one.score for one in measured]
        ratios = [one.score / other.score for one, other in zip(measured, stddevs.get(IDENTITY, []))]
        cells = [spread([m["test_loss"] for m in own], 3), spread([100 * m["test_accuracy"] for m in own])]
        cells += [f"{higher:+.2f} ({error:.2f})", spread(scores) if scores else "–"]
        cells += [f"{statistics.mean(ratios):.3f}" if ratios else "–"]
        lines.append(f"| {arm} | {' | '.join(cells)} | {statistics.mean(m['seconds'] for m in own):.0f} |")
    return lines


def correlations(found: dict[str, list[dict[str, float]]], names: list[str], stddevs: dict[str, list[TStddev]]) -> str:
    """Return how T. stddev and student test loss go together over the arms of a table, for each teacher."""
    words = []
    for place, seed in enumerate(SEEDS):
        known = [name for name in names if len(stddevs.get(name, [])) > place]
        if len(known) < 3:
            continue
        rank = rank_correlation(
            {name: stddevs[name][place] for name in known}, {name: found[name][place]["test_loss"] for name in known}
        )
        words.append(
            f"seed {seed}: Pearson {rank.pearson.coefficient:.3f}, Spearman {rank.spearman.coefficient:.3f}, "
            f"Kendall {rank.kendall.coefficient:.3f} "
            f"({len(known)} arms)"
        )
    return "T. stddev against student test loss: " + ("; ".join(words) or "not measured") + "."


def report(options: argparse.Namespace, jobs: list[Job]) -> None:
    """Evaluate what is finished, print both tables, and write them if asked to."""
    found: dict[str, list[dict[str, float]]] = {}
    for (arm, _, _), metrics in zip(jobs, side_by_side(evaluated, [job[2] for job in jobs], options.processes)):
        if metrics is not None and arm != "teacher":
            found.setdefault(arm, []).append(metrics)
    complete = [arm for arm, metrics in found.items() if len(metrics) == len(options.seeds)]
    stddevs: dict[str, list[TStddev]] = {}
    for (arm, _, _), measured in zip(jobs, side_by_side(teachers_view, jobs, options.processes)):
        if measured is not None and arm in complete:
            stddevs.setdefault(arm, []).append(measured)
    tables = {
        "steps": [arm for arm in complete if "=T" not in arm],
        "forwards": [arm for arm in complete if f"{arm} =T" not in complete],
    }
    for mark, names in tables.items():
        lines = [*table(found, names, stddevs), "", correlations(found, names, stddevs)]
        print(f"\nequal {mark}\n", *lines, sep="\n")
        if options.write:
            put(PAGE, lines, mark)


def main() -> None:
    """Train, search, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 as Parquet")
    parser.add_argument("--storage", type=Path, default=Path("runs/agents"), help="where networks go")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", default="", help="a regular expression")
    parser.add_argument(
        "--agent-epochs", type=int, default=11, help=f"epochs more for {LEARNED} at equal student steps"
    )
    parser.add_argument("--processes", type=int, default=2, help="trainings side by side, one core each")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args()
    options.storage, options.searching = options.storage.absolute(), True
    jobs = list(trainings(options))
    if not options.report:
        teachers = [job for job in jobs if job[0] == "teacher" and not has_checkpoint(job[2].folder)]
        side_by_side(train, teachers, options.processes)
        side_by_side(train, [job for job in jobs if job[0] not in ("teacher", FOUND)], options.processes)
        if re.search(options.arms, FOUND):
            side_by_side(search, [(options, seed) for seed in options.seeds], options.processes)
    options.searching = not all((options.storage / f"search-{s}/best/schedule.yaml").is_file() for s in options.seeds)
    jobs = [job for job in trainings(options) if not options.searching or job[0] != FOUND]
    if not options.report:
        side_by_side(train, [job for job in jobs if job[0] == FOUND], options.processes)
    report(options, jobs)


if __name__ == "__main__":
    print(f"rolekd_ray {rolekd_ray.__version__}", json.dumps({"torch": torch.__version__}), file=sys.stderr)
    main()
