"""View modes: which role's view feeds which network."""

from collections.abc import Callable

from torch import Tensor

from rolekd_ray.errors import ConfigError, unknown_name

View = Callable[[], Tensor]

VIEW_MODES = ("shared_student", "shared_teacher", "independent", "teacher_clean")


def network_views(mode: str, *, student_view: View, teacher_view: View, clean_view: View) -> tuple[Tensor, Tensor]:
    """Return the student network's input and the teacher network's.

    | mode | student network sees | teacher network sees |
    |---|---|---|
    | `shared_student` | the student's view | the same tensor |
    | `shared_teacher` | the teacher's view | the same tensor |
    | `independent` | the student's view | the teacher's view |
    | `teacher_clean` | the student's view | the image itself, only normalised |

    Args:
        mode: one of `VIEW_MODES`.
        student_view: makes the student role's view; as the others, called once if its view is used, else never.
        teacher_view: makes the teacher role's view.
        clean_view: makes the un-augmented, normalised image.

    Raises:
        ConfigError: unknown mode; names the nearest.

    Source: `shared_student` is what the role-kd code does; the other modes are ours.
    """
    match mode:
        case "shared_student":
            shared = student_view()
            return shared, shared
        case "shared_teacher":
            shared = teacher_view()
            return shared, shared
        case "independent":
            return student_view(), teacher_view()
        case "teacher_clean":
            return student_view(), clean_view()
        case _:
            raise ConfigError(unknown_name("view_mode", "view mode", mode, VIEW_MODES))
