#!/usr/bin/env bash
# All steps on the built-in scenes, from drawing the pictures to a contact sheet of search results.
#
# Needs Python 3.11 or newer and bash, but no GPU; only the installation downloads anything. Takes some minutes on two
# CPU cores after the installation. Results go to dpce-workspace, or to $DPCE_WORKSPACE. If it is stopped, run it again:
# it continues.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""
sheet="${DPCE_WORKSPACE:-dpce-workspace}/taxi.png"
SECONDS=0

dpce prepare-vocab scenes
dpce build-word2vec --train
dpce train-stage1
dpce train-stage2
dpce extract-features
dpce eval
dpce retrieve --query "a blonde woman in blue hailing a taxi" --sheet "$sheet"

printf '\nfinished in %d s\n%s\n' "$SECONDS" "$sheet"
