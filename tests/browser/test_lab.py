"""JupyterLab, as a newcomer drives it: run all, answers wrong and right, hint, slider, theme."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from browser.helpers import ROOT, serious

from minids3.course.hints import source_of

SETTINGS = '{"windowingMode": "none"}'  # every cell is on the page, wherever it is scrolled to
WHAT = """() => {
  const cells = jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells;
  return cells.filter(c => c.cell_type == 'code').map(c => ({id: c.id, outputs: c.outputs}));
}"""
# Commands are started and then waited for, so that one that never ends fails with a time limit.
START = """name => {
  window.ended = null;
  jupyterapp.commands.execute(name).then(() => { window.ended = ''; },
                                         error => { window.ended = String(error) || 'failed'; });
}"""
ENDED = """() => window.ended !== null
  && jupyterapp.shell.currentWidget.sessionContext.session.kernel.status == 'idle'"""
SLIDERS = (".noUi-handle",)  # ipywidgets gives them no name that a screen reader would say
LONGEST = 1_800_000  # milliseconds, for all cells of a notebook on a busy machine
SET = """([id, source]) => {
  const content = jupyterapp.shell.currentWidget.content;
  const place = content.widgets.findIndex(w => w.model.id == id);
  content.activeCellIndex = place;
  if (source !== null) content.widgets[place].model.sharedModel.setSource(source);
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on a copy of the notebooks."""
    home = tmp_path_factory.mktemp("lab")
    (home / "work").mkdir()
    for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        shutil.copy(path, home / "work")
    settings = home / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(SETTINGS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        k: v for k, v in os.environ.items() if k not in ("PYTEST_VERSION", "PYTEST_CURRENT_TEST")
    }
    env |= {"MINIDS3_HOME": str(home / "progress"), "JUPYTER_CONFIG_DIR": str(home / "config")}
    env |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTER_DATA_DIR": str(home / "data"),
    }
    env |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ip")}
    options = [f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    options += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url="]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    options += ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    address = f"http://127.0.0.1:{port}"
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", *options],
            cwd=home / "work", env=env, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, (home / "log").read_text()
                    time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


class Notebook:
    """A notebook in JupyterLab, driven by its own commands."""

    def __init__(self, watched, address, name):
        self.watched, self.page = watched, watched.page
        self.page.goto(f"{address}/lab/tree/{name}.ipynb?reset")
        self.page.wait_for_function(
            "() => { const shown = window.jupyterapp?.shell.currentWidget;"
            " return shown?.content?.model?.cells?.length"
            " && shown.sessionContext?.session?.kernel?.status == 'idle'; }"
        )

    def command(self, name):
        """Run a command of JupyterLab's to its end, and wait until the kernel has nothing to do."""
        self.page.evaluate(START, name)
        self.page.wait_for_function(ENDED, timeout=LONGEST)
        assert self.page.evaluate("window.ended") == ""

    def run(self, id, source=None):
        """Run one cell, after writing ``source`` into it, and return what it printed."""
        self.page.evaluate(SET, [id, source])
        self.command("notebook:run-cell")
        return "".join(o.get("text", "") for o in self.outputs()[id])

    def outputs(self):
        return {cell["id"]: cell["outputs"] for cell in self.page.evaluate(WHAT)}

    def run_all(self):
        self.command("notebook:run-all-cells")
        found = self.outputs()
        for id, outputs in found.items():
            for output in outputs:
                assert output["output_type"] != "error", f"{id}: {output.get('evalue')}"
        assert sum(map(len, found.values())) > 10
        return found

    def close(self):
        """End the kernel: the next test has the machine to itself."""
        self.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")


@pytest.fixture
def notebook(lab, open_page):
    opened = []

    def open_one(name, **kinds):
        opened.append(Notebook(open_page(lab, **kinds), lab, name))
        return opened[-1]

    yield open_one
    for book in opened:
        book.close()


def test_00_run_all_answers_hint_and_themes(notebook):
    book = notebook("00_start_here")
    found = book.run_all()
    assert "NotImplementedError" not in str(found)
    wrong = source_of("rms-norm").replace("return ", "return 2 * ")
    book.run("answer-rms-norm", wrong)
    said = book.run("check-rms-norm")
    assert "  no    " in said
    assert 'hint("rms-norm") has pseudocode for you' in said  # "run all" asked for the question
    book.run("answer-rms-norm", source_of("rms-norm"))
    said = book.run("check-rms-norm")
    assert "  no    " not in said
    assert "The notebook goes on with your rms_norm." in said
    assert "hint 1 of 3: a question" in book.run("answer-rms-norm", 'hint("rms-norm", 1)')
    for theme, light in (("JupyterLab Dark", "false"), ("JupyterLab Light", "true")):
        book.page.evaluate(
            "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
        )
        book.page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")
        assert serious(book.page, ".jp-OutputArea-output", SLIDERS) == []
    book.watched.clean()


def test_03_run_all_and_a_slider(notebook):
    book = notebook("03_latent_attention")
    book.run_all()
    figure = book.page.locator(".jp-OutputArea-output:has(.widget-slider) img").last
    before = figure.get_attribute("alt")
    assert "gigabytes = 40" in before
    book.page.locator(".widget-slider .noUi-handle").first.focus()
    book.page.keyboard.press("ArrowRight")
    figure.and_(book.page.locator("[alt*='gigabytes = 48']")).wait_for()
    book.watched.clean()


def test_08_run_all_and_a_switch_of_the_byte(notebook):
    book = notebook("08_fp8_numbers")
    book.run_all()
    outputs = book.page.locator(".jp-OutputArea-output")
    sign = outputs.get_by_role("checkbox", name="sign", exact=True)
    assert not sign.is_checked()
    assert book.page.get_by_role("checkbox", name="exponent 8").count() == 1
    sign.check()
    outputs.locator("img[alt*='0xbc']").first.wait_for()
    book.watched.clean()


def test_07_run_all_with_triton(notebook):
    pytest.importorskip("triton")
    book = notebook("07_first_triton_kernels")
    assert "skipped, no Triton" not in str(book.run_all())
    book.watched.clean()
