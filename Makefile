PYTHON ?= python3

.PHONY: setup test check image-test

setup: .venv/.done  ## make .venv with all that running and testing need

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt torch==2.13.0
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

test: setup  ## run all tests
	.venv/bin/python -m pytest -q

check: setup  ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/mypy

image-test: setup  ## build the image with buildah, run it, stop it (root; apt-get install -y buildah debootstrap)
	.venv/bin/python -m pytest tests/image/check_image.py
