# `make` prints the targets. Each one installs what it needs into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MVN ?= mvn
GO ?= go
NPM ?= npm
# Engines for the tests that Python's registry doesn't have, of the version of Beam that is tested with.
ENGINES := $(HOME)/.cache/dot-engines
BEAM := $(shell sed -n 's/^apache-beam==//p' constraints.txt)
PRISM := $(ENGINES)/prism-$(BEAM)
FLINK_VERSION ?= 2.2
# The oldest Beam that setup.py allows, in an environment of its own that finds everything else in ours.
OLDEST_BEAM := $(shell sed -n 's/^_BEAM = ">=\([0-9.]*\),.*/\1/p' setup.py)
OLDEST := $(HOME)/.cache/dot-beam-$(OLDEST_BEAM)
# Versions that the package is for; `make smoke` takes those that are here.
PYTHONS ?= python3.11 python3.12 python3.13
# Airflow in an environment of its own, since its dependencies are not ours. All of them are pinned: pip needn't look for more.
AIRFLOW := $(HOME)/.cache/dot-airflow
# An emulator of Azure's Blob Storage.
AZURITE := $(HOME)/.cache/dot-azurite
AZURITE_VERSION := 3.35.0
FLINK_JAR := beam-runners-flink-$(FLINK_VERSION)-job-server

.DEFAULT_GOAL := help
.PHONY: help install demo test test-engines test-flink test-oldest smoke airflow azurite prism lint docs format clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/installed: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: .venv/installed  ## make .venv with everything that development needs

.venv/demo-installed: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

# Where everything is installed already, the demo needs no installation of its own.
demo: $(if $(wildcard .venv/installed),.venv/installed,.venv/demo-installed)  ## fit a map, transport bundled photographs, draw demo-output/before-after.png
	$(BIN)/dot-demo --output demo-output

# Two files of tests at a time: much of what they start uses one core, or waits.
test: lint prism airflow azurite  ## lint, types and all tests
	$(BIN)/pytest --numprocesses 2 --dist loadfile

test-engines: .venv/installed prism  ## both jobs on every engine that is at hand
	DOT_ALL_ENGINES=1 $(BIN)/pytest tests/engines

test-flink: .venv/installed  ## both jobs on Flink; with FLINK_HOME set on a cluster, too
	@test -f $(ENGINES)/$(FLINK_JAR)-$(BEAM).jar \
	|| $(MVN) --quiet dependency:copy -Dartifact=org.apache.beam:$(FLINK_JAR):$(BEAM) -DoutputDirectory=$(ENGINES) \
	|| { echo "test-flink: $(FLINK_JAR) $(BEAM) can't be had from Maven; put the jar into $(ENGINES)" >&2; exit 1; }
	DOT_FLINK_JOB_SERVER_JAR=$(ENGINES)/$(FLINK_JAR)-$(BEAM).jar $(BIN)/pytest tests/engines -k flink

test-oldest: .venv/installed  ## tests of transforms and jobs with the oldest Beam that setup.py allows
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(BIN)/python -c 'import os, sys; print(os.getcwd(), *(p for p in sys.path if "site-packages" in p), sep="\n")' \
	> $$($(OLDEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth
	$(OLDEST)/bin/pip install --quiet 'apache-beam[yaml]==$(OLDEST_BEAM).*'
	$(OLDEST)/bin/python -m pytest tests/transforms tests/pipelines tests/engines tests/deploy/test_yaml.py

smoke:  ## install the package with each Python that it is for and that is here, and run its jobs
	tests/smoke $(PYTHONS)

$(AIRFLOW)/installed: deploy/airflow/constraints.txt
	test -x $(AIRFLOW)/bin/python || $(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/pip install --quiet --no-deps --no-compile --requirement $<
	$(AIRFLOW)/bin/pip check
	touch $@

airflow: $(AIRFLOW)/installed  ## make ~/.cache/dot-airflow, an Airflow that its tests run under

$(AZURITE)/$(AZURITE_VERSION):
	@if command -v $(NPM) > /dev/null; then echo "installing Azurite $(AZURITE_VERSION)" && mkdir -p $(AZURITE) \
	&& $(NPM) install --silent --no-audit --no-fund --prefix $(AZURITE) azurite@$(AZURITE_VERSION) && touch $@ \
	|| echo "Azurite can't be had from npm; the tests on it will be skipped"; \
	else echo "there is no npm, and so no Azurite; the tests on it will be skipped"; fi

azurite: $(AZURITE)/$(AZURITE_VERSION)  ## install Azurite, once; without npm the tests on it are skipped

prism:  ## build Beam's Prism runner, once; without Go the tests on it are skipped
	@test -x $(PRISM) || ! command -v $(GO) > /dev/null || { \
	echo "building Prism $(BEAM)" && mkdir -p $(ENGINES) \
	&& GOBIN=$(ENGINES) $(GO) install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM) \
	&& mv $(ENGINES)/prism $(PRISM); } || echo "Prism can't be built; the tests on it will be skipped"

lint: .venv/installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed  ## build the documentation into build/site, with no broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: .venv/installed  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the other targets made
	rm -rf .venv demo-output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
