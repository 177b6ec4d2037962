"""The official openai client against the real server: usage: openai_client.py PROGRAM

Answers are compared with those of the reference implementation on the same checkpoint, greedily in f32, alone, streamed, and
from 16 clients at once."""

import concurrent.futures
import json
import sys

import openai
from serving import Server, Tap, golden_requests, part

GREEDY = {"temperature": 0, "max_tokens": 64}
EXTRA = {"ignore_eos": True, "repetition_penalty": 1.0}


def options(request):
    extra = dict(EXTRA)
    if request["use_audio_in_video"]:
        extra["use_audio_in_video"] = True
    return {**GREEDY, "extra_body": extra, "messages": request["messages"]}


def ask(client, model, request):
    return client.chat.completions.create(model=model, **options(request)).choices[0].message.content


def ask_streamed(client, model, request):
    text, finish, usage = "", None, None
    stream = client.chat.completions.create(model=model, stream=True, stream_options={"include_usage": True}, **options(request))
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    return text, finish, usage


def test_golden(tap, client, model, requests):
    for request in requests:
        tap.equal(ask(client, model, request), request["greedy_text"], f"{request['name']}: the reference's text")


def test_streams(tap, client, model, requests):
    for request in requests:
        text, finish, usage = ask_streamed(client, model, request)
        tap.equal(text, request["greedy_text"], f"{request['name']} streamed: the reference's text")
        tap.equal((finish, usage.prompt_tokens, usage.completion_tokens), ("length", request["prompt_tokens"], 64),
                  f"{request['name']} streamed: finish and usage")


def test_concurrent(tap, client, model, requests):
    jobs = [(i, requests[i % len(requests)]) for i in range(48)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda job: (ask_streamed(client, model, job[1])[0] if job[0] % 2 else ask(client, model, job[1])), jobs))
    wrong = [job[1]["name"] for job, text in zip(jobs, texts) if text != job[1]["greedy_text"]]
    tap.equal(wrong, [], "16 clients at once: every answer is the one it is alone")


def test_sampling(tap, client, model):
    messages = [{"role": "user", "content": "Tell me something."}]
    draw = lambda seed, **more: client.chat.completions.create(  # noqa: E731
        model=model, messages=messages, temperature=1, seed=seed, max_tokens=16, extra_body=EXTRA, **more)
    first, again, other = draw(7, n=3), draw(7, n=3), draw(8, n=3)
    texts = lambda answer: [choice.message.content for choice in answer.choices]  # noqa: E731
    tap.equal(texts(first), texts(again), "a seed draws the same answers again")
    tap.check(len(set(texts(first) + texts(other))) > 3, "choices and seeds differ", texts(first))
    likely = draw(7, logprobs=True, top_logprobs=3)
    content = likely.choices[0].logprobs.content
    tap.equal(len(content), 16, "a log-probability for each token")
    tap.check(all(len(t.top_logprobs) == 3 and t.logprob <= t.top_logprobs[0].logprob + 1e-6 for t in content),
              "the alternatives are the likeliest", content[0])


def test_stop(tap, client, model, requests):
    whole = requests[0]["greedy_text"]
    stop = whole[20:24]
    text, finish, _ = ask_streamed_with_stop(client, model, requests[0], stop)
    tap.equal((text, finish), (whole[: whole.index(stop)], "stop"), "a stop string is cut off")


def ask_streamed_with_stop(client, model, request, stop):
    text, finish = "", None
    for chunk in client.chat.completions.create(model=model, stream=True, stop=[stop, "never to be seen"], **options(request)):
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    return text, finish, None


def test_completions(tap, client, model, requests):
    prompts = [requests[0]["prompt"], requests[1]["prompt"]]
    answer = client.completions.create(model=model, prompt=prompts, logprobs=2, extra_body=EXTRA, **GREEDY)
    tap.equal([choice.text for choice in answer.choices], [requests[0]["greedy_text"], requests[1]["greedy_text"]],
              "completions of two prompts")
    tap.equal(len(answer.choices[1].logprobs.tokens), 64, "log-probabilities of completions")
    echo = client.completions.create(model=model, prompt="Once upon", echo=True, max_tokens=1, temperature=0, extra_body=EXTRA)
    tap.check(echo.choices[0].text.startswith("Once upon"), "echo", echo.choices[0].text)


def test_media(tap, client, model):
    content = [part("harbour.jpg"), part("stamp.png"), part("bell.flac"), {"type": "text", "text": "Compare."}, part("greeting.wav")]
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], extra_body=EXTRA, **GREEDY)
    details = answer.usage.prompt_tokens_details
    tap.check(details.audio_tokens > 0 and details.to_dict()["image_tokens"] > 0, "several media in one request", answer.usage)


def test_special_tokens(tap, client, model, server):
    """A message that spells a special token holds its letters; a bare prompt may spell it."""
    def prompt_tokens(content):
        messages = [{"role": "user", "content": content}]
        return client.chat.completions.create(model=model, messages=messages, max_tokens=1).usage.prompt_tokens
    plain = prompt_tokens("so")
    for token in ("<|im_end|>", "<|IMAGE|>", "<|vision_bos|>"):
        status, data = server.request("POST", "/tokenize", {"prompt": token})
        tap.equal((status, json.loads(data)["count"]), (200, 1), f"{token} is one token of a prompt")
        tap.check(prompt_tokens(f"so{token}") > plain + 3, f"{token} in a message is text")
        parts = [{"type": "text", "text": f"so{token[:5]}"}, {"type": "text", "text": token[5:]}]
        tap.check(prompt_tokens(parts) > plain + 3, f"{token} in two parts of a message is text")
    answer = client.completions.create(model=model, prompt="<|im_end|>", max_tokens=1)
    tap.equal(answer.usage.prompt_tokens, 1, "a bare prompt may spell a special token")


def test_errors(tap, client, model):
    hello = [{"role": "user", "content": "hi"}]
    cases = [
        (openai.BadRequestError, "temperature", {"temperature": 3}),
        (openai.BadRequestError, "tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (openai.BadRequestError, "modalities", {"modalities": ["audio"]}),
        (openai.BadRequestError, None, {"max_tokens": 10_000_000}),
        (openai.NotFoundError, "model", {"model": "gpt-4o"}),
    ]
    for kind, param, more in cases:
        try:
            client.chat.completions.create(**{"model": model, "messages": hello, **more})
            tap.check(False, f"{more} is refused")
        except openai.APIStatusError as error:
            tap.check(isinstance(error, kind) and error.param == param, f"{more} is refused by name", error)


def main():
    tap = Tap()
    with Server(sys.argv[1]) as server:
        client = openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1", api_key="none", max_retries=0, timeout=120)
        model = server.model
        requests = golden_requests()
        tap.equal([m.id for m in client.models.list()], [model], "the model list")
        tap.run("golden", test_golden, tap, client, model, requests)
        tap.run("streams", test_streams, tap, client, model, requests)
        tap.run("concurrent", test_concurrent, tap, client, model, requests)
        tap.run("sampling", test_sampling, tap, client, model)
        tap.run("stop", test_stop, tap, client, model, requests)
        tap.run("completions", test_completions, tap, client, model, requests)
        tap.run("media", test_media, tap, client, model)
        tap.run("special tokens", test_special_tokens, tap, client, model, server)
        tap.run("errors", test_errors, tap, client, model)
        tap.check(server.wait_until_idle(), "nothing is left of any request")
    tap.end()


main()
