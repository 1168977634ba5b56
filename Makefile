# make demo   sample photos -> splat page, on this machine
# make test   unit, state machine, stage and end-to-end tests
# make test-torch    training on several GPUs, shown on the CPU (installs PyTorch beside the environment)
# make contracts   write what follows from the declared stages and options: schema, option models, docs/options.md
# make ci     what continuous integration runs: lint, types, all tests, images, deployment; says what each took
# make images-test   build the container images and run them under SageMaker's contract (needs Docker, or root)
# make gpu-image     build the GPU variant of the training image and judge what needs no GPU (30 GB of disk, about an hour)
# make wheel  dist/spaceport-*.whl, to be installed where there is no checkout
# make test-wheel   the wheel, installed where there is no checkout
# make test-deploy   template, build, roles, a deployment to a local endpoint
# make iam    write docs/iam.md anew
# make vulnerabilities   known vulnerabilities of the tested images (needs grype and its database)
# make local-images  the same images for `spaceport run --jobs docker`
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
PYTEST_ARGS ?=
WORKERS ?= 2

.PHONY: help install install-dev demo test test-torch contracts lint types ci ci-without-deploy lock clean browser engine local-images images-test gpu-image vulnerabilities wheel test-wheel test-deploy iam

help:
	@sed -n 's/^# make/make/p' $(MAKEFILE_LIST)

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Spaceport needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements/run.txt pyproject.toml containers/compress/viewer/package-lock.json | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/run.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	PYTHONPATH=containers $(BIN)/python -m compress.fetch_viewer
	$(BIN)/spaceport check --compile
	@touch $@

$(VENV)/.installed-dev: requirements/dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch $@

# Chromium for the browser tests; they say so and are skipped where it is missing.
browser:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }

demo: install
	$(BIN)/spaceport sample $(DEMO)/photos
	$(BIN)/spaceport run $(DEMO)/photos --out $(DEMO)/result --preset draft

test: install-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m "not images and not deploy and not wheel" $(PYTEST_ARGS)

# PyTorch lies beside the environment: no other test may come to need it.
build/torch/.installed: requirements/torch.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target build/torch -r $<
	@touch $@

test-torch: install-dev build/torch/.installed
	PYTHONPATH=build/torch $(BIN)/python -c 'import torch'
	PYTHONPATH=build/torch $(BIN)/python -m pytest -n $(WORKERS) tests/containers/test_train_gpus.py tests/containers/test_background.py $(PYTEST_ARGS)

# setuptools adds to build/lib and never takes away.
wheel: install
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

local-images: install
	$(BIN)/python -m deploy.images.build

engine:
	$(BIN)/python -m deploy.images.docker install

build/images/sdk/.installed: tests/images/sdk-requirements.txt
	$(PYTHON) -m venv build/images/sdk
	build/images/sdk/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

images-test: install-dev engine build/images/sdk/.installed
	$(BIN)/python -m pytest -m images tests/images $(PYTEST_ARGS)

gpu-image: install-dev engine build/images/sdk/.installed
	$(BIN)/python -m deploy.images.build --engine gpu --tag gpu train
	$(BIN)/python -m pytest -m images tests/images/test_gpu_image.py $(PYTEST_ARGS)

test-deploy: install-dev
	$(BIN)/python -m pytest -m deploy tests/deploy $(PYTEST_ARGS)

test-wheel: install-dev wheel
	$(BIN)/python -m pytest -m wheel tests/wheel $(PYTEST_ARGS)

iam: install-dev
	SPACEPORT_WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/deploy/test_deploy_iam.py

vulnerabilities: install
	$(BIN)/python -m deploy.images.vulnerabilities

contracts: install
	PYTHONPATH=functions:containers $(BIN)/python -m deploy.contracts

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy functions containers spaceport benchmarks deploy

CI_TARGETS := browser lint types test test-wheel test-torch images-test

# Runs the targets $(1) one after the other; at the end, or where one fails, a table of their seconds.
define timed
+@set -e; table=; trap 'printf "%b" "$$table"' EXIT; \
for target in $(1); do \
	began=$$(date +%s); status=0; \
	$(MAKE) --no-print-directory $$target || status=$$?; \
	table="$$table$$(printf '%6d s  %s' $$(($$(date +%s) - began)) $$target)$$([ $$status = 0 ] || echo ', FAILED')\n"; \
	[ $$status = 0 ] || exit $$status; \
done
endef

ci:
	$(call timed,$(CI_TARGETS) test-deploy)

# The deployment to a local endpoint in a job of its own.
ci-without-deploy:
	$(call timed,$(CI_TARGETS))

lock:
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header -q requirements/run.in -o requirements/run.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header -q requirements/dev.in -o requirements/dev.txt
	cd containers/requirements && for set in $(filter-out job,$(basename $(notdir $(wildcard containers/requirements/*.in)))); do \
		../../$(BIN)/uv pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-index-url \
			--no-header -q -c ../../requirements/run.txt $$set.in -o $$set.txt; done

clean:
	rm -rf build dist $(DEMO)

include deploy.mk
