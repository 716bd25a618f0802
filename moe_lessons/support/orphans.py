"""Processes that end with the one that started them."""

import functools
import os
import threading
import time


@functools.cache  # one watch is enough
def end_with(parent: int) -> None:
    """End this process within a second after its parent, which has this number. In the parent itself, do nothing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if os.getpid() != parent:
        threading.Thread(target=watch, daemon=True).start()
