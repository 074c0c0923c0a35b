# uvfio. `make help` lists what there is.
#
# Every target sets up what it needs: a virtual environment in .venv, made again when pyproject.toml
# changes. Nothing needs root and nothing is written outside this folder. With PYTHON=python3.13 the
# environment is build/venv-3.13.X, so one interpreter does not take the place of another.

DEFAULT := python3
PYTHON ?= $(DEFAULT)
TESTS ?= tests
CC ?= cc
CFLAGS ?= -O2 -Wall -Wextra -Werror
ifeq ($(PYTHON),$(DEFAULT))
VENV := .venv
else
VENV := build/venv-$(shell $(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null)
endif
BIN := $(VENV)/bin
STAMP := $(VENV)/.uvfio-installed
TYPED := src tests $(sort $(dir $(wildcard examples/*.py bench/*.py)))

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint support coverage bench soak clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

venv: $(STAMP) ## the virtual environment, with what tests and linters need

demo: $(STAMP) build/edu_driver ## a C driver drives a device that is written in Python
	@printf '\n== The machine: uvfio tree\n\n'
	@$(BIN)/uvfio tree
	@printf '\n== An ordinary C program drives one of its devices: uvfio run ./build/edu_driver\n\n'
	@$(BIN)/uvfio run -- ./build/edu_driver
	@printf '\n== What it asked of the kernel that is not there: uvfio run --trace ./build/edu_driver\n\n'
	@$(BIN)/uvfio run --trace -- ./build/edu_driver 2>&1 >/dev/null

test: $(STAMP) ## all tests but the long ones, or TESTS="FOLDER..."
	$(BIN)/pytest -n auto $(TESTS)

lint: $(STAMP) ## format, rules, types, and the arrow of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports

# The tests of what is imported are left out: the measurement imports modules of its own.
coverage: $(STAMP) ## how much of src the tests run, branches and child processes included; takes twice as long
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint,coverage]'
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -n auto --timeout 600 \
	    --deselect tests/test_house.py::test_what_stands_between_run_and_the_program \
	    --deselect tests/unit/models/test_catalogue.py::test_light_imports
	-$(BIN)/coverage combine --quiet # a process that a test kills leaves a file that cannot be read
	$(BIN)/coverage html --quiet -d build/coverage/html
	$(BIN)/coverage report

support: $(STAMP) ## write the tables of docs/reference/support.md anew
	PYTHONPATH=tests $(BIN)/python tests/tools/support_matrix.py

bench: $(STAMP) ## what an operation costs
	$(BIN)/python bench/run.py

# Pieces of `make soak`, FILE or FILE:EXPRESSION of pytest's -k; each takes less than ten minutes on two processors.
SOAK := tests/soak/test_identity.py:numbers tests/soak/test_identity.py:dup2 tests/soak/test_identity.py:taken \
    tests/soak/test_identity.py:exec-1 tests/soak/test_identity.py:exec-2 tests/soak/test_identity.py:exec-3 \
    tests/soak/test_identity.py:exec-4 tests/soak/test_paths.py tests/soak/test_memory.py tests/soak/test_control.py \
    tests/e2e/test_control.py tests/soak/test_models.py tests/soak/test_ends.py tests/soak/test_kills.py:thousand \
    tests/soak/test_kills.py:deaths tests/soak/test_kills.py:status tests/soak/test_fuzz.py:absurd \
    tests/soak/test_fuzz.py:programs tests/soak/test_fuzz.py:hundred tests/property/test_framework_machine.py

soak: $(STAMP) ## the long tests, piece by piece; SOAK="FILE[:EXPRESSION]..." runs some
	@number=0; total=$(words $(SOAK)); for piece in $(SOAK); do \
	    number=$$((number + 1)); file=$${piece%%:*}; chosen=$${piece#$$file}; \
	    echo "== soak $$number of $$total: $$piece ($$(date +%T))"; \
	    timeout --kill-after 30 600 $(BIN)/pytest -m soak -n 2 -rP --timeout 590 $$file -k "$${chosen#:}" \
	        || { echo "soak: $$piece failed, or took ten minutes" >&2; exit 1; }; \
	done

clean: ## everything that was built but the virtual environment
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests examples bench -name __pycache__ -type d -prune -exec rm -rf {} +

build/%: examples/%.c $(wildcard include/uvfio/*.h)
	@command -v $(CC) >/dev/null || { \
	    echo "uvfio: no C compiler ($(CC)); install one: apt install gcc libc6-dev" >&2; exit 1; }
	@mkdir -p build
	$(CC) $(CFLAGS) -Iinclude -o $@ $<

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "uvfio: $(PYTHON) must be Python 3.11 or later; say which: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "uvfio: $(PYTHON) cannot make virtual environments; install python3-venv: apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || { mkdir -p $(dir $(VENV)) && $(PYTHON) -m venv $(VENV); }
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]' || { \
	    echo "uvfio: pip could not install what pyproject.toml asks for; is there a network?" >&2; exit 1; }
	@touch $@
