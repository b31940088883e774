#!/bin/sh
# Runs every fuzz target for FUZZ_SEC seconds from its seeds. Prints 'N passed, N failed'.
set -u
cd "$(dirname "$0")/../.."
passed=0 failed=0
for f in build/fuzz/fuzz_*; do
	name=$(basename "$f")
	case $name in *.o | *.d | *.log) continue ;; esac
	[ -x "$f" ] && [ -f "$f" ] || continue
	mkdir -p "build/fuzz/corpus/$name" "build/fuzz/crashes"
	seeds=
	[ -d "tests/fuzz/seeds/$name" ] && seeds="tests/fuzz/seeds/$name"
	# shellcheck disable=SC2086
	if "$f" -max_total_time="${FUZZ_SEC:-30}" -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 \
		-artifact_prefix="build/fuzz/crashes/$name-" "build/fuzz/corpus/$name" $seeds > "build/fuzz/$name.log" 2>&1 < /dev/null; then
		passed=$((passed + 1))
		echo "$name: $(sed -n 's/^stat::number_of_executed_units: //p' "build/fuzz/$name.log") inputs"
	else
		failed=$((failed + 1))
		echo "$name failed:"
		tail -n 60 "build/fuzz/$name.log"
	fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
