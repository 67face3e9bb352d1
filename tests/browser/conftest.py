"""A headless Chromium, for JupyterLab and for the site: ``make browser`` runs these tests alone.

They drive the browser that the machine has; Playwright downloads none.
"""

import contextlib
import functools
import http.server
import os
import shutil
import threading

import pytest
from browser.helpers import ROOT, Watched

if os.environ.get("MINIDS3_BROWSER") != "1":
    collect_ignore_glob = ["test_*.py"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ADVICE = (
    f"none of {', '.join(NAMES)} is on PATH. Debian: apt install chromium. Fedora: dnf install "
    "chromium. macOS: brew install --cask chromium. Elsewhere put Chrome's folder on PATH"
)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail(ADVICE)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=QUIET, timeout=180_000)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Open a watched page: ``open_page(address, width=..., scheme=...)``."""
    with contextlib.ExitStack() as stack:

        def opened(own, width=1280, scheme="light"):
            size = {"width": width, "height": 900}
            context = browser.new_context(viewport=size, color_scheme=scheme)
            context.set_default_timeout(600_000)  # a busy machine fails nobody
            stack.callback(context.close)
            return Watched(context.new_page(), own)

        yield opened


@pytest.fixture(scope="session")
def site():
    """The address of the built site, served on this machine."""
    folder = ROOT / "build" / "site"
    if not (folder / "index.html").exists():
        pytest.fail("build the site first: make site")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
