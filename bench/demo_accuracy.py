#!/usr/bin/env python3
"""Accuracy of the demo model through the program's own server: asks a held-out set and counts right answers.

    bench/demo_accuracy.py SET [--url http://127.0.0.1:8000] [--binary build/cornserve] [--model models/demo]

SET is a folder written by tools/demo/make held-out. Without --url the program is started here and stopped at the end.
With --answers FILE nothing is asked: the answers of tools/demo/make answer are counted. Needs nothing but Python. Prints a line a skill: exactly right answers, and word errors for transcription; --json FILE
keeps every answer. An answer counts when it is the expected text to the letter; in word errors case and punctuation do
not count.
"""

import argparse
import base64
import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request

TYPES = {"png": "image/png", "jpg": "image/jpeg", "mp4": "video/mp4"}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=pathlib.Path, nargs="?")
    parser.add_argument("--url")
    parser.add_argument("--binary", default="build/cornserve")
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--port", type=int, default=18347)
    parser.add_argument("--skills", default="", help="only skills that start with one of these, comma separated")
    parser.add_argument("--limit", type=int, help="at most so many requests a skill")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--answers", type=pathlib.Path)
    options = parser.parse_args()
    if not options.set and not options.answers:
        parser.error("a held-out set or --answers is needed")
    return options


def with_data(messages, folder):
    """Replace file names by data."""
    for message in messages:
        for part in message["content"]:
            kind = part["type"]
            if kind == "text":
                continue
            name = part[kind].pop("file")
            data = base64.b64encode((folder / name).read_bytes()).decode()
            if kind == "input_audio":
                part[kind]["data"] = data
            else:
                part[kind]["url"] = f"data:{TYPES[name.rsplit('.')[-1]]};base64,{data}"
    return messages


def call(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.code} {error.read().decode(errors='replace')[:300]}") from error


def start(options):
    """Start the server and wait until it answers."""
    url = f"http://127.0.0.1:{options.port}"
    server = subprocess.Popen([options.binary, "serve", options.model, "--port", str(options.port)],
                              start_new_session=True, stdout=sys.stderr)
    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError(f"{options.binary} ended with {server.returncode}")
        try:
            call(url + "/v1/models")
            return server, url
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{options.binary} does not answer on {url}")


def words(text):
    return re.sub(r"[^a-z0-9' ]", "", text.lower()).split()


def word_errors(said, expected):
    """Edit distance in words."""
    a, b = words(said), words(expected)
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (left != right))
    return row[-1], len(b)


def ask(options, url):
    """Ask every request of the set, one after another: the answers, and the seconds they took."""
    wanted = tuple(s for s in options.skills.split(",") if s)
    asked, kept, seconds = collections.Counter(), [], 0.0
    model = call(url + "/v1/models")["data"][0]["id"]
    for line in read(options.set / "requests.jsonl"):
        skill = line["skill"]
        if (wanted and not skill.startswith(wanted)) or (options.limit and asked[skill] >= options.limit):
            continue
        asked[skill] += 1
        body = {"model": model, "temperature": 0, "max_tokens": 96, "modalities": ["text"],
                "messages": with_data(line["messages"], options.set)}
        began = time.time()
        said = call(url + "/v1/chat/completions", body)["choices"][0]["message"]["content"]
        seconds += time.time() - began
        kept.append({"skill": skill, "expected": line["answer"], "said": said})
    return kept, seconds


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def main():
    options = parse()
    if options.answers:
        report(read(options.answers))
        return
    server, url = (None, options.url.rstrip("/")) if options.url else start(options)
    try:
        kept, seconds = ask(options, url)
    finally:
        if server:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(10)
    report(kept)
    print(f"{len(kept)} requests, {1000 * seconds / max(1, len(kept)):.0f} ms each, one after another")
    if options.json:
        options.json.write_text("".join(json.dumps(line) + "\n" for line in kept))


def report(lines):
    groups = collections.defaultdict(lambda: [0, 0, 0, 0])  # right, all, word errors, words
    for line in lines:
        errors, count = word_errors(line["said"], line["expected"])
        numbers = (line["said"] == line["expected"], 1, errors, count)
        for name in {line["skill"], line["skill"].split(":")[0]}:
            groups[name] = [a + b for a, b in zip(groups[name], numbers)]
    print(f"{'skill':32} {'right':>11} {'exact':>8} {'word errors':>12}")
    for name, (right, total, errors, length) in sorted(groups.items()):
        print(f"{name:32} {right:5d}/{total:5d} {100 * right / total:7.1f}% {100 * errors / length:11.1f}%")


if __name__ == "__main__":
    main()
