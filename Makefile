# What a person types. Every target sets up .venv first: once, and again only when
# requirements.lock or pyproject.toml changes.
SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint lock

# Images often set it; here it would have every process compile all that it imports, each time.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
READY := .venv/.ready-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)
UNFINISHED := .venv/.unfinished

# Any Python from 3.11 on; the lock is made and tested with 3.11.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$name"; break; }; done)

# Where pip also knows a local index, it warns once for each package that is not in it.
pip = $(1) -m pip --disable-pip-version-check 2> >(grep -v 'is ignored: it is neither a file' >&2)

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | while IFS=: read -r name rest; do \
		printf '  make %-6s %s\n' "$$name" "$${rest#*## }"; done
	@echo
	@echo "  make demo PYTHON=/path/to/python3.11 sets up with that Python."
	@echo "  make test ARGS='-k store' passes arguments to pytest; ARGS='-n 0' runs it in one process."

demo: $(READY) ## run the whole pipeline in ./demo, on data it makes itself
	@$(BIN)/sensorium demo --dir demo

test: $(READY) ## run all tests
	@$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(ARGS)

lint: $(READY) ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lock: ## pin the newest versions that pyproject.toml allows, in requirements.lock
	@echo "Resolving pyproject.toml in a new environment (takes minutes) ..."
	@set -euo pipefail; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	"$(PYTHON)" -m venv "$$folder/venv"; \
	$(call pip,"$$folder/venv/bin/python") install -q '.[dev]'; \
	{ sed -n '/^#/p' requirements.lock; \
	  "$$folder/venv/bin/python" -m pip freeze --all --exclude pip --exclude sensorium \
	  | sed -E 's/\+[A-Za-z0-9.]+$$//' | sort -f; } > "$$folder/lock"; \
	cp "$$folder/lock" requirements.lock

# A set-up that was cut off leaves UNFINISHED behind, and the next begins from nothing; what pip
# had half installed would otherwise pass for whole.
$(READY):
	@case "$(CURDIR)" in *" "*) echo "Ray starts no workers from a folder whose path has a space:" \
		"$(CURDIR). Move the checkout to one without." >&2; exit 2;; esac
	@if [ -z "$(PYTHON)" ]; then \
		echo "Sensorium needs Python 3.11 or newer, and finds none by the name of python3.11," \
			"python3.12, python3.13 or python3."; \
	elif ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "$(PYTHON) is not Python 3.11 or newer, which Sensorium needs."; \
	else exit 0; fi >&2; \
	echo "Install it, or name it: make demo PYTHON=/path/to/python3.11" >&2; exit 2
	@if [ -e $(UNFINISHED) ]; then echo "The last set-up was cut off; starting again."; \
		rm -rf .venv; fi
	@mkdir -p .venv; touch $(UNFINISHED); rm -f .venv/.ready-*
	@echo "Setting up .venv with $$("$(PYTHON)" --version):" \
		"$$(grep -c == requirements.lock) packages, a few minutes, once."
	@"$(PYTHON)" -m venv .venv
	@# Of what is installed a small part is ever imported, so pip does not compile it all. What Ray's
	@# processes import is compiled below: they start at once, and would each do it.
	@set -euo pipefail; $(call pip,$(BIN)/python) install --no-compile --progress-bar off -r requirements.lock \
	| { n=0; while read -r word rest; do case "$$word" in \
		Collecting|Processing) n=$$((n + 1)); \
			if [ $$((n % 25)) = 0 ]; then echo "  $$n packages found"; fi;; \
		Installing) echo "  installing (the longest part)";; \
		esac; done; }
	@$(call pip,$(BIN)/python) install -q --no-deps --no-build-isolation -e .
	@touch $@; rm $(UNFINISHED)
	@$(BIN)/python -W ignore -c 'import mlflow.pyfunc, ray.dashboard.agent, ray.train.torch' \
		|| echo "What Ray imports is not compiled ahead; its first start will be slow."
	@echo "Ready."
