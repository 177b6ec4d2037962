"""The same answers whatever the plan: usage: plans.py PROGRAM [--requests N]

A mixed set of requests goes, several at a time, to one server without a plan and to one for each plan: everything in
one executor, encoders apart, prefill and decode apart, and two replicas of each. Every answer must be the same to the last
log-probability, greedy or drawn from a seed."""

import argparse
import concurrent.futures
import json
import pathlib
import random
import subprocess
import tempfile

from serving import CHECKPOINT, ROOT, Server, Tap, data_url, golden_requests, part

DEMO = ROOT / "models/demo"
BOTH = "both"
MEDIA_FILES = ["stamp.png", "banner.jpg", "harbour.jpg", "bell.flac", "greeting.wav", "walk.mp4"]


def executor(name, components, replicas=1, threads=1):
    """An executor of a plan; components: names, or (name, role), or (name, role, most requests of a step)."""
    hosted = [{"name": c, "role": BOTH} if isinstance(c, str) else dict(zip(("name", "role", "max_batch"), c)) for c in components]
    return {"name": name, "components": hosted, "node": "local", "device": "cpu", "devices_per_replica": 1,
            "replicas": replicas, "threads": threads, "kv_budget_bytes": 64 << 20}


def plan(*executors):
    first = 0
    for e in executors:
        e["devices"] = list(range(first, first + e["replicas"]))
        first += e["replicas"]
    return {"version": 1, "model": "qwen2_5_omni", "policy": "throughput", "executors": list(executors), "routes": []}


PLANS = {
    "colocated": plan(executor("all", ["image_encoder", "audio_encoder", "thinker"])),
    "encoders apart": plan(executor("encoders", ["image_encoder", "audio_encoder"]), executor("thinker", ["thinker"])),
    "two of each": plan(executor("images", ["image_encoder"], 2), executor("sounds", ["audio_encoder"], 2),
                        executor("thinkers", ["thinker"], 2)),
    "encoder, prefill and decode apart": plan(executor("encoders", ["image_encoder", "audio_encoder"]),
                                              executor("prefill", [("thinker", "prefill")]),
                                              executor("decode", [("thinker", "decode")])),
    "halves, two of each": plan(executor("prefills", ["image_encoder", "audio_encoder", ("thinker", "prefill")], 2),
                                executor("decodes", [("thinker", "decode")], 2)),
}


class Plans:
    """Plans as files, for as long as the with block."""

    def __enter__(self):
        self.dir = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *_):
        self.dir.cleanup()

    def file(self, name, content=None):
        path = pathlib.Path(self.dir.name) / (name.replace(" ", "-") + ".json")
        path.write_text(json.dumps(content or PLANS[name]))
        return str(path)


def golden_mix(n):
    """The reference's requests, then others with and without media, choices, draws, stops and log-probabilities."""
    rng = random.Random(4)
    requests = [{"messages": r["messages"], "max_tokens": 24, "temperature": 0} for r in golden_requests()]
    while len(requests) < n:
        media = [part(rng.choice(MEDIA_FILES)) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
        text = " ".join(rng.choice(["tell", "me", "what", "the", "picture", "sound", "is", "über", "红色", "3+4?"]) for _ in range(rng.randint(1, 60)))
        request = {"messages": [{"role": "user", "content": [*media, {"type": "text", "text": text}]}],
                   "max_tokens": rng.randint(1, 40), "temperature": rng.choice([0, 0, 0.9]), "seed": rng.randint(0, 99)}
        if rng.random() < 0.2:
            request["n"] = rng.randint(2, 3)
        if rng.random() < 0.2:
            request |= {"logprobs": True, "top_logprobs": 3}
        if rng.random() < 0.2:
            request["stop"] = rng.choice(["a", "e", " t"])
        if rng.random() < 0.1:
            request["repetition_penalty"] = 1.2
        requests.append(request)
    return requests[:n]


def demo_mix(n):
    """The demo's own examples, whose answers mean something."""
    def content(item):
        kind = item["type"]
        if kind == "text":
            return item
        file = DEMO / "examples" / item[kind]["file"]
        if kind == "input_audio":
            return {"type": "audio_url", "audio_url": {"url": data_url(file)}}
        return {"type": kind, kind: {"url": data_url(file)}}

    lines = (DEMO / "examples/requests.jsonl").read_text().splitlines()
    requests = []
    for line in lines:
        messages = json.loads(line)["messages"]
        for message in messages:
            if not isinstance(message["content"], str):
                message["content"] = [content(item) for item in message["content"]]
        requests.append({"messages": messages, "max_tokens": 32, "temperature": 0})
    return requests[:n]


def ask(server, request):
    """What must be the same: choices and counts of tokens."""
    status, body = server.request("POST", "/v1/chat/completions", request, timeout=240)
    answer = json.loads(body)
    if status != 200:
        return {"status": status, "error": answer}
    usage = {key: answer["usage"][key] for key in ("prompt_tokens", "completion_tokens")}
    return {"choices": answer["choices"], "usage": usage}


def ask_all(server, requests):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda request: ask(server, request), requests))


def compare(tap, program, plans, name, checkpoint, requests):
    with Server(program, checkpoint=checkpoint or CHECKPOINT) as server:
        expected = ask_all(server, requests)
    failed = [e for e in expected if "error" in e]
    tap.check(not failed, f"{name}: {len(requests)} requests without a plan", failed[:1])
    for plan_name in PLANS:
        with Server(program, "--plan", plans.file(plan_name), checkpoint=checkpoint or CHECKPOINT) as server:
            found = ask_all(server, requests)
            idle = server.wait_until_idle()
            deaths = server.metric("cornserve_executor_deaths_total")
        wrong = [(e, f) for e, f in zip(expected, found) if e != f]
        tap.check(not wrong, f"{name}: {plan_name}: the same answers", f"{len(wrong)} differ; expected and found: {wrong[:1]}")
        tap.check(idle, f"{name}: {plan_name}: nothing is left of them")
        tap.check(deaths == 0, f"{name}: {plan_name}: no executor died")


REFUSED = {
    "no plan": ({}, "version"),
    "no thinker": (plan(executor("e", ["image_encoder"])), "no executor has component thinker"),
    "half a thinker": (plan(executor("e", [("thinker", "prefill")])), "no executor has component thinker"),
    "half an encoder": (plan(executor("e", ["thinker", ("image_encoder", "decode")])), "image_encoder"),
    "an unknown component": (plan(executor("e", ["thinker", "nose"])), "no component nose"),
    "an unknown device": (plan(executor("e", ["thinker"]) | {"device": "a100"}), "device a100"),
    "a KV budget of less than a block": (plan(executor("e", ["thinker"]) | {"kv_budget_bytes": 1}), "expected at least one block"),
}


def refusals(tap, program):
    """Plans that cannot be: the reason, and nothing left running."""
    for name, (bad, words) in REFUSED.items():
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(bad, file)
            file.flush()
            found = subprocess.run([program, "serve", str(DEMO), "--port", "0", "--plan", file.name], capture_output=True, text=True, timeout=60)
        tap.check(found.returncode == 1 and words in found.stderr, f"refused: {name}", found.stderr)
    text_only = plan(executor("thinker", ["thinker"]))
    with Plans() as plans, Server(program, "--plan", plans.file("text only", text_only)) as server:
        status, body = server.request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": [part("stamp.png")]}]})
        tap.check(status == 400 and b"takes no images" in body, "an image where no executor encodes one", body)
        status, body = server.request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10**6})
        tap.check(status == 400, "more tokens than the executors take", body)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--requests", type=int, default=200)
    arguments = parser.parse_args()
    tap = Tap()
    tap.run("refusals", refusals, tap, arguments.program)
    with Plans() as plans:
        tap.run("golden", compare, tap, arguments.program, plans, "golden", None, golden_mix(arguments.requests))
        tap.run("demo", compare, tap, arguments.program, plans, "demo", DEMO, demo_mix(arguments.requests))
    tap.end()


if __name__ == "__main__":
    main()
