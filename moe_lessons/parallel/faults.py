"""Why ranks ended, in one sentence: the first cause, from what each of them said, and torchrun."""

import re
import signal
from collections.abc import Iterable

EXIT = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) ")  # torchrun's own words
LOST = re.compile(r"[Cc]onnection (closed|reset|refused)|Broken pipe")  # gloo's, where another rank is gone
LATE = re.compile(r"[Tt]imed out waiting (\d+)ms")  # where another rank does not answer
ERROR = re.compile(r"(\[rank\d+\]: ?)?([\w.]*(Error|Exception)\b.*:|[\w.]+: error:)")  # the last line of a traceback


def first_cause(failures: list[dict], silent: Iterable[int], after: str = "") -> str:
    """Say who failed first. The errors of the others follow from it: their connections were closed, or time ran out.

    failures: of each rank that failed, its 'rank', 'time' and 'error', or, where it was ended, 'code' alone. silent:
    the ranks of which nothing is known.
    """
    names = " and ".join(f"rank {rank}" for rank in sorted(silent))
    first = min(failures, key=lambda failure: failure.get("time", 0))
    if (code := first.get("code")) is not None:
        signalled = code < 0 and f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"rank {first['rank']} {signalled or f'ended with exit code {code}'}{after}"
    if names and (late := LATE.search(first["error"])):
        return f"{names} did not answer for {int(late[1]) / 1000:g} s{after}"
    if names and LOST.search(first["error"]):
        return f"{names} ended without a word{after}"
    return first["error"] if first.get("refused") else f"rank {first['rank']} failed{after}: {first['error']}"


def what_happened(records: list[dict], log: list[str]) -> str:
    """Say the same of ranks that torchrun has started, from their records and all other lines."""
    failures = [record for record in records if record["event"] == "failed"]
    code, rank = map(int, next(iter(EXIT.findall("\n".join(log))), (0, 0)))
    errors = [line for line in log if ERROR.match(line) and "ChildFailedError" not in line]  # the latter is torchrun's
    if errors and not failures and code >= 0:
        return errors[0]
    if code < 0 or not failures:
        failures = [{"rank": rank, "code": code}]
    silent = {record.get("rank") for record in records if record["event"] == "start"} - {f["rank"] for f in failures}
    steps = [record["step"] for record in records if "step" in record]
    return first_cause(failures, silent, f" after step {max(steps)}" if steps else "")
