# Every command a user needs; `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STUDY := data/phantom/study
# TensorFlow's log says "oneDNN is on" and "no GPU" once a process; its errors still show.
export TF_CPP_MIN_LOG_LEVEL := 2
export MPLBACKEND := agg

.DEFAULT_GOAL := help
.PHONY: help demo rsna test test-browser test-backends lab bench notebooks model-card clean

help: ## lists these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 20

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

demo: .venv/installed ## the five notebooks on a synthetic study, from nothing to the results figure
	$(BIN)/python -c 'from chexnet.phantom import write_phantom_study; write_phantom_study("$(STUDY)", film_size=512)'
	$(BIN)/python notebooks/execute.py --run demo

rsna: .venv/installed ## the same on real films: make rsna RSNA=<folder in Kaggle's layout>
	@test -n "$(RSNA)" || { echo "Say where the films are: make rsna RSNA=<folder with stage_2_train_images>"; exit 2; }
	$(BIN)/python notebooks/execute.py --run rsna -p STUDY rsna -p SOURCE "$(RSNA)" -p IMAGE_SIZE 160 -p EPOCHS null -p WEIGHTS imagenet $(ARGS)

test: .venv/installed ## ruff and the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses 2

.venv/browser-installed: .venv/installed tests/browser/requirements.txt
	$(BIN)/pip install --quiet --requirement tests/browser/requirements.txt
	touch $@

test-browser: .venv/browser-installed ## the explorer in a real browser (Chromium, installed if need be)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
		root=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
		$$root apt-get update -qq && $$root apt-get install -qq -y --no-install-recommends chromium >/dev/null; } \
		|| { echo "No Chromium here, and apt-get could not install it: install the package chromium, or Chrome"; exit 1; }
	$(BIN)/python -m pytest tests/browser

.venv/backends: .venv/installed requirements-backends.txt
	$(BIN)/pip install --quiet --requirement requirements-backends.txt
	touch $@

test-backends: .venv/backends ## the tests that need JAX and PyTorch
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/test_backends.py tests/training/test_distribution.py tests/model/test_xrayvision.py
	KERAS_BACKEND=jax $(BIN)/python -m pytest --numprocesses 2 tests/training/test_resume.py -k "interrupted_and_resumed and (gradient or schedule)"

lab: .venv/installed ## opens JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

bench: .venv/installed ## how fast it is, as Markdown tables, also in output/benchmarks.md
	bash -o pipefail -c 'for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done | tee output/benchmarks.md'

notebooks: demo ## make demo, then put the executed notebooks where git keeps them
	$(BIN)/python notebooks/execute.py --run demo --publish
	$(BIN)/ruff format notebooks

model-card: .venv/installed ## fills MODEL_CARD.md from a run: make model-card RUN=rsna
	$(BIN)/python -m studies.model_card output/$(or $(RUN),rsna)

clean: ## removes what runs made; the virtual environment and real data stay
	rm -rf data/phantom output/demo .pytest_cache .ruff_cache
