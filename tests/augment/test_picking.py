"""Picking: how hard candidates are, and that the hardest are kept."""

import math
from itertools import chain
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolekd_ray.augment.picking import CRITERIA, SCOPES, hardness, kept_count, needs_student, pick, picked_ratio
from rolekd_ray.errors import ConfigError


def logits(rows: int, seed: int, classes: int = 5) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 3


def hard(criterion: str, **given: torch.Tensor) -> torch.Tensor:
    return hardness(criterion, **({"teacher": None, "student": None, "originals": None, "temperature": 4.0} | given))


# ---- hardness, against Python in float64


def probabilities(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def reference(criterion: str, teacher: list, student: list, originals: list, temperature: float) -> float:
    if criterion == "divergence":
        pairs = zip(probabilities(teacher, temperature), probabilities(student, temperature))
        return sum(p * math.log(p / q) for p, q in pairs)
    if criterion == "dissimilarity":
        mine = probabilities(teacher)
        return min(sum((p - q) ** 2 for p, q in zip(mine, probabilities(other))) for other in originals)
    return -sum(p * math.log(p) for p in probabilities(teacher if criterion == "teacher_entropy" else student))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_hardness_is_what_the_criterion_says(criterion, temperature):
    teacher, student, originals = logits(12, 1), logits(12, 2), logits(4, 3)
    got = hardness(criterion, teacher=teacher, student=student, originals=originals, temperature=temperature)
    assert got.shape == (12,) and got.dtype == torch.float32
    others = originals.tolist()
    expected = [reference(criterion, t, s, others, temperature) for t, s in zip(teacher.tolist(), student.tolist())]
    assert got.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_which_networks_a_criterion_needs():
    teacher, student, originals = logits(6, 1), logits(6, 2), logits(3, 3)
    assert [needs_student(criterion) for criterion in CRITERIA] == [False, True, True, False]
    hard("teacher_entropy", teacher=teacher)
    hard("student_entropy", student=student)
    hard("divergence", teacher=teacher, student=student)
    hard("dissimilarity", teacher=teacher, originals=originals)


def test_no_gradient_is_kept():
    teacher, student = logits(6, 1).requires_grad_(), logits(6, 2).requires_grad_()
    for criterion in CRITERIA:
        assert not hard(criterion, teacher=teacher, student=student, originals=teacher).requires_grad


@pytest.mark.parametrize("dtype, gap", [(torch.float32, 200.0), (torch.float16, 18.0), (torch.bfloat16, 200.0)])
def test_the_most_confident_candidate_is_not_picked(dtype, gap):
    """p log p of a probability that underflows is NaN, and NaN sorts as hardest."""
    confident = torch.zeros(1, 5)
    confident[0, 2] = gap
    teacher = torch.cat([logits(2, 1), confident, logits(3, 2)]).to(dtype)
    naive = teacher.softmax(1)
    assert (naive * naive.log()).sum(1)[2].isnan()  # the trap is one
    for criterion, network in (("teacher_entropy", "teacher"), ("student_entropy", "student")):
        scores = hard(criterion, **{network: teacher})
        assert scores.isfinite().all() and scores.argmin() == 2 and scores[2] < 1e-5
        assert 2 not in pick(scores, batch=3, count=5, scope="pool")
        assert 2 not in pick(scores, batch=3, count=3, scope="anchor")
    for first, second in ((teacher, teacher), (teacher, -teacher), (-teacher, teacher)):
        scores = hard("divergence", teacher=first, student=second, temperature=1.0)
        assert scores.isfinite().all() and (scores >= 0).all()
    assert hard("divergence", teacher=teacher, student=teacher).tolist() == [0] * 6
    assert hard("dissimilarity", teacher=teacher, originals=logits(3, 4).to(dtype)).isfinite().all()


def test_a_network_that_agrees_or_a_view_that_changes_nothing_is_not_hard():
    teacher = logits(500, 1)
    divergences = hard("divergence", teacher=teacher, student=teacher + 7)
    assert divergences.max() < 1e-6 and divergences.min() >= 0  # rounding gives negative ones
    assert hard("dissimilarity", teacher=teacher, originals=teacher.flip(0)).tolist() == [0] * 500
    assert hard("teacher_entropy", teacher=torch.zeros(1, 5)).item() == pytest.approx(math.log(5))


# ---- pick


def hardest(scores: list[float], positions, count: int) -> list[int]:
    return sorted(sorted(positions, key=lambda p: (-scores[p], p))[:count])


def pools(most_batch: int = 8, most_runs: int = 4):
    """Batch and scores, with many equal ones."""
    score = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 10, width=32))
    shape = st.tuples(st.integers(1, most_batch), st.integers(1, most_runs))
    return shape.flatmap(lambda s: st.tuples(st.just(s[0]), st.lists(score, min_size=prod(s), max_size=prod(s))))


@settings(max_examples=200, deadline=None)
@given(pool=pools(), data=st.data())
def test_the_hardest_of_the_pool_are_kept(pool, data):
    batch, scores = pool
    count = data.draw(st.integers(1, len(scores)))
    kept = pick(torch.tensor(scores), batch=batch, count=count, scope="pool")
    assert kept.dtype == torch.int64 and kept.tolist() == hardest(scores, range(len(scores)), count)
    dropped = [score for position, score in enumerate(scores) if position not in kept]
    assert min(scores[p] for p in kept.tolist()) >= max(dropped, default=-math.inf)
    ratio = picked_ratio(torch.tensor(scores), kept)
    assert ratio >= 1 and (ratio == 1) == (len(set(scores)) == 1 or not dropped)


@settings(max_examples=200, deadline=None)
@given(pool=pools(), data=st.data())
def test_the_hardest_of_each_image_are_kept(pool, data):
    batch, scores = pool
    each = data.draw(st.integers(1, len(scores) // batch))
    kept = pick(torch.tensor(scores), batch=batch, count=each * batch, scope="anchor")
    by_image = [hardest(scores, range(place, len(scores), batch), each) for place in range(batch)]
    assert kept.tolist() == sorted(chain(*by_image))
    assert picked_ratio(torch.tensor(scores), kept) >= 1 - 1e-12


@pytest.mark.parametrize("scope", SCOPES)
def test_one_run_of_which_all_are_kept_is_the_batch(scope):
    scores = torch.tensor([0.3, 0.1, 0.2])
    assert pick(scores, batch=3, count=3, scope=scope).tolist() == [0, 1, 2]
    assert picked_ratio(scores, torch.arange(3)) == 1


def test_scopes_differ():
    scores = torch.tensor([0.1, 0.9, 0.2, 0.8])  # runs 2, batch 2: the second image is harder
    assert pick(scores, batch=2, count=2, scope="pool").tolist() == [1, 3]
    assert pick(scores, batch=2, count=2, scope="anchor").tolist() == [1, 2]


def test_a_score_that_is_not_a_number_is_kept():
    assert pick(torch.tensor([0.1, 0.9, math.nan, 0.8]), batch=2, count=1, scope="pool").tolist() == [2]


def test_the_ratio():
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert picked_ratio(scores, torch.tensor([2, 3])).item() == 1.5
    assert picked_ratio(torch.zeros(4), torch.tensor([0])) == 1
    assert picked_ratio(scores, torch.tensor([0])).shape == ()


# ---- how many


@pytest.mark.parametrize(
    "batch, runs, keep, fraction, scope, count",
    [
        (64, 2, None, 0.5, "pool", 64),
        (64, 2, 64, 0.1, "pool", 64),  # keep wins
        (256, 2, 64, 0.5, "pool", 64),
        (5, 3, None, 0.5, "pool", 8),  # 7.5, halves up
        (5, 1, None, 0.5, "pool", 3),  # 2.5
        (5, 3, None, 0.1, "pool", 2),
        (5, 3, None, 0.001, "pool", 1),
        (5, 3, None, 1.0, "pool", 15),
        (5, 1, 5, 0.5, "pool", 5),
        (5, 3, None, 0.5, "anchor", 10),  # 1.5 of 3
        (5, 3, None, 0.1, "anchor", 5),
        (5, 3, None, 1.0, "anchor", 15),
        (5, 3, 10, 0.1, "anchor", 10),
    ],
)
def test_how_many_are_kept(batch, runs, keep, fraction, scope, count):
    assert kept_count(batch, runs, keep=keep, fraction=fraction, scope=scope) == count
    assert len(pick(torch.rand(batch * runs), batch=batch, count=count, scope=scope)) == count


@pytest.mark.parametrize(
    "keep, fraction, scope, message",
    [
        (11, 0.5, "pool", "pick.keep: 5 images with 2 candidates each, got 11; expected 1 to 10 candidates"),
        (0, 0.5, "pool", "pick.keep: .* got 0; expected 1 to 10"),
        (None, 1.5, "pool", "pick.fraction: .* got 1.5; expected above 0 and up to 1"),
        (None, 0.0, "pool", "pick.fraction: .* got 0.0; expected above 0 and up to 1"),
        (None, math.nan, "pool", "pick.fraction: .* got nan"),
        (7, 0.5, "anchor", "pick.keep: scope anchor .* each of 5 images, got 7; expected a multiple of 5"),
    ],
)
def test_what_cannot_be_kept_is_refused(keep, fraction, scope, message):
    with pytest.raises(ConfigError, match=message):
        kept_count(5, 2, keep=keep, fraction=fraction, scope=scope)


def test_what_cannot_be_picked_is_refused():
    scores = torch.rand(10)
    with pytest.raises(ConfigError, match=r"pick\.keep: 10 candidates, got 11; expected 1 to 10"):
        pick(scores, batch=5, count=11, scope="pool")
    with pytest.raises(ConfigError, match=r"pick\.keep: scope anchor .* got 7; expected a multiple of 5"):
        pick(scores, batch=5, count=7, scope="anchor")
    with pytest.raises(ConfigError, match=r"pick\.scope: unknown scope 'anchors'; .* Did you mean 'anchor'"):
        pick(scores, batch=5, count=5, scope="anchors")
    with pytest.raises(ConfigError, match=r"pick\.criterion: unknown criterion 'entropy'; expected one of"):
        hard("entropy", teacher=logits(3, 1))
