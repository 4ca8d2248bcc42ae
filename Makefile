# `make demo` and `make test` are all the set-up there is. Each makes .venv first, where it is missing.
# Another torch: make demo TORCH=2.13.0      another Python: make demo PYTHON=python3.12

PYTHON ?= python3
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
VENV ?= .venv
BIN := $(VENV)/bin
# torch's own threads and pytest's processes would fight for the same cores.
WORKERS ?= 2

.PHONY: demo test faults fuzz benchmarks docs package lint types format clean

demo: $(VENV)/.demo
	$(BIN)/streamingcnn demo $(ARGS)

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

# 200 kills of a training at random moments; make faults ARGS="--kills 20" for a shorter look.
faults: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -c "import sys; from tests.faults import run; sys.exit(run())" $(ARGS)

# 10,000 random networks, streamed against plain (half an hour on two cores); make fuzz ARGS="--graphs 500" for fewer.
fuzz: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(ARGS)

benchmarks: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks $(ARGS)
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.memory_vs_resolution

# The pages as a site, build/site/index.html; every warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python docs/build.py

# Both archives, each built and then imported in an empty environment that has torch and nothing of this folder.
package: $(VENV)/.docs
	rm -rf build/package dist
	$(BIN)/python -m build --no-isolation
	for archive in dist/*.whl dist/*.tar.gz; do \
		$(PYTHON) -m venv --clear build/package && \
		build/package/bin/python -m pip install --quiet "torch==$(TORCH)" "setuptools>=77" && \
		build/package/bin/python -m pip install --quiet --no-build-isolation $$archive && \
		(cd build && package/bin/streamingcnn check resnet18 --size 1x3x96x80 --tile 64) || exit 1; \
	done

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first, pinned and alone (see constraints.txt); the pin then holds for everything after it.
# The pin's file changes only when the version does, and then everything is installed anew.
$(VENV)/torch-$(TORCH).txt:
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/torch-*.txt
	@echo "Installing torch $(TORCH) into $(VENV) (once; some minutes where it must be fetched)"
	$(BIN)/python -m pip install --quiet "torch==$(TORCH)"
	echo "torch==$(TORCH)" > $@

$(VENV)/.%: $(VENV)/torch-$(TORCH).txt setup.cfg
	@echo "Installing streamingcnn[$*] into $(VENV) (once)"
	$(BIN)/python -m pip install --quiet --constraint $< --editable ".[$*]"
	touch $@

# mypy looks at the tests, the benchmarks and the site too, and follows what they import: all in one go.
$(VENV)/.dev: $(VENV)/torch-$(TORCH).txt setup.cfg
	@echo "Installing streamingcnn[test,docs,dev] into $(VENV) (once)"
	$(BIN)/python -m pip install --quiet --constraint $< --editable ".[test,docs,dev]"
	touch $(VENV)/.test $(VENV)/.docs $@
