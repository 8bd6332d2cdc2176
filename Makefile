# Two commands do everything: `make repro` and `make test`. Each sets up what it needs first.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
DEVICE ?= cpu
JUDGE  := usage: make judge SET=file DATA=cifar10 [PROTOCOL=dc] [IPC=10] [STORED='normalised=literature']
# Stages run `python`: the environment's must come first on PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export OMP_WAIT_POLICY := PASSIVE
# Store compiled bytecode: without it, every stage spends seconds compiling the libraries it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup data repro methods best claims judge test bench bench-accuracy bench-reach check lint clean-notebooks lab report record relock

help:            ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.done   ## create .venv with the pinned packages

data: setup      ## fetch the data and check every file against its published hash
	$(BIN)/python -m pipeline.fetch_data

repro: data      ## reproduce the default pipeline from the data up, then compare with the committed record
	$(BIN)/dvc repro --force
	$(BIN)/python -m pipeline.report.record compare

methods: data    ## the methods study: every family of methods at ipc 1, under an hour on two cores
	$(BIN)/dvc repro studies/dvc.yaml:methods

best: data       ## the project's best sets (results/best), about five and a half hours on two cores
	$(BIN)/dvc repro studies/dvc.yaml:best

claims: data     ## the study of DREAM's claims at a reduced budget, about an hour on two cores
	$(BIN)/dvc repro studies/dvc.yaml:claims

judge: $(if $(and $(SET),$(DATA)),setup)   ## judge any distilled set: SET=file DATA=cifar10 …, `make judge` lists the options; report in reports/judged
	$(if $(and $(SET),$(DATA)),,$(error $(JUDGE)))
	$(BIN)/python -m pipeline.studies.judge "$(SET)" --data "$(DATA)" --protocol "$(PROTOCOL)" --ipc $(or $(IPC),0) --stored "$(STORED)"

test: setup      ## run the tests on two processes (needs no network access: scikit-learn includes the digits)
	$(BIN)/python -m pipeline.fetch_data digits
	$(BIN)/python -m pytest -n 2 --dist loadfile --junitxml=.dream/tests.xml

bench: setup     ## compare the library's speed with a plain reference: benchmarks/results*.json; DEVICE=cuda: on the GPU
	$(BIN)/python -m benchmarks --device $(DEVICE)
	$(BIN)/python -m pipeline.pages

bench-accuracy: data   ## whether the fast path costs accuracy: benchmarks/accuracy.json
	$(BIN)/python -m benchmarks.accuracy
	$(BIN)/python -m pipeline.pages

bench-reach: data      ## accuracy of a set of one image per class over distillation time: benchmarks/reach.json
	$(BIN)/python -m benchmarks.reach
	$(BIN)/python -m pipeline.pages

lint: setup      ## ruff on code and notebooks, and import rules between layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

check: lint      ## linters, clean notebooks, and whether dvc.lock matches the default pipeline
	$(BIN)/python -m pipeline.report.notebooks check
	@output=$$($(BIN)/dvc repro --allow-missing --dry) && echo "$$output" && echo "$$output" | grep -q "up to date"

relock: setup    ## update dvc.lock after a code change that changes no result, after checking that it does not
	$(BIN)/python -m pipeline.relock

clean-notebooks: setup   ## strip outputs and editor metadata from notebooks/
	$(BIN)/python -m pipeline.report.notebooks clean

lab: setup       ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

report: setup    ## make HTML of the executed notebooks, with an index: reports/html/index.html
	$(BIN)/python -m pipeline.report.notebooks html

record: setup    ## maintainers: write this run's timings to results/record.json, and the generated parts of README and docs
	$(BIN)/python -m pipeline.report.record write
	$(BIN)/dvc repro figures
	$(BIN)/python -m pipeline.pages
