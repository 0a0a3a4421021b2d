"""The population search: its log, its runners (Ray Tune, or this process alone), and the runs built of them."""

import os

# Before the first `import ray`, which reads some of these once.
# Ray would print to stdout that members are many, and that the dispatcher's calls are repeated after its death.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"worker processes have been started|Task Dispatcher\.\w+ failed")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # progress is ours to show
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends at once: the log is the truth, not Tune's state
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; silences its notice
