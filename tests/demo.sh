#!/bin/sh
# What kvtier is for, on a real model: one engine computes a long prompt, other processes start from it.
# Runs a daemon of its own in a temporary directory. Exit 1 if a warm engine's logits differ from a cold one's in a bit, if it reused under
# 90 % of its prompt, if the daemon counted no hit, or if what was stored does not outlive a kill -9 of the daemon.
# tests/demo.sh [BUILD_DIR]
set -eu
export LC_ALL=C
cd "$(dirname "$0")/.."
build=${1:-${BUILD:-build/gcc}}
model=$(tests/fetch_model.sh)
tmp=$(mktemp -d)
daemon=

# shellcheck disable=SC2329
cleanup() {
	if [ -n "$daemon" ]; then
		kill "$daemon" 2> /dev/null || true
		wait "$daemon" 2> /dev/null || true
	fi
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

# run NAME SOCKET QUESTION: an engine in a process of its own; report in NAME.json, logits after the prompt in NAME.logits
run() {
	echo "$3" > "$tmp/$1.question"
	"$build/llm" -m "$model" --chat --system "$instructions" -p "$3" -n 32 --kvtier "$2" --json --logits "$tmp/$1.logits" \
		> "$tmp/$1.json" 2> "$tmp/$1.log" || {
		cat "$tmp/$1.log" >&2
		exit 1
	}
}

instructions="$(cat LICENSE)

You are a helpful AI assistant. The text above is the license of the program you are part of. Answer questions in one short sentence."

# up to 5 s for a daemon that answers, its NVMe file ready; the daemon's number in $daemon
start() {
	rm -f "$tmp/socket"
	"$build/kvtierd" --socket="$tmp/socket" --host_bytes=1G --nvme_devices="$tmp/nvme.kvt" --nvme_bytes=1G 2>> "$tmp/daemon.log" &
	daemon=$!
	wait_until '"serving"' --json devices
}

# wait_until PATTERN COMMAND...: until what kvtierctl COMMAND... prints has it
wait_until() {
	pattern=$1
	shift
	tries=0
	until "$build/kvtierctl" --socket "$tmp/socket" "$@" 2> /dev/null | grep -Eq "$pattern"; do
		tries=$((tries + 1))
		if [ "$tries" -gt 100 ]; then
			cat "$tmp/daemon.log" >&2
			exit 1
		fi
		sleep 0.05
	done
}
start

echo "The prompt: long instructions (this program's licence) and a question. The model: $(basename "$model" .gguf)."
echo "Engine A computes it: cold ..."
run a "$tmp/socket" "What is the capital of France?"
echo "Engine B, another process, is asked something else: warm; then the same without a cache, to compare ..."
run b "$tmp/socket" "What gas do plants take from the air?"
run b_cold off "What gas do plants take from the air?"
echo "Two engines at once ..."
run c "$tmp/socket" "What do bees make?" &
c=$!
run d "$tmp/socket" "What is the capital of Italy?"
wait "$c"
"$build/kvtierctl" --socket "$tmp/socket" --json status > "$tmp/status.json"
echo "The daemon is killed with -9, and started again: engine B once more, from NVMe ..."
blocks=$(sed 's/.*"n_blocks":\([0-9]*\),"n_leases".*/\1/' "$tmp/status.json")
wait_until "\"demoted\":$blocks," --json status # what was used again is written in the background
"$build/kvtierctl" --socket "$tmp/socket" flush > /dev/null
kill -9 "$daemon"
wait "$daemon" 2> /dev/null || true
start
run b_again "$tmp/socket" "What gas do plants take from the air?"
"$build/kvtierctl" --socket "$tmp/socket" --json status > "$tmp/status2.json"
echo
python3 - "$tmp" << 'EOP'
import json, sys
tmp = sys.argv[1]
load = lambda name: json.load(open("%s/%s.json" % (tmp, name)))
rows = [("A", "cold, stores", "a"), ("B", "warm", "b"), ("B", "cold, no cache", "b_cold"), ("C", "warm, beside D", "c"), ("D", "warm, beside C", "d"), ("B", "after kill -9", "b_again")]
runs = {key: load(key) for _, _, key in rows}
mib = lambda n: "%.1f MiB" % (n / 2**20) if n else "-"
print("%-18s %7s %7s %14s %12s %11s %11s" % ("engine", "prompt", "reused", "first token", "decode", "from cache", "to cache"))
for name, what, key in rows:
    r = runs[key]
    print("%s %-16s %7d %7d %11.0f ms %8.1f t/s %11s %11s" % (name, what, r["prompt_tokens"], r["reused_tokens"], r["ttft_ms"],
          r["decode_tokens_per_sec"], mib(r["cache_loaded_bytes"]), mib(r["cache_stored_bytes"])))
a, b, cold = runs["a"], runs["b"], runs["b_cold"]
again = runs["b_again"]
bits = [open("%s/%s.logits" % (tmp, k), "rb").read() for k in ("b", "b_cold", "b_again")]
equal = len(bits[0]) > 0 and all(bits[0] == x for x in bits) and all(
    r["logits_hash"] == cold["logits_hash"] and r["step_hashes"] == cold["step_hashes"] for r in (b, again))
print("\nB's first token: %.0f ms warm, %.0f ms cold: %.1f times faster; %.1f %% of its prompt reused." % (
      b["ttft_ms"], cold["ttft_ms"], cold["ttft_ms"] / b["ttft_ms"], 100 * b["reused_tokens"] / b["prompt_tokens"]))
print("After kill -9: %.0f ms, %.1f times faster than cold; %d blocks came from NVMe." % (
      again["ttft_ms"], cold["ttft_ms"] / again["ttft_ms"], load("status2")["counters"]["promoted"]))
print("B's logits (%d after the prompt, and those of %d tokens generated): %s a cold B's." % (
      len(bits[0]) // 4, len(b["step_hashes"]), "both times equal, bit for bit," if equal else "DIFFERENT from"))
print()
for name, _, key in rows:
    if key not in ("b_cold", "b_again"):
        question = open("%s/%s.question" % (tmp, key)).read().strip()
        print("%s: %s %s" % (name, question, (runs[key]["text"].strip().split("\n") or [""])[0]))
status = load("status")
problems = []
if a["prompt_tokens"] < 2000:
    problems.append("the prompt has under 2000 tokens")
if not equal:
    problems.append("B's logits depend on the cache")
for key in ("b", "c", "d", "b_again"):
    if runs[key]["reused_tokens"] < 0.9 * runs[key]["prompt_tokens"]:
        problems.append("engine %s reused under 90 %% of its prompt" % key.upper())
if sum(r["cache_errors"] for r in runs.values()):
    problems.append("an engine met errors of the cache")
if not load("status2")["counters"]["promoted"]:
    problems.append("nothing came from NVMe after the kill")
if not status.get("hits"):
    problems.append("the daemon counted no hit")
for p in problems:
    print("PROBLEM: " + p)
sys.exit(1 if problems else 0)
EOP
echo
echo '$ kvtierctl status'
"$build/kvtierctl" --socket "$tmp/socket" status
