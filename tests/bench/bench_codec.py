#!/usr/bin/env python3
"""What codecs cost on the KV of a real model: size, error, speed, and what it does to the model's predictions.

bench_codec.py BUILD_FOLDER MODEL. Writes build/bench-codec.json (rows as bench.json's), build/bench-codec.md (the README's table) and two plots,
build/codec-rd.svg (relative L2 against bits, with the Gaussian bound) and build/codec-kl.svg (KL against bits).

The text is $KVTIER_TEXT, else what this tree has to read: LICENSE, and the manual pages as mandoc prints them. BENCH_QUICK=1: few tokens and
few codecs, the same rows for them. BENCH_STRICT=1: a missed target fails.
"""
import glob
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile

import report

QUICK = os.environ.get("BENCH_QUICK", "0") not in ("", "0")
LOSSLESS = ["zbf", "cbf"]
LOSSY = [
    "kivi:bits=1", "kivi:bits=1,levels=1", "kivi:bits=2", "kivi:bits=3", "kivi", "kivi:bits=8", "turbo:bits=1", "turbo:bits=2", "turbo:bits=3",
    "turbo", "mixed:low=2", "mixed", "gear", "gear:bits=4", "stack:levels=1", "stack:levels=2", "stack", "stack:levels=5", "bitmap:small=1",
    "kivi+turbo", "kivi:bits=3+turbo:bits=2",
]
BARE = ["kivi", "turbo"]
SINKS, WINDOW = 4, 128  # of a prompt: its first tokens, as kvtierd keeps them, and its last ones, as KIVI does, are not coded
QUICK_LOSSY = ["kivi:bits=2", "kivi:bits=3", "kivi", "turbo:bits=2", "mixed"]
N_TOKENS, CTX, N_CAPTURE = (600, 448, 512) if QUICK else (5000, 1024, 4096)
COLOURS = {"kivi": "#1b6ca8", "turbo": "#c2410c", "mixed": "#15803d", "gear": "#7c3aed", "stack": "#a16207", "bitmap": "#525252"}


def run(*command):
    return json.loads(subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, check=True).stdout)


def text_file(folder):
    named = os.environ.get("KVTIER_TEXT")
    if named:
        return named, os.path.basename(named)
    path = os.path.join(folder, "text")
    with open(path, "w", encoding="utf-8") as f:
        f.write(open("LICENSE", encoding="utf-8").read())
        for page in sorted(glob.glob("man/*.[13578]")):
            shown = subprocess.run(["mandoc", "-T", "ascii", page], stdout=subprocess.PIPE, check=True).stdout
            f.write(re.sub(".\b", "", shown.decode("utf-8", "replace")))  # what is struck over
    return path, "LICENSE and manual pages of this tree"


def entropy_bits(build, capture, role):
    """Order-0 entropy of the byte planes, bits a value, planes of a block of 64 tokens, mean over layers."""
    planes = [p for p in run(build + "/kvtierctl", "codec", "explain", capture, "zbf", "--json")["planes"] if p["role"] == role]
    return sum(sum(p["entropy"]) for p in planes) / len(planes)


def zstd19_bits(capture, folder):
    """The capture's K and V, without its Q, under zstd -19, bits a value of 16 bits: a bound that is kind to it, for it sees them all at once."""
    with open(capture, "rb") as f:
        layers, heads, kv_heads, dim, tokens = struct.unpack("<5I", f.read(64)[20:40])
        with open(folder + "/kv", "wb") as out:
            for _ in range(layers):
                f.seek(heads * tokens * dim * 2, os.SEEK_CUR)
                out.write(f.read(2 * kv_heads * tokens * dim * 2))
    done = subprocess.run(["zstd", "-19", "-q", "-f", folder + "/kv", "-o", folder + "/zst"], check=False)
    return None if done.returncode else os.path.getsize(folder + "/zst") / os.path.getsize(folder + "/kv") * 16


def row(name, value, unit, baseline=None, baseline_is="", target=None, note=""):
    r = {"name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": value / baseline if baseline else None}
    if baseline_is:
        r["baseline_is"] = baseline_is
    if note:
        r["note"] = note
    if target:
        what, sense, limit = target
        x = r["ratio"] if what == "ratio" else value
        r["target"] = f"{what} {sense} {limit}"
        r["met"] = x <= limit if sense == "<=" else x >= limit
    return r


def named(spec):
    return spec.replace(":", "_").replace(",", "_").replace("=", "").replace("+", "__")


def svg(path, title, y_title, points, y_of, y_range, line=None):
    """points: (codec, label, bits, y)."""
    w, h, left, bottom = 760, 470, 70, 50
    x_of = lambda bits: left + bits / 10 * (w - left - 20)
    low, high = y_range
    place = lambda y: h - bottom - (y_of(y) - low) / (high - low) * (h - bottom - 40)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" font-family="sans-serif" font-size="12">',
           f'<rect width="{w}" height="{h}" fill="white"/><text x="{left}" y="22" font-size="15">{title}</text>']
    for bits in range(0, 11):
        out.append(f'<line x1="{x_of(bits)}" y1="40" x2="{x_of(bits)}" y2="{h - bottom}" stroke="#e5e5e5"/>'
                   f'<text x="{x_of(bits)}" y="{h - bottom + 16}" text-anchor="middle">{bits}</text>')
    for e in range(math.ceil(low), math.floor(high) + 1):
        y = h - bottom - (e - low) / (high - low) * (h - bottom - 40)
        out.append(f'<line x1="{left}" y1="{y}" x2="{w - 20}" y2="{y}" stroke="#e5e5e5"/><text x="{left - 6}" y="{y + 4}" text-anchor="end">1e{e}</text>')
    out.append(f'<text x="{w / 2}" y="{h - 12}" text-anchor="middle">bits a value, all metadata counted</text>'
               f'<text transform="translate(16 {h / 2}) rotate(-90)" text-anchor="middle">{y_title}</text>')
    if line:
        d = " ".join(f"{x_of(b / 10):.1f},{place(line(b / 10)):.1f}" for b in range(5, 101) if low <= y_of(line(b / 10)) <= high)
        out.append(f'<polyline points="{d}" fill="none" stroke="#999" stroke-dasharray="5 4"/><text x="{x_of(5.6)}" y="{place(line(5.6)) - 8}" fill="#666">Gaussian bound</text>')
    for codec, label, bits, y in points:
        if bits > 10 or y <= 0 or not low <= y_of(y) <= high:
            continue
        colour = COLOURS.get(codec, "#000")
        shape = (f'<circle cx="{x_of(bits):.1f}" cy="{place(y):.1f}" r="4" fill="{colour}"/>' if not label.endswith(" V") else
                 f'<rect x="{x_of(bits) - 4:.1f}" y="{place(y) - 4:.1f}" width="8" height="8" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        out.append(f'<g><title>{label}</title>{shape}</g>')
    for i, (codec, colour) in enumerate(COLOURS.items()):
        out.append(f'<circle cx="{w - 110}" cy="{56 + 17 * i}" r="4" fill="{colour}"/><text x="{w - 100}" y="{60 + 17 * i}">{codec}</text>')
    if any(label.endswith(" V") for _, label, _, _ in points):
        out.append(f'<text x="{w - 116}" y="{64 + 17 * len(COLOURS)}">dots K, squares V</text>')
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(out + ["</svg>", ""]))


def main():
    build, model = sys.argv[1], sys.argv[2]
    rows, table, rd, kl = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="kvtier-codec-") as folder:
        text, text_name = text_file(folder)
        known = {c["name"] for c in run(build + "/kvtierctl", "codec", "list", "--json")}
        lossless = [s for s in LOSSLESS if s in known]
        lossy = QUICK_LOSSY if QUICK else LOSSY
        capture = {}
        for kv in ("bf16", "f16"):
            for chunk in ((64, 16) if kv == "bf16" else (64,)):
                capture[kv, chunk] = f"{folder}/{kv}-{chunk}"
                subprocess.run([build + "/llm", "-m", model, "--perplexity", text, "--ctx", str(N_CAPTURE), "-n", str(N_CAPTURE + 1), "--kv", kv,
                                "--block-tokens", str(chunk), "--capture", capture[kv, chunk]], stdout=subprocess.DEVNULL, check=True)
        bench = lambda kv, *specs: run(build + "/kvtierctl", "codec", "bench", capture[kv, 64], *specs, "--json")["codecs"]
        for kv in ("bf16", "f16"):
            entropy = {r: entropy_bits(build, capture[kv, 64], r.upper()) for r in "kv"}
            zstd = zstd19_bits(capture[kv, 64], folder)
            for c in bench(kv, *lossless):
                for r in "kv":
                    rows.append(row(f"{c['spec']}_{kv}_{r}_bits", c[r]["bits"], "bits a value", entropy[r], "order-0 entropy of the byte planes",
                                    ("ratio", "<=", 1.01) if c["spec"] == "zbf" else ("ratio", "<=", 0.95 if r == "k" else 1.0)))
                if zstd and c["spec"] == "zbf":
                    rows.append(row(f"zbf_{kv}_zstd19", c["bits"], "bits a value", zstd, "zstd -19 over the capture", ("ratio", "<=", 1.0)))
                rows.append(row(f"{c['spec']}_{kv}_encode", c["encode_gbps"], "GB/s a core", target=("value", ">=", 1.0) if c["spec"] == "zbf" else None))
                rows.append(row(f"{c['spec']}_{kv}_decode", c["decode_gbps"], "GB/s a core", target=("value", ">=", 2.0 if c["spec"] == "zbf" else 1.5)))
        if "xdelta" in known:
            c = run(build + "/kvtierctl", "codec", "bench", capture["bf16", 64], "xdelta", "--base", capture["bf16", 16], "--json")["codecs"][0]
            rows.append(row("xdelta_bf16_bits", c["bits"], "bits a value", 16, "raw", note="against the same tokens computed in chunks of 16 instead of 64"))
        cost_of = lambda specs, *more: {c["spec"]: c for c in run(build + "/llm", "-m", model, "--perplexity", text, "-n", N_TOKENS, "--ctx", CTX, "--kv", "bf16",
                                                                  "--json", *more, *[x for s in specs for x in ("--kv-codec", s)])["codecs"]}
        costs = cost_of(lossy, "--kv-sinks", SINKS, "--kv-window", WINDOW)
        for spec, cost in cost_of(BARE, "--kv-sinks", 0, "--kv-window", 0).items():
            note = f"every token is coded; 95 %: {{:.4g}} to {{:.4g}}, {cost['tokens']} tokens"
            rows += [row(named(spec) + "_bare_kl", cost["kl"], "nats a token", note=note.format(cost["kl_low"], cost["kl_high"])),
                     row(named(spec) + "_bare_perplexity", cost["perplexity_pct"], "% more", note=note.format(cost["perplexity_pct_low"], cost["perplexity_pct_high"]))]
        for c in bench("bf16", *lossy):
            spec, cost = c["spec"], costs[c["spec"]]
            bits = (cost["k_bits"] + cost["v_bits"]) / 2
            fell = (cost["k_fell_back"] + cost["v_fell_back"]) / 2
            name, codec = named(spec), spec.split(":")[0].split("+")[0]
            decode = ("value", ">=", 4.0) if spec.startswith("kivi") and "+" not in spec else None
            ppl = ("value", "<=", 0.5) if spec == "kivi" else None
            rows += [
                row(name + "_bits", bits, "bits a value", 16, "raw"),
                row(name + "_attention", c["attention_rel_l2"], "relative L2 of attention outputs"),
                row(name + "_kl", cost["kl"], "nats a token", note=f"95 %: {cost['kl_low']:.4g} to {cost['kl_high']:.4g}, {cost['tokens']} tokens"),
                row(name + "_perplexity", cost["perplexity_pct"], "% more", target=ppl,
                    note=f"95 %: {cost['perplexity_pct_low']:.2f} to {cost['perplexity_pct_high']:.2f}"),
                row(name + "_encode", c["encode_gbps"], "GB/s a core"),
                row(name + "_decode", c["decode_gbps"], "GB/s a core", target=decode),
                row(name + "_fell_back", 100 * fell, "% of planes", target=("value", "<=", 20)),
            ]
            table.append((bits, f"| `{spec}` | {cost['k_bits']:.2f} / {cost['v_bits']:.2f} | {cost['k_rel_l2']:.3f} / {cost['v_rel_l2']:.3f} | "
                          f"{c['attention_rel_l2']:.3f} | {cost['kl']:.4f} ({cost['kl_low']:.4f}-{cost['kl_high']:.4f}) | {cost['perplexity_pct']:+.2f} % | "
                          f"{c['encode_gbps']:.2f} / {c['decode_gbps']:.1f} |"))
            if "+" not in spec:
                rd += [(codec, spec + " K", cost["k_bits"], cost["k_rel_l2"]), (codec, spec + " V", cost["v_bits"], cost["v_rel_l2"])]
            kl.append((codec, spec, bits, cost["kl"]))
        n_scored = next(iter(costs.values()))["tokens"]
        if "mixed" in costs and "kivi:bits=3" in costs:
            rows.append(row("mixed_3_kl", costs["mixed"]["kl"], "nats a token", costs["kivi:bits=3"]["kl"], "kivi:bits=3", ("ratio", "<=", 1.0)))
    with open("build/bench-codec.json", "w", encoding="utf-8") as f:
        json.dump({"machine": report.machine(), "text": text_name, "sinks": SINKS, "window": WINDOW, "results": rows}, f, indent=1)
        f.write("\n")
    head = ["| codec | bits K / V | relative L2 K / V | attention | KL, nats a token (95 %) | perplexity | encode / decode, GB/s |", "| --- | --- | --- | --- | --- | --- | --- |"]
    with open("build/bench-codec.md", "w", encoding="utf-8") as f:
        f.write("\n".join(head + [line for _, line in sorted(table)]) + f"\n\nText: {text_name}; {n_scored} tokens scored; the first {SINKS} and the last {WINDOW} before a token's chunk are not coded.\n")
    log = lambda y: math.log10(y)
    svg("build/codec-rd.svg", "Error of codecs on SmolLM2's KV", "relative L2 error of a plane", rd, log, (-2.6, 0.1), lambda b: 2 ** -b)
    svg("build/codec-kl.svg", "What it costs: KL to the full cache", "KL, nats a token", kl, log, (-4.5, 1), None)
    missed = 0
    for r in rows:
        bad = r.get("met") is False
        missed += bad
        ratio = f"{r['ratio']:.4g}" if r["ratio"] is not None else ""
        print(f"{r['name']:36} {report.figure(r['value']):>8}  {r['unit']:32} {report.figure(r['baseline']):>8} {ratio:>8}  "
              f"{r.get('target', '')}{'  MISSED' if bad else ''}")
    return 1 if missed and os.environ.get("BENCH_STRICT") else 0


if __name__ == "__main__":
    sys.exit(main())
