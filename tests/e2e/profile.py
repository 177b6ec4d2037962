"""From this machine to a served plan that speaks, with nothing edited by hand: profile, plan, serve. Usage: profile.py PROGRAM"""

import base64
import json
import pathlib
import subprocess
import sys
import tempfile

from serving import CHECKPOINT, Server, Tap

WORKLOAD = """version: 1
rate_rps: 1
types:
  - {name: text_to_text, share: 0.4, sizes: {text_in_tokens: 20, text_out_tokens: 8}}
  - {name: text_to_speech, share: 0.2, sizes: {text_in_tokens: 20, text_out_tokens: 8, audio_out_tokens: 100}}
  - {name: image_to_text, share: 0.4, sizes: {text_in_tokens: 20, text_out_tokens: 8, images: 1, image_tokens: 16}}
"""


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def check_profiles(tap, profiles):
    found = {(p["component"], p.get("role", "both"), p["count"]) for p in profiles}
    for component, role in (("image_encoder", "both"), ("audio_encoder", "both"), ("thinker", "prefill"), ("thinker", "decode"),
                            ("talker", "prefill"), ("talker", "decode"), ("vocoder", "both")):
        tap.check((component, role, 1) in found, f"{component} ({role}) is measured", sorted(found))
    tap.check(all(s["seconds"] > 0 and s["work"] > 0 for p in profiles for s in p["samples"]), "samples are positive")
    prefill = next(p["samples"] for p in profiles if p.get("role") == "prefill")
    mean = {w: sum(s["seconds"] for s in prefill if s["work"] == w) / sum(s["work"] == w for s in prefill)
            for w in {s["work"] for s in prefill}}
    tap.check(mean[max(mean)] > mean[min(mean)], "a long prompt takes longer than a short one", mean)
    turns = {p["component"]: p.get("turns", 1) for p in profiles}
    tap.check(turns["image_encoder"] > 1 == turns["vocoder"], "encoders have turns", turns)
    streams = {s["work"] for p in profiles if p["component"] == "vocoder" for s in p["samples"]}
    tap.check(len(streams) > 1, "the vocoder is measured with several streams at once", streams)


def check_graph(tap, graph):
    components = {c["name"]: c for c in graph["components"]}
    tap.check(all(c["weights_bytes"] > 0 for c in components.values()), "all weights are measured", components)
    tap.check(components["talker"]["kv_bytes_per_token"] > 0, "so is the talker's cache", components["talker"])
    vocoder, ahead = components["vocoder"], {e["to"]: e.get("ahead") for e in graph["edges"]}
    tap.check(1 <= vocoder["first_piece"] < vocoder["piece"], "the vocoder's pieces grow", vocoder)
    tap.check(ahead["vocoder"] > ahead["talker"] == 1 and ahead["thinker"] is None, "what looks ahead is known", ahead)


def check_served(tap, server):
    status, data = server.request("POST", "/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 8, "temperature": 0})
    tap.check(status == 200, "the plan is served", data[:300])
    status, data = server.request("POST", "/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 8, "temperature": 0,
        "ignore_eos": True, "modalities": ["text", "audio"], "audio": {"voice": "Chelsie", "format": "pcm16"}})
    sound = base64.b64decode(json.loads(data)["choices"][0]["message"]["audio"]["data"]) if status == 200 else b""
    tap.check(len(sound) > 1000 and any(sound), "and it speaks", data[:300])


def main():
    program, tap = sys.argv[1], Tap()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        files = {kind: folder / kind for kind in ("profiles.json", "graph.json", "cluster.yaml", "workload.yaml", "plan.json")}
        inputs = ("-g", files["graph.json"], "-p", files["profiles.json"], "-c", files["cluster.yaml"])
        done = run(program, "profile", CHECKPOINT, "-o", files["profiles.json"], "-g", files["graph.json"], "-c",
                   files["cluster.yaml"], "--threads", "1", "--seconds", "0.3", "--dtype", "f32", "--prompt-tokens", "16,256",
                   "--image-tokens", "16,64", "--audio-seconds", "1", "--context", "32", "--batch", "1,4",
                   "--speech-tokens", "50,100")
        tap.check(done.returncode == 0, "profile ends well", done.stderr[-600:])
        check_profiles(tap, json.loads(files["profiles.json"].read_text())["profiles"])
        check_graph(tap, json.loads(files["graph.json"].read_text()))
        files["workload.yaml"].write_text(WORKLOAD)
        done = run(program, "plan", *inputs, "-w", files["workload.yaml"], "-o", files["plan.json"])
        tap.check(done.returncode == 0, "plan takes what was measured", done.stderr[-600:])
        hosted = {c["name"] for e in json.loads(files["plan.json"].read_text())["executors"] for c in e["components"]}
        tap.equal(hosted, {"image_encoder", "thinker", "talker", "vocoder"}, "it hosts all that the workload needs")
        done = run(program, "simulate", files["plan.json"], files["workload.yaml"], *inputs)
        tap.check(done.returncode == 0, "so does simulate", done.stderr[-600:])
        with Server(program, "--plan", str(files["plan.json"])) as server:
            check_served(tap, server)
        done = run(program, "profile", folder / "nowhere", "-o", "-")
        tap.check(done.returncode != 0 and "nowhere" in done.stderr, "a missing checkpoint is named", done.stderr[-300:])
        done = run(program, "profile", CHECKPOINT, "--component", "vocoders", "-o", "-")
        tap.check(done.returncode != 0 and "vocoders" in done.stderr, "an unknown component is named", done.stderr[-300:])
    tap.end()


if __name__ == "__main__":
    main()
