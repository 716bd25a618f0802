"""The place where a result is seen: a static page, behind which nothing runs, a notebook, or a terminal."""

import os


def static_mode() -> bool:
    """Tell whether MOE_LESSONS_STATIC=1 asks for pictures in the place of widgets and HTML, as a static page needs."""
    return os.environ.get("MOE_LESSONS_STATIC", "") not in ("", "0")


def in_notebook() -> bool:
    from IPython import get_ipython  # only here: progress, which asks for the mode alone, stays light

    return hasattr(get_ipython(), "kernel")
