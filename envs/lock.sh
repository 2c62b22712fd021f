#!/usr/bin/env bash
# Renew constraints.txt from the two requirements files: every direct and transitive dependency, for both builds of
# torch (the CUDA build's packages are pinned too and simply unused beside the CPU wheel), without hashes.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool"
"$tool/bin/pip" install -q uv
lock=$tool/constraints.txt
"$tool/bin/uv" pip compile -q --universal --python-version 3.11 --no-annotate --no-header \
  envs/requirements.txt envs/requirements-test.txt -o "$lock"
python3 envs/tidy_lock.py "$lock" > envs/constraints.txt
