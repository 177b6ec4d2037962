"""The same speech whatever the plan: usage: speech_plans.py PROGRAM [--requests N] [--plans N]

A mixed set of requests, answered in text and sound or read aloud, streamed and whole, goes several at a time to one server
without a plan and to one for each plan: everything in one executor, thinker, talker and vocoder in every grouping, replicas,
and encoders, prefill and decode apart too. Text, usage and every sample must be the same."""

import argparse
import base64
import concurrent.futures
import http.client
import io
import json
import pathlib
import random
import subprocess
import tempfile
import time
import wave

from plans import MEDIA_FILES, executor, plan
from serving import CHECKPOINT, Server, Tap, part

ENCODERS = ["image_encoder", "audio_encoder"]
SPEECH_PLANS = {
    "colocated": plan(executor("all", [*ENCODERS, "thinker", "talker", "vocoder"])),
    "three apart": plan(executor("thinker", [*ENCODERS, "thinker"]), executor("talker", ["talker"]), executor("vocoder", ["vocoder"])),
    "thinker, and what speaks": plan(executor("thinker", [*ENCODERS, "thinker"]), executor("voice", ["talker", "vocoder"])),
    "language models, and the vocoder": plan(executor("models", [*ENCODERS, "thinker", "talker"]), executor("vocoder", ["vocoder"])),
    "two vocoders": plan(executor("thinker", [*ENCODERS, "thinker"]), executor("talker", ["talker"]), executor("vocoder", [("vocoder", "both", 1)], 2)),
    "two of each": plan(executor("thinker", [*ENCODERS, "thinker"], 2), executor("talker", ["talker"], 2), executor("vocoder", ["vocoder"], 2)),
    "all apart, in halves": plan(executor("encoders", ENCODERS), executor("prefill", [("thinker", "prefill")]),
                                 executor("decode", [("thinker", "decode")]), executor("talker", ["talker"]), executor("vocoder", ["vocoder"])),
    "halves beside what speaks": plan(executor("prefill", [*ENCODERS, ("thinker", "prefill"), "talker"]),
                                      executor("decode", [("thinker", "decode"), "vocoder"])),
}


def speech_mix(n):
    """Requests as (path, body): answers spoken and texts read aloud."""
    rng = random.Random(8)
    words = ["tell", "me", "what", "the", "picture", "sound", "is", "über", "红色", "3+4?"]
    requests = []
    while len(requests) < n:
        text = " ".join(rng.choice(words) for _ in range(rng.randint(1, 20)))
        voice, seed, streamed = rng.choice(["Chelsie", "Ethan"]), rng.randint(0, 99), rng.random() < 0.5
        if rng.random() < 0.3:
            requests.append(("/v1/audio/speech", {"input": text, "voice": voice, "response_format": "pcm", "seed": seed,
                                                  **({"stream_format": "sse"} if streamed else {})}))
            continue
        media = [part(rng.choice(MEDIA_FILES)) for _ in range(rng.choice([0, 0, 1]))]
        body = {"messages": [{"role": "user", "content": [*media, {"type": "text", "text": text}]}], "modalities": ["text", "audio"],
                "audio": {"voice": voice, "format": "pcm16"}, "max_tokens": rng.randint(4, 24), "temperature": rng.choice([0, 0.9]),
                "seed": seed, "stream": streamed, "ignore_eos": rng.random() < 0.5}
        if rng.random() < 0.2:
            body["stop"] = rng.choice(["a", "e", " t"])
        requests.append(("/v1/chat/completions", body))
    return requests


# Two sentences that are spoken by requests of their own.
PASSAGES = ("/v1/audio/speech", {"input": ("This sentence goes on " + "and on and on, as they do, " * 10 + "until it ends. ") * 2, "voice": "Chelsie",
                                 "response_format": "pcm", "seed": 3, "stream_format": "sse"})


def pcm_of(data, name):
    if name == "wav":
        with wave.open(io.BytesIO(data)) as sound:
            return sound.readframes(sound.getnframes())
    return data


def usage_of(answer):
    """Without what depends on who came before: the prefix cache."""
    usage = answer["usage"]
    return {**{k: v for k, v in usage.items() if isinstance(v, int)}, **usage.get("completion_tokens_details", {})}


class Speech:
    """What has come of one: text, sound, and how it ended: "done", "left", "cut", or an error's message."""

    def __init__(self):
        self.text, self.sound, self.end, self.usage, self.n_events = "", b"", "cut", None, 0
        self.last, self.pause = time.monotonic(), 0

    def __eq__(self, other):
        return (self.text, self.sound, self.end, self.usage) == (other.text, other.sound, other.end, other.usage)

    def __repr__(self):
        return f"<{self.text!r}, {len(self.sound)} bytes of sound, {self.end}, {self.usage}>"

    def take_event(self, event):
        if "error" in event:
            self.end = event["error"]["message"]
            return
        if event.get("usage"):
            self.usage = usage_of(event)
        if event.get("type") == "speech.audio.delta":
            self.sound += base64.b64decode(event["audio"])
        elif event.get("type") == "speech.audio.done":
            self.end = "done"
        for choice in event.get("choices", []):
            audio = choice["delta"].get("audio") or {}
            self.text += audio.get("transcript", "")
            self.sound += base64.b64decode(audio.get("data", ""))

    def take_stream(self, response, leave_after, on_event):
        for line in response:
            if not line.startswith(b"data: "):
                continue
            self.n_events += 1
            self.pause, self.last = max(self.pause, time.monotonic() - self.last), time.monotonic()
            if on_event:
                on_event(self)
            if line.startswith(b"data: [DONE]"):
                self.end = "done"
            else:
                self.take_event(json.loads(line[6:]))
            if self.end != "cut":
                return
            if leave_after is not None and self.n_events > leave_after:
                self.end = "left"
                return

    def take_whole(self, path, data):
        self.end = "done"
        if path == "/v1/audio/speech":
            self.sound = data
            return
        answer = json.loads(data)
        audio = answer["choices"][0]["message"]["audio"]
        self.text, self.sound = audio["transcript"], base64.b64decode(audio["data"])
        self.usage = usage_of(answer)


def speak(server, request, leave_after=None, on_event=None, timeout=120, reader=None):
    """`reader` makes of a streamed response what its lines are read from."""
    path, body = request
    found = Speech()
    streamed = body.get("stream") or body.get("stream_format") == "sse"
    if body.get("stream"):
        body = {**body, "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection(server.host, server.port, timeout=timeout)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            found.end = json.loads(response.read())["error"]["message"]
        elif streamed:
            found.take_stream(reader(response) if reader else response, leave_after, on_event)
        else:
            found.take_whole(path, response.read())
    finally:
        connection.close()
    return found


def speak_all(server, requests):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda request: speak(server, request), requests))


def wait_until_silent(server, seconds=5):
    """True when no executor has anything of a speech any more, which they say twice a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        left = [server.metric(n) for n in ("cornserve_speech_running", "cornserve_talker_kv_blocks_used", "cornserve_sidecar_bytes")]
        if not any(left):
            return True
        time.sleep(0.1)
    print(f"# left of speech: sounds, KV blocks, bytes of the sidecar: {left}")
    return False


def compare(tap, program, name, file, requests, expected):
    with Server(program, "--plan", file, "--max-context", "2048") as server:
        found = speak_all(server, requests)
        idle = server.wait_until_idle() and wait_until_silent(server)
        deaths = server.metric("cornserve_executor_deaths_total")
        steps, streams = (server.metric(f"cornserve_speech_{n}_total") for n in ("steps", "step_streams"))
        sanitizer = [line for line in server.log if "Sanitizer" in line or "runtime error" in line]
        died = [line for line in server.log if "starts again" in line]
    wrong = [(r, e, f) for r, e, f in zip(requests, expected, found) if e != f]
    tap.check(not wrong, f"{name}: the same text and sound", f"{len(wrong)} differ; request, expected and found: {wrong[:1]}")
    tap.check(idle, f"{name}: nothing is left of them")
    if any(c["name"] == "vocoder" and c.get("max_batch") == 1 for e in SPEECH_PLANS[name]["executors"] for c in e["components"]):
        tap.check(0 < steps == streams, f"{name}: no step makes the sound of two", (steps, streams))
    tap.check(deaths == 0 and not sanitizer, f"{name}: no executor died", (died[:5], sanitizer[:5]))


PROFILES = [("image_encoder", None, 0.01), ("audio_encoder", None, 0.01), ("thinker", "prefill", 0.005), ("thinker", "decode", 0.005),
            ("talker", "prefill", 0.005), ("talker", "decode", 0.002), ("vocoder", None, 0.01)]
CLUSTER = """version: 1
devices:
  cpu: {memory_bytes: 2e8, usable: 0.9, cost: 1}
nodes:
  - {name: local, count: 1, devices: {cpu: 4}}
topology: {kind: full, bandwidth_bytes_per_s: 25e9, latency_s: 1e-5, intra_bandwidth_bytes_per_s: 1e10, hop_overhead_s: 0.001}
"""
WORKLOAD = """version: 1
rate_rps: 1
attainment: 0.9
arrivals: {process: poisson}
types:
  - {name: text_to_speech, share: 0.5, latency_s: 20, first_s: 2, sizes: {text_in_tokens: 20, text_out_tokens: 20, audio_out_tokens: 200}}
  - {name: image_to_speech, share: 0.5, latency_s: 20, first_s: 2,
     sizes: {text_in_tokens: 20, images: 1, image_tokens: 40, text_out_tokens: 20, audio_out_tokens: 200}}
"""


def planned(tap, program, requests, expected):
    """What `cornserve plan` makes for a workload with speech is served, and `run --speak` takes it too."""
    usable = [i for i, (_, body) in enumerate(requests) if "audio_url" not in json.dumps(body) and "video_url" not in json.dumps(body)]
    requests, expected = [requests[i] for i in usable], [expected[i] for i in usable]
    with tempfile.TemporaryDirectory() as directory:
        dir = pathlib.Path(directory)
        profiles = [{"component": c, "device": "cpu", "max_batch": 8, "fixed_s": s, "per_unit_s": 1e-4, **({"role": r, "chunk_units": 512} if r else {})}
                    for c, r, s in PROFILES]
        (dir / "profiles.json").write_text(json.dumps({"version": 1, "name": "made up", "profiles": profiles}))
        (dir / "cluster.yaml").write_text(CLUSTER)
        (dir / "workload.yaml").write_text(WORKLOAD)
        (dir / "graph.json").write_bytes(subprocess.run([program, "graph", str(CHECKPOINT), "--json"], capture_output=True, check=True).stdout)
        for name, shape in (("its own choice", []), ("a shape", ["--shape", "1 x image_encoder+thinker, 1 x talker, 2 x vocoder"])):
            plan_file = dir / "plan.json"
            found = subprocess.run([program, "plan", "-g", dir / "graph.json", "-p", dir / "profiles.json", "-c", dir / "cluster.yaml", "-w",
                                    dir / "workload.yaml", "--seconds", "2", "--requests", "200", "-q", "-o", plan_file, *shape],
                                   capture_output=True, text=True, timeout=60)
            hosted = {c["name"] for e in json.loads(plan_file.read_text())["executors"] for c in e["components"]} if found.returncode == 0 else set()
            tap.check({"thinker", "talker", "vocoder", "image_encoder"} <= hosted, f"planned, {name}: speech is hosted", found.stderr)
            with Server(program, "--plan", str(plan_file), "--max-context", "2048") as server:
                tap.check(speak_all(server, requests) == expected, f"planned, {name}: the same text and sound")
                status = subprocess.run([program, "status", f"http://{server.host}:{server.port}"], capture_output=True, text=True, timeout=20).stdout
                tap.check("talker" in status and "vocoder" in status, f"planned, {name}: `status` shows who speaks", status)
        ask = [program, "run", str(CHECKPOINT), "hello", "--dtype", "f32", "--kv-budget", "64M", "--seed", "3", "-n", "12", "--speak"]
        ended = [subprocess.run([*ask, dir / f"{i}.pcm16", *options], capture_output=True, text=True, timeout=60)
                 for i, options in enumerate(([], ["--plan", plan_file]))]
        sounds = [(dir / f"{i}.pcm16").read_bytes() for i in range(2)]
        tap.check(sounds[0] == sounds[1] and sounds[0] and ended[0].stdout == ended[1].stdout, "`run --speak` with the plan: the same", ended)


REFUSED = {
    "a talker without a vocoder": (plan(executor("e", ["thinker", "talker"])), "none has vocoder"),
    "a vocoder without a talker": (plan(executor("e", ["thinker", "vocoder"])), "none has talker"),
    "half a talker": (plan(executor("e", ["thinker", "vocoder", ("talker", "decode")])), "talker in the role decode"),
}


def refusals(tap, program):
    for name, (bad, words) in REFUSED.items():
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(bad, file)
            file.flush()
            found = subprocess.run([program, "serve", str(CHECKPOINT), "--port", "0", "--plan", file.name], capture_output=True, text=True, timeout=60)
        tap.check(found.returncode == 1 and words in found.stderr, f"refused: {name}", found.stderr)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(plan(executor("thinker", ["thinker"])), file)
        file.flush()
        with Server(program, "--plan", file.name) as server:
            for path, body in (("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "modalities": ["text", "audio"],
                                                         "audio": {"voice": "Chelsie", "format": "wav"}}),
                               ("/v1/audio/speech", {"input": "hi", "voice": "Chelsie"})):
                status, answer = server.request("POST", path, body)
                tap.check(status == 400 and b"no executor of this server's plan speaks" in answer, f"{path} where nothing speaks", answer)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--plans", type=int, default=len(SPEECH_PLANS))
    arguments = parser.parse_args()
    tap = Tap()
    tap.run("refusals", refusals, tap, arguments.program)
    requests = [*speech_mix(arguments.requests), PASSAGES]
    with Server(arguments.program, "--max-context", "2048") as server:
        expected = speak_all(server, requests)
    failed = [e for e in expected if e.end != "done" or not e.sound]
    tap.check(not failed, f"{len(requests)} requests without a plan", failed[:1])
    tap.run("planned", planned, tap, arguments.program, requests, expected)
    for name, content in list(SPEECH_PLANS.items())[:arguments.plans]:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(content, file)
            file.flush()
            tap.run(name, compare, tap, arguments.program, name, file.name, requests, expected)
    tap.end()


if __name__ == "__main__":
    main()
