"""What all tests share."""

import matplotlib
from hypothesis import settings

matplotlib.use("agg")

# The same examples on every run and every machine, and no deadline: a busy machine is not a bug.
settings.register_profile("course", deadline=None, derandomize=True)
settings.load_profile("course")
