"""How JupyterLab's server speaks with the page, where `lab` has started it."""

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class PromptConnection(ZMQChannelsWebsocketConnection):
    """Sends each message of a kernel at once. Nagle's algorithm (RFC 896), which Jupyter leaves on, keeps one back
    until the browser has confirmed the last; that takes 40 milliseconds and more, and pictures come in bursts."""

    def connect(self):
        self.websocket_handler.set_nodelay(True)
        return super().connect()
