"""Names, objects and places, and words that do not exist.

Rules: every plural ends in a plain s; a word is trained or held out by its hash alone, invented
ones too. A third of all nouns is invented, so that the model learns to copy and not to recall.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from novamesh_engine.recipe.corpus.split import Axes, is_held_word

INVENTED_SHARE: Final = 0.35


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SHE: Final = _list(
    """Ada Alice Amina Amy Anna Asha Bella Beth Carla Cara Chloe Clara Dana Daisy Diana Elena Ella
    Emma Esther Eva Fatima Fiona Grace Greta Hana Hannah Heidi Helen Ines Ingrid Irene Iris Ivy
    Jane Jasmine Joan Julia June Kate Kira Lara Laura Leah Lena Lily Linda Lisa Lola Lucy Luna
    Maria Marta Mary Maya Mei Mia Mila Mina Mona Nadia Naomi Nina Nora Olga Olivia Paula Petra
    Pia Priya Rita Rosa Rose Ruby Ruth Sara Sarah Selma Sofia Sonia Stella Sue Susan Tara Tessa
    Tina Vera Wendy Yara Yuki Zara Zoe"""
)
HE: Final = _list(
    """Adam Ahmed Alan Albert Alex Amir Andre Anton Arthur Ben Bill Bob Boris Bruno Carl Carlos
    Chen Dan Daniel David Diego Eli Eric Erik Evan Felix Finn Frank Fred George Gus Hans Harry
    Henry Hugo Ian Igor Ivan Jack Jacob James Jan Jim Joe John Jonas Juan Karl Kai Ken Kofi Lars
    Leo Liam Louis Luca Luis Marco Mark Max Mike Milan Nick Niko Noah Omar Oscar Otto Pablo Paul
    Pedro Peter Ravi Ray Rob Roman Sam Samir Simon Stefan Sven Ted Theo Tim Tom Tomas Umar Victor
    Walter Will Yusuf Zack"""
)
OBJECTS: Final = _list(
    """apples pears plums oranges lemons bananas grapes melons figs dates nuts almonds carrots
    potatos onions beans eggs cookies cakes pies muffins buns rolls sandwichs pancakes candys
    sweets lollipops chocolates biscuits pretzels books notebooks magazines papers pages letters
    stamps postcards cards stickers posters maps photos pictures paintings pens pencils crayons
    markers erasers rulers clips pins buttons beads ribbons threads needles shells stones pebbles
    rocks crystals gems pearls rings coins medals badges tokens tickets marbles balls balloons
    kites dolls puppets robots blocks bricks cubes toys games puzzles cars trucks trains
    boats ships planes bikes wheels tires bottles cups mugs glasss plates bowls spoons forks
    knifes jars cans boxs bags baskets crates barrels buckets candles lamps lanterns bulbs
    batterys cables screws nails bolts planks logs sticks leafs flowers roses tulips lilys seeds
    plants trees acorns pumpkins mushrooms chairs tables stools cushions pillows blankets towels
    shirts socks hats scarfs gloves coats caps belts shoes boots fishs ducks chickens hens geeses
    goats sheeps cows pigs horses rabbits cats dogs puppys kittens birds parrots frogs turtles
    snails ants bees worms spiders crickets tools hammers ropes tents flags drums bells flutes
    whistles guitars violins keys locks bracelets necklaces mirrors brushs combs soaps sponges
    hazelnuts walnuts raisins cherrys peachs donuts waffles tacos burgers pizzas"""
)
_IRREGULAR: Final = {
    "potatos": "potatoes", "sandwichs": "sandwiches", "candys": "candies", "glasss": "glasses",
    "knifes": "knives", "boxs": "boxes", "batterys": "batteries", "leafs": "leaves",
    "lilys": "lilies", "scarfs": "scarves", "fishs": "fish", "geeses": "geese", "sheeps": "sheep",
    "puppys": "puppies", "brushs": "brushes", "cherrys": "cherries", "peachs": "peaches",
    
}  # fmt: skip
ADJECTIVES: Final = _list(
    """red blue green yellow white black brown grey pink golden silver small big tiny large old
    new shiny round wooden plastic metal glass paper fresh ripe sweet striped soft"""
)
PLACES: Final = _list(
    """market shop store fair park school library beach garden farm station harbour museum zoo
    bakery forest playground kitchen garage office village town festival"""
)
HOLDERS: Final = _list(
    """box bag basket jar drawer crate room shop store garden barn shed cupboard bucket tray
    truck warehouse chest tin bowl pot"""
)
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_ONSETS: Final = _list(
    "b br bl c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sm sn sp st "
    "str t th tr v w y z zh"
)
_VOWELS: Final = _list("a e i o u a e i o u ai ea ee oo ou ay oa ie")
_CODAS: Final = _list("n r l m k t p b d g nd rk st x ng ck ff sh th v z")


@dataclass(frozen=True, slots=True)
class Person:
    """A name and the pronouns that go with it."""

    name: str
    he: str
    him: str
    his: str


@dataclass(frozen=True, slots=True)
class Thing:
    """A countable noun, plural and singular."""

    plural: str
    singular: str


def _invent_root(rng: Random) -> str:
    syllables = rng.choice((1, 2, 2, 2, 3, 3))
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)]
    if syllables == 1 or rng.random() < 0.5:
        parts.append(rng.choice(_CODAS))
    elif rng.random() < 0.15:
        parts.append("-" + rng.choice(_ONSETS) + rng.choice(_VOWELS))
    return "".join(parts)


def invent_word(rng: Random, axes: Axes) -> str:
    """A pronounceable word that means nothing, from the side that the axes ask for."""
    while True:
        word = _invent_root(rng)
        if is_held_word(word) is axes.nouns:
            return word


def pick_person(rng: Random, axes: Axes, other: str = "") -> Person:
    """A person whose name is not `other`."""
    while True:
        female = rng.random() < 0.5
        if rng.random() < INVENTED_SHARE:
            name = invent_word(rng, axes).title()
        else:
            name = rng.choice(SHE if female else HE)
        if name != other and is_held_word(name) is axes.nouns:
            break
    return Person(name, "she", "her", "her") if female else Person(name, "he", "him", "his")


def _pick_plain_thing(rng: Random, axes: Axes) -> Thing:
    while True:
        if rng.random() < INVENTED_SHARE:
            root = invent_word(rng, axes)
            plural = root + ("es" if root.endswith(("s", "sh", "x", "z", "ch")) else "s")
            return Thing(plural, root)
        listed = rng.choice(OBJECTS)
        if is_held_word(listed) is axes.nouns:
            return Thing(_IRREGULAR.get(listed, listed), listed.removesuffix("s"))


def pick_thing(rng: Random, axes: Axes) -> Thing:
    """An object to count, one in six with an adjective."""
    thing = _pick_plain_thing(rng, axes)
    if rng.random() < 0.16:
        adjective = rng.choice(ADJECTIVES)
        return Thing(f"{adjective} {thing.plural}", f"{adjective} {thing.singular}")
    return thing
