"""Many clients who are spoken to for a while: usage: soak.py PROGRAM [--seconds N] [--clients N] [--plan NAME]

Chats in text and sound and texts read aloud, some in several passages, in all formats, streamed and whole; a quarter of the
clients leave in mid-speech, some read slowly. Every answer must be the one that a lone client gets, to the last byte, and as
long as its usage says. Memory of the server, its executors and media processes together, when nothing is in use, must not grow in the
second half; at the end there must be no more files, threads or processes than before, and nothing in use."""

import argparse
import contextlib
import http.client
import json
import pathlib
import random
import struct
import tempfile
import threading
import time

from serving import Clients, Server, Tap, children
from speech_plans import SPEECH_PLANS, Speech, speak, wait_until_silent

MIB = 1 << 20
CODE_SAMPLES = 120
RATE = 24000
PAUSE_SAMPLES = RATE // 4
FORMATS = ["pcm16", "wav", "mp3", "flac", "opus"]
LONG = "This sentence goes on " + "and on and on, as sentences do that are read aloud for a while, " * 4 + "until it ends. "
GAUGES = ["cornserve_requests_running", "cornserve_requests_waiting", "cornserve_kv_blocks_used", "cornserve_talker_kv_blocks_used",
          "cornserve_speech_running", "cornserve_http_body_bytes"]
# Growth in the second half. A leak of a kilobyte a speech would be some 4 MiB in ten minutes.
MOST_GROWTH_BYTES = 3 * MIB
# In a few seconds the heaps of all threads are still finding their size.
MOST_GROWTH_AT_FIRST_BYTES = 10 * MIB


def mix(n):
    """(path, body) of n requests, n passages of what is read aloud."""
    rng = random.Random(11)
    requests = []
    for i in range(n):
        form, streamed, seed = FORMATS[i % len(FORMATS)], rng.random() < 0.7, rng.randint(0, 99)
        voice = rng.choice(["Chelsie", "Ethan"])
        if i % 2:
            passages = rng.choice([1, 1, 1, 2, 3])
            text = LONG * passages if passages > 1 else "Hello, this is number %d." % i
            requests.append(("/v1/audio/speech", {"input": text, "voice": voice, "response_format": form, "seed": seed,
                                                  **({"stream_format": "sse"} if streamed else {})}, passages))
        else:
            requests.append(("/v1/chat/completions", {"messages": [{"role": "user", "content": f"tell me {i}"}], "modalities": ["text", "audio"],
                                                      "audio": {"voice": voice, "format": form}, "max_tokens": rng.randint(4, 24), "seed": seed,
                                                      "stream": streamed, "ignore_eos": True}, 1))
    return requests


class SlowReader:
    """Reads a response line by line with rests, so that the server's buffers fill up."""

    def __init__(self, response):
        self.response = response

    def __iter__(self):
        for line in self.response:
            time.sleep(0.005)
            yield line


# ---- how long a sound is ----


def mp3_samples(data):
    """Frames of MPEG-2 layer III at 24 kHz have 576 samples; all rates of a stream are the same."""
    rates = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
    at, n = 0, 0
    if data[:3] == b"ID3":
        at = 10 + sum(b << 7 * (3 - i) for i, b in enumerate(data[6:10]))
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xE0 == 0xE0:
        bits, padding = rates[data[at + 2] >> 4], data[at + 2] >> 1 & 1
        at, n = at + 72 * bits * 1000 // RATE + padding, n + 576
    return n


def opus_samples(data):
    """The last page says at 48 kHz where the sound ends, the first packet how much of it is skipped."""
    skip = struct.unpack_from("<H", data, data.index(b"OpusHead") + 10)[0]
    return (struct.unpack_from("<q", data, data.rindex(b"OggS") + 6)[0] - skip) // 2


def check_length(sound, form, usage, passages):
    """None, or how long a sound is and how long it ought to be by the codes of its usage."""
    codes = usage["output_tokens"] if "output_tokens" in usage else usage["audio_tokens"]
    expected = codes * CODE_SAMPLES + (passages - 1) * PAUSE_SAMPLES
    found, slack = {"pcm16": lambda: (len(sound) // 2, 0), "wav": lambda: ((len(sound) - 44) // 2, 0), "mp3": lambda: (mp3_samples(sound), 4 * 576),
                    "opus": lambda: (opus_samples(sound), 0), "flac": lambda: (expected, 0)}[form]()
    return None if expected > 0 and abs(found - expected) <= slack else (form, found, expected)


# ---- what is held ----


class Held:
    """Memory, files, threads and processes of the server and all below it."""

    def __init__(self, server):
        self.memory_bytes = self.files = self.threads = self.processes = 0
        for pid, command in {server.process.pid: "cornserve serve", **children(server.process.pid)}.items():
            # media processes come and go by need: their memory counts, their number does not
            self.add(pathlib.Path(f"/proc/{pid}"), " media-" not in command)

    def add(self, process, counts):
        try:
            rollup = (process / "smaps_rollup").read_text()
            self.memory_bytes += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
            if counts:
                self.files += sum(1 for fd in (process / "fd").iterdir() if "socket" not in str(fd.readlink()))
                self.threads += sum(1 for _ in (process / "task").iterdir())
                self.processes += 1
        except OSError:
            pass  # it has just ended

    def __repr__(self):
        return f"{self.memory_bytes / MIB:.1f} MiB, {self.files} files, {self.threads} threads, {self.processes} processes"


class Sampler(threading.Thread):
    def __init__(self, server, every_s):
        super().__init__(daemon=True)
        self.server, self.every_s, self.over, self.samples = server, every_s, threading.Event(), []

    def run(self):
        while not self.over.wait(self.every_s):
            self.samples.append(Held(self.server).memory_bytes)

    def stop(self):
        self.over.set()
        self.join()


def settled(server, before, seconds=20):
    """True once there are no more files, threads and processes than before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = Held(server)
        if now.files <= before.files and now.threads <= before.threads and now.processes <= before.processes:
            return True
        time.sleep(0.3)
    print(f"# left: {now}; before: {before}")
    return False


# ---- the soak ----


def is_streamed(body):
    return body.get("stream") or "stream_format" in body


def hang_up(server, path, body, after_s):
    """A client who leaves before there is an answer."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    time.sleep(after_s)
    connection.close()
    found = Speech()
    found.end = "left"
    return found


def ask(server, request, leave_after, slow):
    path, body, _ = request
    if leave_after is not None and not is_streamed(body):
        return hang_up(server, path, body, leave_after * 0.05)
    return speak(server, (path, body), leave_after, reader=SlowReader if slow else None)


def is_right(found, expected):
    if found.end == "done":
        return found == expected
    return found.end == "left" and expected.text.startswith(found.text) and expected.sound.startswith(found.sound)


def keeps_freed_memory(server):
    """Whether the server runs under AddressSanitizer, whose quarantine grows to 256 MiB."""
    return b"__asan_init" in pathlib.Path(f"/proc/{server.process.pid}/exe").read_bytes()


def soak(tap, server, seconds, n_clients):
    requests = mix(40)
    expected = [ask(server, request, None, False) for request in requests]
    tap.check(all(e.end == "done" for e in expected), "every request is spoken", [e for e in expected if e.end != "done"][:2])
    wrong = [check_length(e.sound, r[1].get("response_format") or r[1]["audio"]["format"], e.usage, r[2])
             for r, e in zip(requests, expected) if e.usage]
    tap.check(not any(wrong), "every sound is as long as its usage says", [w for w in wrong if w])
    rng = random.Random(3)
    asking = lambda request, leave_after: ask(server, request, leave_after, rng.random() < 0.1)  # noqa: E731
    warm = Clients(asking, is_right, requests, expected, n_clients, n=2 * n_clients, most_events=30)
    warm.run()
    server.wait_until_idle(30)
    before, sampler = Held(server), Sampler(server, min(2, seconds / 40))
    sampler.start()
    halves, held, idle = [], [], True
    for _ in range(2):
        # compared at rest: what is under way at two moments differs by tens of MiB, which would hide a leak
        halves.append(Clients(asking, is_right, requests, expected, n_clients, seconds=seconds / 2, most_events=30))
        halves[-1].run()
        idle = server.wait_until_idle(30) and wait_until_silent(server) and idle
        held.append(Held(server))
    sampler.stop()
    ends = {end: sum(half.ends[end] for half in halves) for end in halves[0].ends}
    grown = held[1].memory_bytes - held[0].memory_bytes
    most = MOST_GROWTH_BYTES if seconds >= 300 else MOST_GROWTH_AT_FIRST_BYTES
    print(f"# {sum(ends.values())} requests of {n_clients} clients in {seconds} s: {ends}; memory of all processes {max(sampler.samples) / MIB:.1f} MiB at "
          f"most; at rest before: {before}; half-way: {held[0]}; after: {held[1]}")
    wrong = [w for clients in [warm, *halves] for w in clients.wrong]
    tap.check(not wrong, "every answer is whole, and the one that a lone client gets", wrong[:2])
    tap.equal([half.errors for half in halves], [{}, {}], "no answer is an error")
    tap.check(ends["done"] > n_clients and ends["left"] > 0, "speeches were heard, and left", ends)
    if keeps_freed_memory(server):
        print("# growth is not judged: an address sanitizer keeps freed memory")
    else:
        tap.check(grown < most, f"memory does not grow by more than {most / MIB:.0f} MiB in the second half", f"{grown / MIB:.1f} MiB")
    tap.check(idle, "no request, no KV block and no sound is left")
    tap.equal({name: server.metric(name) for name in GAUGES}, dict.fromkeys(GAUGES, 0), "all gauges are back at zero")
    tap.check(settled(server, before), "files, threads and processes are as many as before")


@contextlib.contextmanager
def plan_options(name):
    if not name:
        yield []
        return
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(SPEECH_PLANS[name], file)
        file.flush()
        yield ["--plan", file.name]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--plan", action="append", choices=["", *SPEECH_PLANS], help="may be repeated; \"\": none; default: none, then two vocoders")
    arguments = parser.parse_args()
    tap = Tap()
    for name in arguments.plan or ["", "two vocoders"]:
        print(f"# plan: {name or 'none'}")
        with plan_options(name) as options, Server(arguments.program, "--max-context", "2048", *options) as server:
            tap.run("soak", soak, tap, server, arguments.seconds, arguments.clients)
            if name:
                tap.equal(server.metric("cornserve_sidecar_bytes"), 0, "all shared memory is free")
                tap.equal(server.metric("cornserve_executor_deaths_total"), 0, "no executor died")
            sanitizer = [line for line in server.log if "Sanitizer" in line or "runtime error" in line]
            tap.check(not sanitizer, "no sanitizer complained", sanitizer[:5])
    tap.end()


if __name__ == "__main__":
    main()
