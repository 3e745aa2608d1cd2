#!/bin/sh
# Sets sdbatch up on a machine without any network. Everything it takes lies beside it, but for Python itself.
#
#   sh install.sh DIR [--root ROOT] [--service]
#
#   DIR          where the program goes: DIR/.venv
#   --root ROOT  where jobs, pictures and models go (DIR/root unless said)
#   --service    make it a service too: the system's if root calls, else the user's own (`sdbatch install`)
#
# PYTHON=/path/to/python3 chooses the interpreter. Done again, or from a newer bundle, it brings DIR up to date and
# leaves ROOT's files as they are.
#
# Exit codes: 0 all is set up; 1 something is missing or damaged, and said; 2 called wrongly.
set -eu
unset PYTHONPATH PYTHONHOME

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
dir='' root='' service=''
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --root) [ $# -gt 1 ] || { usage >&2; exit 2; }; root=$2; shift ;;
        --service) service=yes ;;
        -*) echo "install.sh: there is no $1" >&2; usage >&2; exit 2 ;;
        *) [ -z "$dir" ] || { usage >&2; exit 2; }; dir=$1 ;;
    esac
    shift
done
[ -n "$dir" ] || { usage >&2; exit 2; }

# Nothing of the bundle is used before it is seen to be whole.
command -v sha256sum >/dev/null || fail "there is no sha256sum here (coreutils), to see whether the bundle is whole"
[ -s "$here/SHA256SUMS" ] || fail "there is no SHA256SUMS beside install.sh: unpack the whole archive again"
bad=$(cd "$here" && sha256sum -c SHA256SUMS 2>/dev/null | grep -v ': OK$' || true)
[ -z "$bad" ] || fail "the bundle was damaged on its way; copy it over again:
$bad"

. "$here/bundle.conf"
[ "$(uname -sm)" = "Linux $machine" ] ||
    fail "this bundle is for Linux on $machine, this machine is $(uname -sm); make it anew with --platform linux-$(uname -m)"
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || true)
minor=${libc#glibc 2.}
[ "$minor" != "$libc" ] || fail "this system has no glibc (Alpine?), for which there is no torch"
[ "${minor%%.*}" -ge "$glibc" ] ||
    fail "this system has $libc, the bundle wants 2.$glibc; make it anew with --platform manylinux_2_${minor%%.*}_$machine"

suits() {
    "$1" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$python" 2>/dev/null
}

interpreter=''
for name in "${PYTHON:-}" "python$python" python3 python; do
    if [ -n "$name" ] && suits "$name"; then
        interpreter=$name
        break
    fi
done
if [ -z "$interpreter" ]; then
    present=$(python3 --version 2>/dev/null || echo "no Python")
    fail "this bundle is for Python $python, here is $present. Install python$python (PYTHON=... says where it lies), or make
the bundle anew with --python and this machine's version, which has to be 3.11 or newer"
fi
"$interpreter" -c 'import venv' 2>/dev/null ||
    fail "the Python here has no venv module: install it from this system's packages (python$python-venv)"

mkdir -p "$dir"
dir=$(CDPATH='' cd -- "$dir" && pwd)
root=${root:-$dir/root}
sdbatch=$dir/.venv/bin/sdbatch

# Without pip, which Debian keeps in a package of its own: the bundle brings one, and a wheel can be run.
"$interpreter" -m venv --without-pip "$dir/.venv"
pip_wheel=$(ls "$here"/wheels/pip-*.whl)
ours=$(ls "$here"/wheels/sdbatch-*.whl)

install() {
    # No settings of this machine's pip: the bundle is all there is.
    PIP_CONFIG_FILE=/dev/null "$dir/.venv/bin/python" "$pip_wheel/pip" --isolated --quiet --disable-pip-version-check \
        install --no-index --no-cache-dir --find-links "$here/wheels" "$@" ||
        fail "the packages could not be installed into $dir/.venv; what pip says above tells why"
}

echo "installing into $dir/.venv: a minute or a few"
install --upgrade --upgrade-strategy eager "${ours}[web]"
# Two builds of the same version are the same to pip.
install --no-deps --force-reinstall "$ours"

set -- init "$root"
[ ! -f "$here/models/model.ckpt" ] || set -- "$@" --model "$here/models/model.ckpt"
[ ! -f "$here/models/model.yaml" ] || set -- "$@" --config "$here/models/model.yaml"
"$sdbatch" "$@"
if [ -n "$service" ]; then
    set -- install --root "$root"
    [ "$(id -u)" = 0 ] || set -- "$@" --user
    "$sdbatch" "$@"
fi

echo "sdbatch $version is set up. Whether it can draw here is told by"
echo "    $sdbatch doctor --root $root"
