# Start with `make demo` or `make test`. Every target creates .venv and installs the package if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo benchmark ablations bench-extract bench-fit check-gpu bench-methods bench-suggest clip-sizes test check format docs train-glyph-clip clean bench-serve

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# Installs again when pyproject.toml has changed. The package is editable: changes of the code need no installation.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## Run both stages on the bundled images and CLIP, and write a report.
	$(BIN)/taskres extract digits
	$(BIN)/taskres fit digits --shots 1,2,4,8,16 --seeds 1,2,3 --base regular,enhanced
	$(BIN)/taskres report runs/glyph-clip-bundled/digits --out runs/glyph-clip-bundled/digits.html

# An unset variable leaves the default of the command: the bundled digits, RN50, all shots and seeds.
BENCHMARK_OPTIONS = $(if $(ROOT),--root "$(ROOT)") $(if $(DATASETS),--datasets "$(DATASETS)") $(if $(BACKBONE),--backbone "$(BACKBONE)") \
	$(if $(PRETRAINED),--pretrained "$(PRETRAINED)") $(if $(SHOTS),--shots "$(SHOTS)") $(if $(SEEDS),--seeds "$(SEEDS)")

benchmark: $(INSTALLED) ## Reproduce the paper's tables: ROOT=/data [BACKBONE=RN50] [PRETRAINED=openai] [DATASETS="..."] [SHOTS=...] [SEEDS=...].
	$(BIN)/taskres benchmark $(strip $(BENCHMARK_OPTIONS))

ablations: $(INSTALLED) ## The paper's ablations on a cache, by default the bundled digits: [CACHE=digits] [SHOTS=...] [SEEDS=...].
	$(if $(CACHE),,$(BIN)/taskres extract digits)
	$(BIN)/taskres ablations "$(or $(CACHE),digits)" $(if $(SHOTS),--shots "$(SHOTS)") $(if $(SEEDS),--seeds "$(SEEDS)")

bench-extract: $(INSTALLED) ## Time stage one against decoding and encoding alone [DEVICE=cuda].
	$(BIN)/python tests/bench_extract.py $(if $(DEVICE),--device $(DEVICE))

bench-fit: $(INSTALLED) ## Time stage two against its two matrix products alone [DEVICE=cuda].
	$(BIN)/python tests/bench_fit.py $(if $(DEVICE),--device $(DEVICE))

check-gpu: $(INSTALLED) ## Compare a GPU with the CPU and with the goals of its speed, in ten minutes [DEVICE=cuda:1].
	PYTHONPATH=. $(BIN)/python tests/gpu_check.py $(if $(DEVICE),--device $(DEVICE))

bench-serve: $(INSTALLED) ## Time a service with 50 clients next to the encoder alone: RUN=folder [PRETRAINED=file].
	PYTHONPATH=. $(BIN)/python tests/bench_serve.py "$(RUN)" $(if $(PRETRAINED),--pretrained "$(PRETRAINED)")

bench-methods: $(INSTALLED) ## Time every method on the paper's shots and seeds, and next to a plain loop.
	PYTHONPATH=. $(BIN)/python tests/bench_methods.py --plain

bench-suggest: $(INSTALLED) ## Compare suggested images with random ones: [CACHES="a.h5 b.h5"], by default the bundled digits.
	$(if $(CACHES),,$(BIN)/taskres extract digits)
	PYTHONPATH=. $(BIN)/python tests/bench_suggest.py $(or $(CACHES),cache/glyph-clip-bundled/digits.h5)

clip-sizes: $(INSTALLED) ## Count the parameters of open_clip's models again, after a new release.
	$(BIN)/python -m taskres_cache.encoders.sizes

bench-busy: $(INSTALLED) ## Time fits alone and next to two busy processes.
	PYTHONPATH=. $(BIN)/python tests/bench_busy.py

# One thread per process: several processes share the cores.
test: $(INSTALLED) ## Run the tests, one process per core.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

check: $(INSTALLED) ## Check lint rules, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code and fix lint errors.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## Build the documentation into docs/_build/html; every warning is an error.
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

train-glyph-clip: $(INSTALLED) ## Train the bundled CLIP from rendered glyphs (names the fonts that it needs).
	$(BIN)/python examples/glyph_clip/train_glyph_clip.py

clean: ## Remove .venv, build files and the results of the demo; other caches and runs stay.
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -rf cache/glyph-clip-bundled/digits.h5 cache/glyph-clip-bundled/digits.h5.parts runs/glyph-clip-bundled/digits
	rm -f $(addprefix runs/glyph-clip-bundled/,benchmark.md benchmark.csv digits.html)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
