#!/usr/bin/env python3
"""Published plans and the planner's own under one model and one simulator, as Markdown tables.

    bench/planner/evaluate.py build/cornserve > tables.md

Inputs are those of inputs.py. Every figure is a prediction from published profiles, not a measurement.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import inputs  # noqa: E402

PROGRAM = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else sys.exit(__doc__)
REQUESTS = "2000"
GAINS = []


def files(directory, workload="workload.json"):
    return ["-g", f"{directory}/graph.json", "-p", f"{directory}/profiles.json", "-c", f"{directory}/cluster.json",
            "-w", f"{directory}/{workload}"]


def run(directory, *arguments):
    command = [PROGRAM, "plan", *files(directory), "--requests", REQUESTS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def rows(text):
    """The --compare table: name, throughput, goodput, shape."""
    out = []
    for name in ("this plan", "monolithic", "encoders apart", "EPD", "fully split"):
        m = re.search(rf"^{name} +(\d+) +(\S+) +(\S+) +(\S+)  (.*)$", text, re.M)
        if m:
            out.append((name, float(m[3]), float(m[4]), m[5].replace(" (does not carry the rates)", "")))
        else:
            why = re.search(rf"^{name} +(.*)$", text, re.M)
            out.append((name, None, None, why[1] if why else "?"))
    return out


def table(title, results):
    print(f"\n**{title}**\n")
    print("| plan | throughput, requests/s | goodput, requests/s | executors |")
    print("|---|---|---|---|")
    for name, throughput, goodput, shape in results:
        if throughput is None:
            print(f"| {name} | - | - | {shape} |")
        else:
            print(f"| {name} | {throughput:.3g} | {goodput:.3g} | {shape} |")


def evaluate(title, directory, shapes=()):
    results = []
    for name, shape in shapes:
        r = run(directory, "-q", "--compare", "--shape", shape)
        if r.returncode:
            results.append((name, None, None, f"{shape}: {r.stderr.strip().split(': ', 1)[-1]}"))
        else:
            results.append((name, *rows(r.stdout)[0][1:]))
    best = None
    for policy in ("throughput", "goodput"):
        start = time.time()
        r = run(directory, "-q", "--compare", "--policy", policy)
        if r.returncode:
            sys.exit(r.stderr)
        compared = rows(r.stdout)
        results.append((f"planner, most {policy} ({time.time() - start:.1f} s with the comparison)", *compared[0][1:]))
        best = compared
    results += best[1:]
    table(title, results)
    top = best[0][2]
    ratios = [f"{name} {top / goodput:.2f}x" for name, _, goodput, _ in best[1:] if goodput]
    print(f"\nGoodput of the planner's plan over: {', '.join(ratios) or 'no baseline fits'}.")
    GAINS.append((title, [top / goodput if goodput else None for _, _, goodput, _ in best[1:]]))
    return results


def gains():
    """One row an evaluation: the planner's goodput over each strategy's."""
    print("\n**Goodput of the planner's plan over the strategies of others** (published: 1.12-6.32 over all of its "
          "workloads and baselines, on hardware)\n")
    print("| workload | monolithic | encoders apart | EPD | fully split |")
    print("|---|---|---|---|---|")
    for title, ratios in GAINS:
        print(f"| {title} | " + " | ".join(f"{r:.2f}x" if r else "does not fit" for r in ratios) + " |")


def make(root, name, model, **options):
    directory = os.path.join(root, name)
    inputs.write(directory, model, **options)
    return directory


PUBLISHED_QWEN3 = ("1 x audio_encoder, 4 x image_encoder+video_encoder+thinker, 11 x talker")
ALL25 = "image_encoder+video_encoder+audio_encoder+thinker"


def main():
    root = tempfile.mkdtemp()
    print("<!-- written by bench/planner/evaluate.py -->")
    evaluate("Qwen3-Omni, 16 devices, one third with speech", make(root, "q3", "qwen3_omni"),
             [("published", PUBLISHED_QWEN3)])
    evaluate("The same, decode without a fixed cost", make(root, "q3flat", "qwen3_omni", flat=True),
             [("published", PUBLISHED_QWEN3)])
    for efficiency in (1, 0.8):
        evaluate(f"Qwen3-Omni, executors of one device or of a pair {2 * efficiency:g} times as fast",
                 make(root, f"q3p{efficiency}", "qwen3_omni", pairs=efficiency), [("published", PUBLISHED_QWEN3)])
    for share in (0.1, 0.2, 0.9):
        shares = dict(inputs.MODELS["qwen2_5_omni"]["shares"], speech=share)
        evaluate(f"Qwen2.5-Omni, 8 devices, {share:.0%} with speech",
                 make(root, f"q25_{share}", "qwen2_5_omni", shares=shares),
                 [("published, monolithic", f"8 x {ALL25}+talker"),
                  ("published, split", f"1 x {ALL25}, 7 x talker")])
    evaluate("Qwen-Image, 8 devices", make(root, "qi", "qwen_image"),
             [("published, monolithic", "8 x thinker+image_generator")])
    for share in (0.25, 0.5, 0.75):
        for flat in (False, True):
            evaluate(f"InternVL3-38B, 16 devices in pairs, {share:.0%} with an image"
                     + (", decode without a fixed cost" if flat else ""),
                     make(root, f"iv_{share}_{flat}", "internvl3_38b", shares=dict(image=share), flat=flat),
                     [("monolithic", "8 x image_encoder+thinkerx2"),
                      ("encoders apart, 1 pair", "1 x image_encoderx2, 7 x thinkerx2"),
                      ("encoders apart, 2 pairs", "2 x image_encoderx2, 6 x thinkerx2"),
                      ("encoders apart, 3 pairs", "3 x image_encoderx2, 5 x thinkerx2")])
    gains()


if __name__ == "__main__":
    main()
