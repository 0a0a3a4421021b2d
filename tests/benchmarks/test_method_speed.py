"""What a step costs by each method, and what memory a loss between the images of a batch takes.

`python tests/benchmarks/test_method_speed.py`. resnet56 teaches resnet20 on photographs that both see in one view, in
float32: a whole step of the epoch loop, by one method beside the cross-entropy. The base is Hinton's. Peers are two
resnet20; `one` has no teacher. CRD's banks have 512 rows.
"""

import pytest
import torch
from step_arms import CPU, SHARED, STUDENT, TEACHER, head, network, timed
from test_augment_speed import load_images, quartiles
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rolekd_ray.config import load_settings
from rolekd_ray.data.images import ImageSet
from rolekd_ray.distill.methods.correlation_congruence import correlation_congruence
from rolekd_ray.distill.methods.pkt import pkt
from rolekd_ray.distill.methods.rkd import rkd_angle, rkd_distance
from rolekd_ray.distill.methods.similarity import similarity
from rolekd_ray.distill.registry import known_methods
from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.training.data import TrainingData
from rolekd_ray.training.epochs import new_trainer
from rolekd_ray.training.learner import new_learner

BATCHES, ROUNDS, MIDWAY = (64, 128), 5, 10**6
BASE = "hinton"
RELATIONS = {
    "similarity": similarity, "pkt": pkt, "correlation_congruence": correlation_congruence,
    "rkd_distance": rkd_distance, "rkd_angle": rkd_angle,
}  # fmt: skip
COUNTS, WIDTH, CHUNK = (64, 128, 256, 512), 64, 32

pytestmark = pytest.mark.benchmark


class MethodStep:
    """One step of the epoch loop on the first images of those that are trained on, half-way through the training."""

    def __init__(self, name: str, batch: int, images: Tensor):
        method, peer = known_methods()[name], known_methods()[name].online == "peer"
        weights = {"cross_entropy": 1.0, name: method.weight}
        settings = load_settings(
            "cifar10_pba",
            [f"teacher.model={STUDENT if peer else TEACHER}", f"student.model={STUDENT}", "training.precision=float32",
             "training.learning_rate=1e-9",  # a teacher that knows nothing has features that no student survives
             f"training.batch_size={batch}", f"distill.losses={weights}"],
        )  # fmt: skip
        labels = torch.arange(len(images)) % 10  # any will do for speed
        image_set = ImageSet("benchmark", images, labels, tuple("0123456789"))
        data = TrainingData(image_set, torch.arange(len(images)), torch.arange(0))
        teacher = None if peer or not method.needs_teacher else network(TEACHER, 0)
        self.trainer = new_trainer(settings, data, settings.search_space(), CPU, teacher)
        roles = tuple(Role) if peer else (Role.STUDENT,)
        self.learner = new_learner(settings, roles, num_classes=10, channels=3, device=CPU, key=0)
        self.trainer.equip(self.learner, "benchmark")
        self.trainer.indices.resize_(batch)

    def __call__(self, number: int) -> dict[str, float]:
        self.learner.epoch = MIDWAY + number
        return self.trainer.train(
            self.learner, lambda role, epoch: [(1.0, Policy())], end_epoch=MIDWAY + number + 1,
            total_epochs=2 * MIDWAY, stream="benchmark",
        )  # fmt: skip


def report_speed(batch: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Print milliseconds a step and its ratio to Hinton's; return the medians of paired ratios."""
    images, origin = load_images(SHARED)
    names = [name for name, method in known_methods().items() if method.distils and name != BASE]
    arms = {name: MethodStep(name, batch, images) for name in (BASE, *sorted(names))}
    arms[f"{BASE} again"] = MethodStep(BASE, batch, images)
    seconds = timed(arms, rounds)
    head(f"step by method: {TEACHER} teaches {STUDENT}, {batch} {origin}", rounds)
    print(f"{'method':28}{'CPU ms':>10}{'it / base':>12}{'quartiles':>14}")
    medians = {}
    for name, spent in sorted(seconds.items(), key=lambda item: sum(item[1])):
        low, medians[name], high = quartiles([own / base for own, base in zip(spent, seconds[BASE])])
        print(f"{name:28}{1000 * sorted(spent)[rounds // 2]:10.0f}{medians[name]:12.2f}{low:9.2f} –{high:5.2f}")
    return medians


class Memory(TorchDispatchMode):
    """Keeps the largest tensor's bytes, and the most that were alive at once, of all that operations made."""

    def __init__(self):
        super().__init__()
        self.largest = self.most = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return out


def memory(name: str, count: int) -> Memory:
    """What a loss and its gradient take for embeddings of 64 numbers, beside them."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, count, WIDTH, generator=generator)
    with Memory() as watch:
        RELATIONS[name]([student.requires_grad_()], [teacher]).backward()
    return watch


def report_memory() -> dict[str, dict[int, Memory]]:
    """Print and return, per method and batch size, the most memory and the largest tensor."""
    found = {name: {count: memory(name, count) for count in COUNTS} for name in RELATIONS}
    print(f"\nMB of loss and gradient, embeddings of {WIDTH} numbers in float32: most at once (largest tensor)")
    print(f"{'method':28}" + "".join(f"{f'N = {count}':>18}" for count in COUNTS))
    for name, by_count in found.items():
        cells = [f"{watch.most / 1e6:.2f} ({watch.largest / 1e6:.2f})" for watch in by_count.values()]
        print(f"{name:28}" + "".join(f"{cell:>18}" for cell in cells))
    return found


@pytest.mark.parametrize("name", [name for name in RELATIONS if not name.startswith("rkd")])
def test_memory_grows_with_the_square_of_the_batch_and_no_faster(name):
    small, large = memory(name, 256), memory(name, 512)
    assert 3 < large.most / small.most < 4.1
    assert large.largest <= 3 * 512**2 * 4  # three powers of the cosine at once


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
@pytest.mark.parametrize("count", COUNTS)
def test_relational_distillation_stays_within_its_bound(name, count):
    watch, bound = memory(name, count), CHUNK * count * max(count, WIDTH) * 4
    assert watch.largest <= bound
    assert watch.most <= 10 * bound + count * WIDTH * 4  # and the gradient


@pytest.mark.parametrize("batch", BATCHES)
def test_only_attacks_double_a_step(batch, capsys):
    with capsys.disabled():
        ratios = report_speed(batch)
    assert abs(ratios[f"{BASE} again"] - 1) < 0.15, "too noisy a machine"
    assert {name for name, ratio in ratios.items() if ratio > 2} == {"bss"}


if __name__ == "__main__":
    report_memory()
    for batch in BATCHES:
        report_speed(batch)
