#!/usr/bin/env bash
# Run the paper's ablations on the prepared data set, and print a Markdown table with the paper's figures.
#
#     [SPLIT=val] examples/ablations.sh [KEY=VALUE ...]
#
# SPLIT      split to evaluate on
# KEY=VALUE  settings of training, such as stage1.epochs=10 stage2.epochs=2
#
# Needs a workspace, dpce-workspace or $DPCE_WORKSPACE, after prepare-vocab and build-word2vec. Trains each stage four
# times. Results go to the folder ablations in the workspace. If it is stopped, run it again with the same settings: it
# continues. Remove this folder before you run it with other settings. Only the table goes to stdout; it is also written
# to ablations/table.md.
set -euo pipefail

workspace="${DPCE_WORKSPACE:-dpce-workspace}"
split="${SPLIT:-val}"
for setting in "$@"; do
    if [[ $setting != [a-z]*=* ]]; then
        echo "usage: [SPLIT=val] examples/ablations.sh [KEY=VALUE ...], not '$setting'" >&2
        exit 2
    fi
done
if [[ ! -f $workspace/current ]]; then
    echo "$workspace: no data set is prepared here; run 'dpce prepare-vocab' and 'dpce build-word2vec' first" >&2
    exit 1
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "" >&2
dataset=$(cat "$workspace/current")
runs="$workspace/ablations"
mkdir -p "$workspace/$dataset/cache" "$runs"
cache=$(cd "$workspace/$dataset/cache" && pwd)

# The settings for each stage; Stage II takes only its own, because Stage I has determined the others.
stage1=(dpce train-stage1) stage2=(dpce train-stage2)
for setting in "$@"; do
    if [[ $setting == stage2.* ]]; then stage2+=(--set "$setting"); else stage1+=(--set "$setting"); fi
done

# Each run has its own workspace; the features of a frozen image CNN are shared.
workspace_for() {
    mkdir -p "$runs/$1/$dataset"
    cp "$workspace/current" "$runs/$1"
    cp "$workspace/$dataset"/*.* "$runs/$1/$dataset"
    [[ -e $runs/$1/$dataset/cache ]] || ln -s "$cache" "$runs/$1/$dataset/cache"
}

# Trains a run in one stage, with the losses of Stage II and the settings of Stage I except those that match the pattern
# in the second argument; further arguments change single settings.
in_one_stage() {
    local setting arguments=()
    while read -r setting; do
        arguments+=(--set "$setting")
    done < <(grep -v '^stage1\.' <<<"$settings"; grep '^stage1\.' <<<"$settings" | grep -Ev "$2" | sed 's/^stage1/stage2/')
    "$VIRTUAL_ENV/bin/dpce" train-stage2 --workspace "$runs/$1" --from-scratch "${arguments[@]}" "${@:3}"
}

# One row, without the correction for hubs: name, run, and the paper's R@1, image to text and text to image.
row() {
    local cells
    "$VIRTUAL_ENV/bin/dpce" extract-features --workspace "$runs/$2" --split "$split" >&2
    cells=$(dpce eval --workspace "$runs/$2" --split "$split" --protocol full --format markdown | head -n 1)
    printf '| %s | %s %s | %s |\n' "$1" "${cells#*Stage [12] }" "$3" "$4"
}

for run in stage1 no-shift random-words stage1-ranking both instance ranking one-stage; do
    workspace_for "$run"
done

{
    "${stage1[@]}" --workspace "$runs/stage1"
    for run in both instance ranking; do
        mkdir -p "$runs/$run/$dataset/stage1"
        cp "$runs/stage1/$dataset/stage1/best.pt" "$runs/$run/$dataset/stage1"
    done
    "${stage2[@]}" --workspace "$runs/both"
    "${stage2[@]}" --workspace "$runs/instance" --set stage2.ranking_weight=0
    "${stage2[@]}" --workspace "$runs/ranking" --set stage2.image_weight=0 --set stage2.text_weight=0
    "${stage1[@]}" --workspace "$runs/no-shift" --no-position-shift
    "${stage1[@]}" --workspace "$runs/random-words" --no-word-vectors
    settings=$("${stage2[@]}" --workspace "$runs/both" --show-config | grep '^[a-z0-9_.]*=')
    epochs=$(sed -n 's/^stage[12]\.epochs=//p' <<<"$settings" | paste -sd + -)
    in_one_stage stage1-ranking '_weight=' --set stage2.image_weight=0 --set stage2.text_weight=0
    in_one_stage one-stage '_weight=|multipliers' --set "stage2.epochs=$((epochs))"
} >&2

{
    cat <<HEADER
R@1, R@5, R@10 and median rank, image to text and text to image, on the $split photos of $dataset; the paper's R@1 is of
ResNet-50 on the validation photos of Flickr30k.

| losses and variant | checkpoint | i2t R@1 | R@5 | R@10 | Med r | t2i R@1 | R@5 | R@10 | Med r | paper i2t R@1 | t2i R@1 |
|---|---|---|---|---|---|---|---|---|---|---|---|
HEADER
    row "Stage I, ranking loss only" stage1-ranking 6.1 4.9
    row "Stage I, instance loss only" stage1 39.9 28.2
    row "Stage I, random word vectors" random-words 38.0 26.6
    row "Stage I, no position shift" no-shift 34.1 23.6
    row "Stage II, instance loss only" instance 50.5 34.9
    row "Stage II, ranking loss only" ranking 47.5 29.0
    row "Stage II, both losses" both 55.4 39.7
    row "one stage as long as both, both losses" one-stage - -
} >"$runs/table.md"
cat "$runs/table.md"
