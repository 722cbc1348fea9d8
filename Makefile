# `make help` lists the targets. Each makes .venv first when it is missing, or when the dependencies changed;
# nothing needs to be activated.

# Threads that wait give their core away: spinning ones slow a busy machine down tenfold.
export OMP_WAIT_POLICY = passive

PYTHON ?= python3
VENV ?= .venv
HERE := $(dir $(firstword $(MAKEFILE_LIST)))
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
SITE := _build/html/index.html
SOURCES := _config.yml _toc.yml index.md package-lock.json $(wildcard book/*.* book/*/*.* book/*/*/*.* ddimlib/*.py)
PORT ?= 8000
NB ?=
LAB ?=
# `make gpu` installs nothing: it takes .venv if there is one, else a Python that has what is needed.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

# `make grade SUBMISSIONS=folder`; more options of python -m classroom grade in GRADE, such as GRADE="--roster gradebook.csv".
SUBMISSIONS ?=
GRADES ?= grading
ISOLATION ?= namespaces
GRADE ?=

# How the shipped networks and tables are made (`make weights`).
NETWORKS ?= mnist fashion
DATA ?= data
RUNS ?= runs
SHIPPED ?= ddimlib
TRAIN ?=
OPTIONS =
EPOCHS ?=
EVAL ?=
# Images a row of the tables of quality, of many steps and of spacings, of S and eta; of the round trips.
N ?= 5000
STEPS_N ?= 2000
ETA_N ?= 5000
IMAGES ?= 10
BATCH ?= 250
weights-cifar10: STEPS_N = 1000
weights-cifar10: HAT_STEPS =
weights-cifar10: ETA_STEPS = 10 20 50 100
weights-cifar10: ETA_AGAIN = 0 1
weights-cifar10: IMAGES = 100
weights-cifar10: BATCH = 1000
weights-cifar10: QUALITY = 10 20 50 100
QUALITY ?= 10 50
STEPS_ETA ?= 0 1
HAT_STEPS ?= 100
STEPS ?= 10 20 50 100 250 1000
ETAS ?= 0 0.2 0.5 1 hat
ETA_STEPS ?= 10 20 50
ETA_AGAIN ?= $(ETAS)
RECONSTRUCTION_STEPS ?= 10 20 50 100 200 500 1000
FEW_STEPS ?= 10 20
GUIDANCE_STEPS ?= 20 50
GRID_STEPS ?= 100

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: book paper test check gpu lab serve run release grade weights race pins clean help

# From scratch: Sphinx keeps links to what is gone.
book: $(STAMP)  ## Build the site from the notebooks' stored outputs into _build/html
	rm -rf _build
	$(BIN)/jupyter-book build . --all -W -n --keep-going
	@echo "The site is ready: open $(CURDIR)/$(SITE), or type 'make serve'."

# The e-book has its formulas as MathML; the PDF is printed from the site by the browser that the tests use.
paper: $(SITE)  ## The whole book as _build/paper/ddim-book.epub and ddim-book.pdf
	rm -rf _build/epub _build/paper
	$(BIN)/jupyter-book build . --all --builder custom --custom-builder epub
	mkdir -p _build/paper
	cp _build/epub/ddim-book.epub _build/paper/
	$(BIN)/python tests/ensure_browser.py
	$(BIN)/python tools/paper.py _build/html _build/paper/ddim-book.pdf

# With two workers, one thread each: more would only contend. A notebook's cells stay on one worker (loadfile). Files in their own
# order: pytest-xdist would put those with the fewest tests last, which are the longest, and one worker would wait for the other.
test: check $(SITE)  ## Run every check and test: library, notebooks re-executed, the site in a browser
	$(BIN)/python tests/ensure_browser.py
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder \
	    --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 600

check: $(STAMP)  ## Lint, formatting, types and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zizmor --quiet --offline .github/workflows

gpu:  ## On a machine with a CUDA GPU, online or not: library and notebooks there (GPU_PYTHON=python3), the sampler's times
	TQDM_DISABLE=1 $(GPU_PYTHON) -m pytest tests --ignore=tests/test_site.py
	TQDM_DISABLE=1 $(GPU_PYTHON) -m pytest book --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg \
	    --nbval-cell-timeout 600
	$(GPU_PYTHON) benchmarks/sampler.py --device cuda --out ddimlib/results/benchmark-cuda.json

lab: $(STAMP)  ## Open the chapters in JupyterLab (LAB="--no-browser --port 9999" passes options on)
	$(BIN)/jupyter-lab book $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

serve: $(SITE)  ## Serve the built site on localhost, at PORT=8000 or the next free one
	$(BIN)/python tools/serve.py _build/html $(PORT)

run: $(STAMP)  ## Run notebooks top to bottom and store their outputs (NB=book/05-few-steps.ipynb; default: all)
	TQDM_DISABLE=1 $(BIN)/python tools/run_notebooks.py $(NB)

release: $(STAMP)  ## Write the problem sets that students get, from assignments/source into book/problem_sets
	$(BIN)/python -m classroom release

grade: $(STAMP)  ## Grade the notebooks in a folder (SUBMISSIONS=folder) into grading/: grades.csv and feedback pages
	@test -n "$(SUBMISSIONS)" || { echo "Which folder? make grade SUBMISSIONS=folder"; exit 2; }
	$(BIN)/python -m classroom grade "$(SUBMISSIONS)" --out "$(GRADES)" --isolation $(ISOLATION) $(GRADE)

# A part that is finished is not made again, one that was interrupted is continued; remove runs/NAME to start anew.
# Next: `make run`, look at the chapters, `make test`. CIFAR-10 needs a GPU: make weights NETWORKS=cifar10 TRAIN="--compile
# --minutes 9" EVAL=--bf16, as often as it says "unfinished" (exit status 3 of the training).
weights: $(NETWORKS:%=weights-%)  ## Train the shipped networks and measure their tables anew (minutes on a GPU, hours without)

weights-%: $(RUNS)/%/model.safetensors $(RUNS)/%/classifier.safetensors \
    $(RUNS)/%/quality.json $(RUNS)/%/steps.json $(RUNS)/%/eta.json $(RUNS)/%/reconstruction.json
	mkdir -p $(SHIPPED)/pretrained $(SHIPPED)/results
	cp $(RUNS)/$*/model.safetensors $(SHIPPED)/pretrained/$*.safetensors
	cp $(RUNS)/$*/model.json $(SHIPPED)/pretrained/$*.json
	cp $(RUNS)/$*/classifier.safetensors $(SHIPPED)/pretrained/$*-classifier.safetensors
	for table in quality steps eta reconstruction $(MORE_TABLES); do cp $(RUNS)/$*/$$table.json $(SHIPPED)/results/$*-$$table.json; done
	for grid in $(GRIDS); do rm -rf $(SHIPPED)/results/$*-$$grid; cp -r $(RUNS)/$*/$$grid $(SHIPPED)/results/$*-$$grid; done

# The grey networks were made in several runs, each from the weights of the one before: first on images that are bent a little,
# ever fewer of them, then on the images as they are. MNIST's is the mean of two such second runs.
$(RUNS)/%/model.safetensors: $(STAMP)
	$(BIN)/python -m ddimlib train $(firstword $(subst -, ,$*)) --root $(DATA) \
	    $(addprefix --start-from ,$(filter %.safetensors,$^)) $(OPTIONS) $(TRAIN) --out $(@D)

$(RUNS)/mnist-first/model.safetensors: OPTIONS =
$(RUNS)/mnist-second/model.safetensors $(RUNS)/mnist-third/model.safetensors: $(RUNS)/mnist-first/model.safetensors
$(RUNS)/mnist-second/model.safetensors: OPTIONS = --no-warp --steps 2500 --learning-rate 1.5e-3
$(RUNS)/mnist-third/model.safetensors: OPTIONS = --no-warp --steps 10000 --learning-rate 5e-3 --ema 0.9998
$(RUNS)/mnist/model.safetensors: $(RUNS)/mnist-second/quality.json $(RUNS)/mnist-third/quality.json
	$(BIN)/python $(HERE)tools/weights.py average $(^:quality.json=model.safetensors) --out $(@D)

$(RUNS)/fashion-first/model.safetensors: OPTIONS = --steps 4500
$(RUNS)/fashion/model.safetensors: $(RUNS)/fashion-first/model.safetensors
$(RUNS)/fashion/model.safetensors: OPTIONS = --no-warp --steps 10500 --learning-rate 5e-3

$(RUNS)/%/classifier.safetensors: $(STAMP)
	$(BIN)/python -m ddimlib judge $* --root $(DATA) --out $@ $(EPOCHS:%=--epochs %)

# The parts of MNIST's mean, which chapter 2 compares with it, have its judge.
$(RUNS)/mnist-%/classifier.safetensors: $(RUNS)/mnist/classifier.safetensors
	mkdir -p $(@D)
	cp $< $@

EVALUATE = $(BIN)/python -m ddimlib evaluate --model $(@D)/model.safetensors --judge $(@D)/classifier.safetensors \
    --batch-size $(BATCH) $(EVAL) --out $(@:.json=.part.json)

$(RUNS)/%/quality.json: $(RUNS)/%/model.safetensors $(RUNS)/%/classifier.safetensors
	$(EVALUATE) --n $(N) --steps $(QUALITY)
	$(BIN)/python $(HERE)tools/weights.py card $(@D)/model.json --quality $(@:.json=.part.json) \
	    $(addprefix --race ,$(wildcard $(@D)/race.json))
	mv $(@:.json=.part.json) $@

# Again, from other noise: how far chance reaches.
$(RUNS)/%/quality-seed-1.json: $(RUNS)/%/model.safetensors $(RUNS)/%/classifier.safetensors
	$(EVALUATE) --seed 1 --n $(N) --steps $(QUALITY)
	mv $(@:.json=.part.json) $@

$(RUNS)/%/steps.json: $(RUNS)/%/model.safetensors $(RUNS)/%/classifier.safetensors
	$(EVALUATE) --n $(STEPS_N) --steps $(STEPS) --eta $(STEPS_ETA)
	$(if $(HAT_STEPS),$(EVALUATE) --n $(STEPS_N) --steps $(HAT_STEPS) --eta hat)
	mv $(@:.json=.part.json) $@

$(RUNS)/%/eta.json: $(RUNS)/%/model.safetensors $(RUNS)/%/classifier.safetensors
	$(EVALUATE) --n $(ETA_N) --steps $(ETA_STEPS) --eta $(ETAS)
	mv $(@:.json=.part.json) $@

$(RUNS)/%/eta-seed-1.json: $(RUNS)/%/model.safetensors $(RUNS)/%/classifier.safetensors
	$(EVALUATE) --seed 1 --n $(ETA_N) --steps $(ETA_STEPS) --eta $(ETA_AGAIN)
	mv $(@:.json=.part.json) $@

$(RUNS)/%/steps-seed-1.json: $(RUNS)/%/model.safetensors $(RUNS)/%/classifier.safetensors
	$(EVALUATE) --seed 1 --n $(STEPS_N) --steps $(STEPS) --eta $(STEPS_ETA)
	mv $(@:.json=.part.json) $@

# The grey networks are quick enough for a second seed of each.
weights-mnist weights-fashion: MORE_TABLES = steps-seed-1 eta-seed-1
weights-mnist: $(RUNS)/mnist/steps-seed-1.json $(RUNS)/mnist/eta-seed-1.json
weights-fashion: $(RUNS)/fashion/steps-seed-1.json $(RUNS)/fashion/eta-seed-1.json

$(RUNS)/%/reconstruction.json: $(RUNS)/%/model.safetensors
	$(BIN)/python $(HERE)tools/weights.py reconstruct --model $< --data $* --root $(DATA) --n $(IMAGES) --batch-size 100 \
	    --steps $(RECONSTRUCTION_STEPS) --iterations 0 3 --out $(@:.json=.part.json)
	mv $(@:.json=.part.json) $@

# What chapter 11 needs besides: the last step's weights against the averaged ones, float32 against bfloat16, other spacings,
# guidance, images to look at.
COLOUR := $(RUNS)/cifar10
SPACED := $(foreach spacing,leading trailing quadratic,$(spacing) $(spacing)-seed-1)
GUIDED := guidance-1.5 guidance-2 guidance-3
MORE_COLOUR := quality-seed-1 eta-seed-1 small-eta-seed-1 last float32 $(SPACED) $(GUIDED)
weights-cifar10: MORE_TABLES = $(MORE_COLOUR)
weights-cifar10: GRIDS = grid
weights-cifar10: $(MORE_COLOUR:%=$(COLOUR)/%.json) $(COLOUR)/grid/manifest.json

$(COLOUR)/last.json: $(COLOUR)/model.safetensors $(COLOUR)/classifier.safetensors
	$(EVALUATE) --model $(@D)/last.safetensors --n $(N) --steps $(QUALITY)
	mv $(@:.json=.part.json) $@

$(COLOUR)/small-eta-seed-1.json: $(COLOUR)/model.safetensors $(COLOUR)/classifier.safetensors
	$(EVALUATE) --no-bf16 --seed 1 --n $(N) --steps $(FEW_STEPS) --eta 0.2 0.5
	mv $(@:.json=.part.json) $@

$(COLOUR)/float32.json: $(COLOUR)/model.safetensors $(COLOUR)/classifier.safetensors
	$(EVALUATE) --no-bf16 --n $(STEPS_N) --steps $(FEW_STEPS)
	mv $(@:.json=.part.json) $@

$(SPACED:%=$(COLOUR)/%.json): $(COLOUR)/model.safetensors $(COLOUR)/classifier.safetensors
	$(EVALUATE) --spacing $(firstword $(subst -, ,$(basename $(@F)))) --seed $(if $(findstring seed-1,$@),1,0) \
	    --n $(N) --steps $(FEW_STEPS)
	mv $(@:.json=.part.json) $@

$(GUIDED:%=$(COLOUR)/%.json): $(COLOUR)/model.safetensors $(COLOUR)/classifier.safetensors
	$(EVALUATE) --guidance $(@F:guidance-%.json=%) --n $(N) --steps $(GUIDANCE_STEPS)
	mv $(@:.json=.part.json) $@

# Networks, losses, batches and optimisers at equal time, twenty minutes of one core each; a race that was interrupted goes on.
race: $(STAMP)  ## Compare recipes for CIFAR-10 on one CPU core (four hours) and store the table in its card
	OMP_NUM_THREADS=1 $(BIN)/python $(HERE)tools/race.py cifar10 --root $(DATA) --no-compile --out $(COLOUR)/race.json
	$(BIN)/python $(HERE)tools/weights.py card $(SHIPPED)/pretrained/cifar10.json --race $(COLOUR)/race.json

$(COLOUR)/grid/manifest.json: $(COLOUR)/model.safetensors
	$(BIN)/python -m ddimlib sample --model $< --labels 0 1 2 3 4 5 6 7 8 9 --n 80 --steps $(GRID_STEPS) --out $(@D)

# To move to newer versions: .venv/bin/uv pip install --upgrade -e ".[book,export,test,grade,bench]", then this, then `make test`.
pins:  ## Write the versions installed in .venv to constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[book,export,test,grade,bench]"
	( echo "# The exact versions that the tests passed with; written by 'make pins'."; \
	  $(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | sed -e 's/+.*//' -e '/^pip==/d' ) > constraints.new
	mv constraints.new constraints.txt
	touch $(STAMP)

clean:  ## Remove what was built (not .venv)
	rm -rf _build .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

$(SITE): $(STAMP) $(SOURCES)
	$(MAKE) book

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed; try: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
	    || { echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv -c constraints.txt
	$(BIN)/uv pip install --python $(BIN)/python -e ".[book,export,test,grade]" -c constraints.txt
	$(BIN)/python -m ipykernel install --sys-prefix --env OMP_WAIT_POLICY $(OMP_WAIT_POLICY) > /dev/null
	touch $@
