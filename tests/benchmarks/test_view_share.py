"""What making two augmented views costs of a distillation step; `python tests/benchmarks/test_view_share.py`.

resnet56 teaches resnet20 on 64 photographs a step, each role with its own random policy of PBA's space, then crop, flip
and Cutout. The share is measured inside real epochs of four steps; beside it the same views alone, twice (A/A).
"""

import statistics
import time
from dataclasses import replace

import pytest
from step_arms import BATCH, STUDENT, TEACHER, head, policies_of_round, step_data, step_settings, table, timed, training
from test_augment_speed import quartiles

from rolekd_ray.roles import Role
from rolekd_ray.training.views import Views

ROUNDS, STEPS, MOST = 9, 4, 0.05
STEP, ALONE = "epoch of four steps", "its views alone"

pytestmark = pytest.mark.benchmark


class TimedViews(Views):
    """Adds up the CPU seconds that views take, the agents' making included."""

    seconds, made = 0.0, 0

    def agent(self, policies):
        started = time.process_time()
        made = super().agent(policies)
        self.seconds += time.process_time() - started
        return made

    def view(self, *args, **key):
        started = time.process_time()
        view = super().view(*args, **key)
        self.seconds += time.process_time() - started
        self.made += 1
        return view


def report(rounds: int = ROUNDS) -> float:
    """Print the table; return the median share of views in a step."""
    settings = step_settings()
    data, origin = step_data(STEPS)
    plain, learner = training(settings, data)
    views = TimedViews(settings.base_augmentation, settings.search_space(), *data.statistics, seed=settings.seed)
    trainer = replace(plain, views=views)
    inside: list[float] = []

    def epoch(number: int) -> None:
        policies = policies_of_round(settings, number)
        learner.epoch, views.seconds, views.made = number, 0.0, 0
        trainer.train(
            learner,
            lambda role, e: [(1.0, policies[role])],
            end_epoch=number + 1,
            total_epochs=10**9,
            stream="benchmark",
        )
        assert views.made == 2 * STEPS, "each step makes two views"
        inside.append(views.seconds)

    def alone(number: int) -> None:
        policies = policies_of_round(settings, number)
        for role in Role:
            agent = plain.views.agent([(1.0, policies[role])])
            for places in data.train.split(BATCH):
                plain.views.view(agent, plain.images[places], places, role=role, epoch=number)

    seconds = timed({STEP: epoch, ALONE: alone, f"{ALONE} again": alone}, rounds)
    head(f"views: {TEACHER} teaches {STUDENT}, {BATCH} {origin} a step, {trainer.dtype}", rounds)
    table(seconds, STEP, per=STEPS)
    control = quartiles([a / b for a, b in zip(seconds[ALONE], seconds[f"{ALONE} again"])])
    print(f"A/A control, views alone: {control[1]:.3f}, quartiles {control[0]:.3f} - {control[2]:.3f}")
    low, share, high = quartiles([part / whole for part, whole in zip(inside[1:], seconds[STEP])])
    speed = 2 * STEPS * BATCH / statistics.median(inside[1:])
    print(f"share of two views in a step: {share:.2%}, quartiles {low:.2%} - {high:.2%}; {speed:,.0f} views/CPU-s")
    return share


def test_two_views_are_less_than_a_twentieth_of_a_step(capsys):
    with capsys.disabled():
        share = report()
    assert share < MOST


if __name__ == "__main__":
    report()
