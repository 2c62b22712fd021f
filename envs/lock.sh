#!/usr/bin/env bash
# Update constraints.txt and kiln.yaml from the two requirements files. They pin every direct and transitive dependency,
# without hashes. The packages of torch's CUDA build are pinned too; environments with the CPU build do not use them.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool"
"$tool/bin/pip" install -q uv
solve() { "$tool/bin/uv" pip compile -q --universal --python-version 3.11 --no-annotate --no-header "$@"; }
solve envs/requirements.txt envs/requirements-test.txt -o "$tool/all.txt"
solve envs/requirements.txt --constraint "$tool/all.txt" -o "$tool/run.txt"
python3 envs/write_locks.py "$tool/all.txt" "$tool/run.txt"
