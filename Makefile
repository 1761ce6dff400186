# Everything is set up by these targets on a machine that has python3 (3.11 or later) with venv, make and git.

PYTHON ?= python3
BIN := .venv/bin
# Tests and searches start hundreds of processes: none is to compile PyTorch's or Ray's sources anew.
export PYTHONDONTWRITEBYTECODE :=
READY := .venv/.ready

.PHONY: install test lint drills demo clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Slow: searches that are killed at any moment, what a browser shows of their record, and a cluster of simulated hosts.
drills: $(READY)
	{ command -v chromium && ls /usr/lib/postgresql/*/bin/initdb && \
	  command -v sshd && command -v ssh && command -v rsync && command -v ip && kpsewhich tabularx.sty booktabs.sty; } >/dev/null 2>&1 || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core postgresql \
	  openssh-server openssh-client rsync iproute2 texlive-latex-recommended >/dev/null; } || \
	  echo "no chromium, PostgreSQL, sshd, ssh, rsync, ip or LaTeX, and no right to install them: their drills are skipped"
	$(BIN)/python -m pytest -m drill $(ARGS)

# The main job on the embedded dataset: which region constraint earns its keep?
demo: $(READY)
	$(BIN)/python -m ram_tune.search constraints

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
