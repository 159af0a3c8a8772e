# Every step is idempotent and says in a line what it did and how long it took.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
PYTHON ?= python3
AUTORESEARCH := .venv/bin/autoresearch
PYTEST := .venv/bin/python -m pytest
STATE := .autoresearch

.PHONY: help setup setup-llm bubblewrap agents engine engine-stop images images-cuda prepare run test test-all test-docker test-engines check lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' Makefile

setup:  ## the environment .venv, from hash-locked requirements (PYTHON=python3.12 for another Python)
	@$(PYTHON) -m runner.setup.venv

setup-llm:  ## the same, and litellm with what it needs (the agent `llm`, and the tests)
	@$(PYTHON) -m runner.setup.venv --extra llm

bubblewrap:  ## what other people's agents run in (root on Debian or Ubuntu installs it)
	@$(PYTHON) -m runner.setup.bubblewrap

agents: setup  ## other people's coding agents, for the tests that run them (2.5 GB; aider, mini-swe-agent, Claude Code, Codex, Gemini)
	@.venv/bin/python -m tests.agents

engine:  ## a container engine: the one that answers, else (root, Debian or Ubuntu) docker.io
	@$(PYTHON) -m runner.setup.engine start --folder $(STATE)/engine

engine-stop:  ## end the engine, if `make engine` started it
	@$(PYTHON) -m runner.setup.engine stop --folder $(STATE)/engine

images: setup engine  ## what trials on the CPU and the data preparation run in
	@$(AUTORESEARCH) images build cpu
	@$(AUTORESEARCH) images build prepare

images-cuda: setup engine  ## what trials on a GPU run in (several GB)
	@$(AUTORESEARCH) images build cuda

prepare: images  ## the text, tokens and tokenizer of preset smoke
	@$(AUTORESEARCH) prepare --preset smoke

run: prepare  ## a real search: four trials on the CPU
	@$(AUTORESEARCH) run --cpu --preset smoke --trials 4 --seed 61

test: setup-llm images bubblewrap check  ## all checks and all tests that need no GPU and are not slow
	@$(PYTEST) -m "not gpu and not slow and not engines"

test-docker: setup-llm images bubblewrap agents  ## the tests with real containers
	@$(PYTEST) -m "docker and not gpu"

test-all: setup-llm images images-cuda bubblewrap agents check  ## everything, slow tests and the cuda image included
	@$(PYTEST) -m "not engines"

test-engines: images  ## engines of other kinds, started here: hold all that a trial is promised, or are refused (root; installs packages)
	@.venv/bin/python -m tests.engines
	@$(PYTEST) -m engines -s

check: setup  ## linter and type checker
	@.venv/bin/ruff check
	@.venv/bin/mypy

lock: setup  ## all locks anew, for the host and the images (needs a package index)
	@.venv/bin/python images/lock.py

clean:  ## undo everything: what we have in the engine, the engine we started, .autoresearch, .venv, caches
	@if [ -x .venv/bin/python ]; then .venv/bin/python -m runner.clean --state $(STATE); fi
	@$(PYTHON) -m runner.setup.engine stop --folder $(STATE)/engine
	@rm -rf $(STATE) .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean: removed $(STATE), .venv and caches"
