"""What live views need of IPython's kernel, as ipykernel 7.4 has it (Colab's is a 6): a test in the browser notices
where a later one differs."""

import asyncio
import gc
import importlib
import signal
import sys
from functools import partial

from IPython import get_ipython


def prepare_kernel() -> None:
    """Have ipykernel 7.4 handle the messages of a control in the subshell that the page names, as it did before: in the
    shell of the cells, which it would choose while a view trains, no answer comes while a cell awaits, and the page
    keeps the control's next value back for ever. Have ipykernel 6, which has no subshells, handle them while a cell
    awaits, too. Have Colab draw widgets that are not its own. Load what the first optimizer loads, in a second, before
    a view waits for it. And spare the garbage collector a million objects of torch: each full search stops the picture
    for .2 seconds."""
    comm = getattr(sys.modules.get("ipykernel.comm.comm"), "BaseComm", None)  # a notebook's kernel has loaded it
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda self, data, default: default
    kernel = getattr(sys.modules.get("ipykernel.kernelbase"), "Kernel", None)
    if hasattr(kernel, "schedule_dispatch") and kernel.initialized():  # 6 alone has one queue of all messages
        kernel = kernel.instance()
        kernel.shell_stream.on_recv(partial(hear, kernel), copy=False)
    if "google.colab" in sys.modules:  # its kernel has loaded it
        from google.colab import output

        output.enable_custom_widget_manager()
    if get_ipython():
        importlib.import_module("torch._dynamo")
        gc.collect()
        gc.freeze()


def is_cell(task: asyncio.Task | None) -> bool:
    """Whether IPython's kernel runs a cell in this task."""
    return getattr(task and task.get_coro(), "__name__", "") == "run_cell_async"


def stop_at_once() -> None:
    """Have an interrupt end at once what a cell does after an await: from there on IPython's kernel would hear it only
    when the cell awaits again. When the cell ends, the kernel puts back the handler that was there before it."""
    task, before = asyncio.current_task(), signal.getsignal(signal.SIGINT)
    if not is_cell(task) or getattr(before, "task", None) is task:
        return

    def handler(*args) -> None:
        if asyncio.current_task() is task:  # else the event loop would end
            raise KeyboardInterrupt
        if callable(before):
            before(*args)

    handler.task = task
    signal.signal(signal.SIGINT, handler)


WIDGETS = ("comm_open", "comm_msg", "comm_close")  # the messages between a widget and its page


def hear(kernel, frames: list) -> None:
    """Handle what a page says to a widget at once, also while a cell awaits. All else waits: ipykernel 6 (6.29 to 6.31)
    has one queue, and a page that is answered behind the cells in it sees nothing of a view until they have ended."""
    idents, parts = kernel.session.feed_identities(frames, copy=False)
    kind = kernel.session.unpack(parts[1].bytes)["msg_type"]
    if kind not in WIDGETS:
        return kernel.schedule_dispatch(kernel.dispatch_shell, frames)
    message = kernel.session.deserialize(parts, content=True, copy=False)
    cell = kernel._parent_ident["shell"], kernel.get_parent("shell")  # whose outputs go on when this is done
    kernel.set_parent(idents, message)
    kernel._publish_status("busy", "shell")
    try:
        kernel.shell_handlers[kind](kernel.shell_stream, idents, message)
    finally:
        kernel._publish_status("idle", "shell")  # without it the page keeps the control's next value back
        kernel.set_parent(*cell)
