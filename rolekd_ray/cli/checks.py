"""Verbs that change nothing: check and doctor."""

from typing import Annotated

import typer

from rolekd_ray.cli.console import out, say
from rolekd_ray.cli.inputs import read_settings
from rolekd_ray.cli.options import (
    Overrides,
    Storage,
)
from rolekd_ray.errors import ConfigError, RolekdError
from rolekd_ray.storage import place


def check(
    file: Annotated[str | None, typer.Argument(help="YAML file, or name of one that comes along.")] = None,
    overrides: Overrides = [],  # noqa: B006
    layers: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Instead: the layers of a network that losses can name.")
    ] = None,
    methods: Annotated[bool, typer.Option("--methods", help="Instead: what distill.losses may name.")] = False,
) -> None:
    """Parse a configuration, print what it means; touches nothing."""
    if methods:
        if file is not None or overrides or layers is not None:
            raise ConfigError("--methods: got other arguments beside it; expected none")
        _show_methods()
        return
    if layers is not None:
        if file is not None or overrides:
            raise ConfigError("--layers: got a configuration or --set beside it; expected the network's name alone")
        _show_layers(layers)
        return
    if file is None:
        raise ConfigError("check: got nothing; expected a configuration, --layers and a network's name, or --methods")
    from rolekd_ray.config import settings_text

    settings = read_settings(file, overrides, None)

    from rolekd_ray.search.preflight import check_names, check_search, cost

    check_names(settings)
    check_search(settings)
    say(out, f"{settings_text(settings)}# {cost(settings)}")


def doctor(
    storage: Storage = "runs",
    cluster: Annotated[bool, typer.Option("--cluster", help="Every node of the cluster RAY_ADDRESS names.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="With --cluster: wait until so many have joined.")] = 1,
) -> None:
    """What this machine or cluster can do, and what is missing."""
    if cluster:
        from rolekd_ray.search.cluster_doctor import examine_cluster

        table, problems = examine_cluster(place(storage), nodes)
        out.print(table)
        if problems:
            raise RolekdError("\n".join(problems))
        return

    from rolekd_ray.search.doctor import examine

    table, healthy = examine(place(storage))
    out.print(table)
    raise typer.Exit(0 if healthy else 1)


def _show_methods() -> None:
    from rolekd_ray.distill.registry import known_methods
    from rolekd_ray.reporting.tables import methods_table

    out.print(methods_table(known_methods().values()))


def _show_layers(model: str) -> None:
    from rolekd_ray.models import build_network, default_layers, layer_table
    from rolekd_ray.reporting.tables import layers_table

    network = build_network(model, num_classes=10, channels=3, seed=0)
    try:
        size = 32
        rows = layer_table(network, 3, (size, size))
    except ConfigError:  # made for larger images
        size = 224
        rows = layer_table(network, 3, (size, size))
    out.print(layers_table(f"{model}: 10 classes, 3x{size}x{size}", rows))
    if defaults := default_layers(network):
        say(out, f"stages: {', '.join(defaults.stages)}; embedding: {defaults.embedding}")
    else:
        say(out, "no defaults: methods of features need distill.layers")
