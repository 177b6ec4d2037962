#!/usr/bin/env python3
"""Writes the planning inputs of the evaluation: published component throughputs as profiles.

    bench/planner/inputs.py DIR [--flat] [--pairs X] [--devices N]

writes the four files of each model into DIR/MODEL.

One rule turns the published saturated throughputs (requests/s of an executor on an A100, two of them
above 30 billion parameters) into step costs, for every model alike:

- an encoder or generator costs 1/throughput for the reference request, in proportion to its size;
- prefill costs 2 x active parameters x prompt tokens at half of the A100's 312 TFLOP/s, at most 80 % of
  1/throughput; decode is the rest. The fixed part of a decode step is reading the weights once at 2 TB/s (as
  far as the throughput at the batch that fits beside the LLM alone leaves room for it); what remains counts
  per request in the step;
- memory is what the models' sizes say: bf16 weights, KV bytes from layers, KV heads and head size, 90 % of
  80 GB usable, 2 GB of workspace a component.

Nothing here is fitted to a plan's shape. `--flat` leaves out the fixed part of decode, so that memory
limits nothing but what fits. `--pairs X` also lets executors stand on two devices and be 2X as fast there
(1: ideal scaling, which flatters whoever uses pairs). No such figures are published.
"""
import argparse
import json
import os

TFLOPS, BANDWIDTH, MEMORY, USABLE = 312e12 * 0.5, 2e12, 80e9, 0.9
GB = 1e9

VIDEO = {"dist": "mixture", "min": 1200, "max": 26000, "parts": [
    {"weight": 0.35, "dist": "lognormal", "median": 3000, "sigma": 0.27},
    {"weight": 0.65, "dist": "lognormal", "median": 10000, "sigma": 0.28}]}
AUDIO = {"dist": "mixture", "min": 120, "max": 900, "parts": [
    {"weight": 0.486, "dist": "lognormal", "median": 205, "sigma": 0.18},
    {"weight": 0.433, "dist": "normal", "mean": 290, "deviation": 6.2},
    {"weight": 0.081, "dist": "lognormal", "median": 680, "sigma": 0.12}]}
IMAGE_SIDES = [(512, 512), (1024, 1024), (896, 896), (1920, 1080)]
TEXT = {"dist": "uniform", "from": 100, "to": 1000}
MEAN = {"text": 550, "video": 7849, "audio": 282}

MODELS = {
    "qwen3_omni": dict(
        devices=16, image=5.43, video=2.93, audio=21.43, llm=2.15, speech=0.12, patch=32, active=3.3e9,
        weights=dict(image_encoder=1.1, video_encoder=1.1, audio_encoder=1.3, thinker=61, talker=6.8),
        kv=48 * 4 * 128 * 2 * 2, shares=dict(video=0.5, audio=0.5, image=1.0, speech=1 / 3)),
    "qwen2_5_omni": dict(
        devices=8, image=15.64, video=1.28, audio=34.04, llm=1.09, speech=0.28, patch=28, active=7.6e9,
        weights=dict(image_encoder=1.35, video_encoder=1.35, audio_encoder=1.3, thinker=15.2, talker=3.6),
        kv=28 * 4 * 128 * 2 * 2, shares=dict(video=0.5, audio=0.5, image=1.0, speech=0.15)),
    "internvl3_38b": dict(
        devices=16, count=2, image=1.13, llm=0.59, patch=28, active=32.8e9,
        weights=dict(image_encoder=11, thinker=65.5), kv=64 * 8 * 128 * 2 * 2,
        shares=dict(image=0.5)),
    "qwen_image": dict(
        devices=8, llm=15.67, picture=0.20, patch=28, active=7.6e9,
        weights=dict(thinker=16.6, image_generator=41.2), kv=28 * 4 * 128 * 2 * 2, shares=dict()),
}


def image_tokens(patch):
    return sum((w // patch) * (h // patch) for w, h in IMAGE_SIDES) / len(IMAGE_SIDES)


def has(model, name):
    return name in MODELS[model]["weights"]


def graph(model):
    m = MODELS[model]
    units = {"image_encoder": {"images": 1}, "video_encoder": {"video_tokens": 1},
             "audio_encoder": {"audio_in_tokens": 1}, "talker": {"audio_out_tokens": 1},
             "image_generator": {"steps": 1}}
    components, edges = [], []
    for name, gigabytes in m["weights"].items():
        c = {"name": name, "weights_bytes": gigabytes * GB, "activation_bytes": 2 * GB}
        if name == "thinker":
            c |= {"kind": "llm", "kv_bytes_per_token": m["kv"], "split": True, "output": "text",
                  "units": {"text_in_tokens": 1, "image_tokens": 1, "video_tokens": 1, "audio_in_tokens": 1},
                  "output_units": {"text_out_tokens": 1}}
        else:
            c |= {"kind": "encoder" if "encoder" in name else "generator", "units": units[name]}
        if name == "talker":
            c["output"] = "audio"
        if name == "image_generator":
            c["output"] = "image"
        components.append(c)
    hidden = 2 * {"qwen3_omni": 2048, "qwen2_5_omni": 3584, "internvl3_38b": 5120, "qwen_image": 3584}[model]
    for encoder, size in (("image_encoder", "image_tokens"), ("video_encoder", "video_tokens"),
                          ("audio_encoder", "audio_in_tokens")):
        if has(model, encoder):
            edges.append({"from": encoder, "to": "thinker", "bytes": {size: hidden}})
    if has(model, "talker"):
        edges.append({"from": "thinker", "to": "talker", "bytes": {"text_out_tokens": hidden}, "chunks": 8})
    if has(model, "image_generator"):
        edges.append({"from": "thinker", "to": "image_generator", "bytes": {"text_in_tokens": hidden}})
    types = []
    for name, parts, _ in request_types(model, m["shares"]):
        types.append({"name": name, "components": parts})
    return {"version": 1, "name": model, "components": components, "edges": edges, "request_types": types}


def request_types(model, shares):
    """(name, components, share): every combination of what is optional."""
    out = []
    if model == "qwen_image":
        return [("text_to_image", ["thinker", "image_generator"], 1.0)]
    if model == "internvl3_38b":
        return [("text", ["thinker"], 1 - shares["image"]),
                ("image", ["image_encoder", "thinker"], shares["image"])]
    for video in (0, 1):
        for audio in (0, 1):
            for speech in (0, 1):
                share = 1.0
                for key, on in (("video", video), ("audio", audio), ("speech", speech)):
                    share *= shares[key] if on else 1 - shares[key]
                name = "image" + "+video" * video + "+audio" * audio + "_to_" + ("speech" if speech else "text")
                parts = ["image_encoder"] + ["video_encoder"] * video + ["audio_encoder"] * audio
                out.append((name, parts + ["thinker"] + ["talker"] * speech, share))
    return out


def mean_prompt(model, shares):
    m = MODELS[model]
    return (MEAN["text"] + shares.get("image", 0) * image_tokens(m["patch"])
            + shares.get("video", 0) * MEAN["video"] + shares.get("audio", 0) * MEAN["audio"])


def paired(entry, efficiency):
    """The entry on two devices, with this share of ideal scaling."""
    speedup = 2 * efficiency
    out = dict(entry, count=2 * entry["count"])
    for key, factor in (("throughput_rps", speedup), ("fixed_s", 1 / speedup), ("per_unit_s", 1 / speedup)):
        if key in out:
            out[key] *= factor
    return out


def profiles(model, flat, pairs):
    m, out = MODELS[model], []
    count = m.get("count", 1)
    base = {"device": "a100", "count": count}
    published = (("image_encoder", "image", 1), ("video_encoder", "video", MEAN["video"]),
                 ("audio_encoder", "audio", MEAN["audio"]))
    for name, key, units in published:
        if has(model, name):
            out.append(base | {"component": name, "max_batch": 8, "throughput_rps": m[key], "reference_units": units})
    if has(model, "talker"):
        units = 4.5 * MEAN["text"]
        fixed = 8 * 0.5 / m["speech"] / units  # half of a step at batch 8 is shared
        out.append(base | {"component": "talker", "max_batch": 8, "throughput_rps": m["speech"],
                           "reference_units": units, "fixed_s": fixed})
    if has(model, "image_generator"):
        out.append(base | {"component": "image_generator", "max_batch": 4, "throughput_rps": m["picture"],
                           "reference_units": 50})
    prompt, answer = mean_prompt(model, m["shares"]), (1 if model == "qwen_image" else MEAN["text"])
    total = 1 / m["llm"]
    prefill = min(0.8 * total, 2 * m["active"] * prompt / TFLOPS / count)
    context = prompt + answer / 2
    room = MEMORY * USABLE * count - m["weights"]["thinker"] * GB - 2 * GB
    batch = max(1, int(room / (context * m["kv"])))
    batch = min(batch, 256)
    step = (total - prefill) / answer  # seconds a token, each of `batch` requests in a step
    read = 0 if flat else min(0.9 * step, context * m["kv"] / BANDWIDTH / count)
    weights = m["weights"]["thinker"] * GB / BANDWIDTH / count
    fixed = 0 if flat else min(weights, 0.9 * (step - read) * batch)
    per = step - fixed / batch
    out.append(base | {"component": "thinker", "role": "prefill", "max_batch": 64, "chunk_units": 8192,
                       "per_unit_s": prefill / prompt})
    out.append(base | {"component": "thinker", "role": "decode", "max_batch": 256, "fixed_s": fixed, "per_unit_s": per})
    if pairs:
        out += [paired(entry, pairs) for entry in out]
    return {"version": 1, "name": "published A100 throughputs", "profiles": out}


def workload(model, shares, rate):
    types = []
    m = MODELS[model]
    sides = [(w // m["patch"]) * (h // m["patch"]) for w, h in IMAGE_SIDES]
    for name, parts, share in request_types(model, shares):
        sizes = {"text_in_tokens": TEXT}
        if "image_encoder" in parts:
            sizes |= {"images": 1, "image_tokens": {"dist": "empirical", "values": sides}}
        if "video_encoder" in parts:
            sizes["video_tokens"] = VIDEO
        if "audio_encoder" in parts:
            sizes["audio_in_tokens"] = AUDIO
        sizes["text_out_tokens"] = 1 if model == "qwen_image" else TEXT
        if "talker" in parts:
            sizes["audio_out_tokens"] = {"dist": "uniform", "from": 450, "to": 4500}
        if "image_generator" in parts:
            sizes["steps"] = 50
        target = 180 if "talker" in parts else 60
        types.append({"name": name, "share": share, "sizes": sizes, "latency_s": target})
    return {"version": 1, "rate_rps": rate, "attainment": 0.95, "types": types}


def cluster(devices, nodes=None):
    nodes = nodes or max(1, devices // 8)
    return {"version": 1, "devices": {"a100": {"memory_bytes": MEMORY, "usable": USABLE, "cost": 1}},
            "nodes": [{"name": "n", "count": nodes, "devices": {"a100": devices // nodes}}],
            "topology": {"kind": "fat-tree", "pod_nodes": 8, "oversubscription": 2,
                         "bandwidth_bytes_per_s": 25e9, "latency_s": 5e-6,
                         "intra_bandwidth_bytes_per_s": 300e9, "intra_latency_s": 2e-6,
                         "hop_overhead_s": 0.010}}


def write(directory, model, shares=None, flat=False, pairs=0, devices=None, rate=1.0):
    os.makedirs(directory, exist_ok=True)
    shares = shares or MODELS[model]["shares"]
    files = {"graph.json": graph(model), "profiles.json": profiles(model, flat, pairs),
             "workload.json": workload(model, shares, rate),
             "cluster.json": cluster(devices or MODELS[model]["devices"])}
    for name, content in files.items():
        with open(os.path.join(directory, name), "w") as f:
            json.dump(content, f, indent=1)
            f.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--pairs", type=float, default=0, metavar="X")
    parser.add_argument("--devices", type=int, help="in nodes of 8; default: as published")
    o = parser.parse_args()
    for model in MODELS:
        write(os.path.join(o.directory, model), model, flat=o.flat, pairs=o.pairs, devices=o.devices)


if __name__ == "__main__":
    main()
