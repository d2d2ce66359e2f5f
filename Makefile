# `make demo` and `make test` do everything from a fresh clone; a second call installs and builds nothing.
# Needs Python >= 3.11, Rust and a C/C++ compiler. uv is used where it is there, else pip.

VENV ?= .venv
ARGS ?=
# Exact versions of all that is installed; empty: the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -type f -not -path '*/target/*' -not -path '*/fuzz/*')

export PATH := $(abspath $(BIN)):$(PATH):$(HOME)/.cargo/bin
export VIRTUAL_ENV := $(abspath $(VENV))
unexport PYTHONHOME CONDA_PREFIX PYTHONPATH PYTHONDONTWRITEBYTECODE

ifneq ($(strip $(CONSTRAINTS)),)
export PIP_CONSTRAINT := $(abspath $(CONSTRAINTS))
export UV_CONSTRAINT := $(abspath $(CONSTRAINTS))
endif

ifdef UV
INSTALL := uv pip install --quiet
DEVELOP := $(BIN)/maturin develop --release --uv
else
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEVELOP := $(BIN)/maturin develop --release
endif

.PHONY: help demo test newest test-rust fuzz lint format build
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

demo: build ## install, build, and run the whole SePO pipeline on the embedded model and data
	$(BIN)/deepspeed scripts/train.py --method sepo $(ARGS)

test: build $(VENV)/.dev ## install, build, and run the Python tests; ARGS="-k name" goes to pytest
	$(BIN)/pytest $(ARGS)

newest: ## make test with the newest versions that pyproject.toml allows, in an environment of its own
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

test-rust: $(VENV)/.maturin ## run the tests of the Rust kernels
	cargo test --quiet -p pyprefopt-core

SECONDS_EACH ?= 60
FUZZ := template tokenizer json pack

fuzz: ## look for inputs that break the Rust kernels; SECONDS_EACH=60 a target, FUZZ="json pack" for some
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install cargo-fuzz, then run make fuzz again."; exit 1; }
	for target in $(FUZZ); do \
	  mkdir -p rust/fuzz/corpus/$$target; \
	  RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir rust/fuzz --sanitizer none $$target \
	    rust/fuzz/corpus/$$target rust/fuzz/kept/$$target -- \
	    -max_total_time=$(SECONDS_EACH) -timeout=20 -rss_limit_mb=4096 || exit 1; \
	done

lint: build $(VENV)/.dev ## all linters, for Python and Rust
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	cargo fmt --all --check
	PYO3_PYTHON=$(abspath $(BIN))/python cargo clippy --quiet --workspace --all-targets -- -D warnings

format: $(VENV)/.dev ## format Python and Rust
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	cargo fmt --all

build: $(VENV)/.built ## create the environment, install what runs need, build the extension

# The stamps: made after the work they stand for, and older than what they depend on when it must be done again.

$(VENV)/.maturin: $(CONSTRAINTS)
	@missing=0; \
	python=; for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$p; break; fi; \
	done; \
	if [ -z "$$python$(UV)" ]; then \
	  echo "Python >= 3.11 is missing: install python3.11 or newer, then run make again."; missing=1; \
	elif [ -z "$(UV)" ] && ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "Python's venv module is missing: install it (Debian: apt-get install python3-venv), then run make again."; missing=1; \
	fi; \
	if ! command -v cargo >/dev/null; then \
	  echo "Rust is missing: install it with rustup (https://rustup.rs), then run make again."; missing=1; \
	fi; \
	if ! command -v cc >/dev/null || ! command -v c++ >/dev/null; then \
	  echo "A C/C++ compiler is missing: install gcc and g++ (Debian: apt-get install build-essential), then run make again."; missing=1; \
	fi; \
	[ $$missing = 0 ] || exit 1; \
	echo "Creating $(VENV)"; \
	if [ -n "$(UV)" ]; then uv venv --quiet --allow-existing --python "$${python:->=3.11}" $(VENV); \
	else $$python -m venv $(VENV); fi
	$(INSTALL) "maturin>=1.9,<2"
	@touch $@

$(VENV)/.built: $(VENV)/.maturin pyproject.toml $(RUST_SOURCES)
	$(DEVELOP)
	@touch $@

$(VENV)/.dev: $(VENV)/.maturin pyproject.toml
	@$(BIN)/python -c 'import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/dev.txt
	$(INSTALL) -r $(VENV)/dev.txt
	@touch $@
