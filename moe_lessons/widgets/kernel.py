"""The preparation of a kernel for live views."""

import sys


def prepare_kernel() -> None:
    """Have ipykernel 7.4 handle the messages of a control in the subshell that the page names, as it did before: in the
    shell of the cells, which it would choose while a view trains, no answer comes while a cell awaits, and the page
    keeps the control's next value back for ever. And have Colab draw widgets that are not its own."""
    comm = getattr(sys.modules.get("ipykernel.comm.comm"), "BaseComm", None)  # a notebook's kernel has loaded it
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda self, data, default: default
    if "google.colab" in sys.modules:  # its kernel has loaded it
        from google.colab import output

        output.enable_custom_widget_manager()
