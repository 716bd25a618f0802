"""The server of the site on this machine: the files of one folder, and of nothing else."""

import re
import socket
import subprocess
import sys
from http.client import HTTPConnection
from unittest.mock import Mock

import pytest

from web import serve


@pytest.fixture
def site(tmp_path):
    """A folder that looks like a site, beside a secret to which a link in it leads."""
    folder = tmp_path / "site"
    (folder / "notebooks").mkdir(parents=True)
    for name in ("index.html", "page.js", "large.z"):
        (folder / name).write_bytes(b"hello" * (1 + 2_000_000 * (name == "large.z")))
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "out").symlink_to(tmp_path)
    return folder


@pytest.fixture
def served(site):
    """The port at which the command serves it, until it is terminated."""
    command = [sys.executable, "-m", "web.serve", str(site), "--no-browser", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it\)\n", process.stdout.readline())
            yield int(found[1])
        finally:
            process.terminate()
            assert "Traceback" not in process.communicate(timeout=20)[1]


def test_it_serves_files_and_parts_of_them_and_nothing_outside_its_folder(served):
    def get(path: str, **headers: str):
        connection = HTTPConnection("127.0.0.1", served, timeout=10)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    with socket.create_connection(("127.0.0.1", served)) as left:  # a page that is left before it has all
        left.sendall(b"GET /large.z HTTP/1.0\r\n\r\n")
        left.recv(10)
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/large.z", "application/octet-stream")):
        status, headers, body = get(path)
        assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, kind, "no-cache")
        assert body.startswith(b"hello")
    status, headers, body = get("/page.js", Range="bytes=1-3")
    assert (status, headers["Content-Range"], body) == (206, "bytes 1-3/5", b"ell")
    assert get("/page.js", Range="bytes=9-")[0] == 416
    assert get("/page.js", **{"If-None-Match": headers["ETag"]})[0] == 304
    for path in ("/none.js", "/%00", "/page.js%00", "/notebooks/", "/link.txt", "/out/secret.txt", "/../secret.txt",
                 "/%2e%2e/secret.txt", "//secret.txt", "/out/"):  # fmt: skip
        status, _, body = get(path)
        assert 400 <= status < 500 and b"secret" not in body and b"Traceback" not in body, path


def test_it_opens_the_browser_where_there_is_one(site, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("time.sleep", Mock(side_effect=KeyboardInterrupt))  # Ctrl-C
    for display in (True, False):
        monkeypatch.setattr(serve, "has_display", lambda display=display: display)
        assert serve.main([str(site), "--port=0"]) == 0
    addresses = capsys.readouterr().out.splitlines()
    assert [f"{address}/ (Ctrl-C ends it)" for address in opened] == addresses[:1] and len(addresses) == 2


def test_where_the_usual_port_is_taken_another_serves(site, monkeypatch, capsys):
    monkeypatch.setattr("time.sleep", Mock(side_effect=KeyboardInterrupt))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        usual = taken.getsockname()[1]
        monkeypatch.setattr(serve, "PORT", usual)
        assert serve.main([str(site), "--no-browser"]) == 0
    address = capsys.readouterr().out
    assert address.startswith("http://127.0.0.1:") and f":{usual}/" not in address


def test_a_port_that_is_taken_and_a_folder_without_a_site_are_refused(site, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for bad in (taken.getsockname()[1], 70_000):
            assert serve.main([str(site), f"--port={bad}", "--no-browser"]) == 1
            assert f"--port must be one that is free, or 0 for any, got {bad}: " in capsys.readouterr().err
    assert serve.main([str(tmp_path)]) == 1
    assert f"FOLDER must have an index.html, got {tmp_path}; `make site` makes one." in capsys.readouterr().err
