# Everything a newcomer or CI needs. Wants: Linux, Python >= 3.10 with its headers and venv module, gcc, make.
#
#   make demo     build, then watch four peers reduce while one is killed and one joins
#   make test     build, then every test
#
# The rest: venv test-c test-py test-LANE sim fuzz soak bench docs lint dist clean. Nothing is installed outside this directory.

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

# pytest gives each test its time; nothing but this watches what comes after the last one. What hangs says where.
LIMIT  ?= 40m
PYTEST := PYTHONFAULTHANDLER=1 timeout --foreground --signal=ABRT --kill-after=30s $(LIMIT) $(BIN)/pytest

# The C tests run as the code ships, then under the address and undefined-behaviour sanitizers, and those with threads
# then under the thread sanitizer.
VARIANTS ?= release asan tsan

SOURCES := pyproject.toml setup.py MANIFEST.in LICENSE README.md \
	$(wildcard bindings/*.py csrc/*.[ch] csrc/include/*.h transports/*.[ch]) \
	$(shell find pccl -name '*.py' 2>/dev/null) $(wildcard pccl/coordinator/page/*)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

LANES := c processes chaos units training wan lines

.PHONY: help venv test test-py $(LANES:%=test-%) $(LANES:%=lane-%) $(VARIANTS:%=c-%) demo bench docs sim fuzz soak lint dist clean
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

# pip, build tools, torch and test tools: again only when their lists change. Bytecode is made of what is imported, when it is.
$(VENV)/.base: requirements/dev.txt requirements/docs.txt
	@$(PYTHON) -c "$$CHECK_HOST"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements/dev.txt --requirement requirements/docs.txt
	@touch $@

# pccl itself, from its wheel, as users get it: again whenever a source changes.
$(VENV)/.installed: $(VENV)/.base $(SOURCES)
	rm -rf build/lib* build/bdist* build/wheel
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet build/wheel/pccl-*.whl
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall build/wheel/pccl-*.whl
	@touch $@

# -- tests -------------------------------------------------------------------------------------------------------

# Three lanes at a time, in this order, so that no processor of two is idle: the C tests need no environment and run while
# pip makes it; processes, chaos and emulated WANs wait for the network most of the time, and the longest of them begins
# first; what begins last is short, and not alone. Then, with the machine to itself, what measures lines: rates and
# round trips. What a lane says is in build/test/LANE.log, and is shown when it has ended; all go on when one fails.
test:
	@rm -rf build/test && mkdir -p build/test
	@status=0; $(MAKE) --no-print-directory --jobs=3 --keep-going $(patsubst %,lane-%,$(filter-out lines,$(LANES))) || status=2; \
	    $(MAKE) --no-print-directory lane-lines || status=2; \
	    echo "== summary"; for lane in $(LANES); do \
	        echo "$$lane: $$(grep -sv '^make' build/test/$$lane.log | tail -n 1 | grep . || echo did not run)"; done; exit $$status

$(filter-out lane-c,$(LANES:%=lane-%)): venv

$(LANES:%=lane-%): lane-%:
	@log=build/test/$*.log; echo "== $* begins: $$log"; status=0; \
	    $(MAKE) --no-print-directory test-$* > $$log 2>&1 || { status=$$?; echo "== $* failed"; }; \
	    { echo "== $*"; cat $$log; } ; exit $$status

INTEGRATION := tests/integration
CHAOS    := $(INTEGRATION)/test_chaos.py
LINES    := $(INTEGRATION)/test_wan.py $(INTEGRATION)/test_doctor_wan.py
WAN      := $(filter-out $(LINES),$(wildcard $(INTEGRATION)/test_wan*.py $(INTEGRATION)/test_doctor*.py))
TRAINING := $(wildcard $(INTEGRATION)/test_docs.py $(INTEGRATION)/test_examples.py $(INTEGRATION)/test_optim_*.py $(INTEGRATION)/test_torch*.py)
APART    := $(CHAOS) $(WAN) $(LINES) $(TRAINING)

# Variants beside each other, so that the long last program of one does not keep a processor idle.
test-c:
	@$(MAKE) --silent --keep-going --jobs=$$(nproc) --output-sync=recurse $(VARIANTS:%=c-%)

$(VARIANTS:%=c-%): c-%:
	@echo "== C tests, $*"; $(MAKE) --silent --keep-going -C csrc check SAN=$(*:release=)

test-chaos: venv
	$(PYTEST) --quiet $(CHAOS)

test-units: venv
	$(PYTEST) --quiet --ignore=$(INTEGRATION)

test-wan: venv
	$(PYTEST) --quiet $(WAN)

test-lines: venv
	$(PYTEST) --quiet $(LINES)

test-processes: venv
	$(PYTEST) --quiet $(INTEGRATION) $(APART:%=--ignore=%)

test-training: venv
	$(PYTEST) --quiet $(TRAINING)

# All of pytest one after the other, but for the chaos.
test-py: venv
	$(BIN)/pytest --ignore=$(CHAOS)

# More seeds than the tests take: make sim SEEDS=10000
sim: venv
	$(BIN)/pccl simulate --seeds $(SEEDS)
	$(BIN)/pccl simulate --seeds $(SEEDS) --scenario everything_moves

# Hostile bytes, so many inputs for each: control messages, then everything between engines (csrc/Makefile has one by one).
# make fuzz INPUTS=10000000 SEED=1
fuzz: venv
	cd tests && $(abspath $(BIN))/python -m fuzz.control --inputs $(INPUTS) --seed $(SEED)
	$(MAKE) --no-print-directory -C csrc fuzz INPUTS=$(INPUTS) SEED=$(SEED)

# Real processes on an emulated WAN, a fault every two seconds, and every promise checked; needs root.
# make soak MINUTES=30 SEED=1 PEERS=8; KEEPING=etcd: two coordinators, and failover from one to the other.
soak: venv
	$(BIN)/python -m stress.chaos --minutes $(MINUTES) --seed $(SEED) --peers $(PEERS) --keeping $(KEEPING)

# -- to look at --------------------------------------------------------------------------------------------------

demo: venv
	$(BIN)/python examples/demo/run.py

# Everything that is measured, for an hour or more: rows in docs/measured, and docs/performance.md of them.
# make bench QUICK=1: what takes some minutes. make bench ONLY=wan,torch: some steps.
bench: venv
	@status=0; $(BIN)/python stress/bench_all.py --out build/bench --rows docs/measured --rounds $(ROUNDS) \
	    $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) || status=$$?; \
	    $(BIN)/python -m stress.performance_page && exit $$status

# The documentation site, in build/site.
docs: venv
	$(BIN)/mkdocs build --strict --quiet

# -- for maintainers -----------------------------------------------------------------------------------------------

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	if [ -f csrc/Makefile ]; then $(MAKE) -C csrc clean; fi

# The archive for others, checked by installing it somewhere else; and that the wheel keeps to the limited API.
dist: venv
	rm -rf dist build/sdist-check
	$(BIN)/python setup.py --quiet sdist
	$(PYTHON) -m venv build/sdist-check
	build/sdist-check/bin/python -m pip install --quiet --requirement requirements/dist.txt dist/pccl-*.tar.gz
	build/sdist-check/bin/twine check --strict dist/pccl-*.tar.gz build/wheel/pccl-*.whl
	build/sdist-check/bin/abi3audit --strict build/wheel/pccl-*.whl
	cd build && sdist-check/bin/pccl version
