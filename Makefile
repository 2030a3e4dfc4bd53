# make setup       virtual environment with torch, DeepSpeed and this project; does only what is missing
# make test        the quick tests (sets up first)            make test TORCH=2.9.0   the same with another torch
# make test-full   all tests                                  make lint               ruff and mypy
# make test MEGATRON=0.19.2   Megatron's tests with another megatron-core
# make test DEEPSPEED=0.18.9  DeepSpeed's tests with another DeepSpeed
# make test LANES=0   one test after the other                make test TIER=units    one tier, see tests/README.md
# make demo        train, kill, recover, prove it             make demo-megatron      the same with Megatron
# make clean       remove what was built
TORCH_DEFAULT := 2.13.0
TORCH ?= $(TORCH_DEFAULT)
PYTHON ?= python3

# Every torch version has an environment and compiled operators of its own.
ifeq ($(TORCH),$(TORCH_DEFAULT))
VENV ?= .venv
else
VENV ?= .venv-torch$(TORCH)
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
endif

# With ninja from the environment, DeepSpeed finds it when it loads an operator.
export PATH := $(abspath $(VENV))/bin:$(PATH)
export OMP_NUM_THREADS ?= 1
# Jobs are many processes: each of them would compile this project again.
unexport PYTHONDONTWRITEBYTECODE

SOURCES := $(wildcard $(foreach ending,cpp h cu py,ff_core/csrc/*.$(ending) ff_core/csrc/*/*.$(ending)))
READY := $(VENV)/.ready

# More of setup_env.py's options: SETUP=--sanitizers compiles what the engine's tests need meanwhile, too.
SETUP ?=

.PHONY: setup megatron test test-full lint demo demo-megatron clean
setup: $(READY)

$(READY): setup.py pyproject.toml constraints.txt scripts/setup_env.py $(SOURCES)
	$(PYTHON) scripts/setup_env.py --venv $(VENV) --torch $(TORCH) $(SETUP)
	@touch $@

# Three lanes: whole jobs one after the other in one, all other tests in the others. See tests/README.md.
LANES ?= 3
TIER ?= units or engine or jobs
PYTEST := python -m pytest -q --durations=10 -n $(LANES) --dist loadscope --no-loadscope-reorder --max-worker-restart=0

# With another megatron-core only Megatron's tests run: it lies in a folder of its own, in front of the environment.
TESTS :=
ifneq ($(MEGATRON),)
OTHER := $(CURDIR)/.venv-megatron$(MEGATRON)/site-packages
OTHER_READY := $(OTHER)/.ready
TESTS := tests/megatron tests/e2e/test_megatron.py tests/e2e/test_megatron_saves.py tests/e2e/test_own_loop.py
$(OTHER_READY): scripts/other_megatron.py | $(READY)
	python scripts/other_megatron.py $(MEGATRON) $(OTHER)
	@touch $@
test test-full: export PYTHONPATH := $(OTHER)
endif

# The same with another DeepSpeed, which has compiled operators of its own.
ifneq ($(DEEPSPEED),)
OTHER := $(CURDIR)/.venv-deepspeed$(DEEPSPEED)/site-packages
OTHER_READY := $(OTHER)/.ready
TESTS := tests/deepspeed
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv-deepspeed$(DEEPSPEED)/torch_extensions
$(OTHER_READY): scripts/other_deepspeed.py | $(READY)
	python scripts/other_deepspeed.py $(DEEPSPEED) $(OTHER)
	@touch $@
test test-full: export PYTHONPATH := $(OTHER)
endif

megatron: $(OTHER_READY)

test: $(READY) $(OTHER_READY)
	$(PYTEST) -m "($(TIER)) and not slow" $(TESTS)

test-full: $(READY) $(OTHER_READY)
	$(PYTEST) -m "$(TIER)" $(TESTS)

lint: $(READY)
	ruff check .
	mypy

demo: $(READY)
	python scripts/demo.py

demo-megatron: $(READY)
	python scripts/demo.py --framework megatron --size tiny --out out/demo-megatron

clean:
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info ff_core/copy/_ff_engine*.so $(READY)
	find ff_core ff_deepspeed ff_megatron scripts tests -name __pycache__ -prune -exec rm -rf {} +
