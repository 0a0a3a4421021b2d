"""Networks of the roles."""

from typing import Annotated, Literal

from pydantic import PlainSerializer, PlainValidator

from rolekd_ray.config.base import Section
from rolekd_ray.storage import Place, place, places


def _one_or_several(where: object) -> Place | tuple[Place, ...]:
    """Read a checkpoint's place, or a list of them."""
    if not isinstance(where, list | tuple):
        return place(where)
    if not where:
        raise ValueError("expected a place or a list of at least one")
    return tuple(map(place, where))


def _as_text(where: Place | tuple[Place, ...]) -> str | list[str]:
    return list(map(str, where)) if isinstance(where, tuple) else str(where)


class NetworkSettings(Section):
    """One role's network."""

    model: str
    checkpoint: (
        Annotated[Place | tuple[Place, ...], PlainValidator(_one_or_several), PlainSerializer(_as_text)] | None
    ) = None
    """A trained network of this architecture; the role is then neither searched nor trained."""

    @property
    def checkpoints(self) -> tuple[Place, ...]:
        """Each place that `checkpoint` names."""
        return places(self.checkpoint)


class TeacherSettings(NetworkSettings):
    """The teacher's network. Several checkpoints teach as one, an ensemble; `model` then says nothing about them."""

    combine: Literal["probabilities", "logits"] = "probabilities"
    """What several checkpoints' answers become: the mean of their probabilities, or of their logits."""
