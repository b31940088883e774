#!/bin/bash
# kvtierctl codec on a small capture that is made here by its description in libclient/codec/capture.h, and on files that only look like one.
#
# The binaries are those in $BUILD (default build/gcc). The last line counts.
set -u
export LC_ALL=C
cd "$(dirname "$0")/../.." || exit 1
. tests/lib/ctl.sh

cat > "$dir/make.py" << 'PYTHON'
# make.py OUT SEED [FIELD=VALUE...]: channels of keys have means and spreads of their own, a few tokens are large; base: all but the last bits the same
import random, struct, sys
fields = dict(version=1, dtype=1, q_dtype=0, layers=2, heads=4, kv_heads=2, dim=32, tokens=150, chunk=64)
fields.update((k, int(v)) for k, v in (a.split("=") for a in sys.argv[3:]))
shape = {**dict(layers=2, heads=4, kv_heads=2, dim=32, tokens=150), **{k: fields[k] for k in ("tokens", "dim") if fields[k] < 1000 and fields[k] > 0}}
rnd = random.Random(int(sys.argv[2]))
def values(heads, code, spread):
    means = [rnd.gauss(0, spread) for _ in range(heads * shape["dim"])]
    out = []
    for h in range(heads):
        for t in range(shape["tokens"]):
            scale = 8 if t == 7 else 1
            out += [scale * rnd.gauss(means[h * shape["dim"] + d], 1) for d in range(shape["dim"])]
    return struct.pack("<%d%s" % (len(out), code), *out)
with open(sys.argv[1], "wb") as f:
    f.write((b"kvtierKV" + struct.pack("<9I", *fields.values())).ljust(64, b"\0"))
    for _ in range(shape["layers"]):
        f.write(values(shape["heads"], "f", 0) + values(shape["kv_heads"], "e", 3) + values(shape["kv_heads"], "e", 0))
PYTHON
make_capture()
{
        python3 "$dir/make.py" "$@" || exit 1
}
make_capture "$dir/kv" 1
make_capture "$dir/other" 2
make_capture "$dir/short" 1 tokens=64

# every codec, at settings of its own
ctl 0 codec list
has '^raw .*lossless' '^kivi ' '^ +bits=4 \(1, 2, 3, 4, 8\)'
ctl 0 codec list --json
json 'v[0]["name"] == "raw" and v[0]["lossless"] and len(v) == len({c["id"] for c in v}) >= 8' \
        '[p["default"] for c in v if c["name"] == "kivi" for p in c["params"] if p["name"] == "bits"] == [4]'
"$B/kvtierctl" codec list --json > "$dir/list"
ctl 0 codec bench "$dir/kv"
has '^CODEC .*K BITS .*ATTN' '^raw +16.000 +16.000 +0.00000 +0.00000 ' '^kivi '
ctl 0 codec bench "$dir/kv" --base "$dir/other" --json
cp "$dir/out" "$dir/bench"
json 'v["n_tokens"] == 150 and v["block_tokens"] == 64 and v["n_queries"] == 64' \
        '{c["spec"].partition(":")[0] for c in v["codecs"]} == {c["name"] for c in json.load(open(sys.argv[1][:-3] + "list"))}' \
        'all(c["k"]["rel_l2"] == c["v"]["rel_l2"] == c["attention_rel_l2"] == 0 for c in v["codecs"] if c["spec"].partition(":")[0] in ("raw", "zbf", "cbf", "xdelta"))' \
        'all(0 < c["k"]["rel_l2"] < 1 and 0 < c["v"]["rel_l2"] < 1 and 0 < c["attention_rel_l2"] < 2 for c in v["codecs"] if c["spec"].partition(":")[0] not in ("raw", "zbf", "cbf", "xdelta"))' \
        'all(0 < c["bits"] <= 16 and c["encode_gbps"] > 0 and c["decode_gbps"] > 0 and c["fell_back"] <= 1 for c in v["codecs"])'

# a capture says what its numbers say: bits and errors of kivi
ctl 0 codec bench "$dir/kv" kivi:bits=8 kivi:bits=4 kivi:bits=2 raw+kivi:bits=2 kivi:bits=2+raw --json
json '(r := v["codecs"])' '[c["spec"] for c in r] == ["kivi:bits=8", "kivi", "kivi:bits=2", "raw+kivi:bits=2", "kivi:bits=2+raw"]' \
        'all(a["bits"] > b["bits"] and a["attention_rel_l2"] < b["attention_rel_l2"] for a, b in zip(r, r[1:3]))' \
        'all(r[i][p]["rel_l2"] < r[i + 1][p]["rel_l2"] for i in (0, 1) for p in ("k", "v"))' \
        'r[3]["k"]["bits"] == 16 and r[3]["k"]["rel_l2"] == 0 and r[3]["v"] != r[3]["k"]' \
        'r[3]["v"]["rel_l2"] == r[2]["v"]["rel_l2"]' \
        'r[4]["k"]["rel_l2"] == r[2]["k"]["rel_l2"] and r[4]["v"]["rel_l2"] == 0' 'all(c["fell_back"] == 0 for c in r)'
ctl 0 codec bench "$dir/kv" kivi:bits=2 --bound 0.05 --json
json '(c := v["codecs"][0])' 'c["fell_back"] > 0.9' 'c["k"]["rel_l2"] <= 0.05 and c["v"]["rel_l2"] <= 0.05' '16 >= c["bits"] > 4'
ctl 0 codec bench "$dir/kv" kivi:bits=2 --bound 0 --json
json '(c := v["codecs"][0])' 'c["fell_back"] == 1 and c["k"]["max_abs"] == c["v"]["max_abs"] == c["attention_rel_l2"] == 0'
ctl 0 codec bench "$dir/kv" kivi:bits=2 --block 7 --queries 3 --json
json 'v["block_tokens"] == 7 and v["n_queries"] == 3'
ctl 0 codec bench "$dir/kv" raw --block 4000000000 --queries 0 --json
json 'v["n_queries"] == 0 and v["codecs"][0]["bits"] == 16 and v["codecs"][0]["attention_rel_l2"] is None'

# layer by layer
ctl 0 codec explain "$dir/kv" kivi:bits=2+raw
has '^LAYER .*ENTROPY' '^ +0 +K .* kivi:bits=2 3$' '^ +1 +V +16.000 +0.00000 .* raw 3$'
ctl 0 codec explain "$dir/kv" kivi:bits=1 --bound 0.2 --json
json 'all(sum(e["n_planes"] for e in p["ended_as"]) == 3 for p in v["planes"])' \
        'all(round(3 * p["fell_back"]) == sum(e["n_planes"] for e in p["ended_as"] if e["codec"] != "kivi:bits=1") for p in v["planes"])' \
        '{e["codec"] for p in v["planes"] for e in p["ended_as"]} & {"kivi", "kivi:bits=3", "kivi:bits=8"}'
ctl 0 codec explain "$dir/kv" raw --json
json 'v["spec"] == "raw" and [(p["layer"], p["role"]) for p in v["planes"]] == [(0, "K"), (0, "V"), (1, "K"), (1, "V")]' \
        'all(len(p["entropy"]) == 2 and 1 < p["entropy"][1] < p["entropy"][0] <= 8 for p in v["planes"])' \
        'all(p["ended_as"] == [{"codec": "raw", "n_planes": 3}] and p["bits"] == 16 for p in v["planes"])'
ctl 0 codec explain "$dir/kv"

# mistakes, and files that are no captures
ctl 2 codec
ctl 2 codec squeeze "$dir/kv"
says "not 'squeeze'"
ctl 2 codec bench
ctl 2 codec list "$dir/kv"
ctl 2 codec explain "$dir/kv" raw raw
ctl 2 codec bench "$dir/kv" nope
says 'nope: no codec of that name'
ctl 2 codec bench "$dir/kv" kivi:bits=5
says 'kivi:bits=5: .*does not take that number'
ctl 2 codec bench "$dir/kv" raw+
ctl 2 codec bench "$dir/kv" raw --bound -1
ctl 2 codec bench "$dir/kv" raw --bound nan
ctl 2 codec bench "$dir/kv" raw --bound 1x
ctl 2 codec bench "$dir/kv" raw --block 0
ctl 2 codec bench "$dir/kv" raw --queries 65537
ctl 1 codec bench "$dir/nothing"
says 'cannot open .*nothing: .*ENOENT|cannot open .*nothing: '
ctl 1 codec bench "$dir"
ctl 1 codec bench /dev/zero
ctl 1 codec bench "$dir/kv" --base "$dir/short"
says 'another shape'
ctl 1 codec bench "$dir/kv" --base "$dir/nothing"
: > "$dir/bad"
ctl 1 codec bench "$dir/bad"
head -c 63 "$dir/kv" > "$dir/bad"
ctl 1 codec bench "$dir/bad"
says 'it is no capture'
head -c -1 "$dir/kv" > "$dir/bad"
ctl 1 codec explain "$dir/bad"
says 'another size'
for wrong in dtype=5 q_dtype=9 layers=0 heads=0 kv_heads=0 kv_heads=3 dim=0 tokens=0 chunk=0 version=2 tokens=4294967295 layers=4294967295; do
        make_capture "$dir/bad" 1 "$wrong"
        ctl 1 codec bench "$dir/bad"
        says 'KVT_E_CORRUPT'
done

echo "$passed passed, $failed failed"
[ $failed = 0 ]
