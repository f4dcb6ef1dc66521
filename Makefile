# make demo   train, export, verify and run eight fusion networks on the handwritten digits
# make test   lint, types and tests: under ten minutes on two cores
# make slow   the tests that make test leaves out: trained networks, pages in a browser, planted faults, all dtypes
# make bench   measure every strategy beside its peers, into benchmarks/results
# make gpu     with an NVIDIA card: what a card has to show, all tests for a GPU, then each strategy measured on it
# make models, make readme   write the stored models, the README's table again
# make docs   the documentation as a site: site/index.html
# make package   wheel through sdist, installed without torch, runs a stored model

PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2

# where the browser's runtime is for the tests, if there is npm to bring it
WEB := .venv/web
export FUSION_ONNX_NODE_MODULES := $(CURDIR)/$(WEB)/node_modules

.PHONY: demo test announce lint types tests slow bench gpu models readme docs package clean

demo: .venv/installed
	@$(BIN)/python -m models.demo

test: announce lint types tests

announce:
	@echo "lint, types and tests: some 7 minutes on two idle cores, twice that on busy ones; installing, the first time, 2 more"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/installed
	$(BIN)/mypy

tests: .venv/installed $(WEB)/tried
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

slow: .venv/installed $(WEB)/tried
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow

bench: .venv/installed
	$(BIN)/fusion-onnx bench --output benchmarks/results --overwrite > /dev/null
	$(BIN)/python -m benchmarks.forms --output benchmarks/results/forms.json
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.networks

gpu: .venv/installed
	@$(BIN)/python -m benchmarks.gpu

models: .venv/installed
	$(BIN)/python -m models.store

readme: .venv/installed
	$(BIN)/python -m tests.readme

# --strict: a broken link, or a page that the navigation lacks, is an error
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: .venv/installed
	bash .ci/package $(BIN)/python

.venv/installed: pyproject.toml constraints.txt $(wildcard fusion_onnx/runtime/fused/*.[ch]) fusion_onnx/runtime/fused/build.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fusion-onnx needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

$(WEB)/tried: .venv/installed
	@mkdir -p $(WEB)
	@if command -v npm >/dev/null; then \
	  npm install --prefix $(WEB) --no-audit --no-fund --silent onnxruntime-web@1.30.0; \
	else echo "no npm here: the tests of onnxruntime-web will be skipped"; fi
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist site
