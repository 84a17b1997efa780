# The scripts in this folder source this file. It installs the project into the active virtual environment, or into
# .venv. The first installation downloads PyTorch and takes about two minutes.
#
# Its argument: extras such as [test], or "".

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${VIRTUAL_ENV:-} ]]; then
    export VIRTUAL_ENV="$root/.venv"
    [[ -x $VIRTUAL_ENV/bin/python ]] || python3 -m venv "$VIRTUAL_ENV"
fi
export PATH="$VIRTUAL_ENV/bin:$PATH"
echo "installing into $VIRTUAL_ENV"
python -m pip install --quiet --disable-pip-version-check --editable "$root$1"

# Prints each command, quoted for a shell, before it runs.
dpce() (
    PS4=$'\n$ '
    set -x
    "$VIRTUAL_ENV/bin/dpce" "$@"
)
