"""What the tests of trainings share: small settings on real digits, comparing trees, dying on purpose."""

import os
import random
import signal
from collections.abc import Callable, Iterable
from typing import Any

import torch

from rolekd_ray.config import Settings, load_settings
from rolekd_ray.policy.policy import Policy, random_policy
from rolekd_ray.roles import Role

TINY = (
    "data.train=60",
    "data.validation=60",
    "final.train=60",
    "final.epochs=3",
    "teacher.model=resnet8",
    "training.batch_size=20",
    "search.epochs=6",
    "search.perturbation_interval_epochs=1",
)


def tiny_settings(*overrides: str) -> Settings:
    """60 real digits in batches of 20, ResNet-8 for both roles."""
    return load_settings("quickstart", [*TINY, *overrides])


def some_policy(settings: Settings, role: Role, seed: int = 0) -> Policy:
    """A policy most of whose ops can fire."""
    return random_policy(settings.search_space(), role, random.Random(f"{seed} {role}"))


def same_tree(one: Any, other: Any) -> bool:
    """Whether two trees have the same keys, types and values to the last bit; a tuple equals a list, NaN itself."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        if not both or (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return torch.equal(_bits(one), _bits(other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same_tree(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same_tree, one, other))
    return type(one) is type(other) and (one == other or one != one)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def in_a_fork(work: Callable[[], object]) -> int:
    """Do work in a copy of this process; return its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(call: int, events: Iterable[str], path: str) -> None:
    """Let this process be killed, as by `kill -9`, just before its `call`-th (from 0) such audit event on a path.

    There is no way back: only for a forked child.
    """
    import sys

    counted = -1

    def hook(event: str, arguments: tuple) -> None:
        nonlocal counted
        if event in events and any(path in str(argument) for argument in arguments):
            counted += 1
            if counted == call:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
