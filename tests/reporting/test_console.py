"""What a person sees: one line per exploit, nothing of the past, nothing torn by markup."""

import re
from io import StringIO

import pytest
from made_searches import made_rule, play
from rich.console import Console

from rolekd_ray.policy.lineage import effective_lineages
from rolekd_ray.reporting.console import SearchProgress
from rolekd_ray.search.ledger import Ledger


def watched(folder, console=None, **overrides):
    """A ledger, its progress, and what was printed so far."""
    text = StringIO()
    console = console or Console(file=text, width=80)
    assert not console.is_terminal
    progress = SearchProgress(console, "search: student")
    return Ledger(folder, made_rule(**overrides), [progress]), progress, text


def test_one_line_per_exploit_with_who_copies_whom(tmp_path):
    ledger, _, text = watched(tmp_path, population_size=12)
    play(ledger)
    ledger.close()
    first, *lines = text.getvalue().strip("\n").split("\n")
    assert first == "search: student: 12 members x 10 epochs, a decision every 3"
    lines = [line for line in lines if not line.endswith("alive")]
    pattern = r"  epoch +(\d+)  member +(\d+) \((0\.\d{4})\) copies member +(\d+) \((0\.\d{4})\) and mutates"
    assert all(len(line) <= 80 for line in lines)
    found = [re.fullmatch(pattern, line).groups() for line in lines]
    population = ledger.population
    copies = [job for job in population.jobs.values() if job.donor not in (None, job.member)]
    assert len(found) == len(copies) == 9
    expected = {
        (
            str(job.start_epoch),
            str(job.member),
            f"{population.scores[job.generation - 1][job.member]:.4f}",
            str(job.donor),
            f"{population.scores[job.generation - 1][job.donor]:.4f}",
        )
        for job in copies
    }
    assert set(found) == expected


def test_one_line_per_generation_says_how_many_lineages_are_left(tmp_path):
    ledger, _, text = watched(tmp_path, population_size=12)
    play(ledger, 40)
    ledger.drop(11, "fire")  # which the last but one generation waited for
    play(ledger)
    ledger.close()
    population = ledger.population
    assert re.findall(r"^  epoch +(\d+)  best (0\.\d{4}), (\d+) of 12 lineages alive$", text.getvalue(), re.M) == [
        (str(end), f"{max(scores.values()):.4f}", str(effective_lineages(population, generation)))
        for (generation, scores), end in zip(sorted(population.scores.items()), (3, 6, 9, 10), strict=True)
    ]
    assert effective_lineages(population, 0) == 12 > effective_lineages(population, 3)


@pytest.mark.parametrize("explorer, words", [("factor", "and mutates"), ("optuna", "and takes what was proposed")])
def test_an_exploit_says_what_follows_it(tmp_path, explorer, words):
    ledger, _, text = watched(tmp_path, explorer=explorer)
    play(ledger, 8)
    ledger.close()
    copies = [line for line in text.getvalue().splitlines() if "copies" in line]
    assert len(copies) == 2 and all(line.endswith(words) for line in copies)


def test_nothing_of_the_past_is_printed(tmp_path):
    ledger, _, text = watched(tmp_path)
    play(ledger, 12)
    ledger.drop(7, "fire")
    ledger.close()
    assert text.getvalue().count("copies") == 2 and text.getvalue().count("dropped") == 1
    ledger, progress, text = watched(tmp_path)
    assert text.getvalue() == ("search: student: 7 members x 10 epochs, a decision every 3; 12 intervals done before\n")
    assert (progress.bar.tasks[0].completed, progress.bar.tasks[0].total) == (12, 7 * 4 + 1)
    play(ledger, 3)
    assert text.getvalue().count("copies") == 2
    ledger.close()


def test_the_bar_counts_intervals_up_to_the_last(tmp_path):
    ledger, progress, _ = watched(tmp_path, population_size=4)
    task = progress.bar.tasks[0]
    assert (task.completed, task.total) == (0, 16)
    play(ledger, 5)
    assert (task.completed, task.total) == (5, 16)
    assert task.fields["best"] == f"{max(s for g in ledger.population.scores.values() for s in g.values()):.4f}"
    ledger.drop(0, "fire")  # it has done two
    play(ledger)
    assert (task.completed, task.total) == (14, 14)
    ledger.close()


def test_reasons_are_printed_as_they_are(tmp_path):
    ledger, _, text = watched(tmp_path)
    reason = "RuntimeError: shape [batch, classes] of [/some/folder] is wrong [red]"
    ledger.drop(3, reason)
    ledger.close()
    assert f"member 3 dropped: {reason}" in " ".join(text.getvalue().split())


def test_a_failure_and_the_copy_that_follows_are_told(tmp_path):
    ledger, _, text = watched(tmp_path)
    ledger.fail(ledger.population.ask(3), "000 burnt")
    play(ledger, 7)
    donor = ledger.population.jobs[3, 1].donor
    ledger.close()
    assert "member 3 failed: 000 burnt" in text.getvalue()
    assert f"member  3 (failed) copies member {donor:>2} (" in text.getvalue()


def test_a_terminal_shows_the_bar_while_it_runs(tmp_path):
    text = StringIO()
    progress = SearchProgress(Console(file=text, width=100, force_terminal=True), "search: student")
    ledger = Ledger(tmp_path, made_rule(), [progress])
    assert not progress.bar.finished
    play(ledger)
    progress.bar.refresh()
    ledger.close()
    assert "32/32 intervals" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert not progress.bar.live.is_started
