"""Options and arguments that several verbs share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ExportFormat(StrEnum):
    """Formats that others read."""

    YAML = "yaml"
    PBA = "pba"
    TORCHVISION = "torchvision"
    RAY = "ray"


class ImportFormat(StrEnum):
    """Formats that others publish."""

    PBA = "pba"
    ROLEKD = "rolekd"
    RAY = "ray"


class Combine(StrEnum):
    """How several checkpoints answer as one."""

    PROBABILITIES = "probabilities"
    LOGITS = "logits"


class Variant(StrEnum):
    """How a schedule is replayed."""

    ORDERED = "ordered"
    FLATTENED = "flattened"
    LAST = "last"


Config = Annotated[
    str, typer.Option("--config", "-c", metavar="CONFIG", help="YAML file, or name of one that comes along.")
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as in search.epochs=30. Repeatable."),
]
Storage = Annotated[
    str, typer.Option(metavar="FOLDER", help="Folder of run directories; or an object store: s3://bucket/prefix.")
]
Name = Annotated[str | None, typer.Option(help="Name of the run; default: the time of the start.")]
Seed = Annotated[int | None, typer.Option(help="Run seed; the same as --set seed=N.")]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="PATH", help="Begin with the policies of a schedule file, or of a run's best."),
]
Local = Annotated[bool, typer.Option("--local", help="Everything in this process, without Ray.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: stdout.")]
Combined = Annotated[Combine | None, typer.Option(help="Of several checkpoints: which mean; default: probabilities.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or its address: s3://bucket/prefix/run.")]
