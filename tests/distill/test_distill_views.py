import pytest
import torch

from rolekd_ray.distill.views import VIEW_MODES, network_views
from rolekd_ray.errors import ConfigError

# mode -> views of (student network, teacher network), and how often each view may be made
EXPECTED = {
    "shared_student": ("student", "student", {"student": 1}),
    "shared_teacher": ("teacher", "teacher", {"teacher": 1}),
    "independent": ("student", "teacher", {"student": 1, "teacher": 1}),
    "teacher_clean": ("student", "clean", {"student": 1, "clean": 1}),
}


@pytest.mark.parametrize("mode", VIEW_MODES)
def test_who_sees_what_and_what_it_costs(mode):
    views = {name: torch.full((2, 1, 2, 2), float(i)) for i, name in enumerate(("student", "teacher", "clean"))}
    made: dict[str, int] = {}

    def view(name: str):
        def make():
            made[name] = made.get(name, 0) + 1
            return views[name].clone()

        return make

    student, teacher = network_views(
        mode, student_view=view("student"), teacher_view=view("teacher"), clean_view=view("clean")
    )
    for_student, for_teacher, counts = EXPECTED[mode]
    assert torch.equal(student, views[for_student]) and torch.equal(teacher, views[for_teacher])
    assert made == counts
    assert (student is teacher) == mode.startswith("shared")


def test_every_mode_is_expected():
    assert set(EXPECTED) == set(VIEW_MODES)


def test_unknown_mode_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'shared_student'"):
        network_views("shared_students", student_view=torch.zeros, teacher_view=torch.zeros, clean_view=torch.zeros)
