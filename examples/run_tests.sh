#!/usr/bin/env bash
# Run all checks of the project: formatting, lint, types, import rules, README, tests. Stops at the first that fails.
#
# Needs Python 3.11 or newer and bash; no GPU. About two minutes for a first installation and some minutes for the
# checks on two CPU cores.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "[test]"
cd "$root"

check() {
    printf '\n== %s (%d s so far)\n' "$*" "$SECONDS"
    "$@"
}

check ruff format --check
check ruff check
check mypy
check lint-imports --no-logo
check cog --check README.md
# Two processes with one thread each: with more, threads wait for each other's cores.
check env OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
