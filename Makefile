# make train   trains on handwritten digits and shows what came of it
# make test    runs the tests
# make lint    checks style and types
# make docs    builds the documentation into docs/_build
# Each makes what it needs of a virtual environment first, in .venv, with the versions that CI ran.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip installs into an environment without pip, so nothing but Python and pip need be there.
INSTALL = $(PYTHON) -m pip --python $(VENV) install --quiet --constraint constraints.txt

.PHONY: train test lint docs clean
train: $(VENV)/experiments.done
	$(BIN)/python experiments/train.py

test: $(VENV)/test.done
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8

lint: $(VENV)/lint.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/docs.done
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build

clean:
	rm -rf $(VENV)

$(VENV)/%.done: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	  || { echo "Python 3.11 or later is needed; name one with: make PYTHON=python3.11"; exit 1; }
	@echo "installing into $(VENV), which takes about a minute ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	@$(INSTALL) --editable ".[$*]"
	@touch $@
