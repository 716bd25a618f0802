"""A static page: nothing runs behind it."""

import os


def static_mode() -> bool:
    """Tell whether MOE_LESSONS_STATIC=1 asks for pictures in the place of widgets and HTML, as a static page needs."""
    return os.environ.get("MOE_LESSONS_STATIC", "") not in ("", "0")
