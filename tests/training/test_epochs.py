from dataclasses import replace
from math import cos, pi

import pytest
import torch
from torch import Tensor, nn
from training_helpers import same_tree, some_policy, tiny_settings

from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.config import Settings
from rolekd_ray.distill.losses import Losses
from rolekd_ray.errors import DataError, TrainingError
from rolekd_ray.models.folding import fold_batchnorm
from rolekd_ray.models.zoo import build_network
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.roles import Role
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.epochs import PoliciesAt, Trainer, new_trainer
from rolekd_ray.training.evaluation import evaluate
from rolekd_ray.training.learner import Learner, new_learner, new_optimizer
from rolekd_ray.training.views import Views

CPU = torch.device("cpu")
BASE = ("base_augmentation.crop_padding_pixels=1", "base_augmentation.cutout_pixels=2", "training.batch_size=20")


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    """41 images: two batches of 20, and one image that is left over."""
    return open_training_data(tiny_settings().data, train=41)


def nothing(role: Role, epoch: int) -> list[tuple[float, Policy]]:
    return [(1.0, Policy())]


def policies(role: Role, epoch: int) -> list[tuple[float, Policy]]:
    """Another policy for each role and epoch."""
    return [(1.0, Policy(some_policy(tiny_settings(), role, epoch).settings))]


def with_scalars(role: Role, epoch: int) -> list[tuple[float, Policy]]:
    common = {"learning_rate": 0.01 + 0.01 * epoch, "weight_decay": 0.02}
    own = {"temperature": 2.0 + epoch, "losses.hinton": 0.3} if role == Role.STUDENT else {}
    return [(1.0, Policy(policies(role, epoch)[0][1].settings, common | own))]


# ---- against a loop written without the package's losses, optimisers, schedules and view modes


class InDouble(nn.Module):
    """A network that computes in float64 whatever comes in, so that only a wrong formula can make a difference."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.double())


def double_network(seed: int) -> InDouble:
    network = build_network("resnet8", num_classes=10, channels=1, seed=seed).double()
    with torch.no_grad():  # BatchNorm buffers of its own
        network.train()(torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).double())
    return InDouble(network)


class PlainLoop:
    """Distillation as a textbook writes it: NCHW, no folding, Nesterov's step, softmax and logarithm by hand."""

    def __init__(self, settings: Settings, data: TrainingData, teacher: nn.Module | None):
        self.settings, self.data, self.teacher = settings, data, teacher
        self.views = Views(settings.base_augmentation, settings.search_space(), *data.statistics, seed=settings.seed)
        self.velocity: dict[Tensor, Tensor] = {}

    def train(self, networks: dict[Role, nn.Module], at: PoliciesAt, epochs: int, total: int, stream: str) -> None:
        for epoch in range(epochs):
            generator = torch.Generator().manual_seed(stream_key(self.settings.seed, "training", stream, epoch) % 2**63)
            order = self.data.train[torch.randperm(len(self.data.train), generator=generator)].tolist()
            for number, start in enumerate((0, 20)):  # the 41st image is left out
                rate = self.rate((epoch + number / 2) / total)
                self.step(networks, torch.tensor(order[start : start + 20]), at, epoch, rate)

    def rate(self, progress: float) -> float:
        kind = self.settings.training.learning_rate_schedule
        if kind == "step":
            return 1.0 if progress < 0.3 else 0.1 if progress < 0.6 else 0.01 if progress < 0.8 else 0.001
        return 0.5 * (1 + cos(pi * progress)) if kind == "cosine" else 1.0

    def view(self, role: Role, places: Tensor, at: PoliciesAt, epoch: int) -> Tensor:
        agent = self.views.agent(at(role, epoch))
        return self.views.view(agent, self.data.image_set.images[places], places, role=role, epoch=epoch).double()

    def step(self, networks: dict[Role, nn.Module], places: Tensor, at: PoliciesAt, epoch: int, factor: float) -> None:
        labels = self.data.image_set.labels[places]
        if Role.TEACHER in networks:
            logits = networks[Role.TEACHER].train()(self.view(Role.TEACHER, places, at, epoch))
            self.descend(networks[Role.TEACHER], negative_log(logits, labels), at(Role.TEACHER, epoch)[0][1], factor)
        if Role.STUDENT in networks:
            policy, settings = at(Role.STUDENT, epoch)[0][1], self.settings.distill
            loss = self.student_loss(networks, places, labels, at, epoch, policy.scalars, settings)
            self.descend(networks[Role.STUDENT], loss, policy, factor)

    def student_loss(self, networks, places, labels, at, epoch, scalars, settings) -> Tensor:
        student, teacher = networks[Role.STUDENT].train(), networks.get(Role.TEACHER, self.teacher)
        own = self.view(Role.STUDENT, places, at, epoch)
        if teacher is None:
            return negative_log(student(own), labels)
        theirs = self.view(Role.TEACHER, places, at, epoch)
        mean, std = (value.double().view(1, 1, 1, 1) for value in self.data.statistics)
        clean = ((self.data.image_set.images[places].double() / 255 - mean) / std).float()
        own, theirs = {
            "shared_student": (own, own),
            "shared_teacher": (theirs, theirs),
            "independent": (own, theirs),
            "teacher_clean": (own, clean),
        }[settings.view_mode]
        with torch.no_grad():
            targets = teacher.eval()(theirs)
        logits = student(own)
        temperature = scalars.get("temperature", settings.temperature)
        p, q = soft(targets / temperature), soft(logits / temperature)
        divergence = (p * (p.log() - q.log())).sum() / len(labels) * temperature**2
        weight = scalars.get("losses.hinton", settings.losses["hinton"])
        return settings.losses["cross_entropy"] * negative_log(logits, labels) + weight * divergence

    def descend(self, network: nn.Module, loss: Tensor, policy: Policy, factor: float) -> None:
        training = self.settings.training
        rate = policy.scalars.get("learning_rate", training.learning_rate) * factor
        decay = policy.scalars.get("weight_decay", training.weight_decay)
        parameters = list(network.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            with torch.no_grad():
                slope = gradient + decay * parameter
                speed = self.velocity.get(parameter, torch.zeros_like(slope)) * training.momentum + slope
                self.velocity[parameter] = speed
                parameter -= rate * (slope + training.momentum * speed)


def soft(logits: Tensor) -> Tensor:
    powers = (logits - logits.max(1, keepdim=True).values).exp()
    return powers / powers.sum(1, keepdim=True)


def negative_log(logits: Tensor, labels: Tensor) -> Tensor:
    return -soft(logits)[torch.arange(len(labels)), labels].log().mean()


CASES = {
    "shared_student": (["distill.view_mode=shared_student"], policies, (Role.STUDENT,), True),
    "shared_teacher": (["distill.view_mode=shared_teacher"], policies, (Role.STUDENT,), True),
    "independent": (["distill.view_mode=independent"], policies, (Role.STUDENT,), True),
    "teacher_clean": (["distill.view_mode=teacher_clean"], policies, (Role.STUDENT,), True),
    "scalars": (["distill.view_mode=independent"], with_scalars, (Role.STUDENT,), True),
    "step": (["training.learning_rate_schedule=step"], policies, (Role.STUDENT,), True),
    "constant": (["training.learning_rate_schedule=constant"], policies, (Role.STUDENT,), True),
    "no teacher": ([], policies, (Role.STUDENT,), False),
    "teacher alone": ([], with_scalars, (Role.TEACHER,), False),
    "coevolve": (["distill.view_mode=independent"], with_scalars, tuple(Role), False),
}


@pytest.mark.parametrize("case", CASES)
def test_six_steps_against_a_plain_loop(digits, case):
    overrides, at, roles, frozen = CASES[case]
    settings = tiny_settings(*BASE, "training.learning_rate=0.05", *overrides)
    teacher = double_network(9) if frozen else None
    expected = {role: double_network(i) for i, role in enumerate(roles)}
    PlainLoop(settings, digits, teacher).train(expected, at, epochs=3, total=4, stream="somebody")

    networks: dict[Role, nn.Module] = {role: double_network(i) for i, role in enumerate(roles)}
    optimizers = {role: new_optimizer(network, settings.training) for role, network in networks.items()}
    trainer = Trainer(
        settings,
        digits.image_set.images,
        digits.image_set.labels,
        10,
        digits.train,
        Views(settings.base_augmentation, settings.search_space(), *digits.statistics, seed=settings.seed),
        torch.float32,
        fold_batchnorm(teacher) if teacher is not None else None,
    )
    start = {role: network.state_dict()["network.conv1.weight"].clone() for role, network in networks.items()}
    trainer.train(Learner(networks, optimizers), at, end_epoch=3, total_epochs=4, stream="somebody")
    tolerance = 1e-6 if case == "teacher_clean" else 1e-10  # the clean view is float32, normalised in another order
    for role in roles:
        found, wanted = networks[role].state_dict(), expected[role].state_dict()
        assert (found["network.conv1.weight"] - start[role]).abs().max() > 1e-3  # it did learn something
        for name in wanted:
            difference = (found[name].double() - wanted[name].double()).abs().max()
            assert difference < tolerance, (role, name, difference)


# ---- what a training is a function of


def learner(settings: Settings, roles: tuple[Role, ...] = (Role.STUDENT,), key: object = 0) -> Learner:
    return new_learner(settings, roles, num_classes=10, channels=1, device=CPU, key=key)


def trainer_of(settings: Settings, data: TrainingData, teacher: nn.Module | None = None) -> Trainer:
    return new_trainer(settings, data, settings.search_space(), CPU, teacher)


class Recorder(Views):
    """Makes views, and writes down for which role, epoch and images."""

    def view(self, agents, images, indices, *, role, epoch, candidate=0):
        self.__dict__.setdefault("seen", []).append((role, epoch, indices.tolist()))
        return super().view(agents, images, indices, role=role, epoch=epoch, candidate=candidate)


def recorded(
    settings: Settings, data: TrainingData, *, epochs: int, stream: object, roles=(Role.STUDENT,), teacher=None
):
    """Train; return what was viewed."""
    views = Recorder(settings.base_augmentation, settings.search_space(), *data.statistics, seed=settings.seed)
    plain = trainer_of(settings, data, teacher)
    trainer = replace(plain, views=views)
    one = learner(settings, roles)
    trainer.train(one, policies, end_epoch=epochs, total_epochs=epochs, stream=stream)
    return views.seen


def test_the_order_is_a_function_of_seed_stream_and_epoch(digits):
    settings = tiny_settings(*BASE)
    first = recorded(settings, digits, epochs=2, stream="a")
    torch.manual_seed(77)
    assert recorded(settings, digits, epochs=2, stream="a") == first
    orders = {str([batch for _, epoch, batch in first if epoch == e]) for e in (0, 1)}
    reseeded = tiny_settings(*BASE, "seed=3")
    for other, stream in ((settings, "b"), (reseeded, "a")):
        batches = [batch for _, _, batch in recorded(other, digits, epochs=1, stream=stream)]
        orders.add(str(batches))
    assert len(orders) == 4


def test_an_epoch_visits_training_images_once_and_no_others(digits):
    seen = recorded(tiny_settings(*BASE), digits, epochs=3, stream="a")
    assert [epoch for _, epoch, _ in seen] == [0, 0, 1, 1, 2, 2]
    left_out = set()
    for epoch in range(3):
        places = [place for _, e, batch in seen if e == epoch for place in batch]
        assert len(places) == len(set(places)) == 40
        assert set(places) < set(digits.train.tolist())
        left_out |= set(digits.train.tolist()) - set(places)
    assert len(left_out) > 1  # not the same image each time
    assert not left_out & set(digits.validation.tolist())


@pytest.mark.parametrize(
    ("mode", "made"),
    [
        ("shared_student", {Role.STUDENT}),
        ("shared_teacher", {Role.TEACHER}),
        ("independent", set(Role)),
        ("teacher_clean", {Role.STUDENT}),
    ],
)
def test_only_views_that_are_used_are_made_and_each_once(digits, mode, made):
    settings = tiny_settings(*BASE, f"distill.view_mode={mode}")
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=0)
    seen = recorded(settings, digits, epochs=1, stream="a", teacher=teacher)
    assert {role for role, _, _ in seen} == made and len(seen) == 2 * len(made)
    both = recorded(settings, digits, epochs=1, stream="a", roles=tuple(Role))
    wanted = made | {Role.TEACHER}  # a teacher that learns always sees its own view
    assert {role for role, _, _ in both} == wanted and len(both) == 2 * len(wanted)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
        with torch.no_grad():
            self.layers[2].weight.zero_()
            self.layers[2].bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def test_the_global_generator_is_neither_used_nor_moved(digits):
    """Not even by dropout, whose draws follow from seed, stream and epoch."""
    settings = tiny_settings(*BASE)
    trainer = trainer_of(settings, digits)
    results = []
    for seed, stream in ((1, "a"), (2, "a"), (1, "b")):
        network = Dropping()
        one = Learner({Role.STUDENT: network}, {Role.STUDENT: new_optimizer(network, settings.training)})
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        trainer.train(one, nothing, end_epoch=2, total_epochs=2, stream=stream)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(network.layers[2].weight.detach())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_the_same_training_twice_and_in_parts_is_equal_to_the_last_bit(digits):
    settings = tiny_settings(*BASE)
    trees = []
    for ends in ((3,), (3,), (1, 2, 3)):
        one = learner(settings, tuple(Role))
        trainer = trainer_of(settings, digits)
        for end in ends:
            trainer.train(one, policies, end_epoch=end, total_epochs=3, stream="a")
        trees.append(one.tree())
    assert same_tree(trees[0], trees[1]) and same_tree(trees[0], trees[2])


def test_a_frozen_teacher_stays_as_it_is(digits):
    settings = tiny_settings(*BASE, "distill.view_mode=independent")
    teacher = learner(settings, (Role.TEACHER,), key="t").networks[Role.TEACHER]
    teacher(torch.randn(32, 1, 8, 8))
    trainer = trainer_of(settings, digits, teacher)
    assert trainer.frozen_teacher is not None
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in (teacher, trainer.frozen_teacher)]
    trainer.train(learner(settings), policies, end_epoch=2, total_epochs=2, stream="a")
    assert same_tree([dict(net.state_dict()) for net in (teacher, trainer.frozen_teacher)], before)
    assert not any(parameter.requires_grad for parameter in trainer.frozen_teacher.parameters())
    assert all(parameter.grad is None for parameter in (*teacher.parameters(), *trainer.frozen_teacher.parameters()))


@pytest.mark.parametrize("mode", ["shared_student", "independent", "teacher_clean"])
def test_a_learning_teacher_does_not_notice_its_student(digits, mode):
    """Its weights, BatchNorm buffers and optimiser are those of a training without a student."""
    settings = tiny_settings(*BASE, f"distill.view_mode={mode}")
    trees = []
    for roles in ((Role.TEACHER,), tuple(Role)):
        one = learner(settings, roles)
        trainer_of(settings, digits).train(one, policies, end_epoch=2, total_epochs=2, stream="a")
        tree = one.tree()
        trees.append([tree[part]["teacher"] for part in ("networks", "optimizers")])
        assert one.networks[Role.TEACHER].training
    assert same_tree(trees[0], trees[1])


def test_targets_carry_no_gradient_to_a_teacher_that_learns(digits, monkeypatch):
    """It would be thrown away, after a backward pass through the teacher."""
    given = []
    real = Losses.forward
    monkeypatch.setattr(Losses, "forward", lambda self, of, weights: given.append(of) or real(self, of, weights))
    settings = tiny_settings(*BASE)
    trainer_of(settings, digits).train(
        learner(settings, tuple(Role)), policies, end_epoch=1, total_epochs=1, stream="a"
    )
    targets = [outputs.logits_teacher for outputs in given]
    assert len(targets) == 2 and not any(target.requires_grad for target in targets)
    assert all(outputs.logits_student.requires_grad for outputs in given)


# ---- settings and scalars


def run_one_epoch(data: TrainingData, settings: Settings, scalars: dict[str, float], teacher: nn.Module):
    one = learner(settings)
    at = lambda role, epoch: [(1.0, Policy((), scalars if role == Role.STUDENT else {}))]  # noqa: E731
    losses = trainer_of(settings, data, teacher).train(one, at, end_epoch=1, total_epochs=4, stream="a")
    return losses, one


@pytest.mark.parametrize(
    "name", ["temperature", "learning_rate", "weight_decay", "losses.hinton", "losses.cross_entropy"]
)
def test_a_scalar_is_worth_as_much_as_the_setting_it_stands_for(digits, name):
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=4)
    key = name if name.startswith("losses") or name == "temperature" else None
    key = f"distill.{key}" if key else f"training.{name}"
    plain, by_setting = tiny_settings(*BASE), tiny_settings(*BASE, f"{key}=0.37")
    usual, one = run_one_epoch(digits, plain, {}, teacher)
    by_scalar, other = run_one_epoch(digits, plain, {name: 0.37}, teacher)
    expected, third = run_one_epoch(digits, by_setting, {}, teacher)
    assert by_scalar == expected != usual
    weights = [x.networks[Role.STUDENT].state_dict() for x in (one, other, third)]
    assert same_tree(dict(weights[1]), dict(weights[2])) and not same_tree(dict(weights[0]), dict(weights[1]))


def test_the_optimiser_gets_rate_and_decay(digits):
    _, one = run_one_epoch(
        digits, tiny_settings(*BASE), {"learning_rate": 0.02, "weight_decay": 0.3}, Dropping().requires_grad_(False)
    )
    group = one.optimizers[Role.STUDENT].param_groups[0]
    assert group["lr"] == pytest.approx(0.02 * (1 + cos(pi * (0 + 1 / 2) / 4)) / 2)  # the second of two batches
    assert group["weight_decay"] == 0.3


def test_a_flattened_schedules_scalars_follow_the_epoch(digits):
    settings = tiny_settings(*BASE)
    segments = (Segment(1, Policy((), {"learning_rate": 0.01})), Segment(3, Policy((), {"learning_rate": 0.02})))
    schedule = Schedule(settings.search_space("here"), {Role.STUDENT: segments}).flatten()
    rates = []
    one = learner(settings)
    for end in (1, 2):
        trainer_of(settings, digits).train(one, schedule.policies_at, end_epoch=end, total_epochs=10**9, stream="a")
        rates.append(one.optimizers[Role.STUDENT].param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.02])


def test_one_image_is_no_batch():
    settings = tiny_settings()
    with pytest.raises(DataError, match="digits train: got 1 training images; expected at least 2"):
        trainer_of(settings, open_training_data(settings.data, train=1))


def test_a_loss_that_is_not_finite_names_stream_epoch_and_loss(digits):
    settings = tiny_settings(*BASE, "training.learning_rate=1e12")
    one = learner(settings)
    one.epoch = 4
    with pytest.raises(TrainingError, match=r"007-0002: epoch [45]: loss is not finite: student/loss (nan|inf)"):
        trainer_of(settings, digits).train(one, nothing, end_epoch=6, total_epochs=6, stream="007-0002")


def test_weights_that_all_evolved_to_nothing_end_in_an_error(digits):
    teacher = learner(tiny_settings(*BASE), (Role.TEACHER,), key="t").networks[Role.TEACHER]
    with pytest.raises(TrainingError, match="student: all losses have weight 0"):
        run_one_epoch(digits, tiny_settings(*BASE), {"losses.hinton": 0.0, "losses.cross_entropy": 0.0}, teacher)


def test_bfloat16_trains_close_to_float32(digits):
    losses = {}
    for precision in ("float32", "bfloat16"):
        settings = tiny_settings(*BASE, f"training.precision={precision}", "training.learning_rate=0.01")
        teacher = learner(settings, (Role.TEACHER,), key="t").networks[Role.TEACHER]
        trainer = trainer_of(settings, digits, teacher)
        assert next(trainer.frozen_teacher.parameters()).dtype == getattr(torch, precision)
        one = learner(settings)
        losses[precision] = trainer.train(one, nothing, end_epoch=2, total_epochs=2, stream="a")["student/loss"]
        assert all(parameter.dtype == torch.float32 for parameter in one.networks[Role.STUDENT].parameters())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03) and len(set(losses.values())) == 2


# ---- real data


def test_a_student_learns_real_digits_in_seconds():
    settings = tiny_settings("data.validation=400", "training.batch_size=50")
    data = open_training_data(settings.data, train=None)
    trainer, one = trainer_of(settings, data), learner(settings)
    losses = []
    for end in range(1, 7):
        losses.append(trainer.train(one, nothing, end_epoch=end, total_epochs=6, stream="a")["student/loss"])
    held_out = data.image_set.subset(data.validation)
    found = evaluate(one.networks[Role.STUDENT], held_out.images, held_out.labels, trainer.views, dtype=torch.float32)
    assert losses[-1] < 0.2 * losses[0]
    assert found.accuracy > 0.9
