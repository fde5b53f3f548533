#!/usr/bin/env bash
# `install.py` in the exact environments of Automatic1111 and Forge: a nightly's work, not the gate's, as torch of that
# time alone is 5 GB. Run it before a release, and when `install.py` or `core/packages.py` changed:
#
#     tests/packaging/host_pins.sh a1111 WORK_FOLDER
#     tests/packaging/host_pins.sh forge WORK_FOLDER
#
# It makes WORK_FOLDER/<host>/venv as the host's own launch does (torch, then CLIP, then requirements_versions.txt), or
# takes the one that an earlier run made, copies this checkout into the host's `extensions`, and lets check_pins.py say
# what `install.py` did there. PYTHON names a Python 3.10 (python3.10 by itself). Where GitHub can't be reached,
# A1111_REPOSITORY and FORGE_REPOSITORY name local clones of the hosts, and CLIP_PACKAGE, as the hosts have it too,
# another source of CLIP.
set -euo pipefail

host=$1
work=$(mkdir -p "$2/$1" && cd "$2/$1" && pwd)
extension=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3.10}
clip=${CLIP_PACKAGE:-https://github.com/openai/CLIP/archive/d50d76daa670286dd6cacf3bcd80b5e4823fc8e1.zip}
export PIP_DISABLE_PIP_VERSION_CHECK=1

case $host in
  a1111)
    source=${A1111_REPOSITORY:-https://github.com/AUTOMATIC1111/stable-diffusion-webui.git}
    revision=82a973c04367123ae98bd9abdf80d9eda9b910e2 # v1.10.1
    torch="torch==2.1.2 torchvision==0.16.2"
    ;;
  forge)
    source=${FORGE_REPOSITORY:-https://github.com/lllyasviel/stable-diffusion-webui-forge.git}
    revision=dfdcbab685e57677014f05a3309b48cc87383167
    torch="torch==2.3.1 torchvision==0.18.1"
    ;;
  *)
    echo "usage: $0 a1111|forge WORK_FOLDER" >&2
    exit 2
    ;;
esac

if [ ! -d "$work/webui" ]; then
  git clone -q "$source" "$work/webui.new"
  git -C "$work/webui.new" checkout -q "$revision"
  mv "$work/webui.new" "$work/webui"
fi
if [ ! -d "$work/venv" ]; then
  "$python" -m venv "$work/venv.new"
  # The path of a venv is in its scripts: it is moved by a link, once all is in it.
  pip() { "$work/venv.new/bin/python" -m pip install -q --no-cache-dir --prefer-binary "$@"; }
  pip $torch
  pip setuptools==69.5.1 wheel
  pip --no-build-isolation "$clip"
  pip -r "$work/webui/requirements_versions.txt"
  "$work/venv.new/bin/python" -m pip freeze --all | sed 's/[ =@].*//' >"$work/names.txt"
  ln -s venv.new "$work/venv"
fi
# What an earlier run added goes again.
added=$("$work/venv/bin/python" -m pip freeze --all | sed 's/[ =@].*//' | grep -vxFf "$work/names.txt" || true)
[ -z "$added" ] || "$work/venv/bin/python" -m pip uninstall -qy $added

target="$work/webui/extensions/sd-webui-train-tools"
rm -rf "$target"
mkdir -p "$target"
git -C "$extension" ls-files -z --cached --others --exclude-standard | tar -C "$extension" --null -T - -c | tar -C "$target" -x
exec "$work/venv/bin/python" "$extension/tests/packaging/check_pins.py" "$work/webui" "$target"
