# Every command a user needs; `make help` lists them.
# The first Python of 3.11 to 3.13 that runs (a version manager's shim may exist and not run).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STUDY := data/phantom/study
export MPLBACKEND := agg

.DEFAULT_GOAL := help
.PHONY: help demo rsna study predict app lint test test-browser test-backends mutants lab bench notebooks model-card constraints clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 20

.venv/installed: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11, 3.12 or 3.13 is needed, found %d.%d: make PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt --constraint constraints.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

demo: .venv/installed ## run the notebooks on synthetic data, from nothing to the results figure
	$(BIN)/python -c 'from chexnet.phantom import write_phantom_study; write_phantom_study("$(STUDY)", film_size=512)'
	$(BIN)/python notebooks/execute.py --run demo $(ARGS)

rsna: .venv/installed ## the same on real films: make rsna RSNA=<folder in Kaggle's layout>
	@test -n "$(RSNA)" || { echo "Missing RSNA=<folder>: the folder that contains stage_2_train_images"; exit 2; }
	$(BIN)/python notebooks/execute.py --run rsna -p STUDY rsna -p SOURCE "$(RSNA)" -p IMAGE_SIZE 160 -p EPOCHS null -p WEIGHTS imagenet $(ARGS)

study: .venv/installed ## on other data: make study SOURCE=<folder> DATASET=table|chestxray14|chexpert|rsna (docs/data.md)
	@test -n "$(SOURCE)" -a -n "$(DATASET)" || { echo "Missing SOURCE=<folder> or DATASET=table|chestxray14|chexpert|rsna: see docs/data.md"; exit 2; }
	$(BIN)/python notebooks/execute.py --run "$(or $(RUN),$(DATASET))" -p STUDY "$(or $(RUN),$(DATASET))" -p SOURCE "$(SOURCE)" -p DATASET "$(DATASET)" -p IMAGE_SIZE 160 -p EPOCHS null -p WEIGHTS imagenet $(ARGS)

predict: .venv/installed ## score films: make predict FILMS="film.dcm folder/" RUN=demo OUT=output/predictions
	@test -n "$(FILMS)" || { echo "Missing FILMS=<files or folders of DICOM, PNG or JPG films>"; exit 2; }
	$(BIN)/chexnet predict output/$(or $(RUN),demo) $(FILMS) --out $(or $(OUT),output/predictions)

app: .venv/installed ## a page to score films on: make app RUN=demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[app]'
	$(BIN)/papermill --prepare-only notebooks/06_predict.ipynb output/app.ipynb -p RUN $(or $(RUN),demo) -p STUDY $(or $(STUDY_OF_RUN),$(filter-out demo,$(RUN)),phantom)
	MPLBACKEND= $(BIN)/voila output/app.ipynb

compare: .venv/installed ## two runs on the same test films: make compare A=output/a B=output/b
	@test -n "$(A)" -a -n "$(B)" || { echo "Missing A=<run folder> B=<run folder>"; exit 2; }
	$(BIN)/chexnet compare $(A) $(B) --figure output/compare.png

lint: .venv/installed ## check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## run lint, all tests and the examples in the docstrings
	$(BIN)/python -m pytest --numprocesses 2

.venv/browser-installed: .venv/installed tests/browser/requirements.txt
	$(BIN)/pip install --quiet --requirement tests/browser/requirements.txt
	touch $@

test-browser: .venv/browser-installed ## test the explorer in Chromium (installed if it is missing)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
		root=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
		$$root apt-get update -qq && $$root apt-get install -qq -y --no-install-recommends chromium >/dev/null; } \
		|| { echo "Chromium is missing and apt-get could not install it: install the package chromium, or Chrome"; exit 1; }
	$(BIN)/python -m pytest tests/browser

.venv/backends: .venv/installed pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[backends]'
	touch $@

test-backends: .venv/backends ## run the tests that need JAX and PyTorch
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/test_backends.py tests/training/test_distribution.py tests/model/test_xrayvision.py
	KERAS_BACKEND=jax $(BIN)/python -m pytest --numprocesses 2 tests/training/test_resume.py -k "interrupted_and_resumed and (accumulated or schedule)"

.venv/mutants: .venv/installed pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	touch $@

mutants: .venv/mutants ## mutation testing of a part by its own tests: make mutants PART=auroc (CONTRIBUTING.md)
	@test -n "$(PART)" || { echo "Missing PART=<folder or file of chexnet>, such as auroc or evaluation/calibration"; exit 2; }
	$(BIN)/python -m tests.mutants $(PART) $(ARGS)

lab: .venv/installed ## open JupyterLab with copies of the notebooks in work/, which git ignores
	@mkdir -p work; for source in notebooks/0*.ipynb; do copy=work/$$(basename $$source); \
		test -e $$copy || cp $$source $$copy; \
		test ! $$source -nt $$copy || echo "$$copy: $$source is newer; delete the copy to get it"; done
	MPLBACKEND= $(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/work $(if $(filter 0,$(shell id -u)),--allow-root)

bench: .venv/installed ## measure speeds; Markdown tables, also in output/benchmarks.md
	bash -o pipefail -c 'for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done | tee output/benchmarks.md'

notebooks: ARGS := --anew
notebooks: demo .venv/browser-installed ## run make demo anew; executed notebooks to notebooks/, pictures to docs/
	$(BIN)/python notebooks/execute.py --run demo --publish
	$(BIN)/ruff format notebooks
	MPLBACKEND= $(BIN)/python -m tests.browser.readme_picture

model-card: .venv/installed ## fill MODEL_CARD.md from a run: make model-card RUN=rsna
	$(BIN)/python -m studies.model_card output/$(or $(RUN),rsna)

constraints: .venv/backends .venv/mutants ## pin every installed package, after the tests passed with them
	$(BIN)/pip freeze --exclude-editable | sed "s/+cpu//" > constraints.txt

clean: ## remove what make demo wrote; the virtual environment and real data stay
	rm -rf data/phantom output/demo .pytest_cache .ruff_cache .mypy_cache
