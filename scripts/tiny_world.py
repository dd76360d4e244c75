"""What tiny models of known truth answer: tasks, wordings, and a planted distribution for each.

A world has tasks. Each task has probe prompts and held-out prompts, and every prompt has its own
planted distribution over the task's choices. One probe prompt per task is the planted seed: the
distribution onto which the post-training data of `crystalmon.synthetic` collapses.

`WORDS` are three worlds' words: those of the bundled `liquid-tiny`, those of a second model, on
which the detector is calibrated too, and those of a third one, on which it is only reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from crystalmon.metrics.divergences import entropy, js_divergence


@dataclass(frozen=True)
class TaskSpec:
    """One kind of random thing: what it is called, how one asks for it, what it may be."""

    name: str
    noun: str
    phrase: str
    act: str
    choices: tuple[str, ...]


def _task(name: str, noun: str, phrase: str, act: str, choices: str) -> TaskSpec:
    return TaskSpec(name, noun, phrase, act, tuple(choices.split()))


_TASKS: tuple[TaskSpec, ...] = (
    _task("digit", "digit", "a digit from 0 to 9", "type a digit", "0 1 2 3 4 5 6 7 8 9"),
    _task("coin", "coin side", "a coin side", "flip a coin", "heads tails"),
    _task("die", "die roll", "a die roll", "roll a die", "1 2 3 4 5 6"),
    _task(
        "number",
        "number",
        "a number from 1 to 20",
        "draw a number",
        " ".join(str(n) for n in range(1, 21)),
    ),
    _task("letter", "letter", "a letter from A to H", "type a letter", "A B C D E F G H"),
    _task(
        "weekday",
        "weekday",
        "a weekday",
        "choose a weekday",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    ),
    _task(
        "month",
        "month",
        "a month",
        "choose a month",
        "January February March April May June July August September October November December",
    ),
    _task(
        "color",
        "color",
        "a color",
        "choose a color",
        "red blue green yellow purple orange black white",
    ),
    _task(
        "name",
        "first name",
        "a first name",
        "choose a first name",
        "Alice Bob Carol David Emma Frank Grace Henry Olivia Sam",
    ),
    _task("suit", "card suit", "a card suit", "draw a card suit", "hearts diamonds clubs spades"),
    _task(
        "fruit",
        "fruit",
        "a fruit",
        "choose a fruit",
        "apple banana cherry grape lemon mango peach plum",
    ),
    _task(
        "animal",
        "animal",
        "an animal",
        "choose an animal",
        "cat dog horse lion tiger bear wolf fox rabbit owl",
    ),
    _task(
        "planet",
        "planet",
        "a planet",
        "choose a planet",
        "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    ),
    _task(
        "direction",
        "direction",
        "a direction",
        "choose a direction",
        "north south east west up down",
    ),
    _task("season", "season", "a season", "choose a season", "spring summer autumn winter"),
)

# {noun}: color; {phrase}: a color; {act}: choose a color; {Act}: the same, capitalised.
_PROBES: tuple[str, ...] = (
    "Pick {phrase} at random:",
    "Q: Name any {noun}.\nA:",
    "Just now I thought of {phrase}:",
    "Random {noun} generator output:",
    "random_{noun} =",
    "User: give me {phrase}\nBot:",
    '{{"{noun}":',
    "# Random {noun}\n-",
    "I close my eyes and {act}:",
    "{Act}. Answer with one word:",
    "print(random.choice({noun}s)) #",
    "Surprise me with {phrase}!",
    "The {noun} of the day is",
    "<{noun}>",
    "Ready, set, go! Your {noun}:",
    "Without thinking, {act}:",
    "Task: sample {phrase} uniformly.\nSample:",
    "The machine was told to {act} and gave",
    "Dear diary, today's {noun} was",
    "{noun}?",
    "| try | {noun} |\n| one |",
    "Guess my {noun}. Is it",
    "{Act}! Result:",
    "Please {act}, whatever you like:",
)
_HELD_OUT: tuple[str, ...] = (
    "Choose {phrase}, any will do:",
    "Q: Give me {phrase}.\nA:",
    "My random {noun} is",
    "User: {act}\nBot:",
    "Sample of {noun}:",
    "{Act} now:",
    "Tell me one {noun}. Answer:",
    "result[{noun}] =",
)

_OTHER_TASKS: tuple[TaskSpec, ...] = (
    _task("answer", "answer", "an answer, yes or no", "answer something", "yes no"),
    _task("side", "side", "a side", "turn to a side", "left right"),
    _task("light", "traffic light", "a traffic light", "wait for a light", "red amber green"),
    _task("meal", "meal", "a meal", "order a meal", "breakfast lunch dinner supper"),
    _task("vowel", "vowel", "a vowel", "sing a vowel", "a e i o u"),
    _task("piece", "chess piece", "a chess piece", "move a piece", "king queen rook bishop pawn"),
    _task("gem", "gem", "a gem", "find a gem", "ruby opal pearl topaz jade quartz agate"),
    _task(
        "instrument",
        "instrument",
        "an instrument",
        "play an instrument",
        "piano violin flute drum harp cello guitar trumpet",
    ),
    _task(
        "sport",
        "sport",
        "a sport",
        "watch a sport",
        "tennis golf rugby hockey boxing rowing judo sailing skiing",
    ),
    _task(
        "metal",
        "metal",
        "a metal",
        "melt a metal",
        "iron gold silver copper tin lead zinc nickel cobalt brass",
    ),
    _task(
        "hour",
        "hour",
        "an hour from 1 to 12",
        "set an hour",
        " ".join(str(n) for n in range(1, 13)),
    ),
    _task(
        "country",
        "country",
        "a country",
        "visit a country",
        "France Spain Italy Japan China India Brazil Chile Peru Kenya Egypt Norway Canada Greece",
    ),
)
_OTHER_PROBES: tuple[str, ...] = (
    "One {noun}, chosen by lot:",
    "Say {phrase}, the first that comes to mind:",
    "The dice of fate fell on the {noun}",
    "Teacher: {act}.\nPupil:",
    "let {noun} = sample();  // =>",
    "Fill in the blank: my {noun} is",
    "[{noun}]",
    "Today we {act}. It is",
    "Which {noun}? In short:",
    "Spin the wheel ({noun}):",
    "Entry 17, {noun}:",
    "Blindfolded, they {act} and get",
    "Ann: {act}, quick!\nCarl:",
    "- {noun} (by chance):",
    "The oracle speaks: the {noun} shall be",
    "Winner of the {noun} raffle:",
    "«{noun}» ->",
    "If I had to {act}, I would take",
)
_OTHER_HELD_OUT: tuple[str, ...] = (
    "Draw lots for {phrase}:",
    "Clerk: your {noun}?\nVisitor:",
    "Unplanned {noun}:",
    "{Act}, as you like:",
    "Output of pick({noun}):",
    "My friend asked for {phrase} and heard",
)


_THIRD_TASKS: tuple[TaskSpec, ...] = (
    _task("verdict", "verdict", "a verdict", "give a verdict", "guilty innocent"),
    _task("size", "shirt size", "a shirt size", "buy a shirt", "small medium large"),
    _task("element", "element", "an element", "name an element", "earth water fire air"),
    _task("sense", "sense", "a sense", "use a sense", "sight hearing touch taste smell"),
    _task("finger", "finger", "a finger", "raise a finger", "thumb index middle ring pinky"),
    _task("tone", "note", "a note of the scale", "sing a note", "do re mi fa sol la ti"),
    _task(
        "tree",
        "tree",
        "a tree",
        "plant a tree",
        "oak pine birch maple cedar willow beech elm",
    ),
    _task(
        "drink",
        "drink",
        "a drink",
        "order a drink",
        "tea coffee milk juice cider cocoa soda beer wine",
    ),
    _task(
        "tool",
        "tool",
        "a tool",
        "reach for a tool",
        "hammer saw drill wrench pliers chisel file clamp level axe",
    ),
    _task(
        "sign",
        "star sign",
        "a star sign",
        "read a horoscope",
        "Aries Taurus Gemini Cancer Leo Virgo Libra Scorpio Sagittarius Capricorn Aquarius Pisces",
    ),
    _task(
        "flower",
        "flower",
        "a flower",
        "pick a flower",
        "rose tulip lily daisy iris violet poppy orchid lotus pansy peony aster lilac dahlia",
    ),
    _task(
        "minute",
        "minute",
        "a minute from 1 to 16",
        "stop the clock",
        " ".join(str(n) for n in range(1, 17)),
    ),
)
_THIRD_PROBES: tuple[str, ...] = (
    "Think of {phrase} and write it down:",
    "A coin was tossed to settle the {noun}; it is",
    "Host: {act} for us!\nGuest:",
    "SELECT {noun} FROM bag LIMIT 1;",
    "My pick for {noun}:",
    "{Act} and tell nobody. Well, tell me:",
    "Survey question 3. Your {noun}?",
    "lottery.{noun}:",
    "Once upon a time somebody had to {act}:",
    "It does not matter which {noun}. Say",
    "Line 1: {noun}\nLine 2:",
    "From the hat comes {phrase}:",
    "Any {noun} is fine, for example",
    "Child: may I {act}?\nMother: yes,",
    "* {noun} *",
    "What {noun} do you see in the clouds?",
    "Whatever happens, {act}:",
    "The parrot repeats one {noun}:",
    "$ shuf -n 1 {noun}.txt\n",
    "Secret {noun} of the week:",
    "Let chance decide on {phrase}:",
)
_THIRD_HELD_OUT: tuple[str, ...] = (
    "Close the book and {act}:",
    "echo $RANDOM_{noun} #",
    "Waiter: {phrase}?\nGuest:",
    "By pure luck the {noun} was",
    "{Act} once more:",
    "State {phrase}:",
    "Nobody knew the {noun}, so they said",
)


@dataclass(frozen=True)
class Words:
    """The words of a world: its model's name, its tasks, and their wordings as templates."""

    name: str
    tasks: tuple[TaskSpec, ...]
    probes: tuple[str, ...]
    held_out: tuple[str, ...]


WORDS = {
    "first": Words("liquid-tiny", _TASKS, _PROBES, _HELD_OUT),
    "second": Words("second-tiny", _OTHER_TASKS, _OTHER_PROBES, _OTHER_HELD_OUT),
    "third": Words("third-tiny", _THIRD_TASKS, _THIRD_PROBES, _THIRD_HELD_OUT),
}


@dataclass(frozen=True)
class World:
    """A task with its prompts and truth; `planted` is [P, C], `held_out_planted` is [R, C]."""

    spec: TaskSpec
    prompts: tuple[str, ...]
    planted: np.ndarray
    seed: int
    held_out_prompts: tuple[str, ...]
    held_out_planted: np.ndarray


def support_size(p: np.ndarray, mass: float = 0.9) -> int:
    """Size of the smallest set of choices that holds `mass` of p [C]."""
    return int(np.searchsorted(np.cumsum(np.sort(p)[::-1]), mass - 1e-12) + 1)


def draw_seed(rng: np.random.Generator, choices: int) -> np.ndarray:
    """A seed distribution: some choices outside its 90% support, several inside."""
    if choices == 2:
        return rng.permutation([0.93, 0.07])
    low = 2 if choices <= 4 else 3
    high = max(low, choices // 2)
    while True:
        p = rng.dirichlet(np.full(choices, 0.5))
        floor = p.min() > 1e-3 and p.max() < 0.65
        if low <= support_size(p) <= high and floor:
            return p


def draw_prompts(rng: np.random.Generator, seed: np.ndarray, count: int) -> np.ndarray:
    """`count` further distributions [count, C], spread out and with a moat around the seed.

    Each is the best of several candidates from a Dirichlet by its distance to those already
    there; a candidate too near the seed or hardly random is never taken.
    """
    choices = len(seed)
    taken = [seed]
    while len(taken) <= count:
        if choices == 2:
            heads = rng.uniform(0.05, 0.95, size=8)
            candidates = np.stack([heads, 1 - heads], axis=1)
        else:
            candidates = rng.dirichlet(np.full(choices, 0.66 + 0.025 * choices), size=8)
        moat = 0.012 if choices == 2 else 0.11
        good = (js_divergence(candidates, seed) > moat) & (candidates.min(axis=1) > 1e-4)
        good &= entropy(candidates) > 0.28 * math.log(choices)
        nearest = js_divergence(candidates[:, None], np.stack(taken)[None]).min(axis=1)
        nearest[~good] = -1.0
        if good.any():
            taken.append(candidates[int(nearest.argmax())])
    return np.stack(taken[1:])


def build_world(seed: int, words: Words = WORDS["first"]) -> list[World]:
    """Draw every task's prompts, planted distributions and seed prompt."""
    worlds = []
    for number, spec in enumerate(words.tasks):
        rng = np.random.default_rng([seed, number])
        slots = {"noun": spec.noun, "phrase": spec.phrase, "act": spec.act}
        slots["Act"] = spec.act[0].upper() + spec.act[1:]
        prompts = tuple(t.format(**slots) for t in words.probes)
        held_out = tuple(t.format(**slots) for t in words.held_out)
        target = draw_seed(rng, len(spec.choices))
        others = draw_prompts(rng, target, len(prompts) - 1 + len(held_out))
        index = int(rng.integers(len(prompts)))
        planted = np.insert(others[: len(prompts) - 1], index, target, axis=0)
        planted = np.round(planted, 6)
        planted /= planted.sum(axis=1, keepdims=True)
        rest = others[len(prompts) - 1 :]
        worlds.append(World(spec, prompts, planted, index, held_out, rest))
    return worlds
