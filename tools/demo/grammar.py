"""What the demo model can be asked and what it answers: scenes, questions, sentences.

Every fact has one canonical wording ("a left of b", never also "b right of a"; shapes in reading order), so that an
answer is either right or wrong. Nothing here draws or speaks: pictures.py draws a Scene, speech.py says a sentence.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
# The nine cells of a picture in reading order: row * 3 + column.
CELLS = ("at the top left", "at the top", "at the top right",
         "at the left", "in the center", "at the right",
         "at the bottom left", "at the bottom", "at the bottom right")
NUMBERS = ("none", "one", "two", "three", "four")
DIRECTIONS = ("to the left", "to the right", "up", "down")

# Marks in an answer: OPEN + 9 * picture + cell, words about the thing there, CLOSE (about, plain, spans).
OPEN, CLOSE = "\ue000", "\ue0ff"

SYSTEM = "You are a helpful assistant."
UNKNOWN = "I do not know."
NO_PICTURE = "I see no picture."


@dataclass(frozen=True)
class Thing:
    """One shape of a scene; cell is an index into CELLS."""

    color: str
    shape: str
    size: str
    cell: int

    @property
    def phrase(self) -> str:
        return f"a {self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One to four things, sorted by cell (reading order), one thing a cell."""

    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Clip:
    """One thing that moves; direction is an index into DIRECTIONS, or -1 when it stays."""

    thing: Thing
    direction: int


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def capital(text: str) -> str:
    first = next(k for k, letter in enumerate(text) if letter < OPEN)
    return text[:first] + text[first].upper() + text[first + 1:]


def sentence(text: str) -> str:
    return capital(text) + "."


def random_thing(rng: random.Random, cell: int) -> Thing:
    return Thing(rng.choice(COLORS), rng.choice(SHAPES), rng.choice(SIZES), cell)


def random_scene(rng: random.Random, weights=(1, 1, 1, 1)) -> Scene:
    """Draw a scene; weights are those of one, two, three and four things."""
    count = rng.choices((1, 2, 3, 4), weights)[0]
    cells = sorted(rng.sample(range(9), count))
    return Scene(tuple(random_thing(rng, cell) for cell in cells))


def random_clip(rng: random.Random) -> Clip:
    direction = rng.choice((-1, 0, 0, 1, 1, 2, 2, 3, 3))
    return Clip(random_thing(rng, 4), direction)


# --- Answers ----------------------------------------------------------------------------------------------------------


def about(thing: Thing, text: str, picture: int = 0) -> str:
    """The text, marked as words about a thing of the first or second picture."""
    return chr(ord(OPEN) + 9 * picture + thing.cell) + text + CLOSE


def plain(text: str) -> str:
    """The text without marks."""
    return "".join(letter for letter in text if letter < OPEN)


def spans(text: str) -> list[tuple[int, int, int]]:
    """Where the plain text speaks about things: (start, end, 9 * picture + cell)."""
    found, at, start, number = [], 0, 0, 0
    for letter in text:
        if letter == CLOSE:
            found.append((start, at, number))
        elif letter >= OPEN:
            start, number = at, ord(letter) - ord(OPEN)
        else:
            at += 1
    return found


def describe(scene: Scene) -> str:
    return plain(described(scene))


def described(scene: Scene, picture: int = 0) -> str:
    """describe() with marks."""
    return sentence(_joined([about(t, f"{t.phrase} {CELLS[t.cell]}", picture) for t in scene.things]))


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def number(things: list[Thing]) -> str:
    """How many there are, after what they are: a small network counts what it has said."""
    if not things:
        return sentence(NUMBERS[0])
    named = _joined([about(t, f"{_article(t.color)} {t.color} {t.shape}") for t in things])
    return sentence(f"{named}: {NUMBERS[len(things)]}")


def _article(word: str) -> str:
    return "an" if word == "orange" else "a"


def describe_clip(clip: Clip) -> str:
    if clip.direction < 0:
        return sentence(f"{clip.thing.phrase} does not move")
    return sentence(f"{clip.thing.phrase} moves {DIRECTIONS[clip.direction]}")


def mirrored(scene: Scene) -> Scene:
    """The scene with left and right exchanged."""
    return _scene(mirrored_thing(thing) for thing in scene.things)


def mirrored_thing(thing: Thing) -> Thing:
    return replace(thing, cell=thing.cell + 2 - 2 * (thing.cell % 3))


def change(rng: random.Random, scene: Scene) -> tuple[Scene, str]:
    """Return a second scene that differs in one way (or not at all) and the sentence that says how."""
    second = _changed(rng, scene)
    return second, plain(compare(scene, second))


def compare(first: Scene, second: Scene) -> str:
    """What is in the first picture, what is in the second, and how they differ."""
    lower = lambda text: text[0] + text[1].lower() + text[2:]  # after the first thing's mark
    return f"First {lower(described(first))} Then {lower(described(second, 1))} {difference(first, second)}"


def difference(first: Scene, second: Scene) -> str:
    """The sentence that says how the second scene differs from the first; of one thing at most, in one way. With marks."""
    gone, new = (next((t for t in a.things if t not in b.things), None) for a, b in ((first, second), (second, first)))
    if not gone:
        return sentence(about(new, f"{new.phrase} appears {CELLS[new.cell]}", 1)) if new else "Nothing changes."
    if not new:
        return sentence(about(gone, f"the {gone.size} {gone.color} {gone.shape} disappears"))
    name = about(gone, f"the {gone.color} {gone.shape}")
    if new.cell != gone.cell:
        return sentence(f"{name} moves from {about(gone, _spot(gone))} to {about(new, _spot(new), 1)}")
    if new.size != gone.size:
        return sentence(f"{name} becomes {about(new, new.size, 1)}")
    return sentence(f"{name} becomes {about(new, f'a {new.shape}' if new.shape != gone.shape else new.color, 1)}")


def _changed(rng: random.Random, scene: Scene) -> Scene:
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    rest = scene.things[:index] + scene.things[index + 1:]
    free = [cell for cell in range(9) if cell not in {t.cell for t in scene.things}]
    kind = rng.choice(("color", "shape", "size", "cell", "more", "fewer", "same"))
    if kind == "same":
        return scene
    if kind == "more" and len(scene.things) < 4:
        return _scene(scene.things + (random_thing(rng, rng.choice(free)),))
    if kind == "fewer" and rest:
        return _scene(rest)
    if kind == "cell":
        new = replace(thing, cell=rng.choice(free))
    elif kind == "size":
        new = replace(thing, size=SIZES[1 - SIZES.index(thing.size)])
    elif kind == "shape":
        new = replace(thing, shape=rng.choice([s for s in SHAPES if s != thing.shape]))
    else:
        new = replace(thing, color=rng.choice([c for c in COLORS if c != thing.color]))
    return _scene(rest + (new,))


def _scene(things) -> Scene:
    return Scene(tuple(sorted(things, key=lambda t: t.cell)))


def _spot(thing: Thing) -> str:
    return CELLS[thing.cell].split(" ", 1)[1]


# --- Questions --------------------------------------------------------------------------------------------------------

DESCRIBE = ("Describe the picture.", "What do you see?", "What is in the picture?", "Describe this image.")
DIFFER = ("What differs?", "What changes?", "What is the difference?")
CLIP_DESCRIBE = ("What happens in the clip?", "Describe the video.", "What do you see?")
CLIP_WAY = ("Which way does the shape move?", "Which way does it move?", "Which way does the {shape} move?")
TRANSCRIBE = ("Transcribe the speech.", "Transcribe the audio.", "Write down what you hear.", "What is said?",
              "Transcribe the English audio into text without any punctuation marks.")

COUNT_ALL = ("How many shapes are there?", "How many shapes do you see?")


def references(scene: Scene, thing: Thing, known: str = "") -> list[str]:
    """The shortest names that pick out the thing; none that tell what is asked for (known: color, shape or size)."""
    same_shape = sum(t.shape == thing.shape for t in scene.things)
    same_color = sum(t.color == thing.color for t in scene.things)
    both = sum(t.shape == thing.shape and t.color == thing.color for t in scene.things)
    names = []
    if same_shape == 1 and known != "shape":
        names.append(thing.shape)
    if same_color == 1 and known != "color":
        names.append(f"{thing.color} shape")
    if both == 1 and known not in ("color", "shape"):
        names.append(f"{thing.color} {thing.shape}")
    return names


def ask_color(rng, scene):
    thing = rng.choice(scene.things)
    names = references(scene, thing, "color")
    if not names:
        return None
    form = rng.choice(("What color is the {}?", "Which color is the {}?", "What is the color of the {}?"))
    return form.format(names[0]), sentence(about(thing, thing.color))


def ask_shape(rng, scene):
    thing = rng.choice(scene.things)
    if sum(t.color == thing.color for t in scene.things) > 1:
        return None
    form = rng.choice(("What shape is {}?", "Which shape is {}?", "What is the {} shape?"))
    return form.format(thing.color), sentence(about(thing, f"a {thing.shape}"))


def ask_size(rng, scene):
    thing = rng.choice(scene.things)
    names = references(scene, thing)
    if not names:
        return None
    form = rng.choice(("How big is the {}?", "What size is the {}?", "Is the {} small or large?"))
    return form.format(rng.choice(names)), sentence(about(thing, thing.size))


def ask_place(rng, scene):
    thing = rng.choice(scene.things)
    names = references(scene, thing)
    if not names:
        return None
    return f"Where is the {rng.choice(names)}?", sentence(about(thing, CELLS[thing.cell]))


def ask_at(rng, scene):
    taken = {t.cell: t for t in scene.things}
    cell = rng.choice(list(taken)) if rng.random() < 0.75 else rng.randrange(9)
    return f"What is {CELLS[cell]}?", (
        sentence(about(taken[cell], taken[cell].phrase)) if cell in taken else "Nothing.")


def ask_count(rng, scene):
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(COUNT_ALL), number(list(scene.things))
    thing = rng.choice(scene.things)
    absent = rng.random() < 0.15
    if kind < 0.7:
        color = rng.choice(COLORS) if absent else thing.color
        return f"How many {color} shapes are there?", number([t for t in scene.things if t.color == color])
    shape = rng.choice(SHAPES) if absent else thing.shape
    return f"How many {plural(shape)} are there?", number([t for t in scene.things if t.shape == shape])


def ask_exists(rng, scene):
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        color, shape = thing.color, thing.shape
    elif rng.random() < 0.5:
        color, shape = rng.choice(COLORS), thing.shape
    else:
        color, shape = thing.color, rng.choice(SHAPES)
    found = next((t for t in scene.things if t.color == color and t.shape == shape), None)
    return f"Is there {_article(color)} {color} {shape}?", about(found, "Yes") + "." if found else "No."


def ask_relation(rng, scene):
    if len(scene.things) < 2:
        return None
    a, b = rng.sample(scene.things, 2)
    if any(sum(t.shape == x.shape for t in scene.things) > 1 for x in (a, b)):
        return None
    columns, rows = a.cell % 3 - b.cell % 3, a.cell // 3 - b.cell // 3
    first, second = about(a, f"The {a.shape} is {CELLS[a.cell]}"), about(b, f"the {b.shape} {CELLS[b.cell]}")
    places = f"{first} and {second}"
    if columns and (not rows or rng.random() < 0.5):
        return f"Is the {a.shape} left or right of the {b.shape}?", f"{places}: {'left' if columns < 0 else 'right'}."
    return f"Is the {a.shape} above or below the {b.shape}?", f"{places}: {'above' if rows < 0 else 'below'}."


def ask_absent(rng, scene):
    absent = [s for s in SHAPES if all(t.shape != s for t in scene.things)]
    shape = rng.choice(absent)
    form = rng.choice(("What color is the {}?", "Where is the {}?", "How big is the {}?"))
    return form.format(shape), f"There is no {shape}."


QUESTIONS = {"color": ask_color, "shape": ask_shape, "size": ask_size, "place": ask_place, "at": ask_at,
             "count": ask_count, "exists": ask_exists, "relation": ask_relation, "absent": ask_absent}
# The harder a question is to learn, the more often it is asked: what must be looked up by shape comes last.
QUESTION_WEIGHTS = {"color": 8, "shape": 2, "size": 3, "place": 5, "at": 4, "count": 2, "exists": 4, "relation": 4,
                    "absent": 2}


def question(rng: random.Random, scene: Scene, weights: dict[str, int] = QUESTION_WEIGHTS) -> tuple[str, str, str]:
    """Draw a question about a scene: (kind, question, answer). A kind the scene cannot be asked gives another."""
    kind, asked, answer = marked_question(rng, scene, weights)
    return kind, asked, plain(answer)


def marked_question(rng: random.Random, scene: Scene, weights: dict[str, int]) -> tuple[str, str, str]:
    """question() with marks in the answer."""
    while True:
        chosen = rng.choices(list(weights), list(weights.values()))[0]
        asked = QUESTIONS[chosen](rng, scene)
        if asked:
            return chosen, *asked


def clip_question(rng: random.Random, clip: Clip) -> tuple[str, str, str]:
    kind = rng.random()
    if kind < 0.5:
        return "clip", rng.choice(CLIP_DESCRIBE), describe_clip(clip)
    asked = rng.choice(CLIP_WAY).format(shape=clip.thing.shape)
    return "clip", asked, sentence(DIRECTIONS[clip.direction]) if clip.direction >= 0 else "It does not move."


# --- Small talk and what the model was not made for -------------------------------------------------------------------

ABLE = ("I describe pictures of shapes, answer questions about them, write down speech and say which way a shape "
        "moves.")
SMALL_TALK = (
    (("Hello.", "Hello!", "Hi.", "Hi!", "Hi there.", "Hello there.", "Good morning.", "Good evening.", "hello", "hi"),
     "Hello! Show me a picture or ask me what I can do."),
    (("What can you do?", "What can I ask you?", "What are you able to do?", "How can you help me?", "Help.", "help",
      "what can you do"), ABLE),
    (("Who are you?", "What are you?", "What is your name?", "Are you a person?", "who are you"),
     "I am a very small model that sees shapes and hears speech."),
    (("How are you?", "How do you do?", "Are you well?"), "I am well, thank you."),
    (("Thank you.", "Thanks.", "Thank you very much.", "Thanks a lot.", "Great, thanks."), "You are welcome."),
    (("Goodbye.", "Bye.", "See you later.", "Good night.", "bye"), "Goodbye!"),
    (("Who made you?", "How were you made?", "Where do you come from?"),
     "I was trained on pictures and voices made by a program."),
)

PEOPLE = ("Napoleon", "Mozart", "the president", "my neighbor", "your sister", "Shakespeare", "the king", "Einstein")
LANDS = ("France", "Japan", "Brazil", "Kenya", "Canada", "Norway", "India", "Peru", "Egypt", "Germany")
TOPICS = ("football", "chess", "history", "cooking", "the moon", "music", "politics", "the stock market", "dinosaurs",
          "the internet", "physics", "love", "war", "computers", "trains", "medicine")


def unknown_question(rng: random.Random, prose: list[str]) -> str:
    """A question outside the model's world; prose is general text, whose sentences it does not know either."""
    if rng.random() < 0.5:
        return rng.choice(prose)
    return rng.choice((
        f"What is the capital of {rng.choice(LANDS)}?", f"Who was {rng.choice(PEOPLE)}?",
        f"When was {rng.choice(PEOPLE)} born?", f"Tell me about {rng.choice(TOPICS)}.",
        f"Write a poem about {rng.choice(TOPICS)}.", f"How many people live in {rng.choice(LANDS)}?",
        f"What is {rng.randrange(100)} plus {rng.randrange(100)}?", f"Why is {rng.choice(TOPICS)} important?",
        f"Do you like {rng.choice(TOPICS)}?", f"Who wrote the book about {rng.choice(TOPICS)}?",
        f"Translate {rng.choice(TOPICS)} into French.", "Tell me a joke.", "What time is it?",
        f"Explain {rng.choice(TOPICS)} to me.", f"What is the weather in {rng.choice(LANDS)}?"))


# --- Sentences to be written down -------------------------------------------------------------------------------------

NAMES = ("Anna", "Peter", "Maria", "Thomas", "Laura", "David", "Emma", "Jack", "Sarah", "Robert", "Julia", "Martin")
ANIMALS = ("dog", "cat", "horse", "bird", "cow", "pig", "rabbit", "duck", "lion", "monkey", "tiger", "spider")
ADJECTIVES = ("old", "young", "happy", "tired", "quiet", "brown", "hungry", "clever", "heavy", "broken", "new", "dirty")
OBJECTS = ("table", "chair", "book", "letter", "bottle", "window", "door", "lamp", "basket", "key", "box", "cup",
           "clock", "ticket", "map", "bicycle", "camera", "hammer", "pencil", "blanket")
PLACES = ("kitchen", "garden", "school", "market", "station", "river", "forest", "beach", "library", "office",
          "village", "hospital", "museum", "airport")
DID = ("found", "bought", "opened", "carried", "painted", "cleaned", "lost", "sold", "moved", "dropped", "forgot")
DOES = ("sleeps", "runs", "waits", "sings", "works", "plays", "walks", "stands", "sits", "jumps")
DO = ("open", "close", "bring", "clean", "move", "take", "fix", "find", "hold", "sell")
PREPOSITIONS = ("under", "behind", "near", "beside", "inside", "in front of", "on top of", "next to")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")
WEATHER = ("sunny", "rainy", "cloudy", "windy", "cold", "warm", "foggy", "stormy")
FOOD = ("bread", "soup", "cheese", "rice", "fish", "salad", "cake", "honey", "butter")
DRINKS = ("water", "milk", "coffee", "tea", "juice", "lemonade")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "twelfth",
            "twentieth")
SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_words(value: int) -> str:
    if value < 10:
        return SMALL[value]
    if value < 20:
        return TEENS[value - 10]
    if value < 100:
        return TENS[value // 10 - 2] + (" " + SMALL[value % 10] if value % 10 else "")
    return SMALL[value // 100] + " hundred" + (" and " + number_words(value % 100) if value % 100 else "")


def spoken_sentence(rng: random.Random) -> str:
    """A sentence of everyday words to be spoken and written down again."""
    pick = rng.choice
    noun, other = rng.sample(OBJECTS, 2)
    animal, beast = rng.sample(ANIMALS, 2)
    name, friend = rng.sample(NAMES, 2)
    adjective, quality = rng.sample(ADJECTIVES, 2)
    place, goal = rng.sample(PLACES, 2)
    hour, minute = number_words(rng.randint(1, 12)), pick(("fifteen", "thirty", "ten", "twenty", "forty five"))
    return pick((
        lambda: f"{name} {pick(DID)} the {adjective} {noun} in the {place}.",
        lambda: f"The {adjective} {animal} {pick(DOES)} {pick(PREPOSITIONS)} the {noun}.",
        lambda: f"{name} and {friend} are waiting at the {place}.",
        lambda: f"The train to the {place} leaves at {hour} {minute}.",
        lambda: f"It will be {pick(WEATHER)} and {pick(WEATHER)} on {pick(DAYS)}.",
        lambda: "The code is " + " ".join(pick(SMALL) for _ in range(rng.randint(3, 5))) + ".",
        lambda: f"There are {number_words(rng.randint(2, 99))} {noun}s in the {place}.",
        lambda: f"Please {pick(DO)} the {adjective} {noun}.",
        lambda: f"{name} has {number_words(rng.randint(2, 20))} {animal}s and {number_words(rng.randint(2, 20))} "
                f"{beast}s.",
        lambda: f"The meeting is on the {pick(ORDINALS)} of {pick(MONTHS)}.",
        lambda: f"I would like some {pick(FOOD)} and some {pick(DRINKS)}, please.",
        lambda: f"Can you tell me where the {place} is?",
        lambda: f"We went to the {place} last {pick(DAYS)}.",
        lambda: f"The {noun} costs {number_words(rng.randint(2, 999))} dollars.",
        lambda: f"Yesterday {name} was {adjective}, but today {friend} is {quality}.",
        lambda: f"{name} {pick(DID)} a {noun} and a {other} for {friend}.",
        lambda: f"Put the {noun} {pick(PREPOSITIONS)} the {other}.",
        lambda: f"The {animal} and the {beast} are in the {place}.",
        lambda: f"My {noun} is {adjective}, but your {other} is {quality}.",
        lambda: f"On {pick(DAYS)} {name} will go from the {place} to the {goal}.",
        lambda: describe(random_scene(rng, (1, 0, 0, 0))),
    ))()


def spoken_question(rng: random.Random) -> str:
    """Any question that is asked aloud, with the frequency it has in conversations."""
    kind = rng.random()
    if kind < 0.08:
        return rng.choice(DESCRIBE)
    if kind < 0.12:
        return rng.choice(DIFFER)
    if kind < 0.18:
        return clip_question(rng, random_clip(rng))[1]
    if kind < 0.28:
        return rng.choice([q for asked, _ in SMALL_TALK for q in asked if q[0].isupper()])
    return question(rng, random_scene(rng))[1]
