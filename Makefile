# The two commands that a newcomer needs are `make demo` and `make test`; each makes .venv by itself when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo benchmark bench-extract bench-fit test check format train-glyph-clip clean

help: ## Show what can be made.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# Redone when pyproject.toml changes; the library itself is installed in place.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## Real images through a real CLIP into a cache, residuals fitted on it, and a report of them.
	$(BIN)/taskres extract digits
	$(BIN)/taskres fit digits --shots 1,2,4,8,16 --seeds 1,2,3 --base regular,enhanced
	$(BIN)/taskres report runs/glyph-clip-bundled/digits --out runs/glyph-clip-bundled/digits.html

# A variable that is not set leaves the command's own default: no root (the bundled digits), RN50, all shots and seeds.
ASKED = $(if $(ROOT),--root "$(ROOT)") $(if $(DATASETS),--datasets "$(DATASETS)") $(if $(BACKBONE),--backbone "$(BACKBONE)") \
	$(if $(PRETRAINED),--pretrained "$(PRETRAINED)") $(if $(SHOTS),--shots "$(SHOTS)") $(if $(SEEDS),--seeds "$(SEEDS)")

benchmark: $(INSTALLED) ## The paper's tables: ROOT=/data [BACKBONE=RN50] [PRETRAINED=openai] [DATASETS="..."] [SHOTS=...] [SEEDS=...].
	$(BIN)/taskres benchmark $(strip $(ASKED))

bench-extract: $(INSTALLED) ## How near stage one comes to what decoding and encoding cost by themselves [DEVICE=cuda].
	$(BIN)/python tests/bench_extract.py $(if $(DEVICE),--device $(DEVICE))

bench-fit: $(INSTALLED) ## What stage two costs beside its two products: ratios, measured side by side [DEVICE=cuda].
	$(BIN)/python tests/bench_fit.py $(if $(DEVICE),--device $(DEVICE))

test: $(INSTALLED) ## Run the tests.
	$(BIN)/python -m pytest --numprocesses auto

check: $(INSTALLED) ## Lint, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Put the code into shape.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train-glyph-clip: $(INSTALLED) ## Train the bundled CLIP again from rendered glyphs (needs the fonts that it names).
	$(BIN)/python examples/glyph_clip/train_glyph_clip.py

clean: ## Remove .venv, caches of tools, and what the demo left; your own caches and runs stay.
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -rf cache/glyph-clip-bundled/digits.h5 cache/glyph-clip-bundled/digits.h5.parts runs/glyph-clip-bundled/digits
	rm -f $(addprefix runs/glyph-clip-bundled/,benchmark.md benchmark.csv digits.html)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
