"""A real JupyterLab: its server, on a copy of the lessons in folders of its own; a notebook in a page; a live view."""

import ast
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
from playwright.sync_api import expect

from tools.render import KERNEL

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60_000  # milliseconds; only what hangs waits so long
VIEWPORT = {"width": 1280, "height": 900}
# Where a kernel has ports, another program may take one before it does, and ipykernel then hangs: so it has files.
CONFIG = {"LabApp": {"expose_app_in_browser": True}, "KernelManager": {"transport": "ipc"}}  # with `jupyterapp`
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

# In a page of JupyterLab that is there: close what it shows, and open a notebook.
CLOSE = "() => [...jupyterapp.shell.widgets('main')].forEach((widget) => widget.dispose())"
OPEN = """async (path) => {
    const panel = await jupyterapp.commands.execute('docmanager:open', { path });
    await panel.context.ready;
    await panel.sessionContext.ready;
}"""
EXECUTED = r"""() => {
    const cells = [...document.querySelectorAll('.jp-CodeCell')]
        .filter(cell => cell.querySelector('.cm-content')?.textContent.trim());
    const prompts = cells.map(cell => cell.querySelector('.jp-InputPrompt').textContent);
    const error = [...document.querySelectorAll('[data-mime-type$="jupyter.stderr"]')]
        .find(output => output.textContent.includes('Traceback'));
    return prompts.length > 0 && prompts.every(prompt => /\[\d+\]/.test(prompt)) ? 'well'
        : error && !prompts.some(prompt => prompt.includes('*')) ? error.textContent : '';
}"""
PIXELS = "root => [...root.querySelectorAll('canvas')].map(canvas => canvas.toDataURL())"


class LabServer:
    """`python -m moe_lessons lab` on a copy of the lessons, with its own settings, both inside `folder`."""

    def __init__(self, folder: Path):
        self.root, self.home = folder / "course", folder / "jupyter"
        shutil.copytree(ROOT / "notebooks", self.root / "notebooks")
        (self.home / "config").mkdir(parents=True)
        (self.home / "config" / "jupyter_lab_config.json").write_text(json.dumps(CONFIG))
        self.runtime = tempfile.TemporaryDirectory()  # the address of a kernel, a path in it, must be short
        log = self.home / "server.log"
        command = [sys.executable, "-m", "moe_lessons", "lab", "--no-browser"]
        with log.open("w") as output:
            streams = {"stdout": output, "stderr": output}
            self.process = subprocess.Popen(command, cwd=self.root, env=self.environment(), **streams)
        deadline = time.monotonic() + PATIENCE / 1000
        while not (printed := re.search(r"(http://127\S+?)(/\S*)token=(\S+)", log.read_text())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()}")
            time.sleep(0.1)
        self.first_page = printed.group()
        self.address, _, self.token = printed.groups()

    def environment(self) -> dict[str, str]:
        folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTERLAB_SETTINGS_DIR": "settings",
                   "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
                   "MOE_LESSONS_PROGRESS": "progress.json"}  # fmt: skip
        own = {name: str(self.home / place) for name, place in folders.items()}
        own |= {"JUPYTER_RUNTIME_DIR": self.runtime.name, "JUPYTER_PORT": str(free_port())}  # servers may start at once
        own |= {"JUPYTER_PREFER_ENV_PATH": "1", "MOE_LESSONS_STATIC": ""}  # the kernel of this environment
        return os.environ | own

    def request(self, method: str, path: str):
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.address}/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read() or "null")

    def write(self, name: str, *sources: str) -> None:
        """Put a notebook of code cells beside the lessons."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        book.metadata["kernelspec"] = KERNEL
        nbformat.write(book, self.root / "notebooks" / name)

    def end_kernels(self, name: str = "") -> None:
        """End the kernel of the notebook with this name, or all."""
        for session in self.request("GET", "api/sessions"):
            if session["path"].endswith(name):
                self.request("DELETE", f"api/sessions/{session['id']}")

    def ask(self, name: str, expression: str):
        """Return the value of an expression, such as a tuple of numbers, in the kernel of an open notebook; its page
        has no part in it."""
        from jupyter_client import BlockingKernelClient

        (kernel,) = (s["kernel"]["id"] for s in self.request("GET", "api/sessions") if s["path"].endswith(name))
        client = BlockingKernelClient()
        client.load_connection_file(f"{self.runtime.name}/kernel-{kernel}.json")
        client.start_channels(iopub=False, hb=False)
        try:
            reply = client.execute("", silent=True, user_expressions={"it": expression}, reply=True, timeout=30)
        finally:
            client.stop_channels()
            client.context.destroy(linger=0)  # else it waits at its end for a kernel that is gone
        return ast.literal_eval(reply["content"]["user_expressions"]["it"]["data"]["text/plain"])

    def close(self) -> None:
        self.process.terminate()  # it ends its kernels, too
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)


def free_port() -> int:
    """Return a port that nothing listens on; the system gives each caller another."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class NotebookPage:
    """One notebook, open in one browser page; `errors` collects what the page's console complains of."""

    def __init__(self, page):
        self.page = page
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: self.errors.extend([message.text] * (message.type == "error")))
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))

    def open(self, server: LabServer, name: str) -> None:
        """Open a notebook of the course, without the layout of an earlier visit."""
        self.page.goto(f"{server.address}/doc/tree/notebooks/{name}?token={server.token}&reset")
        self.wait_open()

    def open_here(self, name: str) -> None:
        """Open a notebook in a page that shows none."""
        self.page.set_viewport_size(VIEWPORT)
        self.errors.clear()
        self.page.evaluate(OPEN, f"notebooks/{name}")
        self.wait_open()

    def leave(self) -> None:
        """Close the notebook, without a word; the page stays."""
        self.page.evaluate(CLOSE)
        self.page.locator(".jp-NotebookPanel").first.wait_for(state="detached")

    def set_theme(self, theme: str) -> None:
        """Make the page 'light' or 'dark'."""
        self.page.evaluate("(theme) => jupyterapp.commands.execute('apputils:change-theme', { theme })", THEMES[theme])
        self.page.locator(f"body[data-jp-theme-light={str(theme == 'light').lower()}]").wait_for(state="attached")

    def wait_open(self) -> None:
        self.page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
        self.wait_idle()

    def wait_idle(self) -> None:
        """Wait until the status bar says that the kernel is idle: the notebook says so before there is one."""
        self.page.locator(".jp-StatusBar-TextItem", has_text="| Idle").first.wait_for()

    def menu(self, menu: str, command: str) -> None:
        """Choose the item with this command id from one of the menus at the top."""
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
        self.page.locator(f'.lm-Menu li[data-command="{command}"]').click()

    def save(self) -> None:
        self.menu("File", "docmanager:save")
        self.page.wait_for_timeout(1500)

    def run_all(self, wait: bool = True) -> None:
        """Choose Run > Run All Cells, and wait until each cell has its number."""
        self.menu("Run", "runmenu:run-all")
        if wait:
            self.wait_executed()

    def wait_executed(self) -> None:
        """Wait until each cell has its number. Fail where one stops with an error: those below it then do not run."""
        how = self.page.wait_for_function(EXECUTED, polling=100, timeout=3 * PATIENCE).json_value()
        assert how == "well", how
        self.wait_idle()

    def run_cell(self, place: int, wait: bool = True) -> str:
        """Run one cell; return what it prints."""
        cell = self.page.locator(".jp-CodeCell").nth(place)
        cell.evaluate("cell => cell.scrollIntoView()")
        prompt = cell.locator(".jp-InputPrompt")
        before = prompt.text_content()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        for _ in range(600 if wait else 0):
            if (now := prompt.text_content()) != before and any(map(str.isdigit, now)):
                break
            self.page.wait_for_timeout(50)
        return " ".join(cell.locator(".jp-OutputArea-output").all_text_contents())

    def interrupt(self) -> None:
        self.menu("Kernel", "kernelmenu:interrupt")

    def restart(self) -> None:
        """Choose Kernel > Restart Kernel, confirm it, and wait for the new kernel."""
        self.menu("Kernel", "kernelmenu:restart")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.locator(".jp-Dialog").wait_for(state="detached")
        old = self.page.locator(".jp-StatusBar-TextItem", has_text="| Idle").first
        with contextlib.suppress(Exception):  # the old kernel's Idle goes away, unless the restart was very quick
            old.wait_for(state="hidden", timeout=5000)
        self.wait_idle()
        self.page.wait_for_timeout(500)

    def wrong(self) -> list[str]:
        """The error outputs and stderr texts in the notebook, the widgets that could not be drawn, and what the page's
        console complains of."""
        bad = '[data-mime-type$="jupyter.error"], [data-mime-type$="jupyter.stderr"], .jupyter-widgets-error-widget'
        return [*self.page.locator(bad).all_inner_texts(), *self.errors]


class View:
    """One live view on the page, by its place among them."""

    def __init__(self, page, place: int = 0):
        self.page = page
        self.view = page.locator(".moe-view:has(.moe-canvas)").nth(place)
        self.canvas = self.view.locator(".moe-canvas")
        self.canvas.wait_for(state="attached")
        self.wait_for(self.is_drawn)

    def is_drawn(self) -> bool:
        """Tell whether it has its pictures. It is drawn where it is seen, and JupyterLab may scroll to another cell."""
        self.view.evaluate("view => view.scrollIntoView()")
        return self.view.locator("canvas, table").first.is_visible()

    @property
    def step(self) -> int:
        return int(self.canvas.get_attribute("data-step") or 0)

    @property
    def pixels(self) -> list[str]:
        """What each picture shows."""
        return self.canvas.evaluate(PIXELS)

    def panel(self, title: str):
        """The picture under a title that has these words."""
        return self.view.locator("figure", has=self.page.locator("b", has_text=title)).locator("canvas")

    def point(self, title: str, across: float, down: float, click: bool = False) -> None:
        """Move the pointer to a place of a picture, in parts of its width and height."""
        self.panel(title).scroll_into_view_if_needed()
        box, mouse = self.panel(title).bounding_box(), self.page.mouse
        where = box["x"] + across * box["width"], box["y"] + down * box["height"]
        mouse.click(*where) if click else mouse.move(*where)

    def chip(self, expert: int):
        """The button with the name of an expert, over the pictures."""
        return self.view.locator(".moe-chips button").nth(expert)

    def button(self, name: str):
        return self.view.locator("button", has_text=re.compile(f"^{re.escape(name)}$"))

    def slider(self, name: str):
        return self.view.locator(".widget-slider, .widget-hslider", has_text=name)

    def handle(self, name: str):
        return self.slider(name).get_by_role("slider")

    def value(self, name: str) -> str:
        return self.slider(name).locator(".widget-readout").inner_text()

    def wait_step(self, at_least: int) -> None:
        self.wait_for(lambda: self.step >= at_least)

    def wait_for(self, condition, seconds: float = 30) -> None:
        """Wait until `condition()`."""
        for _ in range(int(seconds / 0.05)):
            if condition():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"waited {seconds} seconds in vain; the view says: {self.view.inner_text()}")

    def pause(self) -> int:
        if self.button("Pause").count():
            self.button("Pause").click()
        self.button("Play").wait_for()
        expect(self.view.locator(".moe-status")).to_contain_text(re.compile("paused|ended"))  # the button is quicker
        return self.step
