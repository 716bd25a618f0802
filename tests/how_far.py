"""A plugin of pytest: in the place of dots, a line every half minute says how far it is, and what is taking long."""

import os
import threading
import time

EVERY, LONG = 30, 20  # seconds
OUT = os.fdopen(os.dup(1), "w")  # before pytest captures what tests print


class HowFar:
    def __init__(self):
        self.start, self.total, self.done, self.failed = time.monotonic(), 0, set(), 0
        self.running: dict[str, float] = {}  # tests, and when each began
        self.over = threading.Event()

    def pytest_sessionstart(self):
        threading.Thread(target=self.tell, daemon=True).start()

    def pytest_sessionfinish(self):
        self.over.set()

    def pytest_collection_finish(self, session):
        self.total = len(session.items)

    def pytest_xdist_node_collection_finished(self, ids):
        self.total = len(ids)

    def pytest_runtest_logstart(self, nodeid):
        self.running[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid):
        self.running.pop(nodeid, None)
        self.done.add(nodeid)

    def pytest_report_teststatus(self, report):
        return ("passed", "", "") if report.passed and report.when == "call" else None

    def pytest_runtest_logreport(self, report):
        if report.outcome == "rerun":  # what failed at first is said nowhere else
            print(f"again: {report.nodeid}\n{report.longrepr}", file=OUT, flush=True)
        if report.failed:
            self.failed += 1
            print(f"failed: {report.nodeid}", file=OUT, flush=True)

    def tell(self):
        while not self.over.wait(EVERY):
            now = time.monotonic()
            long = {name: now - began for name, began in list(self.running.items()) if now - began > LONG}
            names = [f"{name.rpartition('/')[2]} ({seconds:.0f} s)" for name, seconds in long.items()]
            so_far = f"{len(self.done)} of {self.total} done, {self.failed} failed" if self.total else "collecting"
            print("; ".join([f"{(now - self.start) / 60:.1f} min: {so_far}", *names]), file=OUT, flush=True)


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # in the process that hears of all tests
        config.pluginmanager.register(HowFar())
