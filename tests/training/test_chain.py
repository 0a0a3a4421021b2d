"""Trainings that build on one another: assistants, generations, a residual assistant."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_helpers import die_at, in_a_fork, same_tree, tiny_settings

from rolekd_ray.errors import CheckpointError, ConfigError
from rolekd_ray.models.residual import ResidualSum
from rolekd_ray.roles import Role
from rolekd_ray.training.chain import chain_of, check_chain, train_chain
from rolekd_ray.training.checkpoint import load_checkpoint, read_description
from rolekd_ray.training.epochs import Trainer
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.networks import load_network, load_teacher

SETTINGS = tiny_settings("final.epochs=2", "final.train=40", "training.precision=float32")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "teacher"
    train_final(FinalTraining(SETTINGS, Role.TEACHER, folder))
    return folder


def wanted(folder: Path, teacher: Path | None, *settings: str) -> FinalTraining:
    changed = tiny_settings("final.epochs=2", "final.train=40", "training.precision=float32", *settings)
    return FinalTraining(changed, Role.STUDENT, folder, teacher=teacher)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0]["networks"]["student"]


def layout(trainings: list[FinalTraining], folder: Path) -> list[tuple[str, str, str | None]]:
    """Model, folder and teacher of each, as seen from where the student lies."""

    def seen(where: Path | None) -> str | None:
        return None if where is None else str(where.relative_to(folder.parent))

    return [(t.settings.student.model, seen(t.folder), seen(t.teacher)) for t in trainings]


def test_each_assistant_is_taught_by_the_one_before():
    folder = Path("to/net")
    found = chain_of(wanted(folder, Path("to/t")), assistants=["resnet32", "resnet14"])
    assert layout(found, folder) == [
        ("resnet32", "net.chain/1-resnet32", "t"),
        ("resnet14", "net.chain/2-resnet14", "net.chain/1-resnet32"),
        ("resnet8", "net", "net.chain/2-resnet14"),
    ]


def test_generations_follow_the_assistants_and_the_residual_comes_last():
    folder = Path("to/net")
    found = chain_of(wanted(folder, Path("to/t")), assistants=["resnet14"], generations=2, residual="wrn_10_2")
    assert layout(found, folder) == [
        ("resnet14", "net.chain/1-resnet14", "t"),
        ("resnet8", "net.chain/2-resnet8", "net.chain/1-resnet14"),
        ("resnet8", "net.chain/3-resnet8", "net.chain/2-resnet8"),
        ("resnet8+wrn_10_2", "net", "t"),
    ]
    assert [training.residual_of for training in found] == [None, None, None, found[2].folder]


def test_the_first_generation_may_have_no_teacher():
    folder = Path("to/net")
    assert layout(chain_of(wanted(folder, None), generations=2), folder) == [
        ("resnet8", "net.chain/1-resnet8", None),
        ("resnet8", "net", "net.chain/1-resnet8"),
    ]


def test_a_chain_of_one_is_the_training_itself():
    training = wanted(Path("net"), None)
    assert chain_of(training) == [training]


def test_seeds_are_the_runs_for_the_first_generation_and_their_own_for_all_others():
    def seeds(run: int) -> list[int]:
        training = wanted(Path("net"), Path("t"), f"seed={run}")
        return [t.settings.seed for t in chain_of(training, assistants=["resnet8", "resnet8"], generations=3)]

    assert seeds(7)[2] == 7
    assert len({*seeds(7), *seeds(8)}) == 10
    assert seeds(7) == seeds(7) and all(0 <= seed < 2**63 for seed in seeds(7))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"assistants": ["resnet32", "resnet14"]},
            "assistants: got resnet32, resnet14 without a teacher; expected one",
        ),
        ({"residual": "resnet8"}, "residual: got resnet8 without a teacher; expected one"),
        ({"generations": 0}, "generations: got 0; expected at least 1"),
        ({"generations": -3}, "generations: got -3; expected at least 1"),
    ],
)
def test_chains_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        chain_of(wanted(Path("net"), None), **options)


CHAIN = {"assistants": ["wrn_10_1"], "generations": 2}


@pytest.fixture(scope="module")
def whole(teacher) -> Path:
    """The student at the end of a chain that was trained in one go."""
    folder = teacher.parent / "whole"
    assert len(train_chain(chain_of(wanted(folder, teacher), **CHAIN))) == 3
    return folder


def test_every_link_is_kept_with_who_taught_it(whole, teacher):
    first, second = (whole.parent / "whole.chain" / name for name in ("1-wrn_10_1", "2-resnet8"))
    taught = [read_description(folder)["teacher"] for folder in (first, second, whole)]
    assert taught == [str(teacher), str(first), str(second)]
    assert [read_description(f)["models"]["student"] for f in (first, second, whole)] == [
        "wrn_10_1",
        "resnet8",
        "resnet8",
    ]
    assert sorted(path.name for path in first.parent.iterdir()) == ["1-wrn_10_1", "2-resnet8"]  # nothing partial


def test_a_link_is_what_training_it_by_hand_gives(whole, teacher, tmp_path):
    """The first generation is the plain student of that teacher; the second one starts and is ordered otherwise."""
    first = whole.parent / "whole.chain" / "2-resnet8"
    by_hand = wanted(tmp_path / "by_hand", whole.parent / "whole.chain" / "1-wrn_10_1")
    train_final(by_hand)
    assert same_tree(weights(tmp_path / "by_hand"), weights(first))
    train_final(replace(by_hand, folder=tmp_path / "same_seed", teacher=first))
    assert not torch.equal(weights(tmp_path / "same_seed")["conv1.weight"], weights(whole)["conv1.weight"])


@pytest.mark.parametrize(("killed_at", "left"), [(2, [0, 1, 0, 1]), (3, [1, 0, 1]), (5, [1])])
def test_killed_between_links_or_within_one_and_gone_on_with_it_ends_in_the_same_weights(
    tmp_path, whole, teacher, killed_at, left, monkeypatch
):
    """`kill -9` as a link's first state or its finished network is about to appear; two such moments per link."""
    trainings = chain_of(wanted(tmp_path / "whole", teacher), **CHAIN)

    def work():
        die_at(killed_at, ["os.rename"], str(tmp_path))
        train_chain(trainings)

    assert in_a_fork(work) == -signal.SIGKILL
    assert not trainings[-1].folder.exists()
    check_chain(trainings)
    epochs: list[int] = []
    real = Trainer._epoch
    monkeypatch.setattr(
        Trainer, "_epoch", lambda self, learner, *r: (epochs.append(learner.epoch), real(self, learner, *r))[1]
    )
    train_chain(trainings)
    assert epochs == left, "what was done is not done again"
    for own, expected in zip(trainings, chain_of(wanted(whole, teacher), **CHAIN)):
        assert same_tree(weights(own.folder), weights(expected.folder))


def test_a_finished_chain_trains_nothing_and_every_link_is_announced(whole, teacher, monkeypatch):
    monkeypatch.setattr(Trainer, "train", None)
    begun: list[FinalTraining] = []
    trainings = chain_of(wanted(whole, teacher), **CHAIN)
    check_chain(trainings)
    assert train_chain(trainings, begun.append)[-1] == read_description(whole)["metrics"]
    assert begun == trainings


def test_what_others_left_in_the_folders_is_refused_all_of_it_before_anything_is_trained(whole, teacher):
    other = chain_of(wanted(whole, teacher, "seed=5"), **CHAIN)
    with pytest.raises(CheckpointError) as error:
        check_chain(other)
    assert [problem.split(":")[0] for problem in error.value.problems] == [str(training.folder) for training in other]
    with pytest.raises(CheckpointError) as error:  # only what comes after the change is another training
        check_chain(chain_of(wanted(whole, teacher, "student.model=resnet14"), **CHAIN))
    assert [problem.split(":")[0] for problem in error.value.problems] == [str(whole)]


# ---- a residual assistant


@pytest.fixture(scope="module")
def corrected(teacher) -> Path:
    folder = teacher.parent / "corrected"
    train_chain(chain_of(wanted(folder, teacher), residual="wrn_10_1"))
    return folder


def test_the_sum_holds_the_student_to_the_last_bit_and_an_assistant_that_learned(corrected, teacher):
    student = weights(corrected.parent / "corrected.chain" / "1-resnet8")
    found = weights(corrected)
    assert same_tree(
        {name.removeprefix("student."): v for name, v in found.items() if name.startswith("student.")}, student
    )
    description = read_description(corrected)
    assert description["models"] == {"student": "resnet8+wrn_10_1"} and description["teacher"] == str(teacher)
    network, _ = load_network(corrected, Role.STUDENT)
    assert isinstance(network, ResidualSum) and not any(module.training for module in network.modules())
    assert found["assistant.bn1.num_batches_tracked"] == 4  # 2 epochs of 2 batches


def test_the_frozen_student_is_in_evaluation_mode_and_not_optimised_while_the_assistant_learns(
    corrected, teacher, tmp_path, monkeypatch
):
    seen = []
    real = Trainer._epoch

    def spy(self, learner, *rest):
        network, optimizer = learner.networks[Role.STUDENT], learner.optimizers[Role.STUDENT]
        optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
        seen.append(
            (
                any(module.training for module in network.student.modules()),
                all(module.training for module in network.assistant.modules()),
                optimised == {id(p) for p in network.assistant.parameters()},
            )
        )
        return real(self, learner, *rest)

    monkeypatch.setattr(Trainer, "_epoch", spy)
    training = chain_of(wanted(tmp_path / "again", teacher), residual="wrn_10_1")[-1]
    train_final(replace(training, residual_of=corrected.parent / "corrected.chain" / "1-resnet8"))
    assert seen == [(False, True, True)] * 2
    assert same_tree(weights(tmp_path / "again"), weights(corrected))


def test_a_residual_training_that_was_killed_goes_on_with_the_student_frozen(corrected, teacher, tmp_path):
    training = replace(
        chain_of(wanted(tmp_path / "sum", teacher), residual="wrn_10_1")[-1],
        residual_of=corrected.parent / "corrected.chain" / "1-resnet8",
    )

    def work():
        die_at(1, ["os.rename"], str(tmp_path))
        train_final(training)

    assert in_a_fork(work) == -signal.SIGKILL
    train_final(training)
    assert same_tree(weights(training.folder), weights(corrected))


def test_an_assistant_learns_under_gradients_clipped_to_the_task(teacher, tmp_path):
    """Clipping asks for gradients of parameters, and a frozen student's have none."""
    training = wanted(tmp_path / "sum", teacher, "distill.clip_to_task=true")
    train_chain(chain_of(training, residual="wrn_10_1"))
    found, student = weights(training.folder), weights(tmp_path / "sum.chain" / "1-resnet8")
    assert all(torch.equal(found[f"student.{name}"], value) for name, value in student.items())


def test_another_student_makes_another_plan(corrected, teacher, tmp_path):
    *_, training = chain_of(wanted(corrected, teacher), residual="wrn_10_1")
    assert training.finished(training.plan())
    other = wanted(tmp_path / "other", None)
    train_final(other)
    changed = replace(training, residual_of=other.folder)
    assert not changed.finished(changed.plan())


def distance_to_teacher(teacher: Path, network: torch.nn.Module) -> float:
    """Mean KL divergence from the teacher's answers at temperature 4, on the held-out images."""
    from rolekd_ray.training.data import open_training_data
    from rolekd_ray.training.evaluation import predict
    from rolekd_ray.training.views import Views

    data = open_training_data(SETTINGS.data, train=None)
    views = Views(SETTINGS.base_augmentation, SETTINGS.search_space(), *data.statistics, seed=0)
    images = data.image_set.images[data.validation]
    expected, found = (
        (predict(net, images, views, dtype=torch.float32) / 4).log_softmax(1).double()
        for net in (load_teacher(teacher, num_classes=10, channels=1), network)
    )
    return (expected.exp() * (expected - found)).sum(1).mean().item()


def test_the_assistant_brings_the_student_closer_to_the_teacher(tmp_path):
    """Real digits: a student stopped early, and an assistant that has time to learn what it lacks."""
    longer = ("final.train=200", "final.epochs=6", "training.learning_rate=0.05")
    teacher = replace(wanted(tmp_path / "teacher", None, *longer), role=Role.TEACHER)
    train_final(teacher)
    short = wanted(tmp_path / "student", teacher.folder, *longer, "final.epochs=1")
    train_final(short)
    training = wanted(tmp_path / "sum", teacher.folder, *longer, "student.model=resnet8+resnet8")
    train_final(replace(training, residual_of=short.folder))
    networks = [load_network(folder, Role.STUDENT)[0] for folder in (short.folder, training.folder)]
    before, after = (distance_to_teacher(teacher.folder, network) for network in networks)
    assert after < 0.7 * before, (before, after)
