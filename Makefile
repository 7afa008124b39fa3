# `make demo` and `make test` do everything on a fresh machine with python3 >= 3.10, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
SHARED ?= ../shared
# One more than two cores: tests of jobs mostly wait for them.
WORKERS ?= 3

.PHONY: install demo test lint docs real lock clean

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and "python3 >= 3.10 is needed, this is %d.%d" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: install
	$(BIN)/singer-bench demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The site in build/docs; every warning is an error. The variable keeps mkdocs-material from naming other generators.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The comparison on real images with a real teacher; docs/results/ holds what it gave.
real: install
	$(BIN)/singer-bench run configs/tiny-imagenet.yaml \
		--set data.root=$(SHARED)/data/tiny-imagenet \
		--set teacher.checkpoint=$(SHARED)/data/weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors

# The exact versions of requirements.lock, resolved anew for every supported Python; no hosts in it.
lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-emit-index-url \
		--override overrides.txt \
		--no-annotate --custom-compile-command "make lock" -o requirements.lock pyproject.toml

clean:
	rm -rf .venv build *.egg-info
