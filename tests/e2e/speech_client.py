"""The official openai client, asking for speech: usage: speech_client.py PROGRAM

Sound is compared with what the same server makes otherwise: streamed with whole, alone with among others, a compressed format
with the samples it was made from."""

import base64
import concurrent.futures
import io
import json
import sys
import time
import wave

import openai
from serving import Server, Tap

HELLO = [{"role": "user", "content": "Hello, who are you?"}]
AUDIO = {"modalities": ["text", "audio"], "audio": {"voice": "Chelsie", "format": "wav"}}
OPTIONS = {"messages": HELLO, "temperature": 0, "seed": 2, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
CODE_BYTES = 240  # a code is two frames of 60 samples in this checkpoint
TEXT = "Seven times seven is forty-nine."
MAGIC = {"mp3": (b"\xff\xf3", b"ID3"), "flac": (b"fLaC",), "opus": (b"OggS",), "wav": (b"RIFF",)}


def pcm_of(wav):
    with wave.open(io.BytesIO(wav)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 24000)
        return sound.readframes(sound.getnframes())


def speak(client, model, **more):
    return client.chat.completions.create(model=model, **{**OPTIONS, **AUDIO, **more})


def collect(stream):
    """Transcript, sound, when the text and the sound began, finish reason and usage of a stream."""
    transcript, data, finish, usage, first = "", "", None, None, {}
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            audio = (choice.delta.to_dict().get("audio")) or {}
            for key in ("transcript", "data"):
                if audio.get(key):
                    first.setdefault(key, time.monotonic())
            transcript += audio.get("transcript", "")
            data += audio.get("data", "")
            finish = choice.finish_reason or finish
    return transcript, base64.b64decode(data, validate=True), first, finish, usage


def test_next_turn(tap, client, model, message):
    """A spoken answer in a later turn is what was said."""
    def ask(answer):
        messages = [*HELLO, answer, {"role": "user", "content": "And then?"}]
        return client.chat.completions.create(model=model, **{**OPTIONS, "messages": messages}).choices[0].message.content
    expected = ask({"role": "assistant", "content": message.audio.transcript})
    for way, answer in {"as it came": message, "as a dict": message.model_dump()}.items():
        tap.equal(ask(answer), expected, f"a spoken answer is sent back {way}")
    try:
        ask({"role": "assistant", "audio": {"id": message.audio.id}})
        tap.check(False, "the id of a spoken answer alone is refused")
    except openai.BadRequestError as error:
        tap.check("transcript" in error.message, "the id of a spoken answer alone is refused", error.message)


def test_chat(tap, client, model):
    text = client.chat.completions.create(model=model, **OPTIONS).choices[0].message.content
    answer = speak(client, model)
    message = answer.choices[0].message
    tap.equal((message.content, message.audio.transcript), (None, text), "the transcript is the text that is answered without sound")
    whole = pcm_of(base64.b64decode(message.audio.data))
    tap.check(len(whole) > 0, "there is sound")
    details = answer.usage.completion_tokens_details
    tap.equal((details.to_dict()["text_tokens"], len(whole)), (24, details.audio_tokens * CODE_BYTES), "usage counts text and codes")
    stream = speak(client, model, stream=True, stream_options={"include_usage": True}, audio={"voice": "Chelsie", "format": "pcm16"})
    transcript, pcm, _, finish, usage = collect(stream)
    tap.equal((transcript, finish), (text, "length"), "streamed: the same transcript")
    tap.check(pcm == whole, "streamed: the same sound", (len(pcm), len(whole)))
    tap.equal(usage.completion_tokens, answer.usage.completion_tokens, "streamed: the same usage")
    test_next_turn(tap, client, model, message)
    other = base64.b64decode(speak(client, model, audio={"voice": "ethan", "format": "wav"}).choices[0].message.audio.data)
    tap.check(pcm_of(other) != whole, "another voice sounds different")
    return text, whole


def test_formats(tap, client, model):
    for name, magic in MAGIC.items():
        data = base64.b64decode(speak(client, model, audio={"voice": "Chelsie", "format": name}).choices[0].message.audio.data)
        tap.check(data.startswith(magic), f"chat in {name}", data[:8])
        spoken = client.audio.speech.create(model=model, voice="Chelsie", input=TEXT, response_format=name, extra_body={"seed": 1})
        tap.check(spoken.content.startswith(magic), f"speech in {name}", spoken.content[:8])


def test_speech(tap, client, model):
    def pcm(text=TEXT, **more):
        return client.audio.speech.create(model=model, voice="Chelsie", input=text, response_format="pcm", extra_body={"seed": 1}, **more).content
    whole = pcm()
    tap.check(len(whole) > 0 and whole == pcm(), "a seed reads a text the same way twice", len(whole))
    tap.check(whole != pcm("Something else."), "another text sounds different")
    with client.audio.speech.with_streaming_response.create(model=model, voice="Chelsie", input=TEXT, response_format="pcm",
                                                            stream_format="audio", extra_body={"seed": 1}) as response:
        tap.check(b"".join(response.iter_bytes()) == whole, "streamed as bytes: the same sound")
    with client.audio.speech.with_streaming_response.create(model=model, voice="Chelsie", input=TEXT, response_format="pcm",
                                                            stream_format="sse", extra_body={"seed": 1}) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    tap.equal(events[-1]["type"], "speech.audio.done", "streamed as events: it ends")
    tap.check(b"".join(base64.b64decode(e["audio"]) for e in events[:-1]) == whole, "streamed as events: the same sound")
    tap.equal(events[-1]["usage"]["output_tokens"] * CODE_BYTES, len(whole), "usage of a speech")


# Sentences of about 20 s each: a passage each.
SENTENCES = [f"This is sentence {name}, " + "and it goes on and on for quite a while, " * 7 + "until it ends." for name in ("one", "two", "three")]
PAUSE_BYTES = 2 * 24000 // 4
FADE_BYTES = 2 * 24000 // 200


def heard_seconds(client, model, sound):
    """How long a sound is: the model hears 25 tokens a second."""
    url = f"data:audio/mpeg;base64,{base64.b64encode(sound).decode()}"  # what it is, is told from its content
    heard = client.chat.completions.create(model=model, max_tokens=1, messages=[{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": url}}]}])
    return heard.usage.prompt_tokens_details.audio_tokens / 25


def test_long(tap, client, model):
    """A text of several passages is the passages, one after the other, with silence between them."""
    def ask(text, **more):
        return {"model": model, "voice": "Chelsie", "input": text, "response_format": "pcm", "extra_body": {"seed": 5}, **more}
    alone = [client.audio.speech.create(**ask(text)).content for text in SENTENCES]
    whole = client.audio.speech.create(**ask(" ".join(SENTENCES))).content
    at, same = 0, []
    for i, sound in enumerate(alone):
        if i > 0:
            same.append(whole[at:at + PAUSE_BYTES] == bytes(PAUSE_BYTES))
            at += PAUSE_BYTES
        found = whole[at:at + len(sound)]
        same.append(len(found) == len(sound) and found[FADE_BYTES:-FADE_BYTES] == sound[FADE_BYTES:-FADE_BYTES])
        at += len(sound)
    tap.equal((same, at), ([True] * 5, len(whole)), "a long text is its sentences with pauses between them")
    for form in ("audio", "sse"):
        with client.audio.speech.with_streaming_response.create(**ask(" ".join(SENTENCES), stream_format=form)) as response:
            if form == "audio":
                data = b"".join(response.iter_bytes())
            else:
                events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
                data = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
        tap.check(data == whole, f"streamed as {form}: the same sound", (len(data), len(whole)))
    tap.equal(events[-1]["usage"]["output_tokens"] * CODE_BYTES, len(whole) - 2 * PAUSE_BYTES, "usage counts the codes of all passages")
    wav = client.audio.speech.create(**ask(" ".join(SENTENCES), response_format="wav")).content
    tap.check(pcm_of(wav) == whole, "as WAV: the same sound")
    for name in ("mp3", "flac", "opus"):
        sound = client.audio.speech.create(**ask(" ".join(SENTENCES), response_format=name)).content
        tap.check(sound.startswith(MAGIC[name]), f"a long text in {name}", sound[:8])
        seconds, expected = heard_seconds(client, model, sound), len(whole) / 48000
        tap.check(abs(seconds - expected) < 0.2, f"a long text in {name} is as long", (seconds, expected))


def test_cut(tap, client, model):
    """Behind a long prompt the talker has room for a few codes: speech that does not fit is an error, not a shorter speech."""
    prompt = [{"role": "user", "content": "word " * 670}]
    try:
        speak(client, model, messages=prompt)
        tap.check(False, "speech that would be cut is refused")
    except openai.APIStatusError as error:
        tap.check(error.status_code == 413 and "would be cut" in str(error), "speech that would be cut is refused", error)
    chunks = []
    try:
        for chunk in speak(client, model, stream=True, messages=prompt):
            chunks.append(chunk)
        tap.check(False, "streamed: speech that would be cut ends with an error")
    except openai.APIError as error:
        finishes = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
        tap.check("would be cut" in str(error) and not finishes, "streamed: speech that would be cut ends with an error and no finish reason", (error, finishes))


def test_concurrent(tap, client, model, expected):
    def one(i):
        if i % 2:
            message = speak(client, model).choices[0].message
            return message.audio.transcript, pcm_of(base64.b64decode(message.audio.data))
        return collect(speak(client, model, stream=True, audio={"voice": "Chelsie", "format": "pcm16"}))[:2]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(16)))
    tap.equal([answer == expected for answer in answers], [True] * 16, "8 clients at once: every speech is the one it is alone")


def test_text_only(tap, client, model, server):
    names = ["cornserve_speech_tokens_total", "cornserve_speech_steps_total", "cornserve_speech_samples_total"]
    before = [server.metric(name) for name in names]
    client.chat.completions.create(model=model, modalities=["text"], **OPTIONS)
    client.completions.create(model=model, prompt="Once", max_tokens=4)
    tap.equal([server.metric(name) for name in names], before, "requests for text touch neither talker nor vocoder")


def test_refusals(tap, client, model):
    both = ["text", "audio"]
    chat = lambda **more: client.chat.completions.create(**{"model": model, "messages": HELLO, "max_tokens": 4, **more})  # noqa: E731
    speech = lambda **more: client.audio.speech.create(**{"model": model, "input": TEXT, "voice": "Chelsie", **more})  # noqa: E731
    cases = [
        ("audio.voice", "alloy", chat, {"modalities": both, "audio": {"voice": "alloy", "format": "wav"}}),
        ("audio.format", "aac", chat, {"modalities": both, "audio": {"voice": "Ethan", "format": "aac"}}),
        ("audio", "modalities", chat, {"audio": {"voice": "Ethan", "format": "wav"}}),
        ("n", "ask for one", chat, {"modalities": both, "n": 2}),
        ("voice", "Ethan, Chelsie", speech, {"voice": "alloy"}),
        ("response_format", "aac", speech, {"response_format": "aac"}),
        ("speed", "speed", speech, {"speed": 2}),
        ("input", "32768", speech, {"input": "x" * 32769}),
        ("input", "to be read aloud", speech, {"input": " \n?! "}),
    ]
    for param, part, call, more in cases:
        try:
            call(**more)
            tap.check(False, f"{more} is refused")
        except openai.BadRequestError as error:
            tap.check(error.param == param and part in str(error), f"{param} of {part} is refused by name", error)
    try:
        chat(modalities=both, max_tokens=1)
        tap.check(False, "an answer too short to be spoken is an error")
    except openai.APIStatusError as error:
        tap.check("too short to be spoken" in str(error), "an answer too short to be spoken is an error", error)


def test_leaving(tap, client, model, server):
    """A client that leaves in mid-speech: everything is freed soon."""
    for _ in range(3):
        stream = client.chat.completions.create(model=model, stream=True, **{**OPTIONS, **AUDIO, "max_tokens": 400})
        next(chunk for chunk in stream if chunk.choices and (chunk.choices[0].delta.to_dict().get("audio") or {}).get("data"))
        stream.close()
    tap.check(server.wait_until_idle(5), "nothing is left of speeches whose clients left")
    tap.equal((server.metric("cornserve_speech_running"), server.metric("cornserve_talker_kv_blocks_used")), (0, 0), "neither blocks nor sounds")


def test_metrics(tap, server):
    tap.check(server.metric("cornserve_time_to_first_audio_seconds_count") > 10, "first-audio latency is counted")
    tap.check(server.metric("cornserve_speech_real_time_factor_count") > 10, "real-time factors are counted")
    tap.check(server.metric("cornserve_speech_underrun_seconds_total") >= 0, "underrun seconds are counted")


def main():
    tap = Tap()
    with Server(sys.argv[1]) as server:
        client = openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1", api_key="none", max_retries=0, timeout=120)
        model = server.model
        expected = tap.run("chat", test_chat, tap, client, model)
        tap.run("formats", test_formats, tap, client, model)
        tap.run("speech", test_speech, tap, client, model)
        tap.run("long", test_long, tap, client, model)
        tap.run("concurrent", test_concurrent, tap, client, model, expected)
        tap.run("text only", test_text_only, tap, client, model, server)
        tap.run("refusals", test_refusals, tap, client, model)
        tap.run("leaving", test_leaving, tap, client, model, server)
        tap.run("metrics", test_metrics, tap, server)
    with Server(sys.argv[1], "--kv-budget", "3M") as server:
        client = openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1", api_key="none", max_retries=0, timeout=120)
        tap.run("cut", test_cut, tap, client, server.model)
    with Server(sys.argv[1], "--no-speech") as server:
        client = openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1", api_key="none", max_retries=0, timeout=120)
        for call in (lambda: speak(client, server.model), lambda: client.audio.speech.create(model=server.model, voice="Ethan", input=TEXT)):
            try:
                call()
                tap.check(False, "a server without speech says so")
            except openai.BadRequestError as error:
                tap.check("does not speak" in str(error), "a server without speech says so", error)
    tap.end()


main()
