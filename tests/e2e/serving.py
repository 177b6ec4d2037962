"""What the end-to-end tests share: a real server on a free port, requests with media, TAP lines."""

import base64
import http.client
import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/qwen2_5_omni"
CHECKPOINT = GOLDEN / "qwen2.5-omni-tiny"
MEDIA = GOLDEN / "media"


class Server:
    """`cornserve serve` until the end of a with block; its log is kept for the case of failure."""

    def __init__(self, program, *options, checkpoint=CHECKPOINT, dtype="f32"):
        self.command = [program, "serve", str(checkpoint), "--port", "0", "--dtype", dtype, "--kv-budget", "64M", *options]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.log = []
        threading.Thread(target=self._read_log, daemon=True).start()
        ready = self.process.stdout.readline()
        found = re.match(r"ready in .*http://([^:]+):(\d+)/v1 serves (\S+);", ready)
        if not found:
            self.process.kill()
            raise RuntimeError(f"the server did not become ready: {ready!r} {''.join(self.log)}")
        self.host, self.port, self.model = found[1], int(found[2]), found[3]
        return self

    def _read_log(self):
        for line in self.process.stderr:
            self.log.append(line)

    def __exit__(self, kind, value, traceback):
        if kind:
            sys.stderr.write("".join(self.log[-40:]))
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Status and body of one request; a dict is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, data

    def metric(self, name):
        text = self.request("GET", "/metrics")[1].decode()
        return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])

    def open_files(self):
        return len(list(pathlib.Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def resident_bytes(self):
        return self.metric("process_resident_memory_bytes")

    def wait_until_idle(self, seconds=10):
        """True when nothing of any request is left."""
        end = time.monotonic() + seconds
        names = ["cornserve_requests_running", "cornserve_requests_waiting", "cornserve_kv_blocks_used", "cornserve_http_body_bytes"]
        while time.monotonic() < end:
            left = {name: self.metric(name) for name in names}
            if not any(left.values()) and self.metric("cornserve_http_requests_in_flight") == 1:
                return True
            time.sleep(0.05)
        print(f"# left: {left}")
        return False


def data_url(path):
    kind = {".jpg": "image/jpeg", ".png": "image/png", ".wav": "audio/wav", ".flac": "audio/flac", ".mp4": "video/mp4"}
    return f"data:{kind[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def part(name):
    """A content part for a file of the golden media."""
    path = MEDIA / name
    kind = {".jpg": "image_url", ".png": "image_url", ".wav": "audio_url", ".flac": "audio_url", ".mp4": "video_url"}[path.suffix]
    return {"type": kind, kind: {"url": data_url(path)}}


def golden_requests():
    """The reference's own requests with media as data URLs, and the text it generated greedily."""
    requests = json.loads((GOLDEN / "requests.json").read_text())["requests"]
    for request in requests:
        for message in request["messages"]:
            if isinstance(message["content"], str):
                continue
            for item in message["content"]:
                if item["type"] != "text":
                    item[item["type"]]["url"] = data_url(MEDIA / item[item["type"]]["url"])
    return requests


def children(pid):
    """Processes below pid: {pid: command line}."""
    parents, names = {}, {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (OSError, ValueError):
            continue
    found, frontier = {}, [pid]
    while frontier:
        frontier = [child for child, parent in parents.items() if parent in frontier and child not in found]
        found |= {child: names[child] for child in frontier if names[child]}
    return found


class Clients:
    """Threads that ask until n requests have begun, or until a time has passed; a share of them leaves in the middle.

    ask(request, leave_after) gives an answer, whose `end` is "done", "left", "cut", or an error's message, and whose `pause`
    is the longest time between two events; is_right(answer, expected) compares what has come of it."""

    LEAVES = 0.25

    def __init__(self, ask, is_right, requests, expected, n_clients, n=None, seconds=None, most_events=12):
        self.ask, self.is_right, self.requests, self.expected = ask, is_right, requests, expected
        self.n, self.seconds, self.most_events = n, seconds, most_events
        self.lock, self.rng = threading.Lock(), random.Random(6)
        self.wrong, self.ends, self.pauses, self.errors = [], {"done": 0, "left": 0, "error": 0}, [], {}
        self.threads = [threading.Thread(target=self.main) for _ in range(n_clients)]

    def run(self):
        self.end = time.monotonic() + self.seconds if self.seconds else float("inf")
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()

    def next(self):
        """Which request, and after how many events its client leaves; None: no more."""
        with self.lock:
            if self.n == 0 or time.monotonic() > self.end:
                return None
            self.n = self.n - 1 if self.n else None
            i = self.rng.randrange(len(self.requests))
            return i, self.rng.randrange(self.most_events) if self.rng.random() < self.LEAVES else None

    def main(self):
        while (chosen := self.next()) is not None:
            i, leave_after = chosen
            try:
                answer = self.ask(self.requests[i], leave_after)
            except (OSError, http.client.HTTPException) as error:
                answer = None
                print(f"# {error!r}")
            with self.lock:
                self.note(answer, self.expected[i])

    def note(self, answer, expected):
        end = answer.end if answer else "cut"
        self.ends[end if end in ("done", "left") else "error"] += 1
        if not answer or end == "cut" or not self.is_right(answer, expected):
            self.wrong.append((expected, answer))
        if answer:
            self.pauses.append(answer.pause)
        if end not in ("done", "left", "cut"):
            self.errors[end] = self.errors.get(end, 0) + 1


class Tap:
    """Prints TAP; exit with its status."""

    def __init__(self):
        self.n = self.failures = 0

    def check(self, ok, name, detail=""):
        self.n += 1
        self.failures += not ok
        print(f"{'ok' if ok else 'not ok'} {self.n} - {name}", flush=True)
        if not ok:
            for line in str(detail)[:2000].splitlines():
                print(f"#   {line}", flush=True)

    def skip(self, name, why):
        self.n += 1
        print(f"ok {self.n} - {name} # SKIP {why}", flush=True)

    def equal(self, found, expected, name):
        self.check(found == expected, name, f"expected {expected!r}\nfound    {found!r}")

    def run(self, name, function, *arguments):
        """Runs checks and returns what they return; an exception is a failure of `name`."""
        try:
            return function(*arguments)
        except Exception as error:  # the next tests still run
            self.check(False, name, f"{type(error).__name__}: {error}")

    def end(self):
        print(f"1..{self.n}")
        sys.exit(1 if self.failures else 0)
