"""A member as a Tune trial: a light proxy that asks for one interval per step. Its process never imports torch."""

from typing import Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory

NAMESPACE = "rolekd_ray"
MEMBER_BYTES = 120 * 2**20
"""What a proxy's process takes, about."""


class Member(tune.Trainable):
    """Each `step` waits until this member's next interval is decided and trained, and reports it as a row.

    The member's state lies in files that slots read and write, so a proxy that dies is replaced without loss and there
    is nothing for Tune to checkpoint.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """Reserve memory and no CPU: a proxy only waits, and slots may take every CPU there is."""
        return PlacementGroupFactory([{"CPU": 0, "memory": MEMBER_BYTES}])

    def setup(self, config: dict[str, Any]) -> None:
        """Find the dispatcher."""
        self.member: int = config["member"]
        self.dispatcher = ray.get_actor(config["dispatcher"], namespace=NAMESPACE)
        self.generation = -1

    def step(self) -> dict[str, Any]:
        """Return the row of the next interval; a row with `done` when there is none."""
        outcome: Any = ray.get(self.dispatcher.interval.remote(self.member, self.generation))
        if outcome is None:  # the goal is reached, or the search stops
            return {"member": self.member, "done": True}
        self.generation = outcome["generation"]
        if "failed" in outcome:
            return {"member": self.member, **outcome, "training_iteration": self.generation + 1}
        # Tune copies `self.config` into the row: it shows the policies of this very interval
        self.config = {**self.config, "policies": outcome["policies"]}
        # A new proxy would count from 1 again; members count generations
        return {"member": self.member, **outcome, "training_iteration": self.generation + 1}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save; see the class."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load; see the class."""
