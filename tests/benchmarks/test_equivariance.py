"""What of the toy does not hang on a seed: a learned agent passes on some of what the teacher knows of shifts."""

import pytest
import torch
from equivariance_toy import Toy, accuracy

pytestmark = pytest.mark.slow


def test_a_learned_agent_passes_on_some_of_what_the_teacher_knows():
    """Not that it beats random shifts, which it does not reliably: see `equivariance_toy`."""
    torch.set_num_threads(1)
    toy = Toy(0)
    assert accuracy(toy.teacher, *toy.shifted) > 0.95
    learned = toy.learned(1.0)
    plain = toy.fixed(lambda images, rows, step: images, learned.student_steps)
    assert plain.clean > 0.95 and learned.clean > 0.95
    assert plain.shifted < 0.2
    assert learned.shifted > 1.5 * plain.shifted
    assert learned.last["student_change"] > 3 * learned.first["student_change"]
    assert learned.last["kept"] >= 0.9
    assert max(learned.translation_pixels) > 0.5
