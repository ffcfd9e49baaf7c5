"""What lies outside the world, answered with one honest sentence.

Rules: a question about a place, person or thing that the world does not hold looks like one that it
does hold, so that the model learns the border and not the tone; numbers beyond the range are
outside too.
"""

from __future__ import annotations

from random import Random
from typing import Final

from novamesh_engine.recipe.corpus.item import Item
from novamesh_engine.recipe.corpus.split import Axes, divide
from novamesh_engine.recipe.corpus.words import invent_word, pick_person, pick_thing

REPLY: Final = "I don't know."

_PLACE: Final = divide(
    "What is the capital of {x}?", "Which city is the capital of {x}?", "Capital of {x}?",
    "On which continent is {x}?", "Name the capital of {x}.", "What is the population of {x}?",
    "How many people live in {x}?", "Who is the president of {x}?", "Who is the king of {x}?",
    "Which language is spoken in {x}?", "What is the weather in {x}?", "Is it warm in {x}?",
    "What is the currency of {x}?", "Which river flows through {x}?", "How far is {x} from here?",
    "Which country has the capital {x}?", "{x} is the capital of which country?",
    "When was {x} founded?", "What is {x} famous for?", "How do I get to {x}?",
    "What time is it in {x}?", "What is the best restaurant in {x}?", "Where is {x}?",
)  # fmt: skip
_PERSON: Final = divide(
    "Who is {x}?", "When was {x} born?", "How old is {x}?", "Where does {x} live?",
    "What did {x} write?", "Who is the mother of {x}?", "What is {x} thinking?", "Is {x} at home?",
    "What is the phone number of {x}?", "Who won the match against {x}?", "What does {x} like?",
    "Which song did {x} sing?", "Is {x} married?", "What is {x}'s job?", "Did {x} call me?",
    "What colour are {x}'s eyes?", "How tall is {x}?", "What is the email address of {x}?",
    "Tell me about {x}.", "Write a letter to {x}.", "What did {x} say yesterday?",
)  # fmt: skip
_THING: Final = divide(
    "What does {x} mean?", "How do I make {x}s?", "Who invented the {x}?",
    "What is the symbol for {x}?", "Which element has the symbol {x}?", "Why are {x}s expensive?",
    "What is a young {x} called?", "How much does a {x} weigh?",
    "What is the atomic number of {x}?", "How do you spell {x} in Greek?", "Where can I buy a {x}?",
    "How does a {x} work?", "What is the price of a {x}?", "Explain {x} to me.",
    "Write a poem about a {x}.", "Tell me a story about a {x}.", "What is the history of the {x}?",
    "Translate {x} into French.", "Is a {x} dangerous?", "What are {x}s made of?",
    "How long does a {x} live?", "Give me a recipe with {x}s.", "Draw a {x}.",
    "Why is the {x} red?",
)  # fmt: skip
_OPEN: Final = divide(
    "What will the weather be tomorrow?", "Who won the election?", "What is the meaning of life?",
    "What is the news today?", "What time is it?", "What day is it today?", "Tell me a joke.",
    "Write a program in Python.", "What should I eat tonight?", "Who will win the cup?",
    "What is my name?", "Where am I?", "How old am I?", "Do you love me?", "Sing a song.",
    "What is the best film?", "Who wrote Hamlet?", "When did the war end?", "What is gravity?",
    "What is the stock price?", "Recommend a book.", "What is quantum mechanics?", "Who is God?",
    "What is my favourite colour?", "How do I fix my computer?", "Write an essay.", "Play chess.",
    "Summarise this text.", "What happened in 1969?", "How do planes fly?", "Why is the sky blue?",
    "What is the speed of light?", "Who painted the Mona Lisa?", "What is democracy?",
    "How do I lose weight?", "What is a black hole?", "Who discovered America?", "Book a flight.",
    "What is inflation?", "How do vaccines work?", "Explain relativity.", "Is there life on Mars?",
    "Write a haiku.", "What is the largest company?", "Who is the richest person?",
    "Order a pizza.",
    "What is the password?", "Can you drive a car?", "Open the door.", "Turn on the light.",
    "How do I learn to swim?", "What did I do yesterday?", "Who is the best player?", "Call me.",
    "How many stars are there?", "What is love?", "Which car should I buy?", "Is it raining?",
    "What is the square root of 7?", "What is the tenth digit of pi?", "Solve x^2 = 5.",
    "How many people live on Earth?", "What is the fastest computer?", "Who are my friends?",
)  # fmt: skip
_BIG: Final = divide(
    "What is {a} + {b}?", "{a} + {b}", "{a} - {b}", "What is {a} times {b}?", "Add {a} and {b}.",
    "How much is {a} plus {b}?", "{a} * {b}", "Subtract {b} from {a}.", "Calculate {a} + {b}",
    "What is {a} minus {b}?", "{a} / {b} =", "Divide {a} by {b}.",
)  # fmt: skip


def _word(rng: Random, axes: Axes) -> str:
    if rng.random() < 0.6:
        return invent_word(rng, axes)
    return pick_thing(rng, axes).singular


def make_unknown(rng: Random, axes: Axes) -> Item:
    """One question that must be answered with `REPLY`."""
    roll = rng.random()
    if roll < 0.30:
        prompt = _PLACE.pick(rng, axes).format(x=invent_word(rng, axes).title())
    elif roll < 0.50:
        prompt = _PERSON.pick(rng, axes).format(x=pick_person(rng, axes).name)
    elif roll < 0.72:
        prompt = _THING.pick(rng, axes).format(x=_word(rng, axes))
    elif roll < 0.90:
        prompt = _OPEN.pick(rng, axes)
    else:
        big, other = rng.randint(1000, 99999), rng.randint(100, 9999)
        prompt = _BIG.pick(rng, axes).format(a=big, b=other)
    return Item("unknown", prompt, REPLY)
