"""What `evaluate` measures beyond clean images: similarity to the teacher, attacks, boundaries, corruptions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rolekd_ray.data.corrupted import CorruptedSets, open_corrupted
from rolekd_ray.data.images import ImageSet
from rolekd_ray.errors import ConfigError, DataError
from rolekd_ray.models.layers import default_layers
from rolekd_ray.training.boundaries import boundary_similarity
from rolekd_ray.training.corruption_robustness import corrupted_accuracies, mean_accuracy, published_accuracies
from rolekd_ray.training.robustness import OnPixels, robust_accuracy, transferability
from rolekd_ray.training.similarity import layer_similarity
from rolekd_ray.training.views import Views

LayerPairs = Sequence[tuple[str, str]]
"""Names of a layer of the network and of one of its teacher."""
SEED = 0
"""Of attacks' starts and corruptions' draws: every network meets the same."""


@dataclass(frozen=True)
class RobustEvaluation:
    """Measures a network, and its teacher if there is one, on the first `limit` test images.

    Results, by name: `robust_images`, how many there were; with a teacher `cka` (pairs of layers and their linear CKA),
    `teacher_pgd_accuracy`, `transferability` and `transfer_attacks`, `boundary_magnitude`, `boundary_angle` and
    `boundary_pairs`; always `pgd_accuracy`, `corruptions` (accuracies by corruption and severity) and their mean,
    `corruption_accuracy`. A value is None where nothing counted.
    """

    network: nn.Module
    teacher: nn.Module | None
    test: ImageSet
    views: Views
    limit: int
    tell: Callable[[str], object]

    def metrics(self, *, everything: bool, corruptions: Path | None, layers: LayerPairs | None) -> dict[str, Any]:
        """Return all of it, or what a folder of corruptions and a list of layers ask for alone; cheap parts first.

        Raises:
            ConfigError: unknown layers, or layers and no teacher.
            DataError: the folder of corruptions is not one.
        """
        if not everything and corruptions is None and layers is None:
            return {}
        if layers is not None and self.teacher is None:
            raise ConfigError("layers: got no teacher to compare them with; expected one (--teacher)")
        sets = self._open(corruptions) if corruptions is not None else None
        results: dict[str, Any] = {"robust_images": len(self.labels)}
        if self.teacher is not None and (everything or layers is not None):
            self.tell("similarity of layers")
            results["cka"] = self._similarity(layers)
        if everything or sets is not None:
            results |= self._corruptions(sets)
        return results | (self._attacks() if everything else {})

    @property
    def images(self) -> Tensor:
        """(n, C, H, W) uint8."""
        return self.test.images[: self.limit]

    @property
    def labels(self) -> Tensor:
        """(n,) int64."""
        return self.test.labels[: self.limit]

    def _open(self, folder: Path) -> CorruptedSets:
        if self.test.channels != 3:
            raise DataError(f"{folder}: corrupted images have 3 channels; expected {self.test.channels}")
        return open_corrupted(folder, num_classes=self.test.num_classes, image_size=self.test.image_size)

    def _similarity(self, layers: LayerPairs | None) -> list[dict[str, Any]]:
        assert self.teacher is not None
        pairs = layers if layers is not None else stage_pairs(self.network, self.teacher)
        found = layer_similarity(self.network, self.teacher, self.views.clean(self.images), pairs)
        return [{"student": one, "teacher": other, "cka": value} for (one, other), value in zip(pairs, found)]

    def _corruptions(self, sets: CorruptedSets | None) -> dict[str, Any]:
        self.tell("corrupted images")
        if sets is not None:
            found = published_accuracies(self.network, sets, self.views, limit=self.limit)
        else:
            found = corrupted_accuracies(self.network, self.images, self.labels, self.views, seed=SEED)
        return {"corruptions": found, "corruption_accuracy": mean_accuracy(found)}

    def _attacks(self) -> dict[str, Any]:
        images, labels = self.images, self.labels
        network = self._on_pixels(self.network)
        self.tell("attacks by PGD")
        results: dict[str, Any] = {"pgd_accuracy": robust_accuracy(network, images, labels, seed=SEED)}
        if self.teacher is None:
            return results
        teacher = self._on_pixels(self.teacher)
        self.tell("attacks by PGD on the teacher")
        results["teacher_pgd_accuracy"] = robust_accuracy(teacher, images, labels, seed=SEED)
        transfer = transferability(teacher, network, images, labels, seed=SEED)
        results |= {"transferability": transfer.share, "transfer_attacks": transfer.attacks}
        self.tell("decision boundaries")
        found = boundary_similarity(teacher, network, images, labels)
        names = ("boundary_magnitude", "boundary_angle", "boundary_pairs")
        return results | dict(zip(names, (found.magnitude, found.angle, found.pairs)))

    def _on_pixels(self, network: nn.Module) -> OnPixels:
        return OnPixels(network, self.views.mean, self.views.std)


def stage_pairs(network: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """Return the stages of two networks, pairwise from the deep end; none where one of them names no stages."""
    ours, theirs = (default_layers(each) for each in (network, teacher))
    if ours is None or theirs is None:
        return []
    return list(zip(ours.stages[::-1], theirs.stages[::-1]))[::-1]
