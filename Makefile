# Two commands: `make demo` shows the main job, `make test` checks every law; `make test-all` its slow cases as well, and
# `make docs` builds the site. Each installs what it needs into .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is made when a module is first imported; of the rest of these packages nobody needs any.
INSTALL := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test test-all lint kernels figures docs clean

demo: $(VENV)/.compare
	$(BIN)/lossmith compare monks-3 --repeats 2 --out out/demo-pays
	$(BIN)/lossmith compare breast-cancer --out out/demo-does-not

# Neighbours share what their file sets up: each process takes half of the tests in a row, and what is left of the other's.
# One thread a process: two that wait busily block each other.
test test-all:
	$(MAKE) --no-print-directory --jobs 2 kernels lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal $(if $(filter test-all,$@),-m "")

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# One process compiles at a time: tests that start together would wait for each other.
kernels: $(VENV)/.compare
	$(BIN)/lossmith doctor --warm-up

figures: $(VENV)/.test
	$(BIN)/lossmith toy --out docs/figures
	$(BIN)/python docs/make_recipes.py

# The signatures of the integrations are read from the packages, so the tests' packages are needed as well.
docs: $(VENV)/.test
	$(INSTALL) '.[docs]'
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf $(VENV) out build

# Some systems ship Python without ensurepip: there the system's pip fills the environment.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || \
	{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip install --quiet --target \
	"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip; }

$(VENV)/.compare: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing lossmith and what the main job needs into $(VENV)"
	$(INSTALL) '.[compare]'
	touch $@

$(VENV)/.test: $(VENV)/.compare
	@echo "installing what the tests need into $(VENV)"
	$(INSTALL) '.[compare,test]'
	touch $@
