"""A training step asks for no value of a tensor: on a GPU that would stop the queue of kernels."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_helpers import tiny_settings

from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.epochs import new_trainer
from rolekd_ray.training.learner import new_learner

CPU = torch.device("cpu")
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default")
FEATURES = "attention: 10, similarity: 10, rkd: 0.1, hint: 0.1, vid: 0.1, review: 0.1"
CASES = {
    "features and branches": (f"distill.losses={{cross_entropy: 1, dkd: 1, one: 1, {FEATURES}}}",),
    "clipped": (f"distill.losses={{cross_entropy: 1, hinton: 1, {FEATURES}}}", "distill.clip_to_task=true"),
    "peers": ("distill.losses={cross_entropy: 1, mutual: 1}",),
    "standardised": ("distill.losses={cross_entropy: 1, hinton: 1, dist: 1}", "distill.standardise_logits=true"),
}


class Waits(TorchDispatchMode):
    """Counts the calls that need a value."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in str(function) for word in WAITS):
            self.found[str(function)] += 1
        return function(*args, **(kwargs or {}))


def epoch(case: str, images: int, precision: str = "float32") -> tuple[Counter[str], dict[str, float]]:
    """Train an epoch in batches of 10; return what waited, and the mean losses."""
    settings = tiny_settings(
        "training.batch_size=10", "teacher.model=wrn_10_2", "training.learning_rate=0.01",
        f"training.precision={precision}", *CASES[case],
    )  # fmt: skip
    data = open_training_data(settings.data, train=images)
    roles = tuple(Role) if case == "peers" else (Role.STUDENT,)
    sizes = {"num_classes": 10, "channels": 1, "device": CPU}
    learner = new_learner(settings, roles, **sizes, key=0)
    teacher = new_learner(settings, (Role.TEACHER,), **sizes, key=1).networks[Role.TEACHER]
    trainer = new_trainer(settings, data, settings.search_space(), CPU, teacher)
    trainer.equip(learner, 0)
    waits = Waits()
    with waits:
        losses = trainer.train(
            learner, lambda role, epoch: [(1.0, Policy())], end_epoch=1, total_epochs=1, stream="a"
        )  # fmt: skip
    return waits.found, losses


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_of_more_steps_waits_no_more_often(case):
    (few, losses), (many, _) = epoch(case, 20), epoch(case, 40)
    assert few == many
    assert sum(few.values()) == len(losses), "each mean once, at the epoch's end"


@pytest.mark.parametrize("case", ["features and branches", "standardised"])
def test_a_teacher_in_bfloat16_teaches_by_features_and_logits_too(case):
    wide, narrow = epoch(case, 20)[1], epoch(case, 20, "bfloat16")[1]
    assert narrow.keys() == wide.keys()
    for name, value in wide.items():
        assert narrow[name] == pytest.approx(value, rel=0.1, abs=2e-3), name
