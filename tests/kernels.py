"""Kernels that start at once: copies (forks) of a process that has imported torch, which takes seconds.
What Jupyter starts is this file, a stand-in that has the kernel forked, passes it signals, and ends with it. Where the
kernel would see another PYTHONPATH, it starts an ordinary one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

ADDRESS, PATHS = "MOE_LESSONS_KERNELS", "PYTHONPATH"


@contextlib.contextmanager
def quick_kernels(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment in which there are such kernels, while it is open."""
    if sys.platform != "linux":  # elsewhere a fork of a process that has loaded so much may fail
        yield dict(environment)
        return
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        stand_in = [sys.executable, "-S", __file__, "{connection_file}"]
        spec.write_text(json.dumps({"argv": stand_in, "display_name": "Python 3 (ipykernel)", "language": "python"}))
        environment = {**environment, ADDRESS: f"{folder}/socket", "JUPYTER_PATH": folder}
        nursery = subprocess.Popen([sys.executable, __file__], env=environment, stdout=subprocess.PIPE)
        try:
            nursery.stdout.readline()  # it listens
            yield environment
        finally:
            nursery.terminate()
            nursery.wait()


def stand_in(connection_file: str) -> None:
    """What Jupyter takes for the kernel."""
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(os.environ[ADDRESS])
        except OSError:
            ordinary(connection_file)
        request = json.dumps({"file": connection_file, "cwd": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(link, [len(request).to_bytes(4, "big")], [0, 1, 2])
        link.sendall(request)
        if not (kernel := int.from_bytes(link.recv(4), "big")):
            ordinary(connection_file)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(kernel, number))
        link.recv(1)  # until it has ended


def ordinary(connection_file: str) -> None:
    os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", "-f", connection_file])


def nursery() -> None:
    """Import, and then fork a kernel for each stand-in that asks for one."""
    sys.path.pop(0)  # this folder
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as it is in a kernel when it imports this
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # kernels end with their parent
    import ipykernel.kernelapp  # noqa: F401
    import ipykernel.zmqshell  # noqa: F401
    import matplotlib.axes  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import pandas  # noqa: F401
    import torch  # noqa: F401

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.environ[ADDRESS])
        listener.listen(16)
        print("ready", flush=True)
        while True:
            link, _ = listener.accept()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            head, streams, *_ = socket.recv_fds(link, 4, 3)
            request = json.loads(link.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
            is_ours = request["environment"].get(PATHS, "") == os.environ.get(PATHS, "")
            if is_ours and os.fork() == 0:
                listener.close()
                be_a_kernel(link, streams, **request)
            if not is_ours:
                link.sendall(bytes(4))
            link.close()
            for stream in streams:
                os.close(stream)


def be_a_kernel(link: socket.socket, streams: list[int], file: str, cwd: str, environment: dict[str, str]) -> None:
    """In the forked process."""
    link.sendall(os.getpid().to_bytes(4, "big"))
    os.setsid()
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=lambda: link.recv(1) or os._exit(1), daemon=True).start()  # where the stand-in was killed
    sys.argv = ["ipykernel_launcher", "-f", file]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()
    os._exit(0)


if __name__ == "__main__":
    stand_in(sys.argv[1]) if sys.argv[1:] else nursery()
