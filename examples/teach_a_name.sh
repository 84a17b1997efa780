#!/usr/bin/env bash
# Teach a model a name, such as your dog's, with about ten captions of your own photos, and search for it.
#
#     MODEL=FOLDER [QUERY=SENTENCE] examples/teach_a_name.sh DIR CAPTIONS
#
# DIR       folder of photos; subfolders are searched too
# CAPTIONS  table of captions with the name, such as rex.csv, whose first lines are
#               image,caption
#               beach/dog.jpg,rex runs along the water
#               garden.jpg,rex sleeps in the grass
# MODEL     a folder that `dpce export` wrote, or hf:USER/NAME
# QUERY     default: the first word of the first caption
#
# Needs Python 3.11 or newer and bash, but no GPU. The photos are embedded first, about four per second with ResNet-50;
# teaching takes seconds. Run it again with more captions: those that are known already are passed over. One captioned
# photo of five is kept to measure with. Results go to dpce-workspace, or to $DPCE_WORKSPACE.
set -euo pipefail

if [[ $# -ne 2 || ! -d $1 || ! -f $2 || -z ${MODEL:-} ]]; then
    echo "usage: MODEL=FOLDER [QUERY=SENTENCE] examples/teach_a_name.sh DIR CAPTIONS" >&2
    echo "DIR is a folder of photos, CAPTIONS a table with the columns image and caption" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""
workspace=${DPCE_WORKSPACE:-dpce-workspace}
query=${QUERY:-$(sed -n 2p "$2" | sed 's/^[^,]*,"\{0,1\}\([^ ,"]*\).*/\1/')}

if [[ ! -f $workspace/galleries/taught/current ]]; then
    dpce index "$1" --name taught --model "$MODEL"
fi
dpce teach taught --captions "$2"
dpce retrieve --gallery taught --query "$query" --html "$workspace/$query.html"

printf '\n%s\n' "$workspace/$query.html"
