"""TensorBoard curves of a search, one line per member; and pictures."""

import io
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from rolekd_ray.files import delete_tree, write_atomically
from rolekd_ray.policy.jobs import Job, Perturbation
from rolekd_ray.policy.lineage import effective_lineages
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.reporting.generations import EndedGenerations
from rolekd_ray.reporting.pictures import png
from rolekd_ray.storage import ObjectPath, Place

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents.0"
PICTURES = "views"
"""Folder of pictures beside the members'. A search that is opened anew deletes it with the rest."""
UPLOAD_SECONDS = 60


class TensorBoard:
    """Writes `tensorboard/member-<n>/`: metrics, donor and each op's setting over epochs.

    `tensorboard/population/` has `lineages`: how many members of generation 0 have descendants.

    Derived from the log: the folder is made anew whenever a search is opened, so curves have no doubled points.
    An object store gets copies of what is written to a local folder: every `UPLOAD_SECONDS`, and on close.

    Written here and now, an interval at a time: SummaryWriter has a thread per member, which prints a traceback of its
    own when a disk refuses.
    """

    def __init__(self, folder: Place):
        self.folder = folder / FOLDER
        delete_tree(self.folder)
        self._aside = tempfile.TemporaryDirectory(prefix="rolekd-") if isinstance(self.folder, ObjectPath) else None
        self._local = Path(str(self.folder) if self._aside is None else self._aside.name)
        self._uploaded = time.monotonic()
        self._changed: set[Path] = set()
        self._ended = EndedGenerations()

    def scored(self, job: Job, record: Mapping[str, Any], population: Population) -> None:
        """Add one point per tag."""
        values = dict(record["metrics"]) | {"donor": -1 if job.donor is None else job.donor}
        for role, policy in job.policies.items():
            values |= policy_scalars(str(role), policy, population.rule.space)
        self._add(f"member-{job.member:03d}", job.end_epoch, record["time"], values)
        self._add_generations(record["time"], population)
        if time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            self._upload()

    def perturbed(self, perturbation: Perturbation, population: Population) -> None:
        """Nothing to do: the donor is a curve."""

    def dropped(self, record: Mapping[str, Any], population: Population) -> None:
        """Finish generations that waited for this member alone; its curve has a gap, or ends."""
        self._add_generations(record["time"], population)

    def caught_up(self, population: Population) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Upload what is new."""
        self._upload()
        if self._aside is not None:
            self._aside.cleanup()

    def _add_generations(self, when: float, population: Population) -> None:
        for generation in self._ended.new(population):
            lineages = effective_lineages(population, generation)
            self._add("population", population.ends[generation], when, {"lineages": lineages})

    def _add(self, name: str, epoch: int, when: float, values: Mapping[str, Any]) -> None:
        """Append to the file of a curve; opened each time, for there may be more members than descriptors."""
        points = [Summary.Value(tag=tag, simple_value=v) for tag, v in values.items() if isinstance(v, int | float)]
        event = Event(step=epoch, wall_time=when, summary=Summary(value=points))
        file = self._local / name / EVENTS
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab") as opened:
            if not opened.tell():
                RecordWriter(opened).write(Event(file_version="brain.Event:2").SerializeToString())
            RecordWriter(opened).write(event.SerializeToString())
        self._changed.add(file)

    def _upload(self) -> None:
        """Copy the files that changed; each whole, for objects cannot grow."""
        self._uploaded = time.monotonic()
        while self._changed:
            file = self._changed.pop()
            if isinstance(self.folder, ObjectPath):
                (self.folder / file.parent.name / file.name).write_bytes(file.read_bytes())


def add_pictures(folder: Place, pictures: Mapping[str, Image.Image], *, step: int) -> None:
    """Add pictures to a folder that TensorBoard reads, by tag, in an event file of their own.

    Raises:
        StorageError: it cannot be written.
    """
    now = time.time()
    values = [
        Summary.Value(
            tag=tag,
            image=Summary.Image(
                width=picture.width, height=picture.height, colorspace=3, encoded_image_string=png(picture)
            ),
        )
        for tag, picture in pictures.items()
    ]
    content = io.BytesIO()
    for event in (
        Event(wall_time=now, file_version="brain.Event:2"),
        Event(wall_time=now, step=step, summary=Summary(value=values)),
    ):
        RecordWriter(content).write(event.SerializeToString())
    # Objects cannot grow, so one per call; the names' order is that of time, in which TensorBoard reads them
    write_atomically(folder / f"{EVENTS}.{time.time_ns()}", content.getvalue())


def policy_scalars(role: str, policy: Any, space: SearchSpace) -> dict[str, float]:
    """Return a policy as numbers by tag: scalars, choices, and probability and strength per op.

    A choice is the place of its value in the space's list, from 0. `probability` is summed over copies,
    `magnitude_bin` is the mean weighted by probability.
    """
    values: dict[str, float] = {f"{role}/{name}": value for name, value in policy.scalars.items()}
    for choice in space.choices:
        if choice.role == role and choice.name in policy.choices:
            values[f"{role}/{choice.name}"] = choice.values.index(policy.choices[choice.name])
    for op in space.ops:
        settings = [setting for setting in policy.settings if setting.op == op.name]
        chances = [space.probability(setting.probability_bin) for setting in settings]
        total = sum(chances)
        values[f"{role}/policy/{op.name}/probability"] = total
        if total:
            bins = (chance * setting.magnitude_bin for chance, setting in zip(chances, settings))
            values[f"{role}/policy/{op.name}/magnitude_bin"] = sum(bins) / total
    return values
