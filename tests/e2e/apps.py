"""Apps over the real program: usage: apps.py PROGRAM

The arena app gives the answers that its models give when they are asked alone, whatever the plan; apps outlive the
server; the command line does at a server what it does at a state file; `cornserve status` shows all of it."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from plans import DEMO, PLANS, Plans
from serving import CHECKPOINT, Server, Tap, golden_requests


def command(program, server, *arguments):
    run = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    return run.returncode, run.stdout, run.stderr


def texts(answer):
    return [choice["message"]["content"] for choice in answer["choices"]]


def greedy(request, **more):
    return {"messages": request["messages"], "max_tokens": 12, "temperature": 0, **more}


def check_arena(tap, server, where, requests):
    """Every request, asked alone and in the arena."""
    wrong = []
    for request in requests:
        alone = json.loads(server.request("POST", "/v1/chat/completions", greedy(request))[1])
        both = json.loads(server.request("POST", "/v1/chat/completions", greedy(request, model="duel"))[1])
        if "error" in alone or "error" in both or texts(both) != texts(alone) * 2:
            wrong.append((alone, both))
    tap.check(not wrong, f"{where}: the arena gives both models' own answers", wrong[:1])
    tap.check(server.wait_until_idle(), f"{where}: nothing is left of them")


def check_two_models(tap, program):
    """Two models in one server answer as each does alone."""
    request = greedy(golden_requests()[0])
    alone = {}
    for checkpoint in (CHECKPOINT, DEMO):
        with Server(program, checkpoint=checkpoint) as server:
            alone[server.model] = texts(json.loads(server.request("POST", "/v1/chat/completions", request)[1]))[0]
    left, right = alone
    with tempfile.TemporaryDirectory() as directory, Server(program, str(DEMO), "--state", os.path.join(directory, "two.db")) as server:
        for name, text in alone.items():
            found = json.loads(server.request("POST", "/v1/chat/completions", request | {"model": name})[1])
            tap.equal((found["model"], texts(found)[0]), (name, text), f"two models: {name}")
        server.request("POST", "/v1/apps", {"name": "duel", "builtin": "arena", "models": {"left": left, "right": right}})
        found = json.loads(server.request("POST", "/v1/chat/completions", request | {"model": "duel"})[1])
        answers = {choice["answer"]: choice["message"]["content"] for choice in found["choices"]}
        tap.equal(answers, {"left": alone[left], "right": alone[right]}, "two models in the arena")


def check_command_line(tap, program, server, directory):
    url = f"http://{server.host}:{server.port}"
    mine = pathlib.Path(directory) / "shout.lua"
    mine.write_text("function serve(r) local t = models.model(r).text:all() return { text = t:upper() } end")
    code, out, err = command(program, server, "apps", "add", "shout", str(mine), "--url", url)
    tap.check(code == 0, "apps add --url", err)
    code, out, err = command(program, server, "apps", "list", "--url", url)
    tap.check("duel  left=" in out and "shout  model=" in out, "apps list --url", out + err)
    code, out, err = command(program, server, "apps", "invoke", "shout", json.dumps(greedy(golden_requests()[0])), "--url", url)
    last = json.loads(out.splitlines()[-1]) if out else {}
    tap.check(code == 0 and last.get("result", {}).get("text"), "apps invoke", out + err)
    code, out, err = command(program, server, "apps", "invoke", "nobody", "hello", "--url", url)
    tap.check(code == 1 and "there is no app nobody" in err, "apps invoke of none", err)
    code, out, err = command(program, server, "status", url)
    tap.check(code == 0 and "EXECUTOR" in out and "shout" in out and "sidecar:" in out, "status", out + err)
    tap.check("thinkers#0" in out and "thinkers#1" in out, "status shows the replicas", out)
    code, out, err = command(program, server, "apps", "remove", "shout", "--url", url)
    tap.check(code == 0, "apps remove --url", err)


def check(tap, program):
    requests = golden_requests()[:4]
    with tempfile.TemporaryDirectory() as directory, Plans() as plans:
        state = os.path.join(directory, "state.db")
        with Server(program, "--state", state) as server:
            models = {"left": server.model, "right": server.model}
            status, body = server.request("POST", "/v1/apps", {"name": "duel", "builtin": "arena", "models": models})
            tap.check(status == 201, "registered", body)
            check_arena(tap, server, "no plan", requests)
        for name in PLANS:
            with Server(program, "--state", state, "--plan", plans.file(name)) as server:
                check_arena(tap, server, name, requests)
                if name == "two of each":
                    check_command_line(tap, program, server, directory)


def main():
    tap = Tap()
    tap.run("apps", check, tap, sys.argv[1])
    tap.run("two models", check_two_models, tap, sys.argv[1])
    tap.end()


if __name__ == "__main__":
    main()
