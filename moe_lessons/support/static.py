"""Whether a page is static: nothing runs behind it."""

import os


def static_mode() -> bool:
    """Whether MOE_LESSONS_STATIC=1 asks for pictures in the place of widgets and HTML, as a static page needs."""
    return os.environ.get("MOE_LESSONS_STATIC", "") not in ("", "0")
