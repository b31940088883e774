#!/bin/sh
# Every include goes to the file's own layer or one to its left, and says from the root of the tree where it goes:
#
#   proto -> libclient/codec -> daemon/util -> daemon/io -> daemon/store -> daemon/policy -> daemon/engine -> daemon/serve -> daemon/main.c
#   proto, libclient/codec -> libclient -> libclient/ctl, libclient/examples
#
# So the daemon sees of libclient/ only codec/ and the generated public header.
# One test a file; then the rules are broken on purpose in a tree made for that, and each break must be found.
# tests/check_layers.sh [ROOT]
set -eu
export LC_ALL=C

# Prints "path:line: what is wrong" for each wrong include under $1, and "= path" for each file read.
check_tree() {
	(
		cd "$1"
		find proto libclient daemon cuda -type f \( -name '*.c' -o -name '*.h' -o -name '*.h.in' -o -name '*.cuh' -o -name '*.cu' \) 2> /dev/null | sort > "$2"
		find proto libclient daemon cuda -type f > "$2.all" 2> /dev/null || true # cuda/ may not be there
		# shellcheck disable=SC2046
		[ ! -s "$2" ] || awk -v all="$2.all" '
		function layer(p) {
			if (p ~ /^proto\//) return "proto"
			if (p ~ /^libclient\/codec\//) return "codec"
			if (p ~ /^libclient\/ctl\//) return "ctl"
			if (p ~ /^libclient\/examples\//) return "examples"
			if (p ~ /^libclient\//) return "client"
			if (p ~ /^daemon\/[a-z_]+\.def$/) return "util"
			if (p ~ /^daemon\/main\.[ch]$/) return "main"
			if (p ~ /^daemon\/[a-z]+\//) { split(p, part, "/"); return part[2] }
			if (p ~ /^cuda\//) return "cuda"
			return ""
		}
		BEGIN {
			while ((getline line < all) > 0)
				exists[line] = 1
			exists["include/kvtier.h"] = exists["proto/kvtier.pb-c.h"] = 1 # generated
			may["proto"] = " proto "
			may["codec"] = " proto codec "
			may["util"] = may["codec"] "util "
			may["io"] = may["util"] "io "
			may["store"] = may["io"] "store "
			may["policy"] = may["store"] "policy "
			may["engine"] = may["policy"] "engine "
			may["serve"] = may["engine"] "serve "
			may["main"] = may["serve"] "main "
			may["client"] = " proto codec client "
			may["ctl"] = may["client"] "ctl "
			may["examples"] = may["client"] "examples "
			may["cuda"] = may["io"] "cuda "
		}
		FNR == 1 { print "= " FILENAME; from = layer(FILENAME) }
		FNR == 1 && !(from in may) { print FILENAME ":1: a folder that is in no layer"; from = "" }
		from != "" && /^[ \t]*#[ \t]*include[ \t]*"/ {
			split($0, quoted, "\"")
			target = quoted[2]
			where = FILENAME ":" FNR ": "
			if (!(target in exists)) {
				print where "\"" target "\" is no path from the root of the tree"
				next
			}
			to = target == "include/kvtier.h" ? (from == "proto" ? "codec" : "proto") : layer(target)
			if (index(may[from], " " to " ") == 0)
				print where from " must not include " to " (\"" target "\")"
		}' $(cat "$2")
	)
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
root=${1:-$(dirname "$0")/..}
passed=0
failed=0

check_tree "$root" "$scratch/list" > "$scratch/out"
n_files=$(grep -c '^= ' "$scratch/out" || true)
grep -v '^= ' "$scratch/out" > "$scratch/wrong" || true
cat "$scratch/wrong"
n_wrong=$(cut -d: -f1 "$scratch/wrong" | sort -u | wc -l)
passed=$((passed + n_files - n_wrong))
failed=$((failed + n_wrong))
if [ "$n_files" = 0 ]; then
	echo "no files found under $root"
	failed=$((failed + 1))
fi

# file that includes : what it includes : good or bad
cases="daemon/util/a.c:proto/p.h:good
daemon/util/a.c:include/kvtier.h:good
daemon/serve/a.c:daemon/engine/e.h:good
daemon/main.c:daemon/serve/s.h:good
daemon/util/conf.c:daemon/params.def:good
libclient/ctl/a.c:libclient/call.h:good
libclient/codec/a.c:include/kvtier.h:good
proto/p2.h:libclient/codec/c.h:bad
proto/p2.h:include/kvtier.h:bad
libclient/codec/a.c:libclient/call.h:bad
daemon/util/a.c:daemon/io/i.h:bad
daemon/store/a.c:daemon/policy/y.h:bad
daemon/engine/a.c:daemon/serve/s.h:bad
daemon/serve/a.c:libclient/call.h:bad
daemon/io/a.c:libclient/ctl/t.h:bad
libclient/a.c:daemon/util/u.h:bad
libclient/a.c:libclient/ctl/t.h:bad
libclient/ctl/a.c:libclient/examples/x.h:bad
libclient/examples/a.c:daemon/util/u.h:bad
daemon/extra/a.c:proto/p.h:bad
daemon/serve/a.c:s.h:bad
daemon/serve/a.c:../engine/e.h:bad"
for case in $cases; do
	file=${case%%:*}
	target=${case#*:}
	tree=$scratch/tree
	rm -rf "$tree"
	for f in proto/p.h libclient/codec/c.h libclient/call.h libclient/ctl/t.h libclient/examples/x.h daemon/util/u.h daemon/io/i.h \
		daemon/store/o.h daemon/policy/y.h daemon/engine/e.h daemon/serve/s.h daemon/params.def "$file"; do
		mkdir -p "$tree/${f%/*}"
		: > "$tree/$f"
	done
	printf '#include <stdio.h>\n#include "%s"\n' "${target%:*}" > "$tree/$file"
	found=good
	if check_tree "$tree" "$scratch/list" | grep -qv '^= '; then
		found=bad
	fi
	if [ "$found" = "${case##*:}" ]; then
		passed=$((passed + 1))
	else
		echo "the check itself: $file including ${target%:*} was found $found"
		failed=$((failed + 1))
	fi
done

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
