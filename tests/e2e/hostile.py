"""Hostile and careless clients against the real server: usage: hostile.py PROGRAM

Each must get a clear error, and the server must go on as if nothing had been: no memory of it, no open file, no KV block."""

import base64
import json
import os
import random
import socket
import struct
import sys
import threading
import time
import zlib

from serving import MEDIA, Server, Tap, part

HI = [{"role": "user", "content": "hi"}]


def png(width, height, rows=b""):
    """A PNG that claims its size, with as much data as given."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wav(data_bytes, claimed=None):
    claimed = len(data_bytes) if claimed is None else claimed
    return (b"RIFF" + struct.pack("<I", (36 + claimed) & 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
            + b"data" + struct.pack("<I", claimed) + data_bytes)


def loud_wav():
    samples = struct.pack("<f", 3e38) * 1600
    return (b"RIFF" + struct.pack("<I", 36 + len(samples)) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, 16000, 64000, 4, 32)
            + b"data" + struct.pack("<I", len(samples)) + samples)


def long_video(frames=10**9):
    """The golden video with a header that claims so many frames in its sample tables."""
    data = bytearray((MEDIA / "walk.mp4").read_bytes())
    for table in (b"stsz", b"stts"):
        at = data.find(table)
        struct.pack_into(">I", data, at + (12 if table == b"stsz" else 8), frames)
    return bytes(data)


def medium(kind, data):
    if kind == "input_audio":
        return {"type": kind, kind: {"data": base64.b64encode(data).decode(), "format": "wav"}}
    return {"type": kind, kind: {"url": "data:;base64," + base64.b64encode(data).decode()}}


def chat(*parts, **more):
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}], "max_tokens": 4, **more}


def bodies():
    """Name, body, statuses that are right, words that the message must have."""
    photo = (MEDIA / "harbour.jpg").read_bytes()
    noise = random.Random(1).randbytes(5000)
    yield "no JSON", "{", {400}, "request body"
    yield "not an object", "[1]", {400}, "expected a JSON object"
    yield "NaN", '{"messages":[{"role":"user","content":"hi"}],"temperature":NaN}', {400}, "request body"
    yield "infinity", '{"messages":[{"role":"user","content":"hi"}],"temperature":1e999}', {400}, "request body"
    yield "negative", {"messages": HI, "max_tokens": -1}, {400}, "max_tokens"
    yield "deep nesting", "[" * 100000, {400}, "request body"
    yield "broken UTF-8", b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', {400}, "request body"
    yield "unknown parameter", {"messages": HI, "frobnicate": 1}, {400}, "frobnicate"
    yield "over the context", {"messages": [{"role": "user", "content": "word " * 200000}]}, {400}, "tokens"
    yield "too many tokens asked", {"messages": HI, "max_tokens": 16000000}, {400}, "tokens"
    yield "ids outside the vocabulary", {"messages": HI, "logit_bias": {"99999999": 1}}, {400}, ""
    yield "bad base64", chat({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@@"}}), {400}, "image_url.url"
    yield "empty data URL", chat({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}), {400}, "image_url.url"
    yield "remote URL", chat({"type": "image_url", "image_url": {"url": "https://127.0.0.1/x"}}), {403}, "--allow-remote-media"
    yield "file URL", chat({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), {403}, "--allow-media-dir"
    yield "noise as image", chat(medium("image_url", noise)), {400}, "image 1"
    yield "truncated JPEG", chat(medium("image_url", photo[: len(photo) // 3])), {200, 400}, ""
    yield "JPEG of a header only", chat(medium("image_url", photo[:100])), {400}, "image 1"
    yield "100 megapixel bomb", chat(medium("image_url", png(10000, 10000, bytes(30001 * 100)))), {413}, "image 1"
    yield "image of no size", chat(medium("image_url", png(0, 0))), {400}, "image 1"
    yield "second image is bad", chat(medium("image_url", photo), medium("image_url", noise)), {400}, "image 2"
    yield "sound as image", chat(medium("image_url", wav(bytes(3200)))), {400}, "image 1"
    yield "empty WAV", chat(medium("input_audio", wav(b""))), {400}, "sound 1"
    yield "WAV of 4 GB", chat(medium("input_audio", wav(bytes(100), 0xFFFFFFF0))), {200, 400, 413}, ""
    yield "noise as sound", chat(medium("input_audio", noise)), {400}, "sound 1"
    yield "noise as video", chat(medium("video_url", noise)), {400}, "video 1"
    yield "video of 10^9 frames", chat(medium("video_url", long_video())), {400, 413, 503, 500}, "video 1"
    yield "integer over 64 bits", '{"messages":[{"role":"user","content":"hi"}],"max_tokens":9223372036854775808}', {400}, "request body"
    yield "largest integer", {"messages": HI, "max_tokens": 2**63 - 1}, {400}, "max_tokens"
    yield "answers without end", {"messages": HI, "n": 2**31}, {400}, "n: "
    yield "deep object", {"messages": HI, "chat_template_kwargs": json.loads('{"a":' * 500 + "1" + "}" * 500)}, {400}, "nested"
    yield "name cut inside of a letter", {"messages": HI, "a" + "\u00e9" * 100: 1}, {400}, "there is no such parameter"
    yield "long role", {"messages": [{"role": "x" * 100000, "content": "hi"}]}, {400}, 'found "xxxx'
    yield "1000 images", chat(*[medium("image_url", photo[:1000])] * 1000), {413}, "256"
    yield "escapes without end", '{"messages":[{"role":"user","content":"' + "\\" * (8 << 20) + '"}]}', {400, 413}, ""
    yield "marks without end", {"messages": [{"role": "user", "content": "a" + "\u0301\u0323" * 60000}]}, {400}, "tokens"
    yield "60 MB of text", {"messages": [{"role": "user", "content": "a" * (60 << 20)}]}, {400}, "bytes"
    yield "60 MB of base64", chat({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (60 << 20)}}), {400}, "image 1"
    yield "image of 1 x 10000", chat(medium("image_url", png(1, 10000, bytes(4 * 10000)))), {400}, "image 1"
    yield "image 2^31 - 1 wide", chat(medium("image_url", png(2**31 - 1, 1, bytes(40)))), {413}, "image 1"
    yield "sound of 161 samples", chat(medium("input_audio", wav(bytes(322)))), {400}, "sound 1"
    yield "sound of 20 minutes", chat(medium("input_audio", wav(bytes(2 * 16000 * 1200)))), {413}, "sound 1"
    yield "sound far over full scale", chat(medium("input_audio", loud_wav())), {400}, "sound 1"
    yield "video without frames", chat(medium("video_url", long_video(0))), {400}, "video 1"
    yield "image in an assistant's turn", {"messages": [{"role": "assistant", "content": [part("stamp.png")]}]}, {400}, "image_url"


def test_bodies(tap, server):
    for name, body, statuses, words in bodies():
        began = time.monotonic()
        status, data = server.request("POST", "/v1/chat/completions", body)
        error = json.loads(data).get("error", {})
        right = status in statuses and (status == 200 or (words in error.get("message", "") and error.get("type")))
        tap.check(right and time.monotonic() - began < 20, f"{name}: {status}", data[:500])


def raw(server, data, close_after=None, seconds=30):
    """Sends bytes and reads to the end; or closes after close_after bytes were received."""
    with socket.create_connection((server.host, server.port), timeout=seconds) as connection:
        try:
            connection.sendall(data)
        except OSError:
            pass
        received = b""
        while close_after is None or len(received) < close_after:
            try:
                got = connection.recv(65536)
            except OSError:
                break
            if not got:
                break
            received += got
        return received


def test_completions(tap, server):
    cases = [
        ("64 prompts of 64 answers", {"prompt": ["a"] * 64, "n": 64}, 413),
        ("negative ids", {"prompt": [-1]}, 400),
        ("ids over 32 bits", {"prompt": [2**40]}, 400),
        ("an empty list of ids", {"prompt": [[], [1]]}, 400),
        ("texts and ids", {"prompt": ["a", 1]}, 400),
        ("tokens of media without media", {"prompt": "<|IMAGE|><|AUDIO|>", "max_tokens": 2}, 200),
    ]
    for name, body, expected in cases:
        status, data = server.request("POST", "/v1/completions", body)
        tap.check(status == expected, f"completions, {name}: {status}", data[:300])
    status, data = server.request("POST", "/tokenize", {"prompt": "x " * 4000000})
    tap.check(status == 413, f"8 MB to tokenize: {status}", data[:300])


def test_protocol(tap, server):
    cases = [
        ("huge header", b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200000 + b"\r\n\r\n"),
        ("many headers", b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20000 + b"\r\n"),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)),
        ("two lengths", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        ("length and chunks", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("negative length", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\n{}"),
        ("bad chunk size", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"),
        ("long path", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    ]
    for name, data in cases:
        answer = raw(server, data)
        tap.check(b" 200 " not in answer.split(b"\r\n")[0], f"{name} is refused", answer[:300])
        tap.check(server.request("GET", "/health")[0] == 200, f"{name}: the server is well")


def test_slow(tap, server):
    """Heads that never end hold connections for ten seconds at most, and nobody up."""
    connections = [socket.create_connection((server.host, server.port)) for _ in range(200)]
    for connection in connections:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
    closed, end = 0, time.monotonic() + 60  # five times what an idle machine takes
    tap.check(server.request("GET", "/health")[0] == 200, "200 slow heads: others are served")
    for connection in connections:
        connection.settimeout(0.05)
    while closed < len(connections) and time.monotonic() < end:
        for connection in [c for c in connections if c.fileno() >= 0]:
            try:
                connection.sendall(b"X: y\r\n")
                if connection.recv(1) == b"":
                    raise ConnectionError
            except TimeoutError:
                continue
            except OSError:
                connection.close()
                closed += 1
    tap.equal(closed, 200, "200 slow heads: all are closed in time")


def leave_early(server, seed, answers):
    chance = random.Random(seed)
    for _ in range(12):
        parts = [part(name) for name in chance.sample(["stamp.png", "harbour.jpg", "bell.flac", "greeting.wav"], chance.randint(0, 2))]
        body = json.dumps(chat(*parts, stream=chance.random() < 0.7, max_tokens=40, ignore_eos=True)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        how = chance.random()
        if how < 0.15:
            raw(server, data[: chance.randint(1, len(data) - 1)], close_after=0)
        elif how < 0.3:
            raw(server, data, close_after=0)
        elif how < 0.5:
            raw(server, data, close_after=chance.randint(1, 3000))
        else:
            answers.append(raw(server, data, seconds=120))


def test_leaving(tap, server):
    server.wait_until_idle()
    files, answers = server.open_files(), []
    threads = [threading.Thread(target=leave_early, args=(server, seed, answers)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bad = [a[:300] for a in answers if b" 200 OK" not in a or not (b"[DONE]" in a or b'"finish_reason":"length"' in a)]
    tap.check(not bad, f"{len(answers)} clients that stayed among 192 have whole answers", bad[:3])
    tap.check(server.wait_until_idle(), "nothing is left of those that went")
    time.sleep(0.5)
    # Decoder processes that started meanwhile have a socket each.
    tap.check(server.open_files() <= files + 8, "no file stays open", f"{files} before, {server.open_files()} after")


def test_memory(tap, server):
    """The same hostile requests again and again cost no memory."""
    texts = [body if isinstance(body, (str, bytes)) else json.dumps(body) for _, body, _, _ in bodies()]
    everything = [text for text in texts if len(text) < 1 << 20]
    def once():
        for body in everything:
            server.request("POST", "/v1/chat/completions", body)
    for _ in range(3):
        once()
    before = server.resident_bytes()
    for _ in range(8):
        once()
    grown = server.resident_bytes() - before
    tap.check(grown < 24 << 20, "hostile requests leave no memory behind", f"grew by {grown / 2**20:.1f} MiB")


def test_end(tap, server):
    """SIGTERM: running requests get time, then an error event; all within five seconds."""
    body = json.dumps({"messages": HI, "stream": True, "max_tokens": 3000, "ignore_eos": True}).encode()
    connection = socket.create_connection((server.host, server.port), timeout=20)
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(body) + body)
    connection.recv(1000)
    children = [int(pid) for pid in os.popen(f"pgrep -P {server.process.pid}").read().split()]
    began = time.monotonic()
    server.process.terminate()
    received = b""
    while got := connection.recv(65536):
        received += got
    code = server.process.wait(10)
    seconds = time.monotonic() - began
    tap.check(b"[DONE]" in received or b"shutting down" in received, "a stream at the end is whole or says why not", received[-400:])
    tap.check(code == 0 and seconds < 5.5, "SIGTERM ends the server in time", f"exit {code} after {seconds:.1f} s")
    time.sleep(0.3)
    left = [pid for pid in children if os.path.exists(f"/proc/{pid}")]
    tap.equal(left, [], "no process stays behind")


def main():
    tap = Tap()
    with Server(sys.argv[1]) as server:
        tap.run("bodies", test_bodies, tap, server)
        tap.run("completions", test_completions, tap, server)
        tap.run("protocol", test_protocol, tap, server)
        tap.run("slow", test_slow, tap, server)
        tap.run("leaving", test_leaving, tap, server)
        tap.run("memory", test_memory, tap, server)
        tap.run("end", test_end, tap, server)
    tap.end()


main()
