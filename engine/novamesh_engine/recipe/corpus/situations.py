"""Situations of one to three steps that are not a chain: comparing, grouping, paying, travelling.

Rules: a situation is a plan and the ways to say it; letters in a text are the plan's operands
({a} {b} {c} {d} of up to three digits, {k} {m} small). The answer follows from the plan alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from novamesh_engine.recipe.corpus.split import Bank, divide
from novamesh_engine.recipe.corpus.steps import Plan


@dataclass(frozen=True, slots=True)
class Situation:
    """What is computed, and the phrasings of it."""

    plan: Plan
    texts: Bank


def _say(plan: str, *texts: str) -> Situation:
    """`a + b; _1 - c` and its phrasings as a situation."""
    steps = []
    for part in plan.split(";"):
        left, operator, right = part.split()
        steps.append((left, operator, right))
    return Situation(tuple(steps), divide(*texts))


TOGETHER: Final = (
    _say(
        "a + b",
        "{N} has {a} {o} and {M} has {b} {o}. How many {o} do they have together?",
        "{N} has {a} {o}. {M} has {b}. How many do they have in all?",
        "{N} owns {a} {o} and {b} {p}. How many things is that?",
        "There are {a} {o} and {b} {p} in the {box}. How many things are in the {box}?",
        "In a {box} there are {a} {o}, and in another there are {b}. How many {o} are there?",
        "How many {o} do {N} and {M} have together if {N} has {a} and {M} has {b}?",
        "{N} counts {a} {o} in the morning and {b} in the evening. How many does {he} count?",
        "{a} {o} are red and {b} {o} are blue. How many {o} are there in total?",
        "What is the total if {N} brings {a} {o} and {M} brings {b}?",
        "On {day} {N} sells {a} {o}. On {day2} {he} sells {b}. How many {o} does {he} sell?",
        "{N} put {a} {o} on one table and {b} on the other. How many {o} are on the tables?",
        "Together, how many {o} do {N} with {a} and {M} with {b} have?",
        "{N} and {M} put their {o} together: {a} from {N} and {b} from {M}. How many is that?",
        "One {box} holds {a} {o}, the other one holds {b}. What do both hold together?",
        "If one {box} has {a} {o} and a second {box} has {b}, how many {o} are there in all?",
        "{N} has {a} {o}, {M} has {b} {o}. Find the total.",
        "A class has {a} girls and {b} boys. How many children are in the class?",
        "{a} people are in the {place} and {b} more come. How many people are there now?",
    ),
    _say(
        "a + b; _1 + c",
        "{N} has {a} {o}, {M} has {b} and {L} has {c}. How many {o} do they have together?",
        "{N} has {a} {o}. {M} has {b} {o}. {L} has {c} {o}. How many do they have in all?",
        "There are {a} red, {b} blue and {c} green {o} in the {box}. How many {o} are there?",
        "A {box} has {a} {o}, a second has {b} and a third has {c}. What is the total?",
        "{N} counts {a} {o} on {day}, {b} on {day2} and {c} a day later. How many in total?",
        "If {N} has {a} {o}, {M} has {b} and {L} has {c}, how many are there altogether?",
        "How many {o} are there if {N} brings {a}, {M} brings {b} and {L} brings {c}?",
        "{N}, {M} and {L} have {a}, {b} and {c} {o}. How many do they have together?",
        "Add up the {o}: {a} in the {box}, {b} on the table and {c} on the floor.",
        "Three shelves hold {a}, {b} and {c} {o}. How many {o} are on the shelves?",
        "{a} {o}, {b} {p} and {c} stones are in the {box}. How many things are there?",
        "What is the sum of the {o} if one {box} has {a}, one has {b} and one has {c}?",
    ),
)
COMPARE: Final = (
    _say(
        "a + b",
        "{N} has {a} {o}. {M} has {b} more than {N}. How many {o} does {M} have?",
        "{N} has {a} {o}. {M} has {b} more. How many {o} does {M} have?",
        "{M} has {b} more {o} than {N}, who has {a}. How many {o} does {M} have?",
        "{M} has {b} more {o} than {N}. {N} has {a}. How many {o} does {M} have?",
        "If {N} has {a} {o} and {M} has {b} more than {N}, how many does {M} have?",
        "How many {o} does {M} have if {N} has {a} and {M} has {b} more than {him}?",
        "{N} is {a} years old. {M} is {b} years older. How old is {M}?",
        "{M} is {b} years older than {N}, who is {a}. How old is {M}?",
        "{N} is {a} years old. How old will {he} be in {b} years?",
        "A {o1} costs {a} coins. A {p1} costs {b} coins more. What does the {p1} cost?",
        "{N} counts {a} {o}. {M} counts {b} more than that. How many does {M} count?",
        "Compared with the {a} {o} of {N}, {M} has {b} more. How many does {M} have?",
    ),
    _say(
        "a - b",
        "{N} has {a} {o}. {M} has {b} fewer than {N}. How many {o} does {M} have?",
        "{N} has {a} {o}. {M} has {b} fewer. How many {o} does {M} have?",
        "{M} has {b} fewer {o} than {N}, who has {a}. How many {o} does {M} have?",
        "{M} has {b} fewer {o} than {N}. {N} has {a}. How many {o} does {M} have?",
        "If {N} has {a} {o} and {M} has {b} fewer than {N}, how many does {M} have?",
        "How many {o} does {M} have if {N} has {a} and {M} has {b} fewer than {him}?",
        "{N} is {a} years old. {M} is {b} years younger. How old is {M}?",
        "{M} is {b} years younger than {N}, who is {a}. How old is {M}?",
        "{N} is {a} years old. How old was {he} {b} years ago?",
        "A {o1} costs {a} coins. A {p1} costs {b} coins less. What does the {p1} cost?",
        "{N} counts {a} {o}. {M} counts {b} less than that. How many does {M} count?",
        "Compared with the {a} {o} of {N}, {M} has {b} fewer. How many does {M} have?",
    ),
    _say(
        "a - b",
        "{N} has {a} {o} and {M} has {b}. How many more {o} does {N} have than {M}?",
        "{N} has {a} {o}. {M} has {b} {o}. How many more does {N} have?",
        "{N} has {a} {o} and {M} has {b}. What is the difference?",
        "{M} has {b} {o}, but {N} has {a}. How many fewer does {M} have than {N}?",
        "How many more {o} does {N} have than {M} if {N} has {a} and {M} has {b}?",
        "{N} wants {a} {o} and has {b}. How many more does {he} need?",
        "{N} needs {a} {o}. {He} has {b}. How many {o} are missing?",
        "{N} has {b} {o} and needs {a}. How many more {o} must {he} find?",
        "{N} is {a} years old and {M} is {b}. How many years older is {N}?",
        "A {box} has room for {a} {o}. There are {b} in it. How many more fit in?",
        "There are {a} {o} in the {box}. {b} of them are red. How many are not red?",
        "Of {a} {o}, {b} are broken. How many {o} are whole?",
        "{N} has {a} coins. A {o1} costs {b} coins. How many coins are left after buying it?",
        "{N} had some {o}. {He} got {b} more and now has {a}. How many did {he} have at first?",
        "After {N} found {b} {o}, {he} had {a}. How many {o} did {he} have before?",
        "There were {a} {o}. Now there are {b}. How many are gone?",
        "{N} had {a} {o} and has {b} left. How many did {he} give away?",
        "A book has {a} pages. {N} has read {b} pages. How many pages are left to read?",
        "A class has {a} children. {b} are girls. How many are boys?",
    ),
    _say(
        "a + b",
        "{N} gave away {a} {o} and has {b} left. How many did {he} have at first?",
        "After losing {a} {o}, {N} has {b}. How many {o} did {he} have before?",
        "{N} had some {o}. {He} sold {a} and kept {b}. How many did {he} have at first?",
        "{M} took {a} of the {o} and {b} were left. How many {o} were there before?",
        "How many {o} did {N} have at first if {he} gave away {a} and kept {b}?",
        "When {N} had used {a} {o}, {b} were left. How many {o} were there at the start?",
    ),
    _say(
        "a + b; a + _1",
        "{N} has {a} {o}. {M} has {b} more than {N}. How many do they have together?",
        "{N} has {a} {o} and {M} has {b} more than that. How many {o} do they have in all?",
        "{M} has {b} more {o} than {N}, who has {a}. How many {o} do they have together?",
        "If {N} has {a} {o} and {M} has {b} more than {him}, how many are there in total?",
        "{N} sold {a} {o} on {day} and {b} more than that on {day2}. How many in total?",
        "How many {o} do {N} and {M} have together if {N} has {a} and {M} has {b} more?",
    ),
    _say(
        "a - b; a + _1",
        "{N} has {a} {o}. {M} has {b} fewer than {N}. How many do they have together?",
        "{N} has {a} {o} and {M} has {b} fewer than that. How many {o} do they have in all?",
        "{M} has {b} fewer {o} than {N}, who has {a}. How many {o} do they have together?",
        "If {N} has {a} {o} and {M} has {b} fewer than {him}, how many are there in total?",
        "{N} sold {a} {o} on {day} and {b} fewer than that on {day2}. How many in total?",
        "How many {o} do {N} and {M} have together if {N} has {a} and {M} has {b} fewer?",
    ),
)
GROUPS: Final = (
    _say(
        "k * m",
        "{N} has {k} jars with {m} {o} in each. How many {o} does {he} have?",
        "There are {k} bags of {o}. Each bag holds {m}. How many {o} are there?",
        "{N} buys {k} packs of {m} {o} each. How many {o} is that?",
        "Each of {k} children has {m} {o}. How many {o} do they have together?",
        "How many {o} are in {k} bags with {m} {o} each?",
        "{k} people carry {m} {o} each. How many {o} do they carry?",
        "A {o1} costs {m} coins. How much do {k} {o} cost?",
        "{N} reads {m} pages a day. How many pages does {he} read in {k} days?",
        "If one {box} holds {m} {o}, how many {o} do {k} of them hold?",
        "{N} makes {m} {o} an hour. How many does {he} make in {k} hours?",
        "There are {k} rows of {m} chairs. How many chairs are there?",
        "{N} walks {m} km every day for {k} days. How many km is that?",
    ),
    _say(
        "a / k",
        "{N} shares {a} {o} equally among {k} friends. How many does each friend get?",
        "{a} {o} are split equally into {k} bags. How many {o} are in each bag?",
        "{N} puts {a} {o} into {k} equal groups. How many are in each group?",
        "If {k} children share {a} {o} equally, how many does each one get?",
        "{k} people divide {a} {o} equally. How many {o} does each get?",
        "{N} has {a} {o} for {k} friends. All get the same number. How many does each get?",
        "How many {o} does each child get if {a} {o} are shared by {k} children?",
        "{N} packs {a} {o} into bags of {k}. How many bags does {he} need?",
        "There are {a} {o} in {k} equal rows. How many {o} are in a row?",
        "{k} {o} cost {a} coins. What does one {o1} cost?",
    ),
    _say(
        "k * m; _1 - a",
        "{N} has {k} bags with {m} {o} each. {He} gives away {a}. How many are left?",
        "There are {k} bags of {m} {o}. {M} takes {a} {o}. How many {o} are left?",
        "{N} buys {k} packs of {m} {o} and loses {a}. How many {o} does {he} have now?",
        "Each of {k} jars holds {m} {o}. {a} {o} are broken. How many are whole?",
        "{N} makes {m} {o} a day for {k} days and sells {a}. How many {o} are left?",
        "{k} rows of {m} {o} stand in the {place}. {a} are removed. How many remain?",
        "If {N} has {k} bags of {m} {o} and uses {a}, how many {o} are left?",
    ),
    _say(
        "k * m; _1 + a",
        "{N} has {k} bags with {m} {o} each. {He} gets {a} more. How many does {he} have?",
        "There are {k} bags of {m} {o}. {M} brings {a} {o}. How many {o} are there now?",
        "{N} buys {k} packs of {m} {o} and finds {a} more. How many does {he} have now?",
        "{N} has {a} {o} and {k} bags with {m} {o} each. How many {o} is that in all?",
        "{N} makes {m} {o} a day for {k} days and buys {a}. How many does {he} have?",
        "{k} rows of {m} {o} stand in the {place}. {a} are added. How many are there?",
        "If {N} has {k} bags of {m} {o} and gets {a} more, how many does {he} have?",
    ),
    _say(
        "k * m; a - _1",
        "{N} has {a} coins and buys {k} {o} for {m} coins each. How many coins are left?",
        "A {o1} costs {m} coins. {N} has {a} coins and buys {k}. How many coins remain?",
        "{N} has {a} {o} and gives {m} to each of {k} friends. How many {o} are left?",
        "{N} buys {k} {o} at {m} coins each and pays with {a} coins. What is the change?",
        "From {a} {o}, {N} fills {k} bags with {m} each. How many {o} are left over?",
        "A book has {a} pages. {N} reads {m} pages a day for {k} days. How many are left?",
        "There are {a} {o}. Each of {k} children takes {m}. How many {o} are left?",
    ),
    _say(
        "a + b; _1 / k",
        "{N} has {a} {o} and {M} has {b}. They share them equally among {k} people. "
        "How many does each get?",
        "{N} has {a} {o}, finds {b} more and splits them into {k} equal bags. "
        "How many are in each bag?",
        "{a} {o} and {b} {p} are put into {k} equal piles. How many things are in a pile?",
        "{N} buys {a} {o} and gets {b} more. {k} friends share them equally. "
        "How many does each friend get?",
        "If {a} red and {b} blue {o} are shared by {k} children, how many does each get?",
        "{N} and {M} put {a} and {b} {o} together and split them into {k} equal parts. "
        "How many are in one part?",
    ),
    _say(
        "a - b; _1 / k",
        "{N} has {a} {o}, loses {b} and shares the others equally among {k} friends. "
        "How many does each get?",
        "{N} has {a} {o}. {b} are broken. The others go into {k} equal bags. "
        "How many are in each bag?",
        "From {a} {o}, {N} keeps {b} and shares the others among {k} children. "
        "How many does each child get?",
        "There are {a} {o}. {M} takes {b}. The rest is split into {k} equal piles. "
        "How many are in a pile?",
        "If {N} has {a} {o}, sells {b} and puts the rest into {k} equal rows, "
        "how many are in a row?",
        "{N} gives away {b} of {a} {o} and divides the rest equally by {k}. "
        "How many are in each part?",
    ),
)
PLACES: Final = (
    _say(
        "a - b; _1 + c",
        "A bus has {a} people. {b} get off and {c} get on. How many people are on the bus?",
        "{a} people are on a train. {b} leave and {c} come in. How many are on it now?",
        "There are {a} birds in a tree. {b} fly away and {c} come. How many birds are there?",
        "A shop has {a} {o}. It sells {b} and gets {c} new ones. How many does it have?",
        "The {place} has {a} {o}. {b} are taken away and {c} are brought. How many are there?",
        "A library has {a} books. It lends {b} and gets {c} back. How many does it have now?",
        "{a} children play in the {place}. {b} go home and {c} come. How many play now?",
        "{N} has {a} coins, spends {b} and earns {c}. How many coins does {he} have?",
    ),
    _say(
        "a + b; _1 - c",
        "A bus has {a} people. {b} get on and {c} get off. How many people are on the bus?",
        "{a} people are on a train. {b} come in and {c} leave. How many are on it now?",
        "There are {a} birds in a tree. {b} come and {c} fly away. How many birds are there?",
        "A shop has {a} {o}. It gets {b} new ones and sells {c}. How many does it have?",
        "The {place} has {a} {o}. {b} are brought and {c} are taken away. How many are there?",
        "A library has {a} books. It buys {b} and lends {c}. How many does it have now?",
        "{a} children play in the {place}. {b} come and {c} go home. How many play now?",
        "{N} has {a} coins, earns {b} and spends {c}. How many coins does {he} have?",
        "A {box} with {a} {o} gets {b} more, but {c} of them break. How many are whole?",
        "{a} {o} are red and {b} are blue. {c} of all the {o} are lost. How many are left?",
        "{N} has {a} {o} and {M} has {b}. Together they sell {c}. How many are left?",
        "{N} picks {a} {o} and {M} picks {b}. They eat {c}. How many {o} remain?",
    ),
    _say(
        "a - b; _1 - c",
        "A bus has {a} people. {b} get off, then {c} get off. How many people are on the bus?",
        "A rope is {a} m long. {N} cuts off {b} m and then {c} m. How long is the rope now?",
        "A book has {a} pages. {N} reads {b} on {day} and {c} on {day2}. How many are left?",
        "A shop has {a} {o}. It sells {b} on {day} and {c} on {day2}. How many are left?",
        "There are {a} birds in a tree. {b} fly away, then {c} more. How many are left?",
        "{N} has {a} coins. A {o1} costs {b} and a {p1} costs {c}. {He} buys both. "
        "How many coins are left?",
        "Of {a} {o}, {b} are red, {c} are blue and the others are green. How many are green?",
        "A trip is {a} km long. {N} drives {b} km and then {c} km. How many km are left?",
    ),
    _say(
        "a + b",
        "{N} drives {a} km and then {b} km. How many km does {he} drive?",
        "{N} reads for {a} minutes and then for {b} minutes. How many minutes is that?",
        "A {o1} costs {a} coins and a {p1} costs {b} coins. How much do both cost?",
        "{N} has {a} coins and earns {b}. How many coins does {he} have?",
        "The temperature is {a} degrees and rises by {b}. What is it now?",
        "A plant is {a} cm tall and grows {b} cm. How tall is it now?",
        "{a} birds sit in a tree and {b} more come. How many birds are in the tree?",
        "{N} scores {a} points and then {b} points. How many points does {he} have?",
    ),
    _say(
        "a - b",
        "A rope is {a} m long. {N} cuts off {b} m. How long is the rope now?",
        "{N} has {a} coins and spends {b}. How many coins does {he} have?",
        "The temperature is {a} degrees and falls by {b}. What is it now?",
        "A trip is {a} km long. {N} has driven {b} km. How many km are left?",
        "{a} birds sit in a tree and {b} fly away. How many birds are left?",
        "A bus has {a} people and {b} get off. How many people stay on the bus?",
        "A shop has {a} {o} and sells {b}. How many {o} does it have now?",
        "{N} has {a} points and loses {b}. How many points does {he} have?",
    ),
    _say(
        "a + b; _1 + c",
        "{N} drives {a} km, then {b} km and then {c} km. How many km is that?",
        "A {o1} costs {a} coins, a {p1} {b} and a cup {c}. How much do they cost together?",
        "{N} scores {a}, {b} and {c} points. How many points is that?",
        "{N} reads {a} pages on {day}, {b} on {day2} and {c} the day after. How many in all?",
        "A plant is {a} cm tall. It grows {b} cm, then {c} cm. How tall is it?",
        "{N} has {a} coins, earns {b} and finds {c}. How many coins does {he} have?",
    ),
    _say(
        "a + b; _1 + c; _2 - d",
        "{N} has {a} {o}, {M} has {b} and {L} has {c}. They sell {d}. How many are left?",
        "{a} red, {b} blue and {c} green {o} are in a {box}. {N} takes {d}. How many remain?",
        "{N} picks {a} {o}, {M} picks {b} and {L} picks {c}. They eat {d}. How many are left?",
        "Three bags hold {a}, {b} and {c} {o}. {d} {o} are broken. How many are whole?",
        "{N} earns {a}, {b} and {c} coins and spends {d}. How many coins are left?",
        "If {N} brings {a} {o}, {M} {b} and {L} {c}, and {d} get lost, how many are left?",
        "{N} counts {a} {o} on {day}, {b} on {day2} and {c} a day later. {d} are bad. "
        "How many are good?",
        "Three shelves hold {a}, {b} and {c} {o}. {N} takes {d} of them. How many remain?",
        "A {box} has {a} {o}, a second has {b} and a third has {c}. {d} are taken. "
        "How many {o} are left?",
        "{N}, {M} and {L} have {a}, {b} and {c} {o}. They lose {d}. How many do they have now?",
        "{N} buys {a}, {b} and {c} {o} in three shops and gives {d} to {M}. How many are left?",
        "How many {o} are left if {N} has {a}, {M} {b} and {L} {c}, and they use {d}?",
    ),
    _say(
        "a + b; a + _1; _2 - c",
        "{N} has {a} {o}. {M} has {b} more than {N}. Together they sell {c}. How many are left?",
        "{M} has {b} more {o} than {N}, who has {a}. They give away {c} in all. "
        "How many {o} do they still have?",
        "{N} sold {a} {o} on {day} and {b} more than that on {day2}. {c} came back. "
        "How many were sold in the end?",
        "{N} has {a} {o} and {M} has {b} more. They put them together and lose {c}. "
        "How many are left?",
        "If {N} has {a} {o}, {M} has {b} more than {him} and they use {c}, how many are left?",
        "{N} picks {a} {o}, {M} picks {b} more than {N}, and they eat {c}. How many remain?",
        "{M} has {b} more {o} than {N}. {N} has {a}. They lose {c} in all. How many are left?",
        "{N} counts {a} {o} and {M} counts {b} more than that. {c} are broken. How many are whole?",
        "{N} makes {a} {o}, {M} makes {b} more. They sell {c} of them. How many remain?",
        "How many {o} are left if {N} has {a}, {M} has {b} more and they give away {c}?",
        "{N} buys {a} {o} on {day} and {b} more than that on {day2}. {He} uses {c}. "
        "How many {o} are left?",
        "{M} brings {b} more {o} than {N}, who brings {a}. {c} are taken. How many are there now?",
    ),
    _say(
        "k * m; _1 + a; _2 - b",
        "{N} has {k} bags with {m} {o} each, gets {a} more and loses {b}. How many are left?",
        "There are {k} rows of {m} {o}. {a} are added and {b} are removed. How many are there?",
        "{N} buys {k} packs of {m} {o} and finds {a} more. Then {he} gives {b} to {M}. "
        "How many {o} does {he} have now?",
        "{N} makes {m} {o} a day for {k} days, buys {a} and sells {b}. How many are left?",
        "If {N} has {k} bags of {m} {o}, gets {a} and uses {b}, how many {o} are left?",
        "{M} gives {N} {k} bags of {m} {o}. {N} had {a} {o} before and now loses {b}. "
        "How many {o} does {N} have?",
        "{N} has {a} {o} and gets {k} bags of {m} {o}. Then {he} loses {b}. How many are left?",
        "{M} gives {N} {k} packs of {m} {o}. {N} finds {a} more and sells {b}. "
        "How many {o} does {N} have now?",
        "Each of {k} jars holds {m} {o}. {N} adds {a} and takes out {b}. How many are there now?",
        "{N} had {a} {o} before. {M} gives {him} {k} bags with {m} each. {b} are broken. "
        "How many {o} are whole?",
        "{k} rows of {m} {o} stand in the {place}. {a} are brought and {b} are taken. "
        "How many remain?",
        "How many {o} are left if {N} buys {k} packs of {m}, finds {a} more and uses {b}?",
    ),
)
SITUATIONS: Final = (*TOGETHER, *COMPARE, *GROUPS, *PLACES)
