#!/usr/bin/env python3
"""A plan's predictions beside what the same requests measure on this machine.

    bench/planner/measured.py build/cornserve CHECKPOINT [--kinds text,picture,sound,speech | --set SET] [--cores N] [--dir DIR]

Profiles the checkpoint, draws requests of the kinds (no two alike, so that no cache helps), plans for them, and at each load (a share of
the throughput that the plan predicts; over 1 it is saturated; 0: some of them, one at a time) lets `cornserve simulate` predict the very requests that it then
sends over HTTP at the same moments (Poisson arrivals). Prints a Markdown table of both. `speech` needs a checkpoint that speaks and
ends by itself. With --set the requests are those of a folder written by tools/demo/make held-out for models/demo, a third of the answers
spoken, each as long as the model makes it. What stands in DIR (profile, requests, plan) is used again, so that a load can be measured alone.
"""

import argparse
import base64
import io
import itertools
import json
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import wave
import zlib

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import demo_accuracy  # noqa: E402

WORDS = ["harbour", "ship", "tell", "me", "about", "the", "people", "green", "river", "what", "stands", "there", "seven", "lights", "and",
         "a", "story", "of", "old", "winter", "train", "music", "why", "do", "birds", "north"]
CALM_SHARE = 0.05  # of the requests, at the beginning, that are not counted: as `simulate` does
ALONE, ALONE_LOAD = 24, 1e-4  # requests that are sent one at a time, and the load at which they are predicted
PIXELS_A_TOKEN = 28
SOUND_TOKENS_A_SECOND = 25


# ---- requests ----

def noise_png(rng, side):
    rows = b"".join(b"\0" + rng.randbytes(3 * side) for _ in range(side))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows, 1))
            + chunk(b"IEND", b""))


def noise_wav(rng, seconds):
    data = rng.randbytes(2 * 16000 * seconds)
    return (b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
            + b"data" + struct.pack("<I", len(data)) + data)


def media_part(kind, mime, data):
    return {"type": kind, kind: {"url": f"data:{mime};base64,{base64.b64encode(data).decode()}"}}


def draw_request(rng, kind, number):
    """The body, the type in the task graph, and the sizes that are known by then."""
    n_words = rng.randint(20, 120) if kind == "text" else rng.randint(5, 25)
    text = f"{number} " + " ".join(rng.choice(WORDS) for _ in range(n_words))
    n_out = rng.randint(8, 40)
    content, sizes, name = [{"type": "text", "text": text}], {"text_out_tokens": n_out}, "text_to_text"
    if kind == "picture":
        side = PIXELS_A_TOKEN * rng.randint(4, 12)
        content.insert(0, media_part("image_url", "image/png", noise_png(rng, side)))
        sizes |= {"images": 1, "image_tokens": (side // PIXELS_A_TOKEN) ** 2}
        name = "image_to_text"
    if kind == "sound":
        seconds = rng.randint(1, 4)
        content.insert(0, media_part("audio_url", "audio/wav", noise_wav(rng, seconds)))
        sizes |= {"audio_in_seconds": seconds, "audio_in_tokens": SOUND_TOKENS_A_SECOND * seconds}
        name = "audio_to_text"
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": n_out, "ignore_eos": True, "seed": number, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True}}
    if kind == "speech":
        body |= {"modalities": ["text", "audio"], "audio": {"format": "pcm16"}}
        name = "text_to_speech"
    return {"kind": kind, "type": name, "sizes": sizes, "body": body}


def set_requests(arguments):
    """Requests of a held-out set whose answers end by themselves, of one modality each; every third answer is spoken."""
    lines = [json.loads(line) for line in (arguments.set / "requests.jsonl").read_text().splitlines()]
    random.Random(arguments.seed).shuffle(lines)
    for number, line in enumerate(lines):
        messages = demo_accuracy.with_data(line["messages"], arguments.set)
        media = {part["type"] for message in messages for part in message["content"]} - {"text"}
        if len(media) > 1 or "video_url" in media:
            continue  # the task graph has types of one modality; a clip is one request in twenty
        asks = {"image_url": "image", "input_audio": "audio"}[media.pop()] if media else "text"
        kind = "speech" if number % 3 == 0 else "set"
        body = {"messages": messages, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        if kind == "speech":
            body |= {"modalities": ["text", "audio"], "audio": {"format": "pcm16"}}
        seconds = sum(sound_seconds(part) for message in messages for part in message["content"] if part["type"] == "input_audio")
        sizes = {"audio_in_seconds": seconds} if seconds else {}
        yield {"kind": kind, "type": f"{asks}_to_{'speech' if kind == 'speech' else 'text'}", "sizes": sizes, "body": body}


def sound_seconds(part):
    with wave.open(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))) as sound:
        return sound.getnframes() / sound.getframerate()


# ---- the client: one thread a request, so little Python as can be while others are served ----

class Answer:
    def __init__(self):
        self.first_s = self.whole_s = None
        self.lines = []

    def events(self):
        for line in self.lines:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


def send(address, wire, wanted, begun, answer):
    """Sends the bytes of a request, notes when its first `wanted` came and when it ended."""
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(wire)
    with connection.makefile("rb") as lines:
        for line in lines:
            if answer.first_s is None and wanted.search(line):
                answer.first_s = time.monotonic() - begun
            if line.startswith(b"data: [DONE]"):
                answer.whole_s = time.monotonic() - begun
            answer.lines.append(line)
    connection.close()


def wire_of(body):
    data = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)


def wanted_of(request):
    return re.compile(rb'"data": ?"[^"]' if request["kind"] == "speech" else rb'"content": ?"[^"]')


class Server:
    def __init__(self, arguments, *options):
        self.command = [arguments.program, "serve", arguments.checkpoint, "--port", "0", *options]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        found = re.match(r"ready in .*http://([^:]+):(\d+)/v1", self.process.stdout.readline())
        if not found:
            sys.exit("the server did not become ready")
        self.address = (found[1], int(found[2]))
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


# ---- preparation ----

def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stderr}")
    return done


def inputs(folder):
    return ("-g", folder / "graph.json", "-p", folder / "profiles.json", "-c", folder / "cluster.yaml")


def profile(arguments, folder):
    run(arguments.program, "profile", arguments.checkpoint, "-o", folder / "profiles.json", "-g", folder / "graph.json", "-c",
        folder / "cluster.yaml", "--cores", arguments.cores, "--seconds", arguments.seconds, "--context", "64,192", "--image-tokens", "16,64,144",
        "--audio-seconds", "1,2,4", "--prompt-tokens", "16,32,64,128,256", "--batch", "1,2,4,8,16,32")


def ask_sizes(server, request, code_bytes):
    """Sends the request once: what its prompt has in tokens and its speech in codes."""
    answer, sizes = Answer(), request["sizes"]
    body = request["body"] if request["kind"] in ("speech", "set") else request["body"] | {"max_tokens": 1}
    send(server.address, wire_of(body), wanted_of(request), time.monotonic(), answer)
    if answer.whole_s is None:
        sys.exit(f"a request failed: {answer.lines[-3:]}")
    events, sound = list(answer.events()), 0
    usage = next(e["usage"] for e in events if e.get("usage"))
    for event in events:
        for choice in event.get("choices", []):
            sound += len(base64.b64decode((choice["delta"].get("audio") or {}).get("data", "")))
    if "text_out_tokens" not in sizes:
        found = usage["prompt_tokens_details"]
        sizes |= {k: v for k, v in (("image_tokens", found["image_tokens"]), ("audio_in_tokens", found["audio_tokens"])) if v}
        sizes["text_out_tokens"] = usage["completion_tokens_details"]["text_tokens"]
    sizes["text_in_tokens"] = usage["prompt_tokens"] - sizes.get("image_tokens", 0) - sizes.get("audio_in_tokens", 0)
    if request["kind"] == "speech":
        sizes["audio_out_tokens"] = sound // code_bytes


def draw_requests(arguments, folder):
    """Writes requests.json: requests with all their sizes, and when each arrives at one a second."""
    rng, kinds = random.Random(arguments.seed), arguments.kinds.split(",")
    requests, t = [], 0
    drawn = set_requests(arguments) if arguments.set else (draw_request(rng, kinds[i % len(kinds)], i) for i in itertools.count())
    for request in itertools.islice(drawn, arguments.requests):
        t += rng.expovariate(1)
        requests.append(request | {"t": t})
    with Server(arguments) as server:
        for request in requests:
            ask_sizes(server, request, arguments.code_bytes)
    (folder / "requests.json").write_text(json.dumps(requests))


def write_trace(folder, requests, rate):
    path = folder / f"trace-{rate:.4g}.jsonl"
    path.write_text("".join(json.dumps({"t": r["t"] / rate, "type": r["type"], "sizes": r["sizes"]}) + "\n" for r in requests))
    return path


def make_plan(arguments, folder, requests):
    shape = ("--shape", arguments.shape) if arguments.shape else ()
    run(arguments.program, "plan", *inputs(folder), "-w", write_trace(folder, requests, 1), "-o", folder / "plan.json", "-q", *shape)


# ---- both ----

def simulate(arguments, folder, requests, rate):
    trace = write_trace(folder, requests, rate)
    found = json.loads(run(arguments.program, "simulate", folder / "plan.json", trace, *inputs(folder), "--requests", len(requests),
                           "--json", "-").stdout)
    return {t["type"]: t for t in found["types"]}, found["completed_rps"]


def replay(server, requests, rate):
    """Sends every request at its moment; answers, and requests a second from the first arrival to the last answer."""
    prepared = [(r["t"] / rate, wire_of(r["body"]), wanted_of(r), Answer()) for r in requests]
    threads, start = [], time.monotonic() + 0.1
    for t, wire, wanted, answer in prepared:
        time.sleep(max(0, start + t - time.monotonic()))
        threads.append(threading.Thread(target=send, args=(server.address, wire, wanted, start + t, answer)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    answers = [p[-1] for p in prepared]
    lost = [a for a in answers if a.whole_s is None or a.first_s is None]
    if lost:
        sys.exit(f"{len(lost)} requests failed: {lost[0].lines[-3:]}")
    end = max(t + a.whole_s for (t, *_), a in zip(prepared, answers))
    return answers, len(answers) / end


def replay_alone(server, requests):
    answers, start = [Answer() for _ in requests], time.monotonic()
    for request, answer in zip(requests, answers):
        send(server.address, wire_of(request["body"]), wanted_of(request), time.monotonic(), answer)
    return answers, len(answers) / (time.monotonic() - start)


def warm_up(server, arguments):
    rng = random.Random(arguments.seed + 1)
    for kind in arguments.kinds.split(","):
        for i in range(3):
            request = draw_request(rng, kind, 100000 + i)
            send(server.address, wire_of(request["body"]), wanted_of(request), time.monotonic(), Answer())


def percentiles(values):
    values = sorted(values)
    rank = lambda p: values[min(len(values) - 1, max(0, -int(-p * len(values) // 1) - 1))]
    return {"mean_s": sum(values) / len(values), "p50_s": rank(0.5), "p95_s": rank(0.95)}


def milliseconds(both):
    predicted, measured = both
    return f"{1e3 * predicted:.4g} / {1e3 * measured:.4g} = {predicted / measured:.2f}"


def print_load(load, rate, requests, predicted, measured):
    (types, predicted_rps), (answers, measured_rps) = predicted, measured
    counted = list(zip(requests, answers))[int(CALM_SHARE * len(requests)):]
    if load > 0:
        print(f"| {load:g} ({rate:.3g}/s) | all | requests/s | {predicted_rps:.3g} / {measured_rps:.3g} = {predicted_rps / measured_rps:.2f} | | |")
    else:
        print("| alone | | | | | |")
    for name, type_ in types.items():
        ours = [a for r, a in counted if r["type"] == name]
        for what, key, seen in (("first", "first", [a.first_s for a in ours]), ("whole", "latency", [a.whole_s for a in ours])):
            found = percentiles(seen)
            cells = " | ".join(milliseconds((type_[key][m], found[m])) for m in ("mean_s", "p50_s", "p95_s"))
            print(f"| | {name} ({len(ours)}) | {what} | {cells} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("checkpoint")
    parser.add_argument("--kinds", default="text,picture,sound")
    parser.add_argument("--set", type=pathlib.Path, help="a held-out set, in place of --kinds")
    parser.add_argument("--cores", type=int, default=1, help="that executors may use; the rest is for gateway and client (1)")
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--loads", default="0,0.3,0.6,1.5")
    parser.add_argument("--shape", help="a shape of your own, as of `cornserve plan`")
    parser.add_argument("--seconds", type=float, default=3, help="to measure a component with one count of threads (3)")
    parser.add_argument("--code-bytes", type=int, default=960, help="of 16-bit sound for a code (960: 480 samples)")
    parser.add_argument("--dir", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="only write DIR")
    arguments = parser.parse_args()
    folder = arguments.dir or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    if not (folder / "profiles.json").exists():
        profile(arguments, folder)
    if not (folder / "requests.json").exists():
        draw_requests(arguments, folder)
    requests = json.loads((folder / "requests.json").read_text())
    if not (folder / "plan.json").exists():
        make_plan(arguments, folder, requests)
    plan = json.loads((folder / "plan.json").read_text())
    if arguments.prepare:
        return
    for e in plan["executors"]:
        print(f"{e['replicas']} x {'+'.join(c['name'] + ('' if c['role'] == 'both' else ':' + c['role']) for c in e['components'])}"
              f" of {e['devices_per_replica']}")
    print("\n| load | type | what | mean, ms: predicted / measured | p50 | p95 |\n|---|---|---|---|---|---|")
    for load in map(float, arguments.loads.split(",")):
        rate = (load or ALONE_LOAD) * plan["predictions"]["throughput_rps"]
        sent = requests if load > 0 else requests[:ALONE]
        predicted = simulate(arguments, folder, sent, rate)
        with Server(arguments, "--plan", str(folder / "plan.json")) as server:
            warm_up(server, arguments)
            print_load(load, rate, sent, predicted, replay(server, sent, rate) if load > 0 else replay_alone(server, sent))


if __name__ == "__main__":
    main()
