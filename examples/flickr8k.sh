#!/usr/bin/env bash
# Train both stages on Flickr8k, evaluate them on the validation photos, and search in these photos.
#
#     [VECTORS=FILE] [WEIGHTS=FILE] [PRESET=NAME] [PRECISION=bf16] examples/flickr8k.sh DIR [KEY=VALUE ...]
#
# DIR        folder of the official files: Flicker8k_Dataset/, Flickr8k.token.txt, Flickr_8k.{train,dev}Images.txt
# VECTORS    word vectors, such as GoogleNews-vectors-negative300.bin.gz; default: word2vec is trained on the captions
# WEIGHTS    state dict of the original ImageNet ResNet-50; default: torchvision's ResNet-50 weights are downloaded
# PRESET     flickr8k, the default; flickr8k-384: photos of 384 pixels and a wider text CNN; or flickr8k-fine-tuned: as
#            that, and Stage II trains layer4 of the CNN, too (17 GB of cached maps); see examples/measurements.md
# PRECISION  fp32, the default, or bf16: faster on a GPU and on a CPU with AMX
# KEY=VALUE  settings of the preset to change, such as seed=1
#
# Needs Python 3.11 or newer and bash, but no GPU. On a CPU, the image CNN takes most time, about 20 minutes on two
# cores; it computes the features of every photo and its mirror image once. Results go to dpce-workspace, or to
# $DPCE_WORKSPACE. If it is stopped, run it again: it continues.
set -euo pipefail

usage() {
    echo "usage: [VECTORS=FILE] [WEIGHTS=FILE] [PRESET=NAME] [PRECISION=bf16] examples/flickr8k.sh DIR [KEY=VALUE ...]" >&2
    echo "$1" >&2
    exit 2
}
[[ $# -ge 1 && -d $1 ]] || usage "DIR is the folder of the official Flickr8k files${1:+, not '$1'}"
prepare=(dpce prepare-vocab flickr8k --root "$1" --preset "${PRESET:-flickr8k}")
for setting in "${@:2}"; do
    [[ $setting == [a-z]*=* ]] || usage "KEY=VALUE is a setting such as seed=1, not '$setting'"
    prepare+=(--set "$setting")
done
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""
sheet="${DPCE_WORKSPACE:-dpce-workspace}/snow.png"
compute() { dpce "$@" --precision "${PRECISION:-fp32}"; }
SECONDS=0

"${prepare[@]}"
if [[ -n ${VECTORS:-} ]]; then
    dpce build-word2vec --vectors "$VECTORS"
else
    dpce build-word2vec --train
fi
if [[ -n ${WEIGHTS:-} ]]; then
    compute train-stage1 --backbone resnet50-v1 --backbone-weights "$WEIGHTS"
else
    compute train-stage1
fi
compute extract-features --split val --stage 1
dpce eval --split val
compute train-stage2
compute extract-features --split val
dpce eval --split val
dpce retrieve --split val --query "a dog runs through the snow" --sheet "$sheet"

printf '\nfinished in %d s\n%s\n' "$SECONDS" "$sheet"
