"""Hypothesis in this room: fewer examples, and no deadline, which only measures what else the machine does."""

from hypothesis import settings

settings.register_profile("policy", max_examples=40, deadline=None)
settings.load_profile("policy")
