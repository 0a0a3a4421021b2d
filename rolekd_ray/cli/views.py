"""The verb views: pictures of what the agents make of images."""

from typing import Annotated

import typer

from rolekd_ray.cli.console import out, progress, say
from rolekd_ray.cli.options import Overrides
from rolekd_ray.errors import ConfigError
from rolekd_ray.roles import Role
from rolekd_ray.storage import place


def views(
    what: Annotated[
        str,
        typer.Argument(help="A run, a member's state in one, a finished network's checkpoint, or a configuration."),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The picture, a .png.")],
    agents: Annotated[
        str | None, typer.Option(metavar="CHAIN", help="Instead of the roles' own, as policy+cutmix.")
    ] = None,
    role: Annotated[Role | None, typer.Option(help="Whose chain --agents is; default: both roles'.")] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="FILE", help="Instead of the policies that belong to it.")
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(min=0, help="The first one shown; default: so that the last one is.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Rows.")] = 8,
    draws: Annotated[int, typer.Option(min=1, help="Epochs per role.")] = 3,
    tensorboard: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Also to TensorBoard; default: a run's own folder.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Real images beside the views that each role's agents make of them."""
    if not output.lower().endswith(".png"):
        raise ConfigError(f"--output: got {output!r}; expected a name that ends with .png")

    from rolekd_ray.policy.schedule import load_schedule
    from rolekd_ray.search.pictures import draw_views

    with progress.status("drawing"):
        written = draw_views(
            what,
            place(output),
            agents=agents,
            role=role,
            schedule=load_schedule(schedule) if schedule is not None else None,
            epoch=epoch,
            images=images,
            draws=draws,
            tensorboard=place(tensorboard) if tensorboard is not None else None,
            overrides=overrides,
        )
    for where, kind in zip(written, ("picture", "tensorboard")):
        say(out, f"{kind + ':':<13}{where}")
