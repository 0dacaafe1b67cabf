PYTHON ?= python3
PORT ?= 8000

PYTHONS ?= $(wildcard $(foreach version,3.12 3.13 3.14,$(HOME)/.pyenv/versions/$(version)*/bin/python3 /usr/bin/python$(version)))

.PHONY: help setup run test soak models-test drain-test bench screenshots check image-test

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' Makefile

setup: .venv/.done  ## make .venv with all that running and testing need

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt torch==2.13.0
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

run: setup  ## serve speech detection, send it a recording, serve on (ONCE=1 ends there, PORT=8000)
	.venv/bin/python examples/run.py --port $(PORT) $(if $(ONCE),--once)

.venv-fal/.done: pyproject.toml tests/fal-constraints.txt
	$(PYTHON) -m venv .venv-fal
	.venv-fal/bin/python -m pip install -q -c tests/fal-constraints.txt fal -e .
	touch $@

test: setup .venv-fal/.done  ## run all tests, those with the real fal package in an environment of its own
	.venv/bin/python -m pytest -q -n auto --dist loadfile

soak: setup  ## the slow ones, hours: cancel each loop 1,000 times, race 10,000 times, kill a runner 2,000 times
	RUNNER_SOAK=1000 .venv/bin/python -m pytest -q tests/test_cancellation_torch.py
	RUNNER_SOAK=10000 .venv/bin/python -m pytest -q tests/test_cancellation_races.py
	RUNNER_SOAK=400 .venv/bin/python -m pytest -q tests/test_cancellation_landing.py
	.venv/bin/python tests/crashing.py 2000

.venv-models/.done: constraints.txt
	$(PYTHON) -m venv .venv-models
	.venv-models/bin/python -m pip install -q -c constraints.txt torch==2.13.0 numpy
	.venv-models/bin/python -m pip install -q -c constraints.txt diffusers transformers pytest -e .
	touch $@

models-test: .venv-models/.done  ## stock loops of diffusers and transformers stop unchanged
	.venv-models/bin/python -m pytest -q tests/models/check_models.py

drain-test:  ## a stop under load on every newer Python at hand (PYTHONS="python3.12 ...")
	for python in $(PYTHONS); do \
	  folder=.venv-drain/$$($$python -c 'import platform; print(platform.python_version())'); \
	  $$python -m venv $$folder && \
	  $$folder/bin/python -m pip install -q -c constraints.txt -e . pytest httpx && \
	  $$folder/bin/python -m pytest -q tests/test_drain.py || exit 1; \
	done

bench: setup  ## us and six peers side by side, about ten minutes (apt-get install -y wrk)
	.venv/bin/python bench/peers.py

screenshots: setup  ## pictures of the playground, into docs/ (apt-get install -y chromium)
	cd tests && ../.venv/bin/python screenshots.py

check: setup  ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/mypy

image-test: setup  ## build the image with buildah, run it, stop it (root; apt-get install -y buildah debootstrap)
	.venv/bin/python -m pytest tests/image/check_image.py
