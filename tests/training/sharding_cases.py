"""Trainings that are run by one worker, two and four, and must come out equal."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from training_helpers import some_policy

from rolekd_ray.config import load_settings
from rolekd_ray.distill.losses import Losses, weighted_sum
from rolekd_ray.distill.outputs import Outputs
from rolekd_ray.models.zoo import build_network
from rolekd_ray.roles import Role
from rolekd_ray.training.batchnorm import share_batchnorm
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.epochs import new_trainer
from rolekd_ray.training.evaluation import evaluate
from rolekd_ray.training.learner import new_learner
from rolekd_ray.training.sharding import Sharding

STEPS = 3


class TinyNet(nn.Module):
    """Gives features and logits; float64, so that rounding cannot hide a wrong factor."""

    def __init__(self, seed: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.features = nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2),
                nn.BatchNorm2d(5, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(5),
            )  # fmt: skip
            self.classifier = nn.Linear(5, 4)
        self.double()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, self.classifier(features)


def hinton(student: Tensor, teacher: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    weights = {"cross_entropy": 0.3, "hinton": 0.7}
    return weighted_sum(weights, Losses(list(weights))(Outputs(student, teacher, labels, 3.0), weights))


def relational(student: Tensor, teacher: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Distances between images, divided by their mean: not a mean over images, nor additive over parts of a batch."""
    own, wanted = torch.cdist(features, features), torch.cdist(teacher, teacher)
    return F.smooth_l1_loss(own / own.mean(), wanted / wanted.mean())


def contrastive(student: Tensor, teacher: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Each image's student must be told from all other images' teachers."""
    similar = F.normalize(student) @ F.normalize(teacher).t() / 0.2
    return F.cross_entropy(similar, torch.arange(len(labels)))


def correlation(student: Tensor, teacher: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Over the batch, per class."""
    own, wanted = student - student.mean(0), teacher - teacher.mean(0)
    return 1 - F.cosine_similarity(own, wanted, dim=0).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (hinton, relational, contrastive, correlation)
}  # fmt: skip
COUNTS = (12, 7, 3)
"""Images a batch: dealt out evenly, unevenly, and fewer than four workers."""


def steps(sharding: Sharding, loss: Callable[..., Tensor], count: int, mode: str = "sync") -> dict[str, Any]:
    """Take a few steps; return the losses and everything the network holds."""
    network, teacher = TinyNet(0), TinyNet(1).eval().requires_grad_(False)
    share_batchnorm(network, mode, sharding)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
    generator, losses = torch.Generator().manual_seed(2), []
    for _ in range(STEPS):
        images = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
        labels = torch.randint(4, (count,), generator=generator)
        rows = sharding.rows(images)
        features, logits = (sharding.gather(part, count) for part in network(rows))
        total = loss(logits, sharding.gather(teacher(rows)[1], count), features, labels)
        optimizer.zero_grad()
        total.backward()
        sharding.sum_gradients(network)
        optimizer.step()
        losses.append(total.item())
    if mode == "local":
        sharding.mean_buffers(network)
    return {"losses": losses, "state": {name: value.numpy().copy() for name, value in network.state_dict().items()}}


def epochs(sharding: Sharding) -> dict[str, Any]:
    """Run the real epoch loop on digits: two epochs of co-evolution with random policies, then validation."""
    settings = load_settings(
        "quickstart",
        ["data.train=50", "data.validation=40", "training.batch_size=16", "teacher.model=resnet8",
         "training.learning_rate=0.02", "distill.view_mode=independent", "training.precision=float32"],
    )  # fmt: skip
    data, space = open_training_data(settings.data, train=50), settings.search_space()
    learner = new_learner(settings, tuple(Role), num_classes=10, channels=1, device=torch.device("cpu"), key=0)
    for network in learner.networks.values():
        share_batchnorm(network, "sync", sharding)
    trainer = new_trainer(settings, data, space, torch.device("cpu"), None, sharding)
    policies = {role: some_policy(settings, role) for role in Role}
    losses = trainer.train(
        learner, lambda role, epoch: [(1.0, policies[role])], end_epoch=2, total_epochs=2, stream="a"
    )  # fmt: skip
    held_out = data.image_set.subset(data.validation)
    found = evaluate(
        learner.networks[Role.STUDENT], held_out.images, held_out.labels, trainer.views, dtype=torch.float32,
        sharding=sharding,
    )  # fmt: skip
    state = learner.networks[Role.STUDENT].state_dict()
    return {
        "losses": losses,
        "evaluation": found.to_dict(),
        "state": {name: value.numpy().copy() for name, value in state.items()},
    }


def all_cases(sharding: Sharding) -> dict[Any, Any]:
    cases: dict[Any, Any] = {
        (name, count): steps(sharding, loss, count) for name, loss in LOSSES.items() for count in COUNTS
    }
    cases |= {("local", count): steps(sharding, hinton, count, "local") for count in (12, 9)}
    cases["epochs"] = epochs(sharding)
    network = build_network("resnet8", num_classes=10, channels=1, seed=0)
    names, parameters = list(network.state_dict()), list(map(id, network.parameters()))
    share_batchnorm(network, "sync", sharding)
    cases["kept"] = names == list(network.state_dict()) and parameters == list(map(id, network.parameters()))
    cases["first"] = sharding.decided_by_first(lambda: {"rank": sharding.rank})
    return cases


def _worker(rank: int, workers: int, port: int, work: Callable[[Sharding], Any], answers: Any) -> None:
    torch.set_num_threads(1)
    # By name, for a host name need not be one that gloo can resolve
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    answers.put((rank, work(Sharding(rank, workers))))
    dist.barrier()
    dist.destroy_process_group()


def start_group(workers: int, work: Callable[[Sharding], Any]) -> tuple[list[Any], Any]:
    """Start a group of processes; return them and the queue that gets (rank, answer) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_worker, args=(rank, workers, port, work, answers)) for rank in range(workers)]
    for process in processes:
        process.start()
    return processes, answers


def in_group(workers: int, work: Callable[[Sharding], Any] = all_cases) -> list[Any]:
    """Return what all workers of a group find, by rank."""
    processes, answers = start_group(workers, work)
    found = dict(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    return [found[rank] for rank in range(workers)]
