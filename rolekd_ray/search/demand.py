"""What a search asks of a cluster that grows by itself: room for the slots it could use."""

import logging

from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from rolekd_ray.config import SlotSettings
from rolekd_ray.search.cluster import is_private

log = logging.getLogger(__name__)

HOLD = 2
"""So many times in a row the same is asked for, or an autoscaler that looks as often might never see it."""


class Demand:
    """Asks the autoscaler for room for workers; on a private Ray nothing, for nobody would hear it.

    A cluster has one request, which stays until another overwrites it: a killed driver's until the next search starts
    or ends, and of two searches the later one's. On a cluster that ever had a worker group, Ray Train's own coordinator
    overwrites it too, every 20 s. Hence it is made again and again.

    Args:
        settings: what a worker takes.
        most: workers that the search could use.
    """

    def __init__(self, settings: SlotSettings, most: int):
        each = settings.resources_per_worker
        self._worker = {"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {})
        self._most = most
        self._asked = 0

    def ask(self, fitting: int) -> None:
        """Ask for `most`, of which `fitting` would fit on the nodes of now; to be called every few seconds.

        Ray's second autoscaler brings all that is asked for or, if its limits forbid that, no node at all, and says
        neither. So what is lacking is asked for in turn whole, by half, by a quarter, and so on.
        """
        lacking = max(0, self._most - fitting)
        step = self._asked // HOLD % max(1, lacking.bit_length())
        self._asked += 1
        self._request(self._most - lacking + (lacking >> step))

    def let_go(self) -> None:
        """Ask for nothing any more; nodes then go when they have been idle for long enough."""
        if self._asked:
            self._request(0)

    def _request(self, workers: int) -> None:
        if is_private():
            return
        try:
            request_resources(bundles=[self._worker] * workers)
        except RayError as error:  # slots that are up go on without
            log.warning("cannot ask the cluster for more nodes: %s", error)
