#!/bin/bash
# Runs every test of the given build variants, as many at once as there are CPUs (JOBS), and adds up what their closing lines say.
# tests/run.sh LOG VARIANT:BUILD_DIR...
# Prints a line a test, the whole output of those that fail, the reason of each skip, and at last 'N passed, N failed, N skipped'.
set -u

# count FILE STATUS: adds up cmocka's "[  PASSED  ] N test(s)." lines, or a plain closing line
count() {
	local plain
	p=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test(s).*/\1/p' "$1" | awk '{n += $1} END {print n + 0}')
	f=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test(s), listed below.*/\1/p' "$1" | awk '{n += $1} END {print n + 0}')
	s=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test(s), listed below.*/\1/p' "$1" | awk '{n += $1} END {print n + 0}')
	plain=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$1" | tail -n 1)
	if [ -n "$plain" ]; then
		p=$((p + $(echo "$plain" | cut -d' ' -f1)))
		f=$((f + $(echo "$plain" | cut -d' ' -f3)))
		s=$((s + $(echo "$plain" | sed -n 's/.*failed, \([0-9]*\) skipped.*/\1/p' | grep . || echo 0)))
	fi
	if [ "$2" -ne 0 ] && [ "$f" -eq 0 ]; then # it crashed, hung, or a sanitizer spoke
		f=1
	fi
	if [ "$p" -eq 0 ] && [ "$f" -eq 0 ] && [ "$s" -eq 0 ]; then
		echo "      printed no closing line" >> "$1"
		f=1
	fi
}

# one VARIANT BUILD_DIR COMMAND...: runs it, prints its line, and adds its output to $RUN_DIR/log and its counts to $RUN_DIR/counts
one() {
	local variant=$1 build=$2 out status start p f s
	shift 2
	out=$(mktemp "$RUN_DIR/out.XXXXXX")
	start=$(date +%s.%N)
	BUILD=$build KVTIERD=$PWD/$build/kvtierd timeout -k 5 300 "$@" > "$out" 2>&1 < /dev/null
	status=$?
	count "$out" "$status"
	{
		flock 9
		printf '%-8s %-32s %-34s %5.1f s\n' "$variant" "$(basename "$1")" "$p passed, $f failed, $s skipped" \
			"$(awk "BEGIN {print $(date +%s.%N) - $start}")"
		grep -iE '^(skip|\[ +SKIP)|skipped:' "$out" | sed 's/^/      /' | sort -u
		if [ "$f" -ne 0 ]; then
			echo "      exit status $status:"
			tail -n 120 "$out" | sed 's/^/      /'
		fi
		{
			echo "=== $variant $*: status $status"
			cat "$out"
		} >> "$RUN_DIR/log"
		echo "$p $f $s" >> "$RUN_DIR/counts"
	} 9> "$RUN_DIR/lock"
	rm -f "$out"
}

if [ "$1" = --one ]; then
	shift
	one "$@"
	exit 0
fi

cd "$(dirname "$0")/.." || exit 1
log=$1
shift
RUN_DIR=$(mktemp -d)
trap 'rm -rf "$RUN_DIR"' EXIT
export RUN_DIR
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
for v in "$@"; do
	variant=${v%%:*} build=${v#*:}
	sec=5
	[ "$variant" = gcc ] && sec=3
	shell=
	[ "$variant" = thread ] || shell=$(echo tests/scen/*.sh)
	for t in $shell "$build"/tests/unit/test_* "$build"/tests/scen/test_* "$build"/tests/fault/test_* "$build"/tests/crash/test_*; do
		case $t in *.o | *.d | *.so) continue ;; esac
		# pure functions in one thread: nothing for TSan to see, and slow
		case $variant:$t in thread:*/unit/test_codec* | thread:*/unit/test_plane | thread:*/unit/test_numbers | thread:*/unit/test_gguf) continue ;; esac
		[ -x "$t" ] || continue
		case $t in *.sh) t="$t $build" ;; esac
		echo "STORM_SEC=$sec tests/run.sh --one $variant $build $t"
	done
done > "$RUN_DIR/jobs"
xargs -a "$RUN_DIR/jobs" -d '\n' -P "${JOBS:-$(nproc)}" -n 1 sh -c
[ "$(wc -l < "$RUN_DIR/jobs")" -eq "$(wc -l < "$RUN_DIR/counts")" ] || echo '0 1 0' >> "$RUN_DIR/counts" # a runner died
cp "$RUN_DIR/log" "$log"
awk '{p += $1; f += $2; s += $3} END {printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f != 0 || NR == 0}' "$RUN_DIR/counts"
