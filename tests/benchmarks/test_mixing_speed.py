"""How fast batches are mixed, against torchvision and kornia; `python tests/benchmarks/test_mixing_speed.py`.

Ours draws, applies and makes the soft labels, a partner and a share or box per sample; partners' views are given, which
in a training cost as much as the batch's own. Beside it ours with partners taken from the batch, as the others do.
torchvision's MixUp and CutMix (with soft labels) have one share or box for the batch and the next image as partner;
per sample, they are called for each pair of images. kornia's have a share or box per sample and labels as columns.
"""

import warnings
from collections.abc import Callable

import pytest
import torch
from step_arms import head, table, timed
from torch import Tensor
from torchvision.transforms import v2

from rolekd_ray.augment.cutmix import Cutmix
from rolekd_ray.augment.mixing import Mixing, mixed_targets
from rolekd_ray.augment.mixup import Mixup
from rolekd_ray.roles import Role

BATCH, POOL, CLASSES, ROUNDS, CALLS = 256, 45_000, 10, 60, 10
OURS = "ours, per sample"

pytestmark = pytest.mark.benchmark


def kornia_agents() -> dict[str, torch.nn.Module]:
    kornia = pytest.importorskip("kornia.augmentation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "mixup": kornia.RandomMixUpV2(data_keys=["input", "class"]),
            "cutmix": kornia.RandomCutMixV2(data_keys=["input", "class"], use_correct_lambda=True),
        }


def arms(name: str) -> dict[str, Callable[[int], object]]:
    """Return what is compared for one agent, on the same batch."""
    generator = torch.Generator().manual_seed(0)
    views, given = (torch.randn(BATCH, 3, 32, 32, generator=generator) for _ in range(2))
    pool, at = torch.arange(POOL), torch.arange(BATCH)
    batch = torch.randperm(POOL, generator=generator)[:BATCH]
    labels = torch.randint(CLASSES, (POOL,), generator=generator)
    labels_of_batch = labels[batch]
    own: Mixing = Mixup() if name == "mixup" else Cutmix()
    torchvision = (v2.MixUp if name == "mixup" else v2.CutMix)(num_classes=CLASSES)
    kornia = kornia_agents()[name]

    def ours(number: int, partners: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mix = own.draw(batch, at, pool=pool, size=(32, 32), seed=1, role=Role.STUDENT, epoch=number)
        mixed = own.apply(views, given if partners is None else views.index_select(0, mix.partners % BATCH), mix)
        return mixed, mixed_targets(labels, batch, mix, CLASSES)

    def pairs(number: int) -> list:
        return [torchvision(v, t) for v, t in zip(views.split(2), labels_of_batch.split(2))]

    compared = {
        OURS: ours,
        "ours, partners gathered from the batch": lambda number: ours(number, views),
        "torchvision, one for the batch": lambda number: torchvision(views, labels_of_batch),
        "torchvision, a call per pair": pairs,
        "kornia, per sample": lambda number: kornia(views, labels_of_batch),
        "ours again (A/A)": ours,
    }
    return {arm: repeated(call, 1 if call is pairs else CALLS) for arm, call in compared.items()}


def repeated(call: Callable[[int], object], times: int) -> Callable[[int], object]:
    def run(number: int) -> None:
        for _ in range(times):
            call(number)

    return run


def report(name: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Print the table; return how many times as fast as ours each arm is."""
    seconds = timed(arms(name), rounds)
    pairs = "torchvision, a call per pair"
    seconds[pairs] = [CALLS * spent for spent in seconds[pairs]]  # called once: it takes long
    head(f"{name}: {BATCH} images of 3 x 32 x 32 float32, {CALLS} calls a round", rounds)
    return table(seconds, OURS, per=CALLS)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_is_no_slower_than_the_fastest_other(name, capsys):
    """For a quiet machine: other processes slow memory, and ours reads the partners' views beside the batch's."""
    with capsys.disabled():
        ratios = report(name)
    assert max(ratio for arm, ratio in ratios.items() if not arm.startswith("ours")) <= 1


if __name__ == "__main__":
    for agent in ("mixup", "cutmix"):
        report(agent)
