#!/bin/sh
# The example engine through a real daemon, on a tiny random model: what the cache gives back must never change a bit of an answer.
# tests/scen/llm.sh [BUILD_DIR]
set -u
export LC_ALL=C
cd "$(dirname "$0")/../.." || exit 1
build=${1:-${BUILD:-build/gcc}}
tmp=$(mktemp -d)
daemon=
passed=0
failed=0

# shellcheck disable=SC2329
cleanup() {
	if [ -n "$daemon" ]; then
		kill -CONT "$daemon" 2> /dev/null
		kill -9 "$daemon" 2> /dev/null
	fi
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

# check DESCRIPTION EXPRESSION, over the JSON reports of the runs so far by name: "warm.reused_tokens > 0"
check() {
	if python3 - "$tmp" "$2" << 'PY'; then
import glob, json, os, sys
from types import SimpleNamespace
runs = {}
for path in glob.glob(sys.argv[1] + "/*.json"):
    try:
        runs[os.path.basename(path)[:-5]] = SimpleNamespace(**json.load(open(path)))
    except ValueError as e:
        print(path, "is no JSON:", e)
same = lambda a, b: (a.logits_hash, a.step_hashes, a.text) == (b.logits_hash, b.step_hashes, b.text)
whole = lambda a: (a.prompt_tokens - 1) // 64 * 64
try:
    ok = eval(sys.argv[2], {"same": same, "whole": whole}, runs)
except (AttributeError, NameError) as e:
    ok, _ = False, print(e)
if not ok:
    for name in sorted(n for n in runs if n in sys.argv[2]):
        r = vars(runs[name])
        print("  ", name, {k: v for k, v in r.items() if k not in ("text", "step_hashes")})
sys.exit(not ok)
PY
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAILED: $1 ($2)"
	fi
}

start_daemon() {
	"$build/kvtierd" --socket="$tmp/socket" "$@" 2> "$tmp/daemon.log" &
	daemon=$!
	for _ in $(seq 100); do
		if [ -S "$tmp/socket" ]; then
			return
		fi
		sleep 0.05
	done
	echo "kvtierd does not start:"
	cat "$tmp/daemon.log"
	exit 1
}

# A daemon that is asked to end must do so with status 0 (sanitizers make it another).
stop_daemon() {
	kill "$1" "$daemon" 2> /dev/null
	if ! wait "$daemon" 2> /dev/null && [ "$1" = -TERM ]; then
		failed=$((failed + 1))
		echo "FAILED: kvtierd did not end well:"
		cat "$tmp/daemon.log"
	fi
	daemon=
	rm -f "$tmp/socket"
}

# run NAME OPTIONS: the engine, its report in NAME.json
run() {
	name=$1
	shift
	if ! "$build/llm" --model "$tmp/tiny.gguf" --threads 2 --json "$@" > "$tmp/$name.json" 2> "$tmp/$name.log"; then
		echo "the engine failed ($name):"
		cat "$tmp/$name.log"
	fi
}

tests/gen_gguf.py "$tmp/tiny.gguf" 1 || exit 1
head -c 2500 LICENSE > "$tmp/prefix"
head -c 3500 LICENSE > "$tmp/long"
here="--kvtier $tmp/socket"
# shellcheck disable=SC2086
{
	# without a daemon
	run off_a --kvtier off -f "$tmp/prefix" -p "first question" -n 20
	run off_b --kvtier off -f "$tmp/prefix" -p "another one" -n 20
	run none $here -f "$tmp/prefix" -p "first question" -n 20
	check "with nobody listening the engine runs" "none.kvtier != 'on' and same(none, off_a)"
	run one_thread --kvtier off -f "$tmp/prefix" -p "first question" -n 20 --threads 1
	check "the number of threads changes no bit" "same(one_thread, off_a)"
	check "another prompt gives another answer" "off_a.logits_hash != off_b.logits_hash and off_a.text != off_b.text"

	# codecs: what comes back the same changes nothing, what does not is measured
	head -c 1500 LICENSE > "$tmp/text"
	run ppl --perplexity "$tmp/text" --ctx 320
	run coded --perplexity "$tmp/text" --ctx 320 --kv-sinks 0 --kv-window 0 --kv-codec raw --kv-codec zbf --kv-codec kivi:bits=8 --kv-codec kivi:bits=1 --kv-codec raw+kivi:bits=1
	check "the full run beside codecs is the run without" "coded.perplexity == ppl.perplexity and coded.tokens == ppl.tokens > 400"
	check "a codec without loss costs nothing, bit for bit" "all((c['kl'], c['kl_high'], c['perplexity_pct'], c['same_best'], c['k_fell_back']) == (0, 0, 0, 1, 0) and c['perplexity'] == c['full_perplexity'] for c in coded.codecs[:2])"
	check "bits are counted" "coded.codecs[0]['k_bits'] == 16 > coded.codecs[1]['k_bits'] > coded.codecs[2]['k_bits'] > 8 > coded.codecs[3]['v_bits'] > 1"
	check "loss is seen, and grows with fewer bits" "0 < coded.codecs[2]['kl_low'] < coded.codecs[2]['kl'] < coded.codecs[2]['kl_high'] < coded.codecs[4]['kl'] < coded.codecs[3]['kl'] and coded.codecs[3]['same_best'] < 1"
	check "tokens after the first block of a window are scored" "coded.codecs[3]['tokens'] == coded.tokens - 64 * ((coded.tokens + 320) // 320) and coded.codecs[3]['blocks'] >= 5"
	run bound --perplexity "$tmp/text" --ctx 320 --kv-sinks 0 --kv-window 0 --kv-codec kivi:bits=1 --max-rel-l2 0
	check "a bound of nothing means no loss" "bound.codecs[0]['kl'] == 0 and bound.codecs[0]['k_fell_back'] == bound.codecs[0]['v_fell_back'] == 1"
	run coded1 --perplexity "$tmp/text" --ctx 320 --kv-sinks 0 --kv-window 0 --kv-codec kivi:bits=1 --threads 1
	check "the number of threads changes no figure" "coded1.codecs[0] == coded.codecs[3]"
	run sinks --perplexity "$tmp/text" --ctx 320 --kv-window 0 --kv-codec raw --kv-codec kivi:bits=1
	check "sinks stay exact, which costs bits and spares loss" "sinks.codecs[0]['kl'] == 0 and coded.codecs[3]['k_bits'] < sinks.codecs[1]['k_bits'] < coded.codecs[3]['k_bits'] + 16 * 4 / 64 and sinks.codecs[1]['k_rel_l2'] < coded.codecs[3]['k_rel_l2'] and sinks.codecs[1]['tokens'] == coded.codecs[3]['tokens']"
	run window --perplexity "$tmp/text" --ctx 320 --kv-sinks 0 --kv-window 100 --kv-codec kivi:bits=1
	check "in the window nothing is coded, and only tokens behind one that is are scored" "0 < window.codecs[0]['kl'] < coded.codecs[3]['kl'] and window.codecs[0]['tokens'] == coded.tokens - 192 * (coded.tokens // 320) - min(192, coded.tokens % 320)"
	run wide --perplexity "$tmp/text" --ctx 320 --kv-sinks 70 --kv-window 0 --kv-codec kivi:bits=1
	check "more sinks than a block has are in the next one, too" "sinks.codecs[1]['k_bits'] < wide.codecs[0]['k_bits'] and 0 < wide.codecs[0]['k_rel_l2'] < sinks.codecs[1]['k_rel_l2']"
	run wide64 --perplexity "$tmp/text" --ctx 320 --kv-sinks 64 --kv-window 0 --kv-codec kivi:bits=1
	check "those past the first block cost bits" "wide64.codecs[0]['k_bits'] < wide.codecs[0]['k_bits']"
	run off_codec --kvtier off -f "$tmp/prefix" -p "first question" -n 70 --kv-codec zbf
	run off_long --kvtier off -f "$tmp/prefix" -p "first question" -n 70
	check "an answer over a lossless codec is the same" "same(off_codec, off_long) and off_codec.kv_codec['k_bits'] < 16 and off_codec.kvtier == 'off'"
	run off_lossy -f "$tmp/prefix" -p "first question" -n 70 --kv-codec kivi:bits=1
	check "over a lossy one it is another, and the cache stays off" "off_lossy.logits_hash != off_long.logits_hash and off_lossy.kvtier == 'off'"

	# a capture: what the header says, and not a bit of the run changed; the same tokens in other chunks differ a little
	run captured --perplexity "$tmp/text" --ctx 320 --capture "$tmp/text.kvcap"
	check "capturing changes nothing" "captured.perplexity == ppl.perplexity"
	run captured32 --perplexity "$tmp/text" --ctx 320 --capture "$tmp/text32.kvcap" --block-tokens 32
	check "a capture has the size of its Q, K and V" "open('$tmp/text.kvcap', 'rb').read(64)[:44] == b'kvtierKV' + b''.join(n.to_bytes(4, 'little') for n in (1, 1, 1, 3, 4, 2, 64, 320, 64)) and len(open('$tmp/text.kvcap', 'rb').read()) == 64 + 3 * (4 + 2 * 2) * 320 * 64 * 2"
	for part in "" 32; do
		"$build/kvtierctl" codec bench "$tmp/text$part.kvcap" raw kivi:bits=8 kivi:bits=2 --json > "$tmp/bench$part.json"
	done
	check "codecs can be tried on it" "[c['bits'] for c in bench.codecs][0] == 16 and bench.codecs[0]['attention_rel_l2'] == 0 < bench.codecs[1]['attention_rel_l2'] < bench.codecs[2]['attention_rel_l2'] < 2 and bench.n_tokens == bench32.n_tokens == 320"

	# cold, warm, another question
	start_daemon --host_bytes=256M
	run cold $here -f "$tmp/prefix" -p "first question" -n 20
	check "the first run computes and stores all" "cold.kvtier == 'on' and cold.reused_tokens == 0 and cold.cache_errors == 0 and same(cold, off_a)"
	check "every whole block is stored" "cold.cache_stored_blocks == (cold.prompt_tokens + cold.answer_tokens) // 64"
	run warm $here -f "$tmp/prefix" -p "first question" -n 20
	check "the second run reuses all whole blocks" "warm.reused_tokens == whole(warm) > 1000 and warm.cache_errors == 0"
	check "a warm answer is the cold one, bit for bit" "same(warm, off_a)"
	check "bytes loaded are blocks" "warm.cache_loaded_bytes == warm.reused_tokens * 3 * 2 * 2 * 64 * 2"
	check "what is stored is not stored again" "warm.cache_stored_blocks == 0"
	run warm_b $here -f "$tmp/prefix" -p "another one" -n 20
	check "another question reuses the prefix" "warm_b.reused_tokens >= 0.9 * warm_b.prompt_tokens and same(warm_b, off_b)"
	run sampled $here -f "$tmp/prefix" -p "another one" -n 30 --temperature 0.9 --seed 7
	run off_sampled --kvtier off -f "$tmp/prefix" -p "another one" -n 30 --temperature 0.9 --seed 7
	check "a seed draws the same tokens" "same(sampled, off_sampled) and sampled.reused_tokens > 0 and sampled.text != off_b.text"

	KVTIER_SOCKET=$tmp/socket "$build/embed" > "$tmp/embed1"
	KVTIER_SOCKET=$tmp/socket "$build/embed" > "$tmp/embed2"
	check "the example to start from stores, then finds" "open('$tmp/embed1').read().startswith('0 tokens') and open('$tmp/embed2').read().startswith('96 tokens')"

	# what would compute other bits shares nothing
	run bf16 $here -f "$tmp/prefix" -n 5 --kv bf16
	run off_bf16 --kvtier off -f "$tmp/prefix" -n 5 --kv bf16
	run warm_bf16 $here -f "$tmp/prefix" -n 5 --kv bf16
	check "bf16 KV has a space of its own" "bf16.reused_tokens == 0 and same(bf16, off_bf16)"
	check "... and is reused in it" "warm_bf16.reused_tokens == whole(warm_bf16) and same(warm_bf16, off_bf16)"
	run blocks32 $here -f "$tmp/prefix" -n 5 --block-tokens 32
	run warm32 $here -f "$tmp/prefix" -n 5 --block-tokens 32
	check "so has another block size" "blocks32.reused_tokens == 0 and warm32.reused_tokens > 1000 and same(blocks32, warm32)"
	mv "$tmp/tiny.gguf" "$tmp/seed1.gguf"
	tests/gen_gguf.py "$tmp/tiny.gguf" 2 bytes
	run other $here -f "$tmp/prefix" -p "first question" -n 5
	check "and so have other weights" "other.reused_tokens == 0 and other.kvtier == 'on'"

	# the answer's blocks, in this model whose tokens are bytes
	cp "$tmp/prefix" "$tmp/dialogue"
	"$build/llm" -m "$tmp/tiny.gguf" $here -f "$tmp/prefix" -n 200 --threads 2 2> /dev/null >> "$tmp/dialogue"
	echo "and then?" >> "$tmp/dialogue"
	run next $here -f "$tmp/dialogue" -n 20
	run off_next --kvtier off -f "$tmp/dialogue" -n 20
	check "the next turn reuses the answer of this one" "next.reused_tokens >= 2500 + 200 - 64 and same(next, off_next)"
	mv "$tmp/seed1.gguf" "$tmp/tiny.gguf"

	# two at once, on a prompt that is new to the daemon, then again
	run off_c --kvtier off -f "$tmp/long" -p "two at once" -n 10
	run both1 $here -f "$tmp/long" -p "two at once" -n 10 &
	one=$!
	run both2 $here -f "$tmp/long" -p "two at once" -n 10
	wait "$one"
	check "two at once agree with one alone" "same(both1, off_c) and same(both2, off_c) and both1.cache_errors + both2.cache_errors == 0"
	run both3 $here -f "$tmp/long" -p "two at once" -n 10 &
	one=$!
	run both4 $here -f "$tmp/long" -p "two at once" -n 10
	wait "$one"
	check "two at once read the same blocks" "both3.reused_tokens == both4.reused_tokens == whole(both3) and same(both3, off_c) and same(both4, off_c)"
	stop_daemon -TERM

	# a damaged byte: find a copy by its header (payload bytes, planes, codec, layout) in the daemon's memory and change it there
	start_daemon --host_bytes=256M
	run intact $here -f "$tmp/prefix" -p "first question" -n 20
	if (exec 3<> "/proc/$daemon/mem") 2> /dev/null; then
		exec 3<> "/proc/$daemon/mem"
		python3 - "$daemon" << 'PY'
import os, re, struct, sys
header = struct.pack("<IHBB", 3 * 2 * 2 * 64 * 64 * 2, 6, 0, 1)
slots = []
for line in open("/proc/%s/maps" % sys.argv[1]):
    m = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) .*memfd:kvtier-slab", line)
    if m:
        start, end = int(m[1], 16), int(m[2], 16)
        data = b"".join(os.pread(3, min(1 << 20, end - at), at) for at in range(start, end, 1 << 20))
        slots += [start + at.start() - 8 for at in re.finditer(re.escape(header), data) if at.start() % 8 == 0]
slots = sorted(set(slots))
at = slots[len(slots) // 2] + 4096 + 50001
old = os.pread(3, 1, at)
os.pwrite(3, bytes([old[0] ^ 4]), at)
assert os.pread(3, 1, at) != old
PY
		exec 3>&-
		run damaged $here -f "$tmp/prefix" -p "first question" -n 20
		check "a damaged block is computed again" "damaged.cache_errors > 0 and 0 < damaged.reused_tokens < intact.prompt_tokens - 64"
		check "a damaged block changes no bit of the answer" "same(damaged, off_a)"
		run repaired $here -f "$tmp/prefix" -p "first question" -n 20
		check "its successor is whole" "repaired.cache_errors == 0 and repaired.reused_tokens == whole(repaired) and same(repaired, off_a)"
	else
		echo "skipped: damaged bytes (this user may not write another process's memory)"
	fi

	# the daemon dies under the engine
	run off_d --kvtier off -f "$tmp/long" -p "and it dies" -n 200
	for delay in 0.05 0.2 0.5; do
		run "dying" $here -f "$tmp/long" -p "and it dies" -n 200 &
		one=$!
		sleep "$delay"
		stop_daemon -KILL
		wait "$one"
		check "the engine survives the daemon, killed after $delay s" "same(dying, off_d) and (dying.cache_errors > 0 or dying.kvtier != 'on')"
		start_daemon --host_bytes=256M
	done
	run again $here -f "$tmp/long" -p "and it dies" -n 200
	check "a new daemon is filled again" "again.kvtier == 'on' and again.cache_stored_blocks > 0 and same(again, off_d)"
	kill -STOP "$daemon"
	run stopped $here -f "$tmp/prefix" -p "first question" -n 20
	check "a daemon that does not answer is left alone" "same(stopped, off_a) and stopped.kvtier != 'on'"
	kill -CONT "$daemon"
	stop_daemon -TERM

	# too little room: blocks are refused or evicted, answers stay
	start_daemon --host_bytes=16M
	for i in 1 2; do
		run "small$i" $here -f "$tmp/long" -p "and it dies" -n 200
		check "a cache that is too small changes nothing ($i)" "small$i.kvtier == 'on' and same(small$i, off_d)"
	done
	stop_daemon -TERM
}
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
