"""The learned agent's steps and views: purity, one gradient for one network, bounds, state, workers."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rolekd_ray.augment.learned.agent import LearnedAgent
from rolekd_ray.augment.learned.augmentor import Augmentor, build_augmentor
from rolekd_ray.augment.learned.vae import fit_vae
from rolekd_ray.errors import CheckpointError, ConfigError
from rolekd_ray.roles import Role
from rolekd_ray.training.checkpoint import load_checkpoint, save_checkpoint

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
AT = {"seed": 5, "role": Role.STUDENT, "epoch": 3}


def augmentor(*parts: str, size: int = 32) -> Augmentor:
    return build_augmentor(parts or ("affine", "colour"), channels=3, size=size, mean=MEAN, std=STD)


def stirred(module: nn.Module, std: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=std, generator=generator)
    return module


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return made.append(nn.Linear(96, 10)).eval()


@pytest.fixture(scope="module")
def views(photographs) -> Tensor:
    return (photographs[:64].float() / 255 - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)


@pytest.fixture(scope="module")
def fitted(views) -> Augmentor:
    made = augmentor("vae", "affine", "colour")
    fit_vae(made.vae, views, steps=3, seed=0)
    return stirred(made)


def stepped(agent: LearnedAgent, views: Tensor, **changed) -> dict[str, Tensor]:
    given = {"count": len(views), **AT, "student": network(0), "teacher": network(1), "temperature": 2.0}
    return agent.step(views, torch.arange(len(views)), **(given | changed))


@pytest.mark.parametrize("parts", [("affine",), ("colour",), ("vae", "affine", "colour")])
def test_batch_composition_and_order_change_no_bit_of_a_view(parts, views, fitted):
    agent = LearnedAgent(fitted if "vae" in parts else stirred(augmentor(*parts)))
    views = views[:40]
    indices, before = torch.arange(40) * 3, views.clone()
    whole = agent.view(views, indices, **AT)
    assert whole.shape == views.shape and whole.dtype == torch.float32 and not whole.requires_grad
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(agent.view(views[shuffled], indices[shuffled], **AT), whole[shuffled])
    for size, upto in ((1, 8), (3, 9), (33, 40)):
        rows = zip(views[:upto].split(size), indices[:upto].split(size))
        assert torch.equal(torch.cat([agent.view(part, i, **AT) for part, i in rows]), whole[:upto])
    assert torch.equal(views, before)
    assert agent.view(views[:0], indices[:0], **AT).shape == (0, 3, 32, 32)
    others = [
        agent.view(views, indices, **(AT | {k: v})) for k, v in (("seed", 6), ("epoch", 4), ("role", Role.TEACHER))
    ]
    assert all(not torch.allclose(other, whole, atol=1e-3) for other in others)
    assert not torch.allclose(agent.view(views, indices + 1, **AT), whole, atol=1e-3)


def test_views_do_not_leave_the_range_of_pixels(views, fitted):
    pixels = LearnedAgent(fitted).view(views, torch.arange(64), **AT) * STD.view(-1, 1, 1) + MEAN.view(-1, 1, 1)
    assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5


def test_a_step_touches_the_augmentor_alone(views):
    agent, student, teacher = LearnedAgent(augmentor()), network(0), network(1)
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    teacher.requires_grad_(False)
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    first = copy.deepcopy(agent.augmentor.state_dict())
    state = torch.get_rng_state()
    found = stepped(agent, views, student=student, teacher=teacher)
    assert torch.equal(torch.get_rng_state(), state)
    for now, then in zip((student.state_dict(), teacher.state_dict()), before):
        assert all(torch.equal(now[name], then[name]) for name in then)
    assert all((parameter.grad == 7).all() for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is None for parameter in agent.parameters())
    assert all(not torch.equal(p, first[name]) for name, p in agent.augmentor.named_parameters())
    keys = {"objective", "student_change", "teacher_change", "kept", "gradient_norm", "student_loss"}
    assert found.keys() == keys
    assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in found.values())


def test_the_first_step_is_adam_up_the_clipped_objective(views):
    """Against the objective written out, and Adam's first step: the learning rate along each sign."""
    agent = LearnedAgent(stirred(augmentor("affine"), 0.05), learning_rate=0.01, student_weight=2.0, teacher_weight=0.5)
    student, teacher = network(0), network(1)
    part = copy.deepcopy(agent.augmentor)
    seen = {}

    def looked(images):
        seen["view"] = images.detach()
        return student(images)

    before = [parameter.detach().clone() for parameter in agent.augmentor.parameters()]
    found = stepped(agent, views, student=looked, teacher=teacher)
    from rolekd_ray.augment.randomness import normals, stream_key

    noise = normals(stream_key(5, "student", 3, "learned step", 0), torch.arange(64), 8)
    view = part(views, noise)
    assert torch.equal(view.detach(), seen["view"])

    def change(net):
        clean, moved = (net(images).softmax(1) for images in (views, view))
        return (clean.detach() * (clean.detach().log() - moved.log())).sum(1).mean()

    objective = 2.0 * change(student) - 0.5 * change(teacher)
    gradients = torch.autograd.grad(objective, list(part.parameters()))
    length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert float(found["objective"]) == pytest.approx(float(objective.detach()), rel=1e-4)
    assert float(found["student_change"]) == pytest.approx(float(change(student).detach()), rel=1e-4)
    assert float(found["teacher_change"]) == pytest.approx(float(change(teacher).detach()), rel=1e-4)
    assert float(found["gradient_norm"]) == pytest.approx(length, rel=1e-3)
    for now, then, gradient in zip(agent.augmentor.parameters(), before, gradients):
        clear = gradient.abs() > 1e-5
        assert torch.allclose((now - then)[clear], 0.01 * gradient[clear].sign(), atol=1e-4)
    loss = (teacher(view) / 2).softmax(1)
    loss = 4 * (loss * (loss.log() - (student(view) / 2).log_softmax(1))).sum(1).mean()
    assert float(found["student_loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)


def test_long_gradients_are_clipped(views, monkeypatch):
    lengths = []

    def grown(seed):
        made = network(seed)
        return lambda images: 50 * made(images)

    for clip in (0.5, 1e9):
        agent = LearnedAgent(stirred(augmentor()), clip_norm=clip)
        step = agent.optimizer.step
        monkeypatch.setattr(
            agent.optimizer,
            "step",
            lambda step=step, agent=agent: (
                lengths.append(math.sqrt(sum(float(p.grad.square().sum()) for p in agent.parameters()))), step()
            ),
        )  # fmt: skip
        norm = float(stepped(agent, views, student=grown(0), teacher=grown(1))["gradient_norm"])
        assert norm > 1
    assert lengths == [pytest.approx(0.5, rel=1e-4), pytest.approx(norm, rel=1e-4)]


def test_every_step_draws_anew_and_no_two_epochs_alike(views):
    seen = []
    agent = LearnedAgent(stirred(augmentor("affine")), learning_rate=1e-12)

    def looked(images):
        seen.append(images.detach())
        return network(0)(images)

    for epoch in (3, 3, 4):
        stepped(agent, views, student=looked, epoch=epoch)
    changed = seen[1::2]
    assert all(torch.equal(clean, views) for clean in seen[::2])
    assert all(not torch.allclose(changed[i], changed[j], atol=1e-2) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_bounds_hold_after_200_steps_of_a_huge_learning_rate():
    views = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1.7, 1.9)
    agent = LearnedAgent(augmentor(size=8), learning_rate=100.0)
    student, teacher = network(0), network(1)
    for _ in range(200):
        assert all(v.isfinite() for v in stepped(agent, views, student=student, teacher=teacher).values())
    noise = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    for part in agent.augmentor.parts.values():
        edits = part.edits(noise)
        assert (edits.abs() <= part.edits.bounds).all()
        assert (edits.abs() > 0.99 * part.edits.bounds).any()  # they did try
    assert agent.view(views, torch.arange(4), **AT).isfinite().all()


def test_uneven_workers_together_take_the_step_of_one(views):
    """Three workers in turn: each is given the others' rows as they were computed, and gradients are added up."""
    alone = LearnedAgent(stirred(augmentor(), 0.1))
    start = copy.deepcopy(alone.tree())
    whole = stepped(alone, views)

    class Seen(Exception):
        pass

    def record(rows: Tensor, count: int) -> Tensor:
        gathered.append(rows.detach())
        return torch.cat([rows, rows.new_zeros(count - len(rows), 10)])

    def stop(gradients: list[Tensor]) -> None:
        raise Seen

    parts = list(torch.arange(64).split([40, 24, 0]))
    outputs, gradients = [], []
    for part in parts:
        gathered: list[Tensor] = []
        agent = LearnedAgent(augmentor())
        agent.load_tree(start)
        with pytest.raises(Seen):
            agent.step(views[part], part, count=64, **AT, student=network(0), teacher=network(1), temperature=2.0,
                       gather=record, add_up=stop)  # fmt: skip
        outputs.append(gathered)

    def run(worker: int, add_up) -> tuple[LearnedAgent, dict[str, Tensor]]:
        calls = iter(range(4))

        def gather(rows: Tensor, count: int) -> Tensor:
            call = next(calls)
            return torch.cat([rows if w == worker else outputs[w][call] for w in range(3)])

        agent = LearnedAgent(augmentor())
        agent.load_tree(start)
        given = {"count": 64, **AT, "student": network(0), "teacher": network(1), "temperature": 2.0}
        return agent, agent.step(views[parts[worker]], parts[worker], **given, gather=gather, add_up=add_up)

    for worker in range(3):
        run(worker, lambda own: gradients.append([g.clone() for g in own]))
    totals = [sum(g[k] for g in gradients) for k in range(len(gradients[0]))]

    def add_up(own: list[Tensor]) -> None:
        for mine, total in zip(own, totals):
            mine.copy_(total)

    for worker in range(3):
        agent, found = run(worker, add_up)
        for name, value in found.items():
            assert float(value) == pytest.approx(float(whole[name]), rel=1e-4, abs=1e-7), name
        for mine, wanted in zip(agent.augmentor.parameters(), alone.augmentor.parameters()):
            assert torch.allclose(mine, wanted, atol=1e-4)


def test_a_saved_agent_goes_on_to_the_last_bit(views, fitted, tmp_path: Path):
    agent = LearnedAgent(copy.deepcopy(fitted), learning_rate=0.02)
    agent.configure(student_weight=1.5, teacher_weight=0.25, lower=0.2, upper=0.9)
    small = views[:16]
    agent.gate.tell(0.1)
    for _ in range(2):
        agent.gate.tell(float(stepped(agent, small)["student_loss"]))
    save_checkpoint(tmp_path / "agent", {"learned": agent.tree()}, {})
    other = LearnedAgent(augmentor("vae", "affine", "colour"))
    other.load_tree(load_checkpoint(tmp_path / "agent")[0]["learned"])
    assert other.gate.state() == agent.gate.state()
    for _ in range(2):
        one, two = stepped(agent, small), stepped(other, small)
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(agent.view(small, torch.arange(16), **AT), other.view(small, torch.arange(16), **AT))


def test_a_copied_agent_shares_nothing(views):
    """Exploit within a process: what the recipient learns does not move the donor."""
    donor, recipient = LearnedAgent(augmentor()), LearnedAgent(augmentor())
    stepped(donor, views[:8])
    recipient.load_tree(donor.tree())
    before = copy.deepcopy(donor.tree())
    stepped(recipient, views[:8])
    recipient.gate.tell(0.0)
    after = donor.tree()
    assert after["gate"] == before["gate"]
    assert all(torch.equal(after["augmentor"][name], before["augmentor"][name]) for name in before["augmentor"])
    for k, moments in before["optimizer"]["state"].items():
        assert all(torch.equal(after["optimizer"]["state"][k][name], moments[name]) for name in moments)


def test_a_tree_of_other_parts_is_refused():
    with pytest.raises(CheckpointError, match="of another augmentor"):
        LearnedAgent(augmentor("affine")).load_tree(LearnedAgent(augmentor("colour")).tree())


def test_evolved_values_are_taken_and_thresholds_kept_in_order():
    agent = LearnedAgent(augmentor(), lower=0.05, upper=1.5)
    agent.configure(learning_rate=0.1, student_weight=0.5)
    assert agent.optimizer.param_groups[0]["lr"] == 0.1
    assert (agent.student_weight, agent.teacher_weight) == (0.5, 1.0)
    agent.configure(lower=2.0)
    assert (agent.gate.lower, agent.gate.upper) == (1.5, 2.0)
    agent.configure(teacher_weight=0.0)
    assert (agent.student_weight, agent.teacher_weight) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate: got 0.0; expected above 0"),
        ({"teacher_weight": -1.0}, "teacher_weight: got -1.0; expected 0 or above"),
        ({"student_weight": math.nan}, "student_weight: got nan"),
        ({"lower": -1.0}, "lower: got -1.0"),
        ({"uper": 1.0}, "Did you mean 'upper'"),
    ],
)
def test_values_out_of_range_are_errors_and_change_nothing(settings, words):
    agent = LearnedAgent(augmentor())
    before = copy.deepcopy(agent.tree())
    with pytest.raises(ConfigError, match=words):
        agent.configure(**({"student_weight": 0.3, "upper": 7.0} | settings))
    assert agent.tree()["gate"] == before["gate"]
    assert (agent.student_weight, agent.teacher_weight) == (1.0, 1.0)


def test_a_teacher_of_half_precision(views):
    student, teacher = network(0), network(1).to(torch.bfloat16).requires_grad_(False)
    agent = LearnedAgent(augmentor())
    found = stepped(agent, views, student=student, teacher=lambda images: teacher(images.bfloat16()))
    assert all(value.dtype == torch.float32 and value.isfinite() for value in found.values())
