"""A Jupyter server on loopback and Debian's Chromium, for the tests and for the benchmark."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nbformat
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 60


def write_notebook(path: Path, code: str) -> None:
    """A notebook of one cell."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(book, path)


@contextlib.contextmanager
def jupyter_server(home: Path, own: Path) -> Iterator[SimpleNamespace]:
    """A server with JupyterLab, Notebook 7 and Voilà: its ``url`` and ``token``.

    Args:
        home: the folder that it shows.
        own: an empty folder for its settings and its log; nothing else is read or changed.

    Raises:
        RuntimeError: it did not start; with the end of its log.
    """
    token = secrets.token_hex(16)
    # The answer to the question that JupyterLab asks a new user: no news.
    settings = own / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_DATA_DIR": str(own / "data"),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "IPYTHONDIR": str(own / "ipython"),
        # As in Jupyter; `make` sets agg for scripts.
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser"),
        *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={home}"),
        *(f"--IdentityProvider.token={token}", "--KernelManager.transport=ipc"),
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    log = own / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield SimpleNamespace(url=_url_of(process, own / "runtime", log), token=token)
        finally:
            process.terminate()
            process.wait(30)


def _url_of(process: subprocess.Popen, runtime: Path, log: Path) -> str:
    """Where the server listens, which it writes down once it does."""
    for _ in range(SECONDS_TO_START * 4):
        for path in runtime.glob("jpserver-*.json"):
            try:
                return json.loads(path.read_text())["url"]
            except json.JSONDecodeError:  # it is being written
                continue
        if process.poll() is not None:
            break
        time.sleep(0.25)
    raise RuntimeError(f"Jupyter did not start:\n{log.read_text()[-3000:]}")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's browser, or Chrome.

    Raises:
        FileNotFoundError: there is none; the message says what to install.
    """
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise FileNotFoundError(
            "no chromium on the PATH: apt-get install chromium (make test-browser does)"
        )
    with sync_playwright() as playwright:
        # Root, as in a container, has no sandbox to run in.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()
