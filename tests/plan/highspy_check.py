#!/usr/bin/env python3
"""The exact planner against HiGHS: the model of docs/PLAN.md is written down a second time, from the input files.

usage: highspy_check.py PROGRAM COUNT [SEED]   (TAP)

Needs the package highspy: makes a virtual environment in .cache/highspy from PyPI when the interpreter lacks it,
and says so and skips where there is no network.
"""
import json
import math
import os
import random
import subprocess
import sys
import tempfile

CAP = 0.9


def need_highspy():
    try:
        import highspy  # noqa: F401
        return True
    except ImportError:
        pass
    cache = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", ".cache", "highspy")
    python = os.path.join(cache, "bin", "python3")
    if os.path.abspath(sys.prefix) == os.path.abspath(cache):
        return False
    if not os.path.exists(python):
        made = subprocess.run([sys.executable, "-m", "venv", cache], capture_output=True)
        made = made if made.returncode else subprocess.run([python, "-m", "pip", "install", "-q", "highspy"],
                                                           capture_output=True, timeout=120)
        if made.returncode:
            import shutil
            shutil.rmtree(cache, ignore_errors=True)
            return False
    os.execv(python, [python, *sys.argv])


def instance(rng):
    """Encoders, a generator and a whole (not split) model between them, on several nodes."""
    n = 3
    nodes, devices = rng.randint(2, 3), rng.randint(2, 6)
    components = [{"name": f"c{i}", "kind": "encoder", "weights_bytes": rng.uniform(5, 40) * 1e9,
                   "units": {"images": 1}} for i in range(n)]
    edges = [{"from": f"c{i}", "to": f"c{i + 1}", "bytes": rng.uniform(1e5, 5e7)} for i in range(n - 1)]
    types = [{"name": f"t{t}", "components": ["c0", "c1"] + [f"c{i}" for i in range(2, n) if rng.random() < 0.6]}
             for t in range(rng.randint(1, 3))]
    for t in types:  # a sub-graph without holes
        last = max(int(c[1]) for c in t["components"])
        t["components"] = [f"c{i}" for i in range(last + 1)]
    profiles = [{"component": f"c{i}", "device": "d", "per_unit_s": rng.uniform(0.02, 0.5)} for i in range(n)]
    rate = rng.uniform(0.2, 0.7) * nodes * devices / sum(p["per_unit_s"] for p in profiles)
    return {
        "graph": {"version": 1, "name": "g", "components": components, "edges": edges, "request_types": types},
        "profiles": {"version": 1, "profiles": profiles},
        "workload": {"version": 1, "rate_rps": rate, "types": [
            {"name": t["name"], "share": rng.uniform(0.3, 1), "sizes": {"images": 1}} for t in types]},
        "cluster": {"version": 1, "devices": {"d": {"memory_bytes": 80e9, "usable": 0.9, "cost": 1}},
                    "nodes": [{"name": "n", "count": nodes, "devices": {"d": devices}}],
                    "topology": {"kind": rng.choice(["full", "ring"]),
                                 "bandwidth_bytes_per_s": 10 ** rng.uniform(6.5, 9.5)}},
    }


def bandwidth(x, i, j):
    nodes = x["cluster"]["nodes"][0]["count"]
    gap = abs(i - j)
    steps = min(gap, nodes - gap) if x["cluster"]["topology"]["kind"] == "ring" else 1
    return x["cluster"]["topology"]["bandwidth_bytes_per_s"] / steps


def executor_types(x):
    components = x["graph"]["components"]
    out = []
    for mask in range(1, 1 << len(components)):
        inside = [i for i in range(len(components)) if mask >> i & 1]
        if sum(components[i]["weights_bytes"] for i in inside) <= 72e9:
            out.append(inside)
    return out


def paths(execs, stages):
    """Every executor type for every stage."""
    if not stages:
        yield {}
        return
    for rest in paths(execs, stages[1:]):
        for e, inside in enumerate(execs):
            if stages[0] in inside:
                yield {stages[0]: e, **rest}


def solve(x, policy):
    """The optimum of the first objective by HiGHS: devices, or requests/s; None if infeasible."""
    import highspy
    h = highspy.Highs()
    h.silent()
    h.setOptionValue("mip_rel_gap", 0.0)
    h.setOptionValue("time_limit", 10.0)
    nodes, devices = x["cluster"]["nodes"][0]["count"], x["cluster"]["nodes"][0]["devices"]["d"]
    work = [p["per_unit_s"] for p in x["profiles"]["profiles"]]
    shares = [t["share"] for t in x["workload"]["types"]]
    shares = [s / sum(shares) for s in shares]
    execs = executor_types(x)
    columns, rows = [], []

    def column(low, high, integer=False):
        columns.append((low, high, integer))
        return len(columns) - 1

    def row(low, high, entries):
        rows.append((low, high, entries))

    replica = [[column(0, devices, True) for _ in range(nodes)] for _ in execs]
    rate = x["workload"]["rate_rps"]
    alpha = column(0, math.inf) if policy == "throughput" else column(rate, rate)
    capacity = [[{} for _ in range(nodes)] for _ in execs]
    links = {}
    for t, share in zip(x["graph"]["request_types"], shares):
        stages = sorted(int(c[1]) for c in t["components"])
        served = []
        for path in paths(execs, stages):
            z = {}
            flow = column(0, math.inf)
            served.append(flow)
            for e in set(path.values()):
                for n in range(nodes):
                    z[e, n] = column(0, math.inf)
                    for s in stages:
                        if path[s] == e:
                            capacity[e][n][z[e, n]] = capacity[e][n].get(z[e, n], 0) + work[s]
                row(0, 0, {flow: -1, **{z[e, n]: 1 for n in range(nodes)}})
            for s in stages[:-1]:
                a, b, size = path[s], path[s + 1], x["graph"]["edges"][s]["bytes"]
                if a == b:
                    continue
                y = {(i, j): column(0, math.inf) for i in range(nodes) for j in range(nodes)}
                for i in range(nodes):
                    row(0, 0, {z[a, i]: -1, **{y[i, j]: 1 for j in range(nodes)}})
                    row(0, 0, {z[b, i]: -1, **{y[j, i]: 1 for j in range(nodes)}})
                for i in range(nodes):
                    for j in range(nodes):
                        if i != j:
                            links.setdefault((i, j), {})[y[i, j]] = size / bandwidth(x, i, j)
        row(0, 0, {alpha: -share, **{f: 1 for f in served}})
    for e in range(len(execs)):
        for n in range(nodes):
            row(-math.inf, 0, {replica[e][n]: -CAP, **capacity[e][n]})
    for n in range(nodes):
        row(-math.inf, devices, {replica[e][n]: 1 for e in range(len(execs))})
    for entries in links.values():
        row(-math.inf, 1, entries)
    costs = [0.0] * len(columns)
    if policy == "throughput":
        costs[alpha] = -1.0
    else:
        for e in replica:
            for c in e:
                costs[c] = 1.0
    for (low, high, integer), cost in zip(columns, costs):
        h.addCol(cost, low, high, 0, [], [])
    for j, (_, _, integer) in enumerate(columns):
        if integer:
            h.changeColIntegrality(j, highspy.HighsVarType.kInteger)
    for low, high, entries in rows:
        h.addRow(low, high, len(entries), list(entries.keys()), list(entries.values()))
    h.run()
    status = h.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return None
    if status != highspy.HighsModelStatus.kOptimal:
        return math.nan  # no verdict in time
    value = h.getInfo().objective_function_value
    return -value if policy == "throughput" else value


def ours(program, x, policy, directory):
    for name in ("graph", "profiles", "workload", "cluster"):
        with open(f"{directory}/{name}.json", "w") as f:
            json.dump(x[name], f)
    command = [program, "plan", "--exact", "--policy", policy, "--utilisation-cap", str(CAP), "--seconds", "60",
               "--explain", "-q", "--requests", "100"]
    for name in ("graph", "profiles", "workload", "cluster"):
        command += [f"--{name}", f"{directory}/{name}.json"]
    r = subprocess.run(command, capture_output=True, text=True, timeout=200)
    if r.returncode:
        return None, r.stderr.strip()
    words = r.stdout.split()
    return float(words[words.index("objective") + 1].rstrip(",")), r.stdout.strip()


def main():
    program, count = os.path.abspath(sys.argv[1]), int(sys.argv[2])
    have = need_highspy()  # may start this program anew in an environment of its own
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # HiGHS greets on the file descriptor, which would break the TAP
    print(f"1..{count}", flush=True)
    if not have:
        for i in range(count):
            print(f"ok {i + 1} - # SKIP highspy can be neither imported nor installed")
        return 0
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 7)
    failures = 0
    with tempfile.TemporaryDirectory() as directory:
        for i in range(count):
            x = instance(rng)
            policy = ("throughput", "devices")[i % 2]
            theirs = solve(x, policy)
            found, text = ours(program, x, policy, directory)
            if theirs is None or found is None:
                same = theirs is None and found is None
            else:
                same = math.isnan(theirs) or abs(theirs - found) <= 2e-5 * max(1, abs(theirs))
            size = x["cluster"]["nodes"][0]
            print(f"{'ok' if same else 'not ok'} {i + 1} - {policy}, {size['count']} nodes x {size['devices']['d']}"
                  + (" # SKIP HiGHS has no verdict in 10 s" if theirs is not None and math.isnan(theirs) else ""),
                  flush=True)
            if not same:
                failures += 1
                print(f"# HiGHS {theirs}, planner {found}: {text}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
