#!/bin/sh
# A C file over 600 lines has two jobs: none may be.
# tests/check_size.sh [ROOT]
set -eu
cd "${1:-$(dirname "$0")/..}"
max=600
passed=0
failed=0

list=$(find . \( -name build -o -name .git -o -name shared \) -prune -o \( -name '*.c' -o -name '*.h' \) -type f -print | sed 's|^./||' | sort)
for f in $list; do
	n=$(wc -l < "$f")
	if [ "$n" -gt "$max" ]; then
		echo "$f: $n lines, at most $max"
		failed=$((failed + 1))
	else
		passed=$((passed + 1))
	fi
done
if [ "$passed" = 0 ]; then
	echo "no files found in $PWD"
	failed=$((failed + 1))
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
