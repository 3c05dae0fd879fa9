# Everything is made by these targets; nothing needs to be installed by hand on Debian 12.
#   VENV=DIR     where the Python environment goes       PYTHON=python3.12   which interpreter makes it
#   STATE=DIR    where `make run` keeps its state         LISTEN=ADDR:PORT    where it listens
VENV ?= .venv
PYTHON ?= python3
STATE ?= var
LISTEN ?= 127.0.0.1:3260
PYTEST_ARGS ?=
CRASH_ARGS ?=
SCORE_ARGS ?=
BENCH_ARGS ?=
CC ?= cc
FUZZ_ARGS ?=

BIN = $(VENV)/bin
SOURCES = wafl cloner target tests scripts
RUN_READY = $(VENV)/.ready-to-run
TEST_READY = $(VENV)/.ready-to-test
FUZZ_READY = $(VENV)/.ready-to-fuzz
BENCH_READY = $(VENV)/.ready-to-bench
BENCH_TOOLS = $(addprefix build/bench/,lean_client libiscsi_client bare_target)
BENCH_CFLAGS = -O2 -std=gnu11 -Wall -Wextra -Wconversion

.PHONY: help run test score crash fuzz demo bench bench-tools bench-guard bench-clone bench-flush bench-luns bench-memory bench-rollout bench-scale bench-workers \
        lint unit debian clean
.DEFAULT_GOAL := help

help:
	@echo 'make run     start lund in the foreground with a volume and a LUN to try'
	@echo 'make test    lint, and every test, with real initiators'
	@echo 'make unit    the tests without real initiators'
	@echo 'make score   the conformance suite of libiscsi on every kind of LUN, and on tgt; SCORE_ARGS="--only thin …"'
	@echo 'make crash   every kind of crash, for about an hour (root); CRASH_ARGS="--seed N --states N …"'
	@echo 'make fuzz    a coverage-guided fuzzer on the iSCSI side, ten minutes; FUZZ_ARGS="--seconds N session …"'
	@echo 'make demo    the whole story in three minutes (root: it boots Linux hosts)'
	@echo 'make bench   everything side by side with tgt; BENCH_ARGS="--only read-4k-qd32 --rounds 5 …", or --list'
	@echo 'make bench-guard   the hot path counted in instructions: no measurement of time, the same on every machine'
	@echo 'make bench-clone   what a lazy clone costs hosts, and its speed beside cp and QEMU; BENCH_ARGS="--only copy …"'
	@echo 'make bench-flush   writes and flushes beside tgt, with and without the log; BENCH_ARGS="--rounds N …"'
	@echo 'make bench-luns    what 999 LUNs and 200 sessions cost that nobody uses; BENCH_ARGS="--rounds N …"'
	@echo 'make bench-memory  what lund keeps in memory over an hour of mixed load; BENCH_ARGS="--minutes N …"'
	@echo 'make bench-workers  two volumes on one process and on two; BENCH_ARGS="--rounds N …"'
	@echo 'make bench-rollout  a golden image rolled out as 10, 100 and 250 LUNs; BENCH_ARGS="--rounds N …"'
	@echo 'make bench-scale   a volume of 1 TiB with 1,000 LUNs and 255 snapshots; BENCH_ARGS="--json FILE …"'
	@echo 'make lint    ruff, mypy, compileall'
	@echo 'make clean   remove what the targets above made (never $(STATE)/)'

$(RUN_READY): setup.cfg pyproject.toml
	PYTHON="$(PYTHON)" sh scripts/make_venv.sh "$(VENV)" .
	@touch $@

$(TEST_READY): setup.cfg pyproject.toml
	PYTHON="$(PYTHON)" sh scripts/make_venv.sh "$(VENV)" '.[test]'
	@touch $@ $(RUN_READY)

# atheris has wheels for x86-64 only; nothing else needs it.
$(FUZZ_READY): setup.cfg pyproject.toml
	PYTHON="$(PYTHON)" sh scripts/make_venv.sh "$(VENV)" '.[test,fuzz]'
	@touch $@ $(RUN_READY) $(TEST_READY)

debian:
	@sh scripts/install_debian.sh

run: $(RUN_READY)
	@exec $(BIN)/python scripts/run.py --state "$(STATE)" --listen "$(LISTEN)"

lint: $(TEST_READY)
	$(BIN)/python -m compileall -q $(SOURCES)
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: lint
	$(BIN)/python -m pytest -n 2 -m 'not real' $(PYTEST_ARGS)

# Linux hosts run on two workers, libiscsi's suite, which mostly sleeps, on the third, the rest beside and after them.
test: debian lint
	$(BIN)/python -m pytest -n 3 $(PYTEST_ARGS)

score: debian $(RUN_READY)
	@exec $(BIN)/python scripts/conformance.py --markdown docs/conformance.md $(SCORE_ARGS)

crash: debian $(TEST_READY)
	@exec $(BIN)/python scripts/crash.py $(CRASH_ARGS)

fuzz: $(FUZZ_READY)
	@exec $(BIN)/python scripts/fuzz.py $(FUZZ_ARGS)

demo: debian $(RUN_READY)
	@exec $(BIN)/python scripts/demo.py

# The clients and the limit, in C so that they do not hide what the target costs.
build/bench/%: scripts/bench/%.c scripts/bench/common.c scripts/bench/common.h scripts/bench/crc32c.c scripts/bench/wire.h
	@mkdir -p build/bench
	$(CC) $(BENCH_CFLAGS) -o $@ $< $(BENCH_PARTS) $(BENCH_LIBS)

build/bench/lean_client: BENCH_PARTS = scripts/bench/common.c scripts/bench/crc32c.c
build/bench/libiscsi_client: BENCH_PARTS = scripts/bench/common.c
build/bench/libiscsi_client: BENCH_LIBS = -liscsi

bench-tools: debian $(BENCH_TOOLS)

# matplotlib draws the plot; nothing else needs it.
$(BENCH_READY): setup.cfg pyproject.toml
	PYTHON="$(PYTHON)" sh scripts/make_venv.sh "$(VENV)" '.[bench]'
	@touch $@ $(RUN_READY)

bench: bench-tools $(BENCH_READY)
	@exec $(BIN)/python -m scripts.bench $(BENCH_ARGS)

bench-guard: $(TEST_READY)
	@sh scripts/install_debian.sh valgrind
	@exec $(BIN)/python -m scripts.bench.guard

bench-flush: debian $(RUN_READY)
	@exec $(BIN)/python scripts/bench_flush.py $(BENCH_ARGS)

bench-luns: bench-tools $(RUN_READY)
	@exec $(BIN)/python -m scripts.bench.many_luns $(BENCH_ARGS)

bench-memory: bench-tools $(BENCH_READY)
	@exec $(BIN)/python -m scripts.bench.memory $(BENCH_ARGS)

bench-clone: bench-tools $(BENCH_READY)
	@sh scripts/install_debian.sh qemu-system-common
	@exec $(BIN)/python -m scripts.bench.cloning $(BENCH_ARGS)

bench-workers: bench-tools $(BENCH_READY)
	@exec $(BIN)/python -m scripts.bench.workers $(BENCH_ARGS)

bench-rollout: $(RUN_READY)
	@exec $(BIN)/python scripts/bench_rollout.py $(BENCH_ARGS)

bench-scale: $(RUN_READY)
	@exec $(BIN)/python scripts/bench_scale.py $(BENCH_ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	@if [ -e "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
