"""Where images come from, and under which conditions."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from rolekd_ray.config.base import Count, Fraction, Positive, Section


class NoiseSettings(Section):
    """Label noise, of training labels alone; see `data.noise.noisy_labels`."""

    kind: Literal["symmetric", "symmetric_other", "pair_flip"]
    """`symmetric`: one of all classes, the true one included. `symmetric_other`: one of the others. `pair_flip`: the
    next class."""
    rate: Fraction
    """Chance of a label to be replaced; of `symmetric` one in K is replaced by itself."""
    seed: int = 0
    """Independent of the run's."""


class _ImbalanceSettings(Section):
    kind: str
    n_max: Count | None = None
    """Images of the first class; None: as many as the smallest class has beside the held-out ones."""
    images: Literal["first", "random"] = "first"
    """Which ones of a class stay: the first of the file, or random ones."""
    seed: int = 0
    """Of `random`; independent of the run's."""


class PowerLawSettings(_ImbalanceSettings):
    """Class imbalance by a power law; see `data.imbalance.power_law_counts`."""

    kind: Literal["power_law"]
    gamma: Positive
    """Smaller falls more steeply."""
    n_min: Count
    """Images of the last class."""

    @field_validator("n_min")
    @classmethod
    def _not_above_n_max(cls, n_min: int, info: ValidationInfo) -> int:
        n_max = info.data.get("n_max")
        if n_max is not None and n_min > n_max:
            raise ValueError(f"expected at most n_max, {n_max}")
        return n_min


class ExponentialSettings(_ImbalanceSettings):
    """Class imbalance by a long tail; see `data.imbalance.exponential_counts`."""

    kind: Literal["exponential"]
    ratio: Annotated[float, Field(ge=1)]
    """First class to last."""


# A location of pydantic's names the kind of such a section after its key
KINDS: dict[str, type[Section]] = {"power_law": PowerLawSettings, "exponential": ExponentialSettings}


class DataSettings(Section):
    """Where images come from and how they are split."""

    source: Literal["digits", "cifar10", "cifar100", "svhn", "fashion_mnist", "parquet", "image_folder"] = "digits"
    path: Path | None = None
    """Folder of the dataset. Not used by `digits`."""
    download: bool = False
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Resize to this many pixels a side; None: images must be of one size."""
    train: Count | None = None
    """Training images during the search; None: all that are not held out."""
    validation: Count = 400
    """Images held out from teacher, initial weights and student; they alone decide the search."""
    split_seed: int = 0
    noise: NoiseSettings | None = None
    """Wrong training labels; validation and test stay clean."""
    imbalance: Annotated[PowerLawSettings | ExponentialSettings, Field(discriminator="kind")] | None = None
    """Fewer training images of later classes; validation and test stay as they are."""
