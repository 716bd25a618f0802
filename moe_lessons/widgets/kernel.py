"""What a kernel must do before a view is shown in it."""

import sys


def answer_where_the_page_asks() -> None:
    """Have ipykernel 7.4 handle the messages of a control in the subshell that the page names, as it did before.

    It would move them to the shell that last sent something to that control. While a view trains, that is the one of
    the cells: a message that arrives there while a cell awaits gets no answer that ends it, the page keeps the next
    value back, and the control is dead.
    """
    comm = getattr(sys.modules.get("ipykernel.comm.comm"), "BaseComm", None)  # a notebook's kernel has loaded it
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda self, data, default: default


def ask_colab_for_widgets() -> None:
    """Have Colab draw widgets that are not its own, such as our canvas; anywhere else nothing is done."""
    if "google.colab" in sys.modules:  # its kernel has loaded it
        from google.colab import output

        output.enable_custom_widget_manager()
