# Two commands do everything:  make lab   opens the workbook;   make test   runs every test.
# Both create .venv and install into it first. Options:
#   PYTHON=python3.12            another interpreter (3.10 or newer) for the environment
#   LAB_ARGS="--no-browser --port 8890"
#   TEST_ARGS="-k rope"          passed to pytest
#   VERSIONS_ARGS="--only 3.13 --quick"   passed to tools/versions.py; --help says more
#   WORKERS=4                    parallel test processes

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
LAB_ARGS ?=
TEST_ARGS ?=
VERSIONS_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q -c constraints.txt

.PHONY: lab test lint unit notebooks drift build data site browser versions colab clean

# Threads wait without spinning, in every kernel: see src/minids3/__init__.py.
lab: $(VENV)/.lab
	OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} $(BIN)/jupyter lab --notebook-dir=notebooks \
		--LabApp.default_url=/lab/tree/00_start_here.ipynb $(LAB_ARGS)

test: lint unit drift notebooks

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff check -q --preview --select PLW1514 src tests tools book  # encodings are said

unit: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests $(TEST_ARGS)

# The generated notebooks are what the sources say.
drift: $(VENV)/.test
	$(BIN)/python -m minids3.course check

# Every solved notebook runs, and its deterministic cells print what they printed when it was built.
# Progress bars are slowed down: nbval loses the end of a cell that has sent thousands of messages.
notebooks: $(VENV)/.test
	OMP_NUM_THREADS=1 TQDM_MININTERVAL=2 MINIDS3_HOME=$$(mktemp -d) $(BIN)/python -m pytest -n $(WORKERS) \
		--dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout 900 \
		notebooks/solutions

# Regenerate the notebooks from notebooks/source, and data/ from its generators.
build: $(VENV)/.test
	$(BIN)/python -m minids3.course build

data: $(VENV)/.test
	$(BIN)/python -m minids3.data build

# A static book of the solved notebooks, in build/site; nothing is executed.
site: $(VENV)/.site
	$(BIN)/python book/prepare.py build/site-source
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/site-trees build/site-source build/site
	@rm -rf build/site/_sources
	@echo "open build/site/index.html"

# JupyterLab and the site in the machine's own Chromium, headless. Some minutes; not part of 'test'.
browser: site $(VENV)/.browser
	MINIDS3_BROWSER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser $(TEST_ARGS)

# The Pythons found on this machine, and Colab's versions, each in an environment of its own. Hours
# and gigabytes; an interrupted run goes on. Not part of 'test'.
versions:
	$(PYTHON) tools/versions.py matrix $(VERSIONS_ARGS)

colab:
	$(PYTHON) tools/versions.py colab $(VERSIONS_ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "minids3 needs Python 3.10 or newer; '$(PYTHON)' is not. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; \
		exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
		echo "Could not create $(VENV). On Debian and Ubuntu: sudo apt install python3-venv"; \
		rm -rf $(VENV); exit 1; }

# JupyterLab's look-out for news and updates is switched off: the workbook needs no network.
QUIET := $(BIN)/jupyter labextension disable --level=sys_prefix \
	"@jupyterlab/apputils-extension:announcements" >/dev/null 2>&1

$(VENV)/.lab: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[lab]"
	$(QUIET)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[test]"
	$(QUIET)
	@touch $@ $(VENV)/.lab

$(VENV)/.site: $(VENV)/.test
	$(PIP) -e ".[site]"
	@touch $@

$(VENV)/.browser: $(VENV)/.test
	$(PIP) -e ".[browser]"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
