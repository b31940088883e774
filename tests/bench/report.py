#!/usr/bin/env python3
"""Turns the rows that benchmarks print into bench.json and a table. report.py ROWS OUT

A row is {"name", "value", "unit", "baseline", "ratio"} and, where there is a limit, "target" and "met"; "baseline_is" and "note" explain.
Fails when a name comes twice or, with BENCH_STRICT=1, when a target is missed.
"""
import json
import os
import platform
import subprocess
import sys


def first_line(command):
    try:
        out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
        return out.splitlines()[0].strip() if out else "?"
    except OSError:
        return "?"


def field(path, key):
    with open(path, encoding="utf-8") as f:
        for line in f:
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return "?"


def chosen(path):
    """The [value] that a file of /sys names."""
    try:
        with open(path, encoding="utf-8") as f:
            return f.read().partition("[")[2].partition("]")[0]
    except OSError:
        return "?"


def machine():
    thp = "/sys/kernel/mm/transparent_hugepage/"
    return {
        "cpu": field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_kib": int(field("/proc/meminfo", "MemTotal").split()[0]),
        "kernel": platform.release(),
        "virtual": "hypervisor" in field("/proc/cpuinfo", "flags"),
        "thp": chosen(thp + "enabled"),
        "thp_shmem": chosen(thp + "shmem_enabled"),
        "compiler": first_line([os.environ.get("CC", "gcc"), "--version"]),
        "load": os.getloadavg()[0],
        "quick": os.environ.get("BENCH_QUICK", "0") not in ("", "0"),
    }


def figure(x):
    if x is None:
        return ""
    return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        rows = [json.loads(line) for line in f if line.strip()]
    names = [r["name"] for r in rows]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        sys.exit(f"rows come twice: {', '.join(twice)}")
    if sys.argv[2] != "/dev/null":
        with open(sys.argv[2], "w", encoding="utf-8") as f:
            json.dump({"machine": machine(), "results": rows}, f, indent=1)
            f.write("\n")
    head = ("", "value", "unit", "baseline", "ratio", "target", "")
    lines = [head]
    for r in rows:
        met = {True: "met", False: "MISSED", None: ""}[r.get("met")]
        lines.append((r["name"], figure(r["value"]), r["unit"], figure(r["baseline"]), figure(r["ratio"]), r.get("target", ""), met))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = [c.rjust(w) if i in (1, 3, 4) else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))]
        print("  ".join(cells).rstrip())
    missed = [r["name"] for r in rows if r.get("met") is False]
    for r in rows:
        if r.get("met") is False:
            print(f"missed: {r['name']}: {r.get('note', '')}")
    if missed and os.environ.get("BENCH_STRICT", "0") not in ("", "0"):
        sys.exit(1)


if __name__ == "__main__":
    main()
