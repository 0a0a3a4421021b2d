"""One phase of the augmentor against a trained teacher and student, and the turns of both: glyphs (`glyph_toy`)."""

import copy

import pytest
import torch
from glyph_toy import BATCH, SIDE, Glyphs, accuracy, distilled, fresh_student, trained_teacher
from torch import Tensor, nn

from rolekd_ray.augment.learned.agent import LearnedAgent
from rolekd_ray.augment.learned.augmentor import build_augmentor
from rolekd_ray.roles import Role


@pytest.fixture(scope="module")
def taught() -> tuple[Tensor, nn.Module, nn.Module]:
    """Return images, a teacher that knows shifts, and a student that does not."""
    glyphs = Glyphs(1)
    images, labels = glyphs.images(500)
    teacher = trained_teacher(images, labels, 1, 80)
    student, optimizer = fresh_student(1)
    for start in range(60):
        rows = torch.arange(BATCH) * 7 + start
        optimizer.zero_grad()
        distilled(teacher(images[rows % 500]), student(images[rows % 500])).backward()
        optimizer.step()
    optimizer.zero_grad()
    shifted = glyphs.images(500, 5)
    assert accuracy(teacher, *shifted) > 0.95 and accuracy(student, images, labels) > 0.95
    assert accuracy(student, *shifted) < 0.5
    return images, teacher, student.eval()


def agent(**settings: float) -> LearnedAgent:
    parts = build_augmentor(["affine"], channels=1, size=SIDE, mean=torch.zeros(1), std=torch.ones(1))
    return LearnedAgent(parts, **settings)


def phase(agent: LearnedAgent, taught) -> list[dict[str, float]]:
    """Run a phase of the augmentor to its end."""
    images, teacher, student = taught
    agent.gate.tell(0.0)
    found = []
    while agent.gate.phase == "augmentor":
        rows = (torch.arange(BATCH) * 7 + len(found)) % len(images)
        step = agent.step(images[rows], rows, count=BATCH, seed=1, role=Role.STUDENT, epoch=0, student=student,
                          teacher=teacher, temperature=1.0)  # fmt: skip
        found.append({name: float(value) for name, value in step.items()})
        agent.gate.tell(found[-1]["student_loss"])
    return found


def test_the_student_is_changed_and_the_teacher_kept(taught):
    _, teacher, student = taught
    before = copy.deepcopy((teacher.state_dict(), student.state_dict()))
    found = phase(agent(), taught)
    first, last = found[0], found[-1]
    assert last["student_change"] >= 3 * first["student_change"]
    assert last["student_change"] - first["student_change"] > 3 * (last["teacher_change"] - first["teacher_change"])
    assert last["kept"] >= 0.9
    assert last["student_loss"] > 1.5 and all(step["student_loss"] <= 1.5 for step in found[:-1])
    for network, then in zip((teacher, student), before):
        assert all(torch.equal(value, then[name]) for name, value in network.state_dict().items())
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in network.parameters())


def test_without_its_price_the_teacher_is_moved_too(taught):
    """Both for 30 steps: the loss on a view may not end the phase, for a confused teacher changes it."""
    held, free = (
        phase(agent(upper=1e9, max_steps=30, learning_rate=0.02, teacher_weight=weight), taught)
        for weight in (1.0, 0.0)
    )
    assert len(held) == len(free) == 30  # the cap
    assert held[-1]["kept"] >= 0.9 > free[-1]["kept"]
    assert free[-1]["teacher_change"] > 2 * held[-1]["teacher_change"]


def test_while_the_student_learns_the_augmentor_stays(taught):
    images, teacher, _ = taught
    made, (student, optimizer) = agent(lower=0.5, upper=1.0, max_steps=10), fresh_student(1)
    turns, losses = [], []
    for step in range(100):
        rows = (torch.arange(BATCH) * 7 + step) % len(images)
        at = {"seed": 1, "role": Role.STUDENT, "epoch": step}
        before = copy.deepcopy((student.state_dict(), made.augmentor.state_dict()))
        turns.append(made.gate.phase)
        if turns[-1] == "student":
            view = made.view(images[rows], rows, **at)
            loss = distilled(teacher(view), student(view))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        else:
            loss = made.step(images[rows], rows, count=BATCH, **at, student=student, teacher=teacher,
                             temperature=1.0)["student_loss"]  # fmt: skip
        stays, moves = (1, 0) if turns[-1] == "student" else (0, 1)
        now = (student.state_dict(), made.augmentor.state_dict())
        assert all(torch.equal(now[stays][name], value) for name, value in before[stays].items())
        assert any(not torch.equal(now[moves][name], value) for name, value in before[moves].items())
        losses.append(float(loss.detach()))
        made.gate.tell(losses[-1])
    flips = [k for k in range(1, len(turns)) if turns[k] != turns[k - 1]]
    assert len(flips) >= 4
    begun = 0
    for flip in flips:
        if turns[flip] == "augmentor":
            assert losses[flip - 1] < 0.5
        else:
            assert losses[flip - 1] > 1.0 or flip - begun == 10
        begun = flip
