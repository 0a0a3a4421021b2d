"""What every verb says: results on stdout, progress on stderr, text as it is."""

import sys
from pathlib import Path
from typing import NoReturn

from rich.console import Console

out, progress = Console(), Console(stderr=True)


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: paths neither wrapped nor read as markup."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def stopped(go_on: str) -> NoReturn:
    """Say what goes on after Ctrl-C, and end."""
    say(progress, f"\nstopped; nothing but the intervals under way is lost. Go on:\n{go_on}")
    sys.exit(130)


def write(text: str, output: Path | None) -> None:
    """Write a result to a file, or to stdout if there is none."""
    from rolekd_ray.files import write_atomically

    if output is None:
        sys.stdout.write(text)
        return
    write_atomically(output, text)
    say(progress, f"wrote {output}")
