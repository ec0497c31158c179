# make demo   environment, then the whole main job on built-in data       make test   environment, then all tests
# make lint   ruff and mypy                                               make drill  kills a run 50 times (15 min)
# make bench  writes docs/benchmarks.md (15 min); one alone, also of those not on it: make bench NAME=evaluation
# make install   environment alone                                        make clean  removes it

# The first of these that there is; any from 3.11 on will do.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell command -v $(name))))
VENV   := .venv
BIN    := $(VENV)/bin
# Nothing here may fetch a model: what is not on disk is an error.
export HF_HUB_OFFLINE := 1
# The program is compiled once, not in each of the processes that tests start: a second of every rank's start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test drill lint bench clean

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/sonoshard demo $(ARGS)

# Jobs on Slurm clusters, which wait half of their time: two clusters at once. The demo by itself, as it has two ranks
# for minutes, and two threads: beside others these wait for each other ten times as long. All else side by side, in the
# folders' order: pytest-xdist's own puts files of one long test last, where nothing is left to run beside them.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/slurm --numprocesses=2 --maxschedchunk=1 $(ARGS)
	$(BIN)/python -m pytest tests/tools/test_demo.py $(ARGS)
	$(BIN)/python -m pytest --ignore=tests/slurm --ignore=tests/tools/test_demo.py \
		--numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(ARGS)

drill: $(VENV)/.installed-test
	$(BIN)/python -m tests.drill $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks$(if $(NAME),.$(NAME)) $(ARGS)

# The stamps hold what was installed: they are older than nothing they depend on, so a second call installs nothing.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) *.egg-info
