"""The trained checkpoint answers what it is known to answer right: usage: demo.py PROGRAM

models/demo/examples holds requests whose answers are known, and says which of them the model gets right. Those must come out to the
letter, alone and streamed, and all at once: a pipeline that is broken anywhere between the bytes of a picture and the last token
gives another answer. What it says aloud must be understood by pocketsphinx, which knows the grammar of the answers and nothing of this model."""

import base64
import concurrent.futures
import json
import pathlib
import shutil
import sys
import tempfile

from serving import ROOT, Server, Tap

sys.path.append(str(ROOT / "bench"))
import demo_speech  # noqa: E402

DEMO = ROOT / "models/demo"
TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".mp4": "video/mp4"}


def with_data(message):
    """The message with file names replaced by what is in the files."""
    message = json.loads(json.dumps(message))
    for part in message["content"]:
        if part["type"] == "text":
            continue
        path = DEMO / "examples" / part[part["type"]].pop("file")
        data = base64.b64encode(path.read_bytes()).decode()
        part[part["type"]].update({"data": data} if part["type"] == "input_audio" else {"url": f"data:{TYPES[path.suffix]};base64,{data}"})
    return message


def examples():
    lines = [json.loads(line) for line in (DEMO / "examples/requests.jsonl").read_text().splitlines()]
    for line in lines:
        line["messages"] = [with_data(message) for message in line["messages"]]
    return lines


def ask(server, messages):
    status, data = server.request("POST", "/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 96})
    if status != 200:
        return f"status {status}: {data[:300]}", None
    choice = json.loads(data)["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def ask_streamed(server, messages):
    body = {"messages": messages, "temperature": 0, "max_tokens": 96, "stream": True}
    status, data = server.request("POST", "/v1/chat/completions", body)
    if status != 200:
        return f"status {status}: {data[:300]}", None
    text, finish = "", None
    for line in data.decode().splitlines():
        if line.startswith("data: {"):
            choice = json.loads(line[6:])["choices"][0]
            text += choice["delta"].get("content", "")
            finish = choice["finish_reason"] or finish
    return text, finish


def test_answers(tap, server, lines):
    for line in lines:
        for way, function in (("whole", ask), ("streamed", ask_streamed)):
            found = function(server, line["messages"])
            asked = next((p["text"] for p in line["messages"][0]["content"] if p["type"] == "text"), "spoken")
            tap.equal(found, (line["answer"], "stop"), f"{line['skill']}, {asked} {way}")


def test_together(tap, server, lines):
    jobs = [(line, function) for line in lines * 3 for function in (ask, ask_streamed)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda job: job[1](server, job[0]["messages"]), jobs))
    wrong = [(line["answer"], text) for (line, _), (text, _) in zip(jobs, found) if text != line["answer"]]
    tap.equal(wrong, [], f"{len(jobs)} of them at once are right")


def test_second_question(tap, server, lines):
    """Questions one after another: the picture is in the first message only."""
    typed = [line for line in lines if line["skill"].startswith("typed question")]
    messages, right = [], 0
    for line in typed:
        content = line["messages"][0]["content"]
        messages.append({"role": "user", "content": content if not messages else content[-1:]})
        answer, _ = ask(server, messages)
        right += answer == line["answer"]
        messages.append({"role": "assistant", "content": answer})
    tap.equal(right, len(typed), "questions that follow one another about a picture")


def test_picture_matters(tap, server, lines):
    """Without the picture the answer is another: the right ones were seen, not guessed."""
    for line in lines:
        if not line["skill"].startswith("typed question"):
            continue
        without = [{"role": "user", "content": line["messages"][0]["content"][-1:]}]
        answer, finish = ask(server, without)
        tap.check(answer != line["answer"] and finish == "stop", f"{without[0]['content'][0]['text']} without a picture", answer)


READ = ("A large red circle at the top left and a small blue star in the center.", "There is no triangle.",
        "A small yellow ring at the bottom and a large green square at the bottom right.")
UNDERSTOOD = 85  # % of words; espeak-ng, whose voices taught the model, reaches 98


def test_speech(tap, server, lines):
    """Sentences read aloud by each voice, and the spoken answer about a picture."""
    if not shutil.which("pocketsphinx_continuous"):
        tap.skip("what it says aloud is understood", "pocketsphinx is not installed")
        return
    described = next(line for line in lines if line["skill"] == "describe")
    said, sounds = [], []
    for voice in ("Chelsie", "Ethan"):
        for text in READ:
            body = {"input": text, "voice": voice, "response_format": "wav", "seed": 1}
            status, sound = server.request("POST", "/v1/audio/speech", body)
            tap.equal(status, 200, f"{voice} reads: {text}")
            said, sounds = said + [text], sounds + [sound]
        body = {"messages": described["messages"], "temperature": 0, "seed": 1, "max_tokens": 96, "modalities": ["text", "audio"],
                "audio": {"voice": voice, "format": "wav"}}
        status, data = server.request("POST", "/v1/chat/completions", body)
        audio = json.loads(data)["choices"][0]["message"]["audio"]
        tap.equal(audio["transcript"], described["answer"], f"{voice} describes a picture")
        said, sounds = said + [audio["transcript"]], sounds + [base64.b64decode(audio["data"])]
    with tempfile.TemporaryDirectory() as name:
        files = [pathlib.Path(name) / f"{number}.wav" for number in range(len(sounds))]
        for file, sound in zip(files, sounds):
            file.write_bytes(sound)
        heard = demo_speech.recognised(files, pathlib.Path(name))
    share = demo_speech.share(heard, said)
    tap.check(share >= UNDERSTOOD, f"{UNDERSTOOD} % of the words are understood", (share, heard))
    swapped = demo_speech.share(heard, said[1:] + said[:1])
    tap.check(swapped < UNDERSTOOD, "but not as the words of another sentence", swapped)


def main():
    tap = Tap()
    right = [line for line in examples() if line["right"]]
    tap.check(len({line["skill"] for line in right}) >= 5, "there are examples of five skills", [line["skill"] for line in right])
    for dtype in ("auto", "f32"):
        with Server(sys.argv[1], checkpoint=DEMO, dtype=dtype) as server:
            print(f"# --dtype {dtype}")
            tap.run("answers", test_answers, tap, server, right)
            tap.run("together", test_together, tap, server, right)
            tap.run("second question", test_second_question, tap, server, right)
            tap.run("picture matters", test_picture_matters, tap, server, right)
            tap.run("speech", test_speech, tap, server, right)
            tap.check(server.wait_until_idle(), "nothing is left of any request")
    tap.end()


main()
