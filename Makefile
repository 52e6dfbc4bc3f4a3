# `make` prints the targets. Each one installs what it needs into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MVN ?= mvn
GO ?= go
# Engines for the tests that Python's registry doesn't have, of the version of Beam that is tested with.
ENGINES := $(HOME)/.cache/dot-engines
BEAM := $(shell sed -n 's/^apache-beam==//p' constraints.txt)
PRISM := $(ENGINES)/prism-$(BEAM)
FLINK_VERSION ?= 2.2
# Airflow, whose dependencies are not ours, in an environment of its own.
AIRFLOW := $(HOME)/.cache/dot-airflow
FLINK_JAR := beam-runners-flink-$(FLINK_VERSION)-job-server

.DEFAULT_GOAL := help
.PHONY: help install demo test test-engines test-flink test-airflow prism lint format clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/installed: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: .venv/installed  ## make .venv with everything that development needs

demo: .venv/installed  ## fit a map, transport bundled photographs, draw demo-output/before-after.png
	$(BIN)/dot-demo --output demo-output

test: lint prism  ## lint, types and all tests
	$(BIN)/pytest

test-engines: .venv/installed prism  ## both jobs on every engine that is at hand
	DOT_ALL_ENGINES=1 $(BIN)/pytest tests/engines

test-flink: .venv/installed  ## both jobs on Flink; with FLINK_HOME set on a cluster, too
	@test -f $(ENGINES)/$(FLINK_JAR)-$(BEAM).jar \
	|| $(MVN) --quiet dependency:copy -Dartifact=org.apache.beam:$(FLINK_JAR):$(BEAM) -DoutputDirectory=$(ENGINES) \
	|| { echo "test-flink: $(FLINK_JAR) $(BEAM) can't be had from Maven; put the jar into $(ENGINES)" >&2; exit 1; }
	DOT_FLINK_JOB_SERVER_JAR=$(ENGINES)/$(FLINK_JAR)-$(BEAM).jar $(BIN)/pytest tests/engines -k flink

$(AIRFLOW)/installed: deploy/airflow/requirements.txt deploy/airflow/constraints.txt
	test -x $(AIRFLOW)/bin/python || $(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/pip install --quiet --requirement $(word 1,$^) --constraint $(word 2,$^)
	touch $@

test-airflow: .venv/installed $(AIRFLOW)/installed  ## nights under a real Airflow
	DOT_AIRFLOW=$(AIRFLOW)/bin $(BIN)/pytest tests/deploy/test_airflow.py

prism:  ## build Beam's Prism runner, once; without Go the tests on it are skipped
	@test -x $(PRISM) || ! command -v $(GO) > /dev/null || { \
	echo "building Prism $(BEAM)" && mkdir -p $(ENGINES) \
	&& GOBIN=$(ENGINES) $(GO) install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM) \
	&& mv $(ENGINES)/prism $(PRISM); } || echo "Prism can't be built; the tests on it will be skipped"

lint: .venv/installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the other targets made
	rm -rf .venv demo-output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
