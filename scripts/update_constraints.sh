#!/usr/bin/env bash
# Renew constraints.txt: install the newest versions that pyproject.toml allows, run the suite, write down what it ran with.
# `make` and .ci/run install with that file. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

rm -rf .venv-newest
make newest ARGS="$*"
{
  echo "# What \`make\` installs: the versions of a green suite. Renewed by scripts/update_constraints.sh."
  .venv-newest/bin/python -m pip list --format=freeze | grep -viE '^(pip|setuptools|wheel|uv|pyprefopt)=='
} > constraints.txt.new
mv constraints.txt.new constraints.txt
echo "constraints.txt has $(grep -c == constraints.txt) versions; make installs them from now on"
