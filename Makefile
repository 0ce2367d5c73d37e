# One environment in .venv, installed once; after that nothing here needs a network.
PYTHON ?= python3
VENV ?= .venv
RUN_DIR ?= runs/quick

.PHONY: pretrain test lint clean

INSTALLED := $(VENV)/.installed-$(shell cat setup.py pyproject.toml fastssl/data/native/*.[ch] \
	kernels/fastssl_kernels/*/native/*.[ch] | cksum | cut -d' ' -f1)

$(INSTALLED):
	@echo "== creating $(VENV) and installing fastssl (once; a few minutes, several GB with a CUDA build of torch)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --editable ".[train,test]"
	@touch $@

# Pre-train SimCLR on the built-in shapes; a run that was interrupted is continued, a finished one is shown again.
pretrain: $(INSTALLED)
	@if [ -f $(RUN_DIR)/summary.json ]; then \
		echo "== $(RUN_DIR) is finished; remove it to run again"; $(VENV)/bin/fastssl report $(RUN_DIR); \
	elif [ -f $(RUN_DIR)/config.yaml ]; then $(VENV)/bin/fastssl pretrain --resume $(RUN_DIR); \
	else $(VENV)/bin/fastssl pretrain simclr --recipe quick --run-dir $(RUN_DIR); fi

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build *.egg-info
