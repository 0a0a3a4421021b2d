"""What is refused before anything is written: names, data, a given teacher."""

import pytest
import torch
from cli_helpers import write_network

from rolekd_ray.augment.static.cutout import Cutout
from rolekd_ray.config import load_settings
from rolekd_ray.errors import CheckpointError, ConfigError, DataError, InputError
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.roles import Role
from rolekd_ray.search.agents_check import agent_problems, untaught_problems
from rolekd_ray.search.preflight import check_inputs, check_links, check_names, cost
from rolekd_ray.training.chain import chain_of
from rolekd_ray.training.final import FinalTraining, train_final


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def settings(*overrides):
    return load_settings("quickstart", overrides)


@pytest.mark.parametrize("name", ["quickstart", "cifar10_pba", "cifar10_reduced", "cifar100_rolekd", "cifar100_rk2020",
                                  "cifar10_agents", "cifar100_cutmixpick"])  # fmt: skip
def test_shipped_names_are_known(name):
    check_names(load_settings(name))


def test_all_unknown_names_are_reported_at_once_with_the_nearest():
    wrong = settings(
        "teacher.model=resnet21", "student.model=wrn_16_11x", "distill.losses={hintn: 1, cross_entropi: 1}"
    )
    with pytest.raises(ConfigError) as error:
        check_names(wrong)
    found = error.value.problems
    assert [problem.split(";")[0] for problem in found] == [
        "distill.losses: unknown loss 'hintn'",
        "distill.losses: unknown loss 'cross_entropi'",
        "teacher.model: network: unknown network 'resnet21'",
        "student.model: network: unknown network 'wrn_16_11x'",
    ]
    hints = ["hinton", "cross_entropy", "resnet", "wrn_16_1"]
    assert all(f"Did you mean '{hint}" in problem for hint, problem in zip(hints, found))


def test_losses_must_weigh_something():
    with pytest.raises(ConfigError, match=r"distill\.losses: got .*; expected at least one loss with a weight above 0"):
        check_names(settings("distill.losses={hinton: 0}"))


def test_right_inputs_give_the_training_data():
    data = check_inputs(settings("data.train=100", "data.validation=50"))
    assert (len(data.train), len(data.validation)) == (100, 50)
    assert not set(data.train.tolist()) & set(data.validation.tolist())


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["data.train=1000000"], "1000000"),
        (["final.train=1000000"], "1000000"),
        (["data.validation=1000000"], "1000000"),
        (["data.train=1"], "data.train: got 1 images; expected at least 2"),
        (["data={source: parquet, path: nowhere}"], "nowhere"),
        (["data={source: parquet}"], "path"),
        (["teacher.model=squeezenet1_1"], "teacher.model: network 'squeezenet1_1': cannot take images of 8x8 pixels"),
        (["teacher.model=resnet21"], "Did you mean 'resnet"),
        (["base_augmentation.cutout_pixels=16"], "base_augmentation.cutout_pixels: got 16, which covers all"),
        (["teacher.checkpoint=nowhere"], "nowhere: no such checkpoint"),
    ],
)
def test_wrong_inputs_are_refused_with_the_reason(overrides, words):
    with pytest.raises(InputError) as error:
        check_inputs(settings(*overrides))
    assert words in str(error.value)
    assert isinstance(error.value, ConfigError | DataError | CheckpointError)


def test_a_cutout_that_makes_every_view_one_colour_is_refused():
    cutout = ("agents.student.chain=cutout", "agents.student.cutout.pixels")
    blank = settings("base_augmentation.cutout_pixels=16", cutout[0], f"{cutout[1]}=17")
    with pytest.raises(ConfigError) as error:
        check_inputs(blank)
    rule = "which covers all of every image of 8x8 pixels; expected less than 16"
    assert error.value.problems == (
        f"base_augmentation.cutout_pixels: got 16, {rule}",
        f"agents.student.cutout.pixels: got 17, {rule}",
    )
    images, places = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(99, 1, 8, 8), torch.arange(99)
    for pixels, whole in ((16, True), (15, False)):
        views = Cutout(torch.tensor([7], dtype=torch.uint8), pixels=pixels)(
            images, places, seed=0, role=Role.STUDENT, epoch=0
        )
        assert bool((views == 7).all()) == whole
    check_inputs(settings("base_augmentation.cutout_pixels=15", cutout[0], f"{cutout[1]}=15"))
    check_inputs(settings("agents.student.cutout.pixels=16"))  # not in the chain
    evolving = "space.scalars={cutout.pixels: {initial: 4, range: [2, 20], role: student}}"
    check_inputs(settings(evolving, cutout[0], f"{cutout[1]}=16"))


def test_a_given_teacher_must_be_the_network_that_is_named(tmp_path):
    small = ["data.train=60", "data.validation=20", "teacher.model=resnet8", "search.epochs=1"]
    train_final(FinalTraining(settings(*small, "final.train=60"), Role.TEACHER, tmp_path / "net"))
    given = [*small, f"teacher.checkpoint={tmp_path / 'net'}"]
    check_inputs(settings(*given))
    with pytest.raises(CheckpointError, match="resnet14"):
        check_inputs(settings(*given, "teacher.model=resnet14"))


def test_several_given_teachers_may_be_other_networks_and_each_is_checked(tmp_path):
    small = ["data.train=60", "data.validation=20", "final.train=60", "search.epochs=1"]
    for name, model in (("a", "resnet8"), ("b", "wrn_10_1")):
        train_final(FinalTraining(settings(*small, f"teacher.model={model}"), Role.TEACHER, tmp_path / name))
    given = f"teacher.checkpoint=[{tmp_path / 'a'}, {tmp_path / 'b'}]"
    check_inputs(settings(*small, given, "teacher.model=resnet20"))
    with pytest.raises(CheckpointError) as error:
        check_inputs(settings(*small, given.replace("]", f", {tmp_path / 'gone'}]"), "data.split_seed=5"))
    found = error.value.problems
    assert [problem.split(": ")[:2] for problem in found] == [
        ["teacher.checkpoint", str(tmp_path / name)] for name in ("a", "b", "gone")
    ]
    assert "data.split_seed: got 0; expected 5" in found[0] and "no such checkpoint" in found[2]
    assert cost(settings(*small, given)).startswith("1 search of ")


def a_chain(tmp_path, *overrides, **options):
    """A student's trainings under a loss on features, and the data; the teachers are two checkpoints."""
    changed = settings("data.train=60", "data.validation=20", "distill.losses={attention: 1}", *overrides)
    data = check_inputs(changed)
    teachers = (tmp_path / "a", tmp_path / "b")
    for folder, model in zip(teachers, ("resnet8", "wrn_10_1")):
        if not folder.exists():
            write_network(folder, model)
    wanted = FinalTraining(changed, Role.STUDENT, tmp_path / "net", teacher=options.pop("teacher", teachers[0]))
    return chain_of(wanted, **options), data


def test_every_link_of_a_chain_is_asked_for_the_layers_that_losses_compare(tmp_path):
    check_links(*a_chain(tmp_path, assistants=["wrn_10_1"], generations=2))
    check_links(*a_chain(tmp_path, generations=2, teacher=None))
    for what, options in (
        ("ResidualSum", {"residual": "resnet8"}),
        ("Ensemble", {"teacher": (tmp_path / "a", tmp_path / "b")}),
    ):
        with pytest.raises(ConfigError, match=rf"distill.layers.attention: .* {what} has no defaults"):
            check_links(*a_chain(tmp_path, **options))
    named = "distill.layers={attention: {student: [stage1, stage1], teacher: [members.0.stage1, members.1.stage1]}}"
    both = a_chain(tmp_path, teacher=(tmp_path / "a", tmp_path / "b"))[1]
    changed = settings("data.train=60", "distill.losses={attention: 1}", named)
    check_links([FinalTraining(changed, Role.STUDENT, tmp_path / "n", teacher=(tmp_path / "a", tmp_path / "b"))], both)


def test_layers_of_a_given_ensemble_are_looked_for_in_it(tmp_path):
    for name, model in (("a", "resnet8"), ("b", "wrn_10_1")):
        write_network(tmp_path / name, model)
    given = [
        "data.validation=60",
        f"teacher.checkpoint=[{tmp_path / 'a'}, {tmp_path / 'b'}]",
        "distill.losses={attention: 1}",
    ]
    with pytest.raises(ConfigError, match=r"distill.layers.attention: .* Ensemble has no defaults"):
        check_inputs(settings(*given))
    check_inputs(settings(*given, "distill.layers={attention: {student: [stage3], teacher: [members.1.stage3]}}"))


def test_the_cost_in_words():
    size = ("search.population_size=8", "search.epochs=10", "search.perturbation_interval_epochs=3")
    assert cost(settings(*size)) == "2 searches of 8 members x 10 epochs (32 intervals each), slots: auto of 1 CPUs"
    slots = "slots={count: 3, resources_per_worker: {cpus: 2, gpus: 0.5}}"
    text = cost(settings(*size, "search.protocol=coevolve", slots))
    assert text == "1 search of 8 members x 10 epochs (32 intervals each), slots: 3 of 2 CPUs and 0.5 GPUs"
    assert "slots: auto of 1 to 4 workers of 1 CPUs" in cost(settings(*size, "slots.workers=[1, 4]"))
    assert cost(settings("teacher.checkpoint=net")).startswith("1 search of ")


def test_what_a_students_agents_ask_of_a_teacher_is_refused_where_there_is_none():
    """Replayed alone, a schedule's chains must do with one network."""
    learned = settings("agents.student.chain=learned")
    assert untaught_problems(learned, None) == [
        "agents.student.chain: got learned without a teacher; expected one, for it asks both networks"
    ]
    picking = settings("agents.student.chain=cutmix+pick", "agents.student.pick.criterion=divergence")
    assert untaught_problems(picking, None) == [
        "agents.student.pick.criterion: got divergence without a teacher; expected another"
    ]
    assert untaught_problems(settings("agents.student.chain=cutmix+pick"), None) == []
    policy = Policy(choices={"agents": "learned"})
    schedule = Schedule(settings().search_space(), {Role.STUDENT: (Segment(3, Policy()), Segment(2, policy))})
    assert len(untaught_problems(settings(), schedule)) == 1


def test_a_loss_that_may_evolve_above_0_counts():
    """Of weight 0 now, crd would meet images that are picked twice once its weight has moved."""
    evolving = "space.scalars={losses.crd: {initial: 0, range: [0, 1]}}"
    losses = "distill.losses={cross_entropy: 1, hinton: 1, crd: 0}"
    assert not agent_problems(settings(losses, "agents.student.chain=cutmix+pick"))
    (found, *_) = agent_problems(settings(losses, evolving, "agents.student.chain=cutmix+pick"))
    assert "expected no crd" in found
