#!/bin/sh
# Runs every benchmark, writes build/bench.json, prints the table. tests/bench/run.sh BUILD_FOLDER [NAME...]
#
# BENCH_QUICK=1: a short form, same rows. BENCH_STRICT=1: a missed target fails. Names (hit, copy, ...) choose; then bench.json is left alone.
set -eu
export LC_ALL=C
build=$1
shift
here=$(dirname "$0")
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT

status=0
for program in "$here"/bench_*.c; do
	name=$(basename "$program" .c)
	name=${name#bench_}
	[ $# = 0 ] || case " $* " in *" $name "*) ;; *) continue ;; esac
	echo "  BENCH   $name" >&2
	r=0
	"$build/tests/bench/bench_$name" >> "$rows" || r=$?
	case $r in
	0) ;;
	77) echo "  SKIP    $name" >&2 ;;
	*)
		echo "  FAIL    $name: exit status $r" >&2
		status=1
		;;
	esac
done
out=build/bench.json
[ $# = 0 ] || out=/dev/null
python3 "$here/report.py" "$rows" "$out" || status=1
exit $status
