"""The two roles of a distillation."""

from enum import StrEnum


class Role(StrEnum):
    """Who an agent makes views for; equal to its name (`"teacher"`, `"student"`) wherever text is read or written."""

    TEACHER = "teacher"
    STUDENT = "student"
