# Two commands for a fresh clone: `make train` and `make test`. Each sets up all it needs in .venv.
PYTHON ?= python3
# Any other build of torch 2.9 or newer will do, e.g. TORCH="torch --index-url <your CUDA index>".
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready

EXTRAS := .venv-extras/bin
LOWEST := .venv-lowest/bin
SIDE_BY_SIDE := -n logical --maxprocesses 4

.PHONY: train test test-gpu check docs format audit test-extras test-slow test-lowest

train: $(READY)
	$(BIN)/cgrpo train

# Tests run in as many processes as there are cores, the slowest files first (tests/conftest.py).
test: check
	$(BIN)/python -m pytest -m 'not slow' $(SIDE_BY_SIDE) --dist loadfile --no-loadscope-reorder

# What only a GPU can show, on the first one that is visible: some minutes. Needs a build of torch with CUDA (TORCH).
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu -rs

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: $(READY)
	$(BIN)/mkdocs build

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Known vulnerabilities of what is installed. Says so where no advisory service can be reached.
audit: $(READY)
	$(BIN)/python .ci/audit.py

# Demo and report in a browser, Weights & Biases and trackio, DeepSpeed, and quantised weights, by packages that other tests do
# without: in an environment on top of .venv, since Gradio takes an older Pillow than the rest.
test-extras: $(READY)
	$(PYTHON) -m venv --without-pip .venv-extras
	for bin in $(BIN) $(EXTRAS); do \
	  $$bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'; done | \
	  { read -r below; read -r here; echo "$$below" > "$$here/below.pth"; }
	$(EXTRAS)/python -m pip install --quiet --disable-pip-version-check --editable '.[deepspeed,demo,quantise,trackers]'
	$(EXTRAS)/python -m pytest -rs $(SIDE_BY_SIDE) --dist loadfile tests/serve/demo/test_demo_in_a_browser.py \
	  tests/reporting/test_browser.py \
	  tests/test_trackers.py::test_wandb_offline_has_the_numbers_and_no_secret \
	  tests/test_trackers.py::test_trackio_has_the_numbers \
	  tests/policies/test_quantisation.py tests/trainer/test_zero.py \
	  tests/policies/test_uno_lora.py::test_it_is_fused_before_weights_are_quantised

# Tests that take minutes and mostly repeat on the whole product what others show of its parts.
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow $(SIDE_BY_SIDE)

# The suite with the oldest release of each dependency that pyproject.toml allows, in an environment of its own.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/uv pip compile --quiet --resolution lowest-direct --extra dev pyproject.toml -o .venv-lowest/lowest.txt
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --requirement .venv-lowest/lowest.txt
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --no-deps --editable .
	$(LOWEST)/python -m pytest $(TESTS)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)
