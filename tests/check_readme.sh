#!/bin/sh
# README's program is embed.c to the letter, its figures are of a row that the benchmarks have, its commands and files exist.
# Prints 'N passed, N failed'.
set -u
cd "$(dirname "$0")/.."
passed=0 failed=0
check() {
	if [ "$1" = 0 ]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "README.md: $2"
	fi
}
sed -n '/^```c$/,/^```$/p' README.md | sed '1d;$d' | cmp -s - libclient/examples/embed.c
check $? "the program differs from libclient/examples/embed.c"
for row in $(sed -n 's/^| `\([a-z0-9_]*\)` |.*|.*|.*|.*$/\1/p' README.md); do
	grep -rqE "\"$row(%s)?\"" tests/bench || grep -q "^PARAM([A-Z]*, $row," daemon/params.def
	check $? "no benchmark writes a row '$row'"
done
for target in $(grep -o '^    make [a-z-]*\|`make [a-z-]*`' README.md | tr -d '`' | awk '{print $2}' | sort -u); do
	grep -q "^$target:" Makefile
	check $? "there is no make target '$target'"
done
for path in $(sed -n 's/.*](\([^)h][^)]*\)).*/\1/p' README.md); do
	[ -e "$path" ]
	check $? "there is no file '$path'"
done
if grep -q '@[A-Z]*@' README.md; then
	check 1 "a placeholder is left"
else
	check 0
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
