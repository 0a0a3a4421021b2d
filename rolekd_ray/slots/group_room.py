"""Room for a group's workers: what Ray can place now, and wishes for what it cannot."""

import time
from collections.abc import Callable

from ray._private.state import state as global_state
from ray._raylet import PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.runtime_context import get_runtime_context
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from rolekd_ray.config import SlotSettings

MORE_SECONDS = 2.0
"""So long a group waits for room for more workers than it needs; a node that died is given up in that time."""


class Room:
    """Finds out how many workers fit, by asking Ray for their resources, and gives these back to Ray Train.

    A group that has fewer workers than it could have leaves wishes with Ray: a cluster that can grow sees them, and
    `grown` tells when one has been fulfilled. (Ray Train's own elasticity asks a list of nodes that may be 20 s old,
    then waits a minute for a node that is gone, keeps a dead group's share for 180 s, and grows in the middle of an
    interval.)
    """

    def __init__(self, settings: SlotSettings):
        self.settings = settings
        self._wishes: list[PlacementGroup] = []

    def wait(self, stopping: Callable[[], bool]) -> int:
        """Return how many workers fit, once the fewest do; 0: `stopping`."""
        self.give_back()
        fewest, most = self.settings.fewest_workers, self.settings.most_workers
        asked = [self._ask(fewest)]  # all or none: slots that wait hold nothing
        try:
            while not _placed(asked[0]):
                if stopping():
                    return 0
                time.sleep(0.1)
            asked += [self._ask(1) for _ in range(most - fewest)]
            deadline = time.monotonic() + MORE_SECONDS
            while not all(map(_placed, asked)) and time.monotonic() < deadline:
                time.sleep(0.1)
            return fewest + sum(map(_placed, asked[1:]))
        finally:
            for group in reversed(asked):  # those in vain first, or they would take what the others leave
                remove_placement_group(group)

    def wish(self, workers: int) -> None:
        """Ask for what a group of so many workers lacks. Not before they are up: wishes would take their places."""
        self._wishes = [self._ask(1) for _ in range(self.settings.most_workers - workers)]

    def grown(self) -> bool:
        """Whether more workers fit than there are."""
        return any(map(_placed, self._wishes))

    def give_back(self) -> None:
        """Give back the wishes, and what groups had reserved whose process in Ray Train is dead.

        Ray would do so at the end of the job. It notes who made a placement group, but has no public way to ask.
        """
        self._wishes = []
        here = get_runtime_context()
        for text in global_state._connect_and_get_accessor().get_placement_group_table():
            entry = PlacementGroupTableData.FromString(text)
            if entry.creator_job_id.hex() != here.get_job_id() or entry.state == PlacementGroupTableData.REMOVED:
                continue
            maker = entry.creator_actor_id.hex()
            of_actor = set(maker) != {"f"}  # those of the driver name none, and pass for a dead actor's
            if of_actor and not entry.is_detached and (entry.creator_actor_dead or maker == here.get_actor_id()):
                remove_placement_group(PlacementGroup(PlacementGroupID(entry.placement_group_id)))

    def _ask(self, workers: int) -> PlacementGroup:
        return placement_group([bundle(self.settings)] * workers)


def bundle(settings: SlotSettings) -> dict[str, float]:
    """Return what one worker takes, in Ray's words."""
    each = settings.resources_per_worker
    return {"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {})


def _placed(group: PlacementGroup) -> bool:
    return placement_group_table(group).get("state") == "CREATED"
