"""One run of Ray Train, on as many workers as there is room for; ends when one of them dies or all have left."""

from typing import Any
from uuid import uuid4

from ray.exceptions import RayError
from ray.train import TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

# What ray.train exports; type checkers cannot tell
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

from rolekd_ray.config import SlotSettings
from rolekd_ray.errors import WorkersLostError
from rolekd_ray.slots.group_room import bundle
from rolekd_ray.slots.group_worker import serve
from rolekd_ray.storage import Place, for_ray

UNUSED = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


class Trainer(TorchTrainer):
    """Ray Train without the processes it starts for what a slot does not use: they take seconds on the way back.

    Its cleaner would give back what a dead group had reserved, but asks the dashboard who is alive; a private Ray has
    none, and the cleaner then stays for ever. See `Room`.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in made if type(callback).__name__ not in UNUSED]


def run_group(config: dict[str, Any], settings: SlotSettings, workers: int, storage: Place) -> None:
    """Have `serve(config)` run in so many workers; return when all of them have.

    Raises:
        WorkersLostError: a worker or Ray Train's own process died, or they did not come up; all of them are gone.
    """
    trainer = Trainer(
        serve,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=settings.resources_per_worker.gpus > 0,
            resources_per_worker=bundle(settings),
            placement_strategy="PACK",
        ),
        torch_config=TorchConfig(backend="nccl" if settings.resources_per_worker.gpus else "gloo"),
        run_config=RunConfig(  # type: ignore[arg-type]
            # Ray Train goes on with a run of the same name; a new group must not
            name=f"{config['owner']}-{uuid4().hex[:8]}",
            **for_ray(storage),
            # The owner begins anew, for there may be room for fewer workers, or more
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        trainer.fit()
    except (TrainingFailedError, RayError) as error:
        raise WorkersLostError(f"{workers} workers: {str(error)[:500]}") from error
