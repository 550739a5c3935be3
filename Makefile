# Everything is installed into .venv on first use; on a machine with an NVIDIA GPU, cuBLAS too.
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
CUDA := $(shell { nvidia-smi -L || test -e /dev/nvidia0; } >/dev/null 2>&1 && echo ,cuda)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable
.PHONY: setup check test test-gpu golden demo demo-serve bench clean

setup: .venv/for-dev$(CUDA)
check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
test: setup
	$(BIN)/pytest -n 2 --dist loadfile
test-gpu: setup
	OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 $(BIN)/pytest -m gpu -n 8 --dist loadgroup
golden: setup
	$(BIN)/pytest --update-golden
demo: .venv/for-demo$(CUDA)
	$(BIN)/infernum compile llama --fuse -o build/llama
	$(BIN)/infernum run "Midway upon the journey of our life" -n 60 --greedy
	echo "Who guides Dante?" | $(BIN)/infernum chat
demo-serve: .venv/for-serve$(CUDA)
	$(BIN)/infernum serve dante-chat --port 8000 & server=$$!; trap "kill $$server" EXIT; \
	  curl --silent --show-error --retry 60 --retry-delay 1 --retry-connrefused http://127.0.0.1:8000/health && \
	  curl --silent --show-error http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \
	    -d '{"messages": [{"role": "user", "content": "Who guides Dante through Hell?"}], "temperature": 0}' && echo
bench: .venv/for-demo$(CUDA)
	$(BIN)/infernum bench latency --model llama --load-format dummy --prompt 512 --tokens 256
clean:
	rm -rf build dist .hypothesis .import_linter_cache .pytest_cache .ruff_cache

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed (Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
.venv/for-demo$(CUDA): pyproject.toml | .venv/bin/python
	$(INSTALL) ".$(if $(CUDA),[cuda])" && touch $@
.venv/for-serve$(CUDA): pyproject.toml | .venv/bin/python
	$(INSTALL) ".[serve$(CUDA)]" && touch $@
.venv/for-dev$(CUDA): pyproject.toml | .venv/bin/python
	$(INSTALL) ".[dev$(CUDA)]" && touch $@ .venv/for-demo$(CUDA)
