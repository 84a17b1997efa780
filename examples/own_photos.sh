#!/usr/bin/env bash
# Search a folder of your own photos, which need no captions, and write the results as one HTML page.
#
#     [MODEL=FOLDER] [QUERY=SENTENCE] examples/own_photos.sh DIR
#
# DIR    folder of photos; subfolders are searched too
# MODEL  a folder that `dpce export` wrote, or hf:USER/NAME; default: the model that examples/flickr8k.sh trained is
#        exported to dpce-workspace/model
# QUERY  default: two dogs in the snow
#
# Needs Python 3.11 or newer and bash, but no GPU: two cores embed about four photos per second with ResNet-50. Run it
# again, and it embeds only photos that are new. Results go to dpce-workspace, or to $DPCE_WORKSPACE.
set -euo pipefail

if [[ $# -ne 1 || ! -d $1 ]]; then
    echo "usage: [MODEL=FOLDER] [QUERY=SENTENCE] examples/own_photos.sh DIR" >&2
    echo "DIR is a folder of photos" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""
workspace=${DPCE_WORKSPACE:-dpce-workspace}
query=${QUERY:-two dogs in the snow}

if [[ -z ${MODEL:-} ]]; then
    MODEL=$workspace/model
    dpce export "$MODEL"
fi
dpce index "$1" --name own-photos --model "$MODEL"
dpce retrieve --gallery own-photos --query "$query" --html "$workspace/results.html"

printf '\n%s\n' "$workspace/results.html"
