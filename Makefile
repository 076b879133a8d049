# Everything a newcomer or CI needs. Wants: Linux, Python >= 3.10 with its headers and venv module, gcc, make.
#
#   make demo     build, then watch four peers reduce while one is killed and one joins
#   make test     build, then every test
#
# The rest: venv test-c test-chaos test-py sim fuzz soak bench lint dist clean. Nothing is installed outside this directory.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SEEDS  ?= 2000
ROUNDS ?= 5
MINUTES ?= 30
SEED   ?= 1
PEERS  ?= 8
KEEPING ?= file
INPUTS ?= 1000000

# The C tests run as the code ships, then under the address and undefined-behaviour sanitizers, and those with threads
# then under the thread sanitizer.
VARIANTS ?= release asan tsan

SOURCES := pyproject.toml setup.py MANIFEST.in LICENSE README.md \
	$(wildcard bindings/*.py csrc/*.[ch] csrc/include/*.h transports/*.[ch]) \
	$(shell find pccl -name '*.py' 2>/dev/null)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv test test-c test-chaos test-py demo bench sim fuzz soak lint dist clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

# -- environment -------------------------------------------------------------------------------------------------

venv: $(VENV)/.installed

define CHECK_HOST
import importlib.util, os, shutil, sys, sysconfig
wrong = []
if sys.version_info < (3, 10):
    wrong.append("Python >= 3.10 is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")
if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
    wrong.append("this Python has no ensurepip, so it cannot make a virtual environment; on Debian: apt install python3-venv")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    wrong.append("the headers of Python are missing; on Debian: apt install python3-dev")
if not (shutil.which("gcc") or shutil.which("cc")):
    wrong.append("no C compiler; on Debian: apt install gcc")
sys.exit("\n".join("pccl: " + line for line in wrong) or 0)
endef
export CHECK_HOST

# pip, build tools, torch and test tools: again only when their lists change.
$(VENV)/.base: requirements/dev.txt
	@$(PYTHON) -c "$$CHECK_HOST"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements/dev.txt
	@touch $@

# pccl itself, from its wheel, as users get it: again whenever a source changes.
$(VENV)/.installed: $(VENV)/.base $(SOURCES)
	rm -rf build/lib* build/bdist* build/wheel
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet build/wheel/pccl-*.whl
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall build/wheel/pccl-*.whl
	@touch $@

# -- tests -------------------------------------------------------------------------------------------------------

# Three minutes of faults pass beside the C tests: they wait for the network, these for the processors.
test: venv
	$(MAKE) --no-print-directory --jobs=2 test-c test-chaos
	$(MAKE) --no-print-directory test-py

test-c:
	@set -e; for variant in $(VARIANTS); do echo "== C tests, $$variant"; \
	    $(MAKE) --silent --keep-going --jobs=$$(nproc) --output-sync=target -C csrc check SAN=$${variant#release}; done

CHAOS := tests/integration/test_chaos.py

test-chaos: venv
	$(BIN)/pytest --quiet $(CHAOS)

test-py: venv
	$(BIN)/pytest --ignore=$(CHAOS)

# More seeds than the tests take: make sim SEEDS=10000
sim: venv
	$(BIN)/pccl simulate --seeds $(SEEDS)

# Hostile bytes, so many inputs for each: control messages, then everything between engines (csrc/Makefile has one by one).
# make fuzz INPUTS=10000000 SEED=1
fuzz: venv
	PYTHONPATH=tests $(BIN)/python -m fuzz.control --inputs $(INPUTS) --seed $(SEED)
	$(MAKE) --no-print-directory -C csrc fuzz INPUTS=$(INPUTS) SEED=$(SEED)

# Real processes on an emulated WAN, a fault every two seconds, and every promise checked; needs root.
# make soak MINUTES=30 SEED=1 PEERS=8; KEEPING=etcd: two coordinators, and failover from one to the other.
soak: venv
	$(BIN)/python -m stress.chaos --minutes $(MINUTES) --seed $(SEED) --peers $(PEERS) --keeping $(KEEPING)

# -- to look at --------------------------------------------------------------------------------------------------

demo: venv
	$(BIN)/python examples/demo/run.py

# Against gloo on this machine and on emulated WANs, kills, joins, kernels: half an hour, and tables in build/bench.
bench: venv
	$(BIN)/python stress/bench_all.py --out build/bench --rounds $(ROUNDS)

# -- for maintainers -----------------------------------------------------------------------------------------------

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	if [ -f csrc/Makefile ]; then $(MAKE) -C csrc clean; fi

# The archive for others, checked by installing it somewhere else.
dist: venv
	rm -rf dist build/sdist-check
	$(BIN)/python setup.py --quiet sdist
	$(PYTHON) -m venv build/sdist-check
	build/sdist-check/bin/python -m pip install --quiet dist/pccl-*.tar.gz
	cd build && sdist-check/bin/pccl version
