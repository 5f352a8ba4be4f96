# make demo      the whole pipeline in minutes: frames, three stages, an evaluated model, a report
# make test      install what the tests need and run them
# make nano      the same pipeline in hours instead of minutes (run it again to continue)
# make grocery   the same pipeline on real photographs (GROCERY=folder)
# make headline  what stage 3 is worth with a teacher that errs: three seeds of all arms, 12 hours (run it again to continue)
# make ablations what each piece of the recipe is worth: one seed, short stages, 14 hours (the same)
# make weeks     what weekly retraining is worth: eight simulated weeks, hours (run it again to continue)
# make bench     speed against TRL, transformers and vLLM on this machine: a table, and benchmarks/out/results.json
# make gpu       is it right on this machine's CUDA device, and how fast? eight minutes; GPU="--only trl demo": the rest
# make check     ruff and pyright
# make docs      docs/recipe.md and docs/task-file.md, written from the code
# make torture   killed, without power, disk or memory, verbs must end like the unbroken run: half an hour
# make torture-label   a labelling job with a faulty endpoint, killed 20 times; its overhead: minutes
# make torture-long    500 small stages: do memory, files, threads or disk grow? half an hour (run it again to go on)
# make torture-serve   10,000 hostile requests to a server of its own: minutes
# make fuzz      changed inputs for every reader, guided by coverage: MINUTES=10 of processor time (run it again to go on)
# make lock      requirements-*.lock: the version and the hashes of every package; UPGRADE=--upgrade takes newer versions
# make sbom      dist/sbom.json, a bill of materials of the installed packages (CycloneDX)
# make audit     known faults of the locked packages, torch and the tools of make too (needs the network)
# make clean     remove installed packages and caches; runs/ stays
#
# PYTHON=python3.12 picks the interpreter. On Linux, PyPI's torch brings gigabytes of CUDA packages: on a machine
# without a GPU, TORCH_INDEX=https://download.pytorch.org/whl/cpu gets the small build.

PYTHON ?= python3
GROCERY ?= ../shared/data/grocery
TORCH_INDEX ?=

BIN := .venv/bin
# --no-compile: Python compiles what it imports, a small part of 21,000 modules. That saves a third of the installation.
# It must be allowed to keep what it has compiled (container images often forbid it): else each process compiles anew.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)

# Two cores and small matrices: with one thread each, two processes do not compete for cores.
test: export OMP_NUM_THREADS = 1

.PHONY: help demo nano grocery headline ablations weeks test bench gpu check docs torture torture-label torture-long \
	torture-serve fuzz lock sbom audit clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

demo: .venv/demo
	$(BIN)/lineside train quickstart

nano: .venv/demo
	$(BIN)/lineside train nano

grocery: .venv/demo
	$(BIN)/lineside train grocery data.table=$(GROCERY)

# HEADLINE="--seeds 0 --scale 0.3": one seed, every stage 0.3 of its length. HEADLINE=--dry-run: the arms and their hours.
# HEADLINE="--photographs sorting" (or grocery): the same arms on real photographs, some two hours.
headline: .venv/demo
	$(BIN)/python benchmarks/headline.py --page docs/headline.md $(HEADLINE)

ablations: .venv/demo
	$(BIN)/python benchmarks/headline.py --ablations --page docs/headline.md $(HEADLINE)

# WEEKS="--weeks 2 --minutes 0.2": a small version.
weeks: .venv/demo
	$(BIN)/python benchmarks/weeks.py --page docs/weeks.md $(WEEKS)

test: .venv/dev
	$(BIN)/python -m pytest -n auto

bench: .venv/dev
	$(BIN)/python benchmarks/run_all.py $(BENCH)

gpu: .venv/dev
	$(BIN)/python benchmarks/gpu.py $(GPU)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/dev
	$(BIN)/python scripts/pages.py

# TORTURE="--verbs sft,rlvr --kills 10": fewer.
torture: .venv/dev
	$(BIN)/python -m tests.torture.kills $(TORTURE)

torture-label: .venv/dev
	$(BIN)/python tests/torture/harness.py

# TORTURE="--stages 60": fewer.
torture-long: .venv/dev
	$(BIN)/python -m tests.torture.long $(TORTURE)

torture-serve: .venv/dev
	$(BIN)/python tests/torture/hostile.py

# Without atheris (no wheel for this Python) the inputs are changed at random.
fuzz: .venv/dev
	-$(PIP) --no-deps --constraint constraints.txt atheris
	$(BIN)/python -m tests.fuzz.harness --minutes $(or $(MINUTES),10) $(FUZZ)

LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --constraint \
	constraints.txt --no-emit-package torch --custom-compile-command 'make lock' $(UPGRADE) pyproject.toml --extra demo

lock: .venv/torch
	$(PIP) --constraint constraints.txt uv
	$(LOCK) --output-file requirements-demo.lock >/dev/null
	$(LOCK) --extra dev --output-file requirements-dev.lock >/dev/null

sbom: .venv/dev
	@mkdir -p dist
	$(BIN)/cyclonedx-py environment --output-file dist/sbom.json .venv

audit: .venv/dev
	$(BIN)/python scripts/audit.py $(AUDIT)

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis

# torch first and alone, see constraints.txt; the other packages then find it installed.
.venv/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lineside needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@touch $@

# Every package by its hash, and none besides. lineside itself is built with what is installed then.
LOCKED := $(PIP) --no-deps --require-hashes --requirement
OURS := $(PIP) --no-deps --no-build-isolation --editable .

.venv/demo: .venv/torch pyproject.toml requirements-demo.lock
	$(LOCKED) requirements-demo.lock
	$(OURS)
	@scripts/graphics.sh
	@touch $@

.venv/dev: .venv/torch pyproject.toml requirements-dev.lock
	$(LOCKED) requirements-dev.lock
	$(OURS)
	@scripts/graphics.sh
	@touch .venv/demo $@
