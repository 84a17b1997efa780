#!/usr/bin/env bash
# The paper's ablations on the prepared data set, as a Markdown table beside the paper's figures.
#
#     [SPLIT=val] examples/ablations.sh
#
# SPLIT    what to evaluate on
#
# Needs a workspace, dpce-workspace or $DPCE_WORKSPACE, after prepare-vocab and build-word2vec; settings are those that
# prepare-vocab was given. Trains each stage four times, on whatever hardware one such training needs. Results go to the
# folder ablations in the workspace; run again, it continues. The table is all that goes to stdout, and is kept as
# ablations/table.md.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "" >&2
workspace="${DPCE_WORKSPACE:-dpce-workspace}"
split="${SPLIT:-val}"
dataset=$(cat "$workspace/current")
runs="$workspace/ablations"
mkdir -p "$workspace/$dataset/cache" "$runs"
table="$runs/table.md"
cache=$(cd "$workspace/$dataset/cache" && pwd)

# A workspace of its own for a run; the features of a frozen image CNN are shared.
workspace_for() {
    mkdir -p "$runs/$1/$dataset"
    cp "$workspace/current" "$runs/$1"
    cp "$workspace/$dataset"/*.* "$runs/$1/$dataset"
    [[ -e $runs/$1/$dataset/cache ]] || ln -s "$cache" "$runs/$1/$dataset/cache"
}

# One row: name, run, stage, and the paper's R@1 on Flickr30k, image to text and text to image.
row() {
    local cells
    "$VIRTUAL_ENV/bin/dpce" extract-features --workspace "$runs/$2" --split "$split" --stage "$3" >&2
    cells=$(dpce eval --workspace "$runs/$2" --split "$split" --protocol full --format markdown)
    printf '| %s %s %s | %s |\n' "$1" "$cells" "$4" "$5" >>"$table"
}

# Stage I's settings as ones of Stage II, but for the weights of the losses, which are those of the ranking alone.
ranking_in_stage1() {
    local setting arguments=(--set stage2.image_weight=0 --set stage2.text_weight=0)
    while read -r setting; do
        arguments+=(--set "stage2.${setting#stage1.}")
    done < <(dpce train-stage1 --workspace "$workspace" --show-config | grep '^stage1\.' | grep -v '_weight=')
    "$VIRTUAL_ENV/bin/dpce" train-stage2 --workspace "$runs/stage1-ranking" --from-scratch "${arguments[@]}"
}

for run in both no-shift random-words stage1-ranking instance ranking one-stage; do
    workspace_for "$run"
done

{
    dpce train-stage1 --workspace "$runs/both"
    for run in instance ranking; do
        mkdir -p "$runs/$run/$dataset/stage1"
        cp "$runs/both/$dataset/stage1/best.pt" "$runs/$run/$dataset/stage1"
    done
    dpce train-stage2 --workspace "$runs/both"
    dpce train-stage2 --workspace "$runs/instance" --set stage2.ranking_weight=0
    dpce train-stage2 --workspace "$runs/ranking" --set stage2.image_weight=0 --set stage2.text_weight=0
    dpce train-stage2 --workspace "$runs/one-stage" --from-scratch
    dpce train-stage1 --workspace "$runs/no-shift" --no-position-shift
    dpce train-stage1 --workspace "$runs/random-words" --no-word-vectors
    ranking_in_stage1
} >&2

cat >"$table" <<'HEADER'
| | measured | R@1 | R@5 | R@10 | Med r | R@1 | R@5 | R@10 | Med r | paper R@1 | paper R@1 |
|---|---|---|---|---|---|---|---|---|---|---|---|
| | | image to text | | | | text to image | | | | image to text | text to image |
HEADER
row "Stage I, ranking loss only" stage1-ranking 2 6.1 4.9
row "Stage I, instance loss only" both 1 39.9 28.2
row "Stage I, random word vectors" random-words 1 38.0 26.6
row "Stage I, no position shift" no-shift 1 34.1 23.6
row "Stage II, instance loss only" instance 2 50.5 34.9
row "Stage II, ranking loss only" ranking 2 47.5 29.0
row "Stage II, both losses" both 2 55.4 39.7
row "one stage, both losses" one-stage 2 - -
cat "$table"
