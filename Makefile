# Two commands matter: `make execute` (every chapter and figure) and `make test`. Both set up .venv by themselves.
# VENV=   (empty) uses the Python that is active, as on Colab.
# KEEP=1  writes the full preset's results over the committed figures/ and the notebooks' outputs; without it they go to build/.
# FLOOR=1  uses a second environment, .venv-floor, with the lowest versions that requirements.txt allows: about what a Colab has.
# ENGINE=dask://host:port  runs the jobs of `make execute` on a dask cluster instead of this machine's cores (CONTRIBUTING.md).
FLOOR ?=
VENV ?= $(if $(filter 1,$(FLOOR)),.venv-floor,.venv)
PYTHON ?= python3
PRESET ?= full
SEEDS ?=
KEEP ?=
RUNS ?=
DATA ?=
CHECKPOINT ?=
BITS ?=
IMAGES ?=
TESTED ?=
OUT ?=
ENGINE ?=
CHAPTERS := $(wildcard chapters/[0-9]*.py)
CONSTRAINTS ?= $(if $(filter 1,$(FLOOR)),build/floor.txt,constraints.txt)

ifeq ($(filter 1,$(FLOOR)),1)
ifeq ($(strip $(VENV)),)
$(error FLOOR=1 needs an environment of its own: leave VENV unset)
endif
ifneq ($(filter execute evidence sync bench,$(MAKECMDGOALS)),)
$(error FLOOR=1 is for the tests: the committed figures and outputs come from constraints.txt)
endif
endif

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
STAMP := build/.installed
else
PY := $(abspath $(VENV)/bin/python)
STAMP := $(VENV)/.installed
endif

.DEFAULT_GOAL := help
.PHONY: help setup execute evidence test lint unit nbval road sync book bench real clean gpu

help:  ## this text
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  variables      PRESET=full|headline|fast  SEEDS="11 12 13"  KEEP=1 (write figures/)  ENGINE=dask://host:port  VENV= (the active Python)  PYTHON=python3.12  FLOOR=1'

setup: $(STAMP)  ## create .venv from requirements.txt (done by the others when missing)

ifeq ($(strip $(VENV)),)
$(STAMP): requirements.txt pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	mkdir -p $(@D) && touch $@
else
$(STAMP): requirements.txt $(CONSTRAINTS) pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt $(addprefix -c ,$(CONSTRAINTS)) -e .
	touch $@
endif

build/floor.txt: requirements.txt
	mkdir -p $(@D)
	(sed -n 's/^\([A-Za-z_0-9-]*\)>=\([0-9.]*\).*/\1==\2.*/p' $<; echo 'tokenizers==0.22.*') > $@

execute: $(STAMP)  ## run every chapter by papermill, write build/figures/ and compare with figures/ (KEEP=1 writes figures/)
	cd chapters && KEEP="$(KEEP)" ENGINE="$(ENGINE)" $(PY) -m lab.tools.execute --preset $(PRESET) --seeds "$(SEEDS)"

evidence: $(STAMP)  ## from figures/rows*.csv alone: verdicts, tables, quoted numbers, pictures, in seconds (RUNS= first keeps other seeds' runs)
	cd chapters && $(PY) -m lab.evidence $(abspath $(RUNS))

test: $(if $(filter 1,$(FLOOR)),,lint) unit nbval road  ## lint, unit tests, every notebook under nbval (fast preset), then the road

lint: $(STAMP)  ## layout (ruff format), lint (ruff check) and types (mypy over sare_min)
	$(PY) -m ruff format --check sare_min chapters/lab chapters/site tests
	$(PY) -m ruff format --check --config 'line-length=80' $(CHAPTERS)
	$(PY) -m ruff check sare_min chapters/lab chapters/site tests
	$(PY) -m ruff check --ignore E501 $(CHAPTERS)
	$(PY) -m mypy

unit: $(STAMP)  ## unit and property tests alone
	$(PY) -m pytest -n 2

nbval: $(STAMP)  ## the notebooks alone, as they stand (fast preset): tagged cells must print what is stored
	$(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 900 -p no:cacheprovider chapters/*.ipynb

road: $(STAMP)  ## from nothing to a report: `sare-min fetch` and `sare-min audit` as commands, on what nbval has trained
	$(PY) -m pytest tests/road.py

sync: $(STAMP)  ## rebuild the notebooks from their .py, in seconds; cells that changed lose their outputs until KEEP=1 make execute
	cd chapters && $(PY) -m lab.tools.execute --sync

book: $(STAMP)  ## the chapters as a site, from their stored outputs, in half a minute: build/book/index.html
	cd chapters && $(PY) -m lab.tools.book

bench: $(STAMP)  ## time and memory as ratios, a few minutes on a quiet machine: figures/bench.json and .png
	cd chapters && $(PY) -m lab.tools.bench

real: $(STAMP)  ## chapter 05 on a released checkpoint and COCO's files, resumed if killed: PRESET=t4|gpu DATA=DIR [OUT=DIR] [CHECKPOINT=...] [BITS=4] [IMAGES=100 TESTED=20]
	cd chapters && $(PY) -m lab.tools.real --preset "$(PRESET)" --data "$(if $(DATA),$(abspath $(DATA)))" --checkpoint "$(CHECKPOINT)" --bits "$(BITS)" --images "$(IMAGES)" --tested "$(TESTED)" --out "$(if $(OUT),$(abspath $(OUT)))"

gpu: $(STAMP)  ## measure and check this machine's GPU in under eight minutes: figures/gpu.json
	PYTHON=$(PY) tests/on_gpu.sh

clean:  ## remove caches and build products (not .venv)
	rm -rf build chapters/.cache .pytest_cache .ruff_cache
