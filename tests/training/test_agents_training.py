"""Chains of agents in real trainings: branches, mixing, picking, labels, sharded or not."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from training_helpers import tiny_settings

from rolekd_ray.config import Settings
from rolekd_ray.distill.methods.hinton import hinton
from rolekd_ray.models.zoo import build_network
from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.training.batch import Batch
from rolekd_ray.training.branches import branches_of
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.epochs import Trainer, new_trainer
from rolekd_ray.training.learner import Learner, new_learner
from rolekd_ray.training.picks import picked
from rolekd_ray.training.steps import Steps

CPU = torch.device("cpu")
FLOAT = "training.precision=float32"
BRANCHES = "distill.branches={}"
NO_POLICY = [(1.0, Policy())]


def no_policies(role: Role, epoch: int):
    return NO_POLICY


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    return open_training_data(tiny_settings().data, train=60)


class Counted(nn.Module):
    """A network that counts how often it is run, and on how many images."""

    def __init__(self, seed: int = 3):
        super().__init__()
        self.network = build_network("resnet8", num_classes=10, channels=1, seed=seed)
        self.passes, self.images = 0, 0

    def forward(self, images):
        self.passes, self.images = self.passes + 1, self.images + len(images)
        return self.network(images)


def settings_of(*overrides: str) -> Settings:
    return tiny_settings(FLOAT, "teacher.model=resnet8", *overrides)


def trainer_of(settings: Settings, data: TrainingData, teacher: nn.Module | None) -> Trainer:
    trainer = new_trainer(settings, data, settings.search_space(), CPU, None)
    return replace(trainer, frozen_teacher=teacher)


def learner_of(settings: Settings, roles=(Role.STUDENT,)) -> Learner:
    return new_learner(settings, roles, num_classes=10, channels=1, device=CPU, key=0)


def one_step(settings: Settings, data: TrainingData, teacher: nn.Module, labels=None) -> tuple[dict, Learner, Batch]:
    """Take one step on the first 20 images; return its losses, the learner and the batch."""
    trainer, learner = trainer_of(settings, data, teacher), learner_of(settings)
    if labels is not None:
        trainer = replace(trainer, labels=labels)
    trainer.equip(learner, 0)
    views = trainer.views
    chains = {role: views.chain(getattr(settings.agents, role), NO_POLICY) for role in Role}
    steps = Steps(settings, learner, teacher, dtype=torch.float32, sharding=trainer.sharding,
                  normalisation=(views.mean, views.std))  # fmt: skip
    batch = Batch(trainer.source, data.train[:20], torch.arange(20), 0, chains, learner.learned)
    scalars = {role: {} for role in Role}
    learner.networks[Role.STUDENT].train()
    if isinstance(teacher, Counted):
        teacher.passes = teacher.images = 0  # losses of features looked at their shapes
    return steps.take(batch, scalars, 0.0, torch.Generator().manual_seed(0)), learner, batch


def by_hand(settings: Settings, data: TrainingData, teacher: nn.Module, batch: Batch) -> tuple[float, float, float]:
    """CE(x), KD(x) and KD(x') of a fresh student, in one training-mode pass over both views."""
    student = learner_of(settings).networks[Role.STUDENT].train()
    plain = batch.view(Role.STUDENT, Role.STUDENT, plain=True)
    seen = batch.view(Role.STUDENT, Role.STUDENT)
    logits = student(torch.cat([plain, seen]))
    teacher.eval()
    t = settings.distill.temperature
    first = nn.functional.cross_entropy(logits[:20], data.image_set.labels[data.train[:20]])
    return first.item(), *(hinton(a, teacher(v), t).item() for a, v in ((logits[:20], plain), (logits[20:], seen)))


# ---- the loss of two branches (arXiv 2012.02909, its published code)


@pytest.mark.parametrize("chain", ["none", "randaugment", "mixup", "cutmix", "randaugment+cutmix"])
def test_two_branches_add_up_as_the_reference_has_it(digits, chain):
    settings = settings_of(
        BRANCHES, f"agents.student.chain={chain}", "distill.losses={cross_entropy: 0.1, hinton: 0.9}"
    )
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=9)
    found, _, batch = one_step(settings, digits, teacher)
    labels, clean, augmented = by_hand(settings, digits, teacher, batch)
    assert found["student/loss"].item() == pytest.approx(0.1 * labels + 0.9 * (clean + augmented), rel=1e-5)
    assert found["student/cross_entropy"].item() == pytest.approx(labels, rel=1e-5)


def test_the_identity_control_is_twice_the_plain_branch(digits):
    settings = settings_of(BRANCHES, "agents.student.chain=none")
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=9)
    found, _, _ = one_step(settings, digits, teacher)
    alone, _, _ = one_step(settings_of("agents.student.chain=none"), digits, teacher)
    expected = 0.1 * alone["student/cross_entropy"] + 2 * 0.9 * alone["student/hinton"]
    assert found["student/loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_weight_the_second_branch_changes_no_loss(digits):
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=9)
    both, _, batch = one_step(
        settings_of("distill.branches={augmented: 0}", "agents.student.chain=cutmix"), digits, teacher
    )
    _, clean, _ = by_hand(settings_of(), digits, teacher, batch)
    assert both["student/hinton"].item() == pytest.approx(clean, rel=1e-5)


def test_mixed_labels_are_weighed_by_their_setting(digits):
    """ce · [CE(x) + mixed_labels · CE(x')], of x' with both images' labels, by hand."""
    settings = settings_of("distill.branches={mixed_labels: 0.5}", "agents.student.chain=mixup")
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=9)
    found, _, batch = one_step(settings, digits, teacher)
    student = learner_of(settings).networks[Role.STUDENT].train()
    views = [batch.view(Role.STUDENT, Role.STUDENT, plain=True), batch.student_view]
    plain, mixed = student(torch.cat(views)).log_softmax(1).split(20)
    mix, labels, each = batch.mix(Role.STUDENT), batch.source.labels, torch.arange(20)
    own, other = (-mixed[each, labels[at]] for at in (batch.indices, mix.partners))
    expected = -plain[each, labels[batch.indices]].mean() + 0.5 * (mix.share * own + (1 - mix.share) * other).mean()
    assert found["student/cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("chain", ["mixup", "cutmix", "cutmix+pick"])
def test_labels_reach_the_plain_branch_alone(digits, chain):
    settings = settings_of(BRANCHES, f"agents.student.chain={chain}")
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=9)
    permuted = (digits.image_set.labels + 3) % 10
    one, _, _ = one_step(settings, digits, teacher)
    other, _, _ = one_step(settings, digits, teacher, labels=permuted)
    assert one["student/hinton"] == other["student/hinton"]
    assert one["student/cross_entropy"] != other["student/cross_entropy"]


def test_one_branch_of_mixed_images_has_mixed_labels(digits):
    """share · CE(own label) + (1 - share) · CE(partner's), by hand."""
    settings = settings_of("agents.student.chain=mixup")
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=9)
    found, _, batch = one_step(settings, digits, teacher)
    logs = learner_of(settings).networks[Role.STUDENT].train()(batch.student_view).log_softmax(1)
    mix = batch.mix(Role.STUDENT)
    labels, each = batch.source.labels, torch.arange(20)
    own, other = logs[each, labels[batch.indices]], logs[each, labels[mix.partners]]
    expected = -(mix.share * own + (1 - mix.share) * other).mean()
    assert found["student/cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert (labels[batch.indices] != labels[mix.partners]).any()


# ---- which networks see what


@pytest.mark.parametrize("mode", ["shared_student", "shared_teacher", "independent", "teacher_clean"])
@pytest.mark.parametrize("chain", ["mixup", "cutmix"])
def test_both_networks_inputs_are_mixed_alike(digits, mode, chain):
    agents = [f"agents.{role}.chain={chain}" for role in Role]
    settings = settings_of(f"distill.view_mode={mode}", *agents)
    _, _, batch = one_step(settings, digits, build_network("resnet8", num_classes=10, channels=1, seed=9))
    for_student, for_teacher = batch.seen_by(mode)
    by = Role.TEACHER if mode == "shared_teacher" else Role.STUDENT
    mix, mixing = batch.mix(by), batch.chains[by].mixing
    images, views = batch.source.images, batch.source.views
    if mode.startswith("shared"):
        assert for_student is for_teacher
    teachers = {
        "teacher_clean": lambda at: views.clean(images[at]),
        "independent": lambda at: views.view((), images[at], at, role=Role.TEACHER, epoch=0),
    }.get(mode, lambda at: views.view((), images[at], at, role=by, epoch=0))
    expected = mixing.apply(teachers(batch.indices), teachers(mix.partners), mix)
    assert torch.equal(for_teacher, expected)
    if mode == "independent":  # the view from whose labels the teacher learns has the mix of its own chain
        own = batch.mix(Role.TEACHER)
        assert torch.equal(batch.teacher_view, mixing.apply(teachers(batch.indices), teachers(own.partners), own))


def test_an_own_candidate_is_a_view_of_another_seed(digits):
    settings = settings_of("agents.student.chain=randaugment+cutmix")
    _, _, batch = one_step(settings, digits, build_network("resnet8", num_classes=10, channels=1, seed=9))
    first, second = (batch.view(Role.STUDENT, Role.STUDENT, candidate=run) for run in (0, 1))
    assert torch.equal(first, batch.student_view) and not torch.equal(first, second)
    # The partner's half of it, too: both images are drawn anew
    mix, chain = batch.mix(Role.STUDENT, candidate=1), batch.chains[Role.STUDENT]
    assert not torch.equal(mix.partners, batch.mix(Role.STUDENT).partners)
    own, other = (
        batch.source.views.view(chain.pixels, batch.source.images[at], at, role=Role.STUDENT, epoch=0, candidate=1)
        for at in (batch.indices, mix.partners)
    )
    assert torch.equal(second, chain.mixing.apply(own, other, mix))


# ---- picking


@pytest.mark.parametrize("criterion", ["teacher_entropy", "student_entropy", "divergence", "dissimilarity"])
def test_the_teacher_answers_once_per_candidate_and_once_for_the_plain_view(digits, criterion):
    """3 passes for 2 runs, not 4: what it said while candidates were scored is what the student learns from."""
    settings = settings_of(BRANCHES, "agents.student.chain=cutmix+pick", f"agents.student.pick.criterion={criterion}")
    teacher = Counted()
    found, _, _ = one_step(settings, digits, teacher)
    extra = criterion == "dissimilarity"  # which compares with the plain images
    assert teacher.passes == 3 + extra and teacher.images == 20 * (3 + extra)
    assert found["student/picked_ratio"] >= 1


def test_methods_of_features_run_the_teacher_on_the_picked_again(digits):
    losses = "distill.losses={cross_entropy: 0.1, hinton: 0.9, similarity: 1}"
    layers = "distill.layers={similarity: {student: [stage3], teacher: [network.stage3]}}"
    settings = settings_of(BRANCHES, losses, layers, "agents.student.chain=cutmix+pick")
    teacher = Counted()
    one_step(settings, digits, teacher)
    assert teacher.passes == 4


def test_features_are_those_of_their_branch(digits):
    """Of one pass over both views each branch gets its own half."""
    settings = settings_of(BRANCHES, "distill.losses={cross_entropy: 0.1, similarity: 1}",
                           "distill.layers={similarity: {student: [stage3], teacher: [network.stage3]}}",
                           "agents.student.chain=cutmix")  # fmt: skip
    seen: list[torch.Tensor] = []
    student = learner_of(settings).networks[Role.STUDENT].train()
    student.get_submodule("stage3").register_forward_hook(lambda module, given, made: seen.append(made))
    trainer, learner = trainer_of(settings, digits, Counted()), learner_of(settings)
    trainer.equip(learner, 0)
    learner.networks[Role.STUDENT].train()
    views = trainer.views
    chains = {role: views.chain(getattr(settings.agents, role), NO_POLICY) for role in Role}
    batch = Batch(trainer.source, digits.train[:20], torch.arange(20), 0, chains)
    steps = Steps(settings, learner, trainer.frozen_teacher, dtype=torch.float32, sharding=trainer.sharding,
                  normalisation=(views.mean, views.std))  # fmt: skip
    assert steps.distiller is not None
    plain, augmented = steps.distiller.outputs(batch, temperature=4.0, progress=0.0)
    student(torch.cat([batch.view(Role.STUDENT, Role.STUDENT, plain=True), batch.student_view]))
    for outputs, expected in zip((plain, augmented), seen[0].split(20)):
        assert outputs.features_student["stage3"].allclose(expected, atol=1e-5)
    assert not plain.features_teacher["network.stage3"].equal(augmented.features_teacher["network.stage3"])


@pytest.mark.parametrize("criterion", ["student_entropy", "divergence"])
def test_scoring_leaves_no_trace_in_the_networks(digits, criterion):
    settings = settings_of("agents.student.chain=cutmix+pick", f"agents.student.pick.criterion={criterion}")
    teacher = Counted()
    trainer, learner = trainer_of(settings, digits, teacher), learner_of(settings)
    trainer.equip(learner, 0)
    views = trainer.views
    chains = {role: views.chain(getattr(settings.agents, role), NO_POLICY) for role in Role}
    steps = Steps(settings, learner, teacher, dtype=torch.float32, sharding=trainer.sharding,
                  normalisation=(views.mean, views.std))  # fmt: skip
    batch = Batch(trainer.source, digits.train[:20], torch.arange(20), 0, chains)
    networks = (learner.networks[Role.STUDENT].train(), teacher.train())
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]
    assert steps.distiller is not None
    branches_of(
        batch, "shared_student", plain=True, teach=steps.distiller._teach_unseen, learn=steps.distiller._learn_unseen,
        sharding=trainer.sharding, temperature=4.0, keep_answers=True,
    )  # fmt: skip
    for network, old in zip(networks, before):
        assert network.training
        assert all(torch.equal(value, old[name]) for name, value in network.state_dict().items())
    steps.take(batch, {role: {} for role in Role}, 0.0, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, before[1][name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    old, new = before[0], learner.networks[Role.STUDENT].state_dict()
    assert new["bn1.num_batches_tracked"] == old["bn1.num_batches_tracked"] + 1  # of the step itself


def test_what_is_kept_is_harder_than_the_pool(digits):
    """Scores of the mixed images themselves, computed apart from the code under test."""
    settings = settings_of("agents.student.chain=cutmix+pick", "agents.student.pick.runs=3",
                           "agents.student.pick.fraction=0.25")  # fmt: skip
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=9).eval()
    trainer = trainer_of(settings, digits, teacher)
    chains = {role: trainer.views.chain(getattr(settings.agents, role), NO_POLICY) for role in Role}
    batch = Batch(trainer.source, digits.train[:20], torch.arange(20), 0, chains)
    with torch.no_grad():
        kept = picked(batch, settings.agents.student.pick, "shared_student", teach=teacher, learn=teacher,
                      sharding=trainer.sharding, temperature=1.0)  # fmt: skip
        pool = torch.cat([batch.view(Role.STUDENT, Role.STUDENT, candidate=run) for run in range(3)])
        chances = teacher(pool).double().softmax(1)
        entropy = -(chances * chances.log()).sum(1)
        theirs = teacher(kept.for_student).double().softmax(1)
        of_kept = -(theirs * theirs.log()).sum(1)
    assert len(kept.places) == 15 and of_kept.sort().values.allclose(entropy.sort().values[-15:], atol=1e-6)
    assert kept.ratio.item() == pytest.approx((of_kept.mean() / entropy.mean()).item(), rel=1e-5) and kept.ratio > 1
    # Answers, places and mixed labels are those of the kept ones, in their order
    assert kept.logits_teacher.allclose(teacher(kept.for_teacher), atol=1e-4)
    positions, classes = entropy.topk(15).indices.sort().values, torch.eye(10)
    assert torch.equal(kept.places, positions % 20)
    for row, position in enumerate(positions.tolist()):
        run, place = divmod(position, 20)
        mix = batch.mix(Role.STUDENT, candidate=run)
        own, other = (batch.source.labels[at[place]] for at in (batch.indices, mix.partners))
        expected = mix.share[place] * classes[own] + (1 - mix.share[place]) * classes[other]
        assert kept.labels[row].allclose(expected, atol=1e-6)
    branches = branches_of(
        batch, "shared_student", plain=True, teach=teacher, learn=teacher, sharding=trainer.sharding, temperature=1.0,
        keep_answers=False,
    )  # fmt: skip
    assert torch.equal(branches[0].indices, batch.indices)
    assert torch.equal(branches[1].indices, batch.indices[kept.places])


def test_dissimilarity_is_the_distance_to_the_plain_images(digits):
    """Not to the candidates, whose first ones would then be at 0; by hand, pair by pair."""
    settings = settings_of("agents.student.chain=cutmix+pick", "agents.student.pick.criterion=dissimilarity")
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=9).eval()
    trainer = trainer_of(settings, digits, teacher)
    chains = {role: trainer.views.chain(getattr(settings.agents, role), NO_POLICY) for role in Role}
    batch = Batch(trainer.source, digits.train[:20], torch.arange(20), 0, chains)
    with torch.no_grad():
        kept = picked(batch, settings.agents.student.pick, "shared_student", teach=teacher, learn=teacher,
                      sharding=trainer.sharding, temperature=1.0)  # fmt: skip
        pool = torch.cat([batch.view(Role.STUDENT, Role.STUDENT, candidate=run) for run in range(2)])
        plain = batch.view(Role.STUDENT, Role.STUDENT, plain=True)
        own, originals = (teacher(views).double().softmax(1) for views in (pool, plain))
    scores = torch.tensor([min(((one - other) ** 2).sum().item() for other in originals) for one in own])
    assert torch.equal(kept.places, scores.topk(20).indices.sort().values % 20)


def test_of_a_few_candidates_two_are_kept(digits):
    """VGG-8's BatchNorm has one value per channel and image here; of one image torch refuses to train."""
    settings = settings_of("agents.student={chain: pick, pick: {fraction: 0.05}}", "student.model=vgg8")
    trainer, learner = trainer_of(settings, digits, Counted()), learner_of(settings)
    trainer = replace(trainer, indices=digits.train[:5])
    assert trainer.train(learner, no_policies, end_epoch=1, total_epochs=1, stream="a")["student/loss"] > 0


def test_a_short_last_batch_keeps_what_it_has(digits):
    """30 of 40 candidates; of the last batch's 4 candidates all."""
    settings = settings_of("agents.student={chain: pick, pick: {keep: 30}}")
    trainer, learner = trainer_of(settings, digits, Counted()), learner_of(settings)
    trainer = replace(trainer, indices=digits.train[:22])
    assert trainer.train(learner, no_policies, end_epoch=1, total_epochs=1, stream="a")["student/loss"] > 0


# ---- whole trainings


@pytest.mark.parametrize("ends", [
    "randaugment: {ops: 1, magnitude: 0}", "randaugment: {ops: 100, magnitude: 30}", "cutout: {pixels: 1}",
    "cutout: {pixels: 32768}", "augmix: {severity: 1, width: 1, depth: -1, alpha: 0.01}",
    "augmix: {severity: 10, width: 100, depth: 100, alpha: 100}",
])  # fmt: skip
def test_agents_take_what_the_settings_take(digits, ends):
    settings = settings_of(f"agents.student={{chain: {ends.partition(':')[0]}, {ends}}}")
    assert len(trainer_of(settings, digits, None).views.chain(settings.agents.student, NO_POLICY).pixels) == 1


CHAINS = ["none", "randaugment", "trivial_augment_wide", "autoaugment", "augmix", "cutout", "mixup", "cutmix",
          "policy+cutmix+pick", "cutmix+pick", "policy+learned+mixup+pick", "learned"]  # fmt: skip


@pytest.mark.parametrize(
    ("chain", "branches"),
    [*((chain, False) for chain in CHAINS), *((chain, True) for chain in ("none", "cutmix+pick", CHAINS[-2]))],
)
def test_a_student_learns_by_every_chain_and_again_bit_for_bit(digits, chain, branches):
    settings = settings_of(*[BRANCHES] * branches, f"agents.student.chain={chain}")
    teacher = build_network("resnet8", num_classes=10, channels=1, seed=9)
    ends = []
    for _ in range(2):
        trainer, learner = trainer_of(settings, digits, teacher), learner_of(settings)
        torch.manual_seed(len(ends))  # nothing depends on the global generator
        metrics = trainer.train(learner, no_policies, end_epoch=2, total_epochs=2, stream="a")
        ends.append(learner.networks[Role.STUDENT].state_dict())
        assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("chain", ["mixup", "cutmix+pick", "randaugment"])
def test_a_teacher_learns_by_chains_of_its_own(digits, chain):
    settings = settings_of(f"agents.teacher.chain={chain}")
    trainer, learner = trainer_of(settings, digits, None), learner_of(settings, (Role.TEACHER,))
    before = learner.networks[Role.TEACHER].state_dict()["conv1.weight"].clone()
    metrics = trainer.train(learner, no_policies, end_epoch=1, total_epochs=1, stream="a")
    assert metrics["teacher/loss"] > 0
    assert not torch.equal(before, learner.networks[Role.TEACHER].state_dict()["conv1.weight"])


def test_a_teachers_own_lesson_picks_from_its_own_views_with_their_mixed_labels(digits):
    """By hand: its entropies on its role's candidates, the hardest half, and their mixed labels; not the student's."""
    settings = settings_of("agents.teacher.chain=cutmix+pick", "agents.student.chain=none")
    trainer, learner = trainer_of(settings, digits, None), learner_of(settings, (Role.TEACHER,))
    views, network = trainer.views, learner_of(settings, (Role.TEACHER,)).networks[Role.TEACHER]
    chains = {role: views.chain(getattr(settings.agents, role), NO_POLICY) for role in Role}
    steps = Steps(settings, learner, None, dtype=torch.float32, sharding=trainer.sharding,
                  normalisation=(views.mean, views.std))  # fmt: skip
    batch = Batch(trainer.source, digits.train[:20], torch.arange(20), 0, chains)
    learner.networks[Role.TEACHER].train()
    found = steps.take(batch, {role: {} for role in Role}, 0.0, torch.Generator().manual_seed(0))

    pool = torch.cat([batch.view(Role.TEACHER, Role.TEACHER, candidate=run) for run in range(2)])
    with torch.no_grad():
        chances = network.eval()(pool).double().softmax(1)
    kept = (-(chances * chances.log()).sum(1)).topk(20).indices.sort().values
    assert set(kept.tolist()) != set(range(20)), "else nothing was chosen"
    logs = network.train()(pool[kept]).log_softmax(1)
    losses = []
    for row, position in enumerate(kept.tolist()):
        run, place = divmod(position, 20)
        mix = batch.mix(Role.TEACHER, candidate=run)
        own, other = (batch.source.labels[at[place]] for at in (batch.indices, mix.partners))
        losses.append(-(mix.share[place] * logs[row, own] + (1 - mix.share[place]) * logs[row, other]))
    assert found["teacher/cross_entropy"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
