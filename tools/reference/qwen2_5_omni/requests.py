"""The requests that are replayed end to end. Content parts name files of media/."""


def text(value):
    return {"type": "text", "text": value}


def image(name):
    return {"type": "image_url", "image_url": {"url": name}}


def audio(name):
    return {"type": "audio_url", "audio_url": {"url": name}}


def video(name):
    return {"type": "video_url", "video_url": {"url": name}}


def user(*parts):
    return {"role": "user", "content": list(parts)}


SYSTEM = {"role": "system", "content": "You answer briefly, in the language of the question."}

LONG = (
    "The committee met on the 3rd of May: 37 members, 12 guests. Das Protokoll war lang, weil niemand das Wort "
    "abgeben wollte. 会议持续了四个小时。Потом все пошли домой, и в зале стало тихо. "
    "for (int i = 0; i < n; i++) total += price[i] * 1.19;  // tax\n\n"
    "Ποιος μίλησε πρώτος; من تكلم أولا؟ 誰が最初に話しましたか。 Summarise, please 🙂."
)

# name: (messages, use_audio_in_video)
REQUESTS = {
    "req00": ([user(text("What is the capital of France?"))], False),
    "req01": ([SYSTEM, user(text(LONG))], False),
    "req02": ([user(image("harbour.jpg"), text("Describe the picture."))], False),
    "req03": (
        [
            user(
                image("tower.png"),
                text("Compare this with"),
                image("banner.jpg"),
                text("and name three differences."),
            )
        ],
        False,
    ),
    "req04": ([user(audio("greeting.wav"), text("What is being said?"))], False),
    "req05": (
        [
            user(
                text("First:"),
                audio("stereo.wav"),
                text("second:"),
                audio("bell.flac"),
                text("Which is louder?"),
            )
        ],
        False,
    ),
    "req06": (
        [
            SYSTEM,
            user(
                image("stamp.png"),
                audio("bell.flac"),
                text("Does the sound fit the picture? Answer yes or no."),
            ),
        ],
        False,
    ),
    "req07": ([user(video("walk.mp4"), text("Where does the disc go?"))], False),
    "req08": ([user(video("walk.mp4"), text("What do you see and hear?"))], True),
    "req09": (
        [
            SYSTEM,
            user(image("harbour.jpg"), text("What is this?")),
            {
                "role": "assistant",
                "content": "A harbour at noon, I think: water, a quay and round buoys.",
            },
            user(audio("greeting.wav"), text("And this?")),
            {"role": "assistant", "content": "Someone humming."},
            user(text("Put both into one sentence.")),
        ],
        False,
    ),
    "req10": (
        [
            user(
                text("Listen:"),
                audio("bell.flac"),
                text("look:"),
                video("walk.mp4"),
                image("stamp.png"),
                text("and again:"),
                audio("stereo.wav"),
                image("tower.png"),
                text("What belongs together?"),
            )
        ],
        False,
    ),
}


def hub_messages(messages):
    """The same conversation with the part names that the chat template knows."""
    names = {"image_url": "image", "audio_url": "audio", "video_url": "video"}

    def part(p):
        return (
            p
            if p["type"] == "text"
            else {"type": names[p["type"]], names[p["type"]]: p[p["type"]]["url"]}
        )

    return [
        {
            **m,
            "content": m["content"]
            if isinstance(m["content"], str)
            else [part(p) for p in m["content"]],
        }
        for m in messages
    ]


def files(messages, kind):
    return [
        p[kind]["url"]
        for m in messages
        if not isinstance(m["content"], str)
        for p in m["content"]
        if p["type"] == kind
    ]
