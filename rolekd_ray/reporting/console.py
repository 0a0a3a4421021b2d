"""What a person sees while a search runs: a bar, one line per generation, one per exploit. Goes to stderr."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rolekd_ray.policy.explorers import PROPOSED
from rolekd_ray.policy.jobs import Job, Perturbation
from rolekd_ray.policy.lineage import effective_lineages
from rolekd_ray.policy.population import Population
from rolekd_ray.reporting.generations import EndedGenerations
from rolekd_ray.reporting.tables import intervals


class SearchProgress:
    """A bar that counts intervals; ended generations, exploits and drops are printed above it.

    Args:
        console: where to draw; on anything but a terminal only the lines appear.
        title: what is searched.
    """

    def __init__(self, console: Console, title: str):
        self.console, self.title = console, title
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("intervals · best {task.fields[best]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=None, best="–")
        self.new = False
        self.best = 0.0
        self.ended = EndedGenerations()

    def scored(self, job: Job, record: Mapping[str, Any], population: Population) -> None:
        """Advance the bar; print what a generation came to."""
        self.best = max(self.best, record["score"])
        done, total = intervals(population)
        self.bar.update(self.task, completed=done, total=total, best=f"{self.best:.4f}")
        self._print_generations(population)

    def perturbed(self, perturbation: Perturbation, population: Population) -> None:
        """Print the exploit, unless it is of the past."""
        if self.new:
            found, epoch = perturbation, population.ends[perturbation.generation]
            score = "failed" if found.recipient_score is None else f"{found.recipient_score:.4f}"
            self.console.print(
                f"  epoch {epoch:>3}  member {found.recipient:>2} ({score}) copies "
                f"member {found.donor:>2} ({found.donor_score:.4f}) and "
                + ("takes what was proposed" if population.rule.explorer in PROPOSED else "mutates"),
                highlight=False,
                soft_wrap=True,
            )

    def dropped(self, record: Mapping[str, Any], population: Population) -> None:
        """Print who failed or was given up, and why; and generations that waited for this member alone."""
        if self.new:
            reason = escape(record["reason"])  # shapes and paths in brackets are no markup
            what = "failed" if record["kind"] == "fail" and record["member"] in population.live else "dropped"
            self.console.print(
                f"  [red]member {record['member']} {what}:[/red] {reason}", highlight=False, soft_wrap=True
            )
        self._print_generations(population)

    def _print_generations(self, population: Population) -> None:
        for generation in self.ended.new(population):
            if self.new:
                best = max(population.scores[generation].values())
                lineages, size = effective_lineages(population, generation), population.rule.population_size
                self.console.print(
                    f"  epoch {population.ends[generation]:>3}  best {best:.4f}, {lineages} of {size} lineages alive",
                    highlight=False,
                    soft_wrap=True,
                )

    def caught_up(self, population: Population) -> None:
        """Show the bar."""
        self.new = True
        rule = population.rule
        done, total = intervals(population)
        self.console.print(
            f"[bold]{self.title}[/bold]: {len(population.live)} members x {population.epochs} epochs, "
            f"a decision every {rule.interval_epochs}" + (f"; {done} intervals done before" if done else ""),
            highlight=False,
            soft_wrap=True,
        )
        self.bar.update(self.task, completed=done, total=total)
        self.bar.start()

    def close(self) -> None:
        """Remove the bar."""
        self.bar.stop()
