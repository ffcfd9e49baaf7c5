"""The phrasings of a story about one person and a changing number of things.

Rules: `<gives|gave>` is resolved by tense; {N} is the person, {M} another one, {o} the things, {n}
the operand; a clause has no subject (`buys {n} more`) unless its bank says so. Every verb occurs
in trained phrasings, so a held-out phrasing asks for grammar, not for a word never seen.
"""

from __future__ import annotations

from typing import Final

from novamesh_engine.recipe.corpus.split import Bank, divide

_GAIN_VERBS: Final = (
    "<buys|bought>", "<finds|found>", "<gets|got>", "<receives|received>", "<collects|collected>",
    "<gathers|gathered>", "<earns|earned>", "<wins|won>", "<makes|made>", "<adds|added>",
    "<picks up|picked up>", "<discovers|discovered>", "<gains|gained>", "<orders|ordered>",
    "<borrows|borrowed>", "<acquires|acquired>", "<brings in|brought in>", "<takes in|took in>",
    "<is given|was given>", "<is sent|was sent>", "<obtains|obtained>", "<produces|produced>",
)  # fmt: skip
_GAIN_SHAPES: Final = (
    "{v} {n} more", "{v} {n} more {o}", "{v} another {n}", "{v} another {n} {o}", "{v} {n} {o}",
    "{v} {n} extra {o}", "{v} {n} more {o} at the {place}", "{v} {n} more from {M}",
    "{v} {n} additional {o}", "{v} {n} new {o}", "also {v} {n} {o}", "{v} {n} more of them",
    "{v} {n} more on {day}", "{v} a further {n} {o}", "then {v} {n} more",
)  # fmt: skip
_LOSE_VERBS: Final = (
    "<loses|lost>", "<sells|sold>", "<uses|used>", "<breaks|broke>", "<drops|dropped>",
    "<donates|donated>", "<returns|returned>", "<spends|spent>", "<misplaces|misplaced>",
    "<gives away|gave away>", "<throws away|threw away>", "<hands out|handed out>",
    "<uses up|used up>", "<trades away|traded away>", "<removes|removed>", "<wastes|wasted>",
    "<destroys|destroyed>", "<lends out|lent out>", "<takes away|took away>", "<eats|ate>",
    "<burns|burned>", "<ships out|shipped out>", "<gets rid of|got rid of>",
    "<parts with|parted with>",
)  # fmt: skip
_LOSE_SHAPES: Final = (
    "{v} {n}", "{v} {n} of them", "{v} {n} {o}", "{v} {n} of the {o}", "{v} {n} of {his} {o}",
    "{v} exactly {n}", "{v} {n} of these", "{v} {n} on {day}", "{v} {n} of the {o} at the {place}",
    "then {v} {n}", "{v} {n} of those {o}", "{v} a total of {n}",
)  # fmt: skip
_HAND_VERBS: Final = (
    "<gives|gave>", "<sells|sold>", "<lends|lent>", "<sends|sent>", "<hands|handed>",
    "<passes|passed>", "<donates|donated>", "<offers|offered>",
)  # fmt: skip
_HAND_SHAPES: Final = (
    "{v} {n} to {M}", "{v} {n} {o} to {M}", "{v} {n} of them to {M}", "{v} {M} {n}",
    "{v} {M} {n} {o}", "{v} {M} {n} of the {o}", "{v} {n} of {his} {o} to {M}",
    "{v} {n} {o} to {kin}", "{v} {kin} {n} of them", "{v} {n} to {kin}", "{v} {M} {n} of {his} {o}",
)  # fmt: skip


def _cross(verbs: tuple[str, ...], shapes: tuple[str, ...]) -> list[str]:
    return [shape.replace("{v}", verb) for shape in shapes for verb in verbs]


GAIN: Final = divide(*_cross(_GAIN_VERBS, _GAIN_SHAPES))
LOSE: Final = divide(
    *_cross(_LOSE_VERBS, _LOSE_SHAPES), *_cross(_HAND_VERBS, _HAND_SHAPES),
    "<gives|gave> {n} away", "<throws|threw> {n} away", "<gives|gave> {n} {o} away",
    "<throws|threw> {n} of them out", "<gives|gave> {n} of the {o} back",
)  # fmt: skip
GAIN_EVENT: Final = divide(
    "{M} <gives|gave> {him} {n} more", "{M} <gives|gave> {him} {n} {o}",
    "{M} <hands|handed> {him} another {n}", "{M} <hands|handed> {N} {n} more {o}",
    "{M} <brings|brought> {him} {n} more", "{M} <brings|brought> {n} extra {o}",
    "{kin} <gives|gave> {him} {n} more {o}", "{kin} <sends|sent> {N} {n} {o}",
    "{n} more <arrive|arrived>", "{n} more {o} <arrive|arrived>", "{n} more {o} <are|were> added",
    "another {n} <are|were> added", "another {n} {o} <come|came> in", "{n} new {o} <come|came> in",
    "{M} <adds|added> {n} more", "{M} <adds|added> {n} {o} to the pile",
    "{M} <puts|put> {n} more {o} in", "someone <leaves|left> {n} more {o} at the door",
    "a neighbour <gives|gave> {him} {n} {o}", "a friend <gives|gave> {N} {n} more",
    "{M} <sends|sent> {n} more by post", "{n} extra {o} <are|were> found in the {place}",
    "the number of {o} <grows|grew> by {n}", "the number <rises|rose> by {n}",
    "the count <goes|went> up by {n}", "{M} <lends|lent> {him} {n}",
    "{he} <is|was> given {n} more by {M}", "{he} <receives|received> a gift of {n} {o} from {M}",
    "{N}'s collection <grows|grew> by {n}", "{M} <passes|passed> {n} more to {him}",
    "{n} {o} <are|were> delivered", "{n} more <are|were> delivered by {M}",
)  # fmt: skip
LOSE_EVENT: Final = divide(
    "{M} <takes|took> {n}", "{M} <takes|took> {n} of them", "{M} <takes|took> {n} {o} away",
    "{M} <borrows|borrowed> {n} of the {o}", "{M} <eats|ate> {n} of them",
    "{n} of them <break|broke>", "{n} {o} <break|broke>", "{n} of the {o} <get|got> lost",
    "{n} <are|were> lost", "{n} of them <are|were> stolen", "{n} {o} <disappear|disappeared>",
    "{n} of the {o} <are|were> removed", "{n} <fall|fell> out and <are|were> lost",
    "{kin} <takes|took> {n} of the {o}", "{n} of {his} {o} <go|went> missing",
    "{M} <buys|bought> {n} of them from {him}", "{n} <are|were> sold at the {place}",
    "the number of {o} <falls|fell> by {n}", "the number <drops|dropped> by {n}",
    "the count <goes|went> down by {n}", "{n} {o} <are|were> thrown away",
    "{n} of them <turn|turned> out to be broken", "{n} of the {o} <are|were> sent to {M}",
    "{M} <steals|stole> {n} {o}", "{n} {o} <are|were> taken away by {M}",
    "{n} of the {o} <are|were> given to {M}", "a thief <takes|took> {n} of them",
    "{n} of the {o} <roll|rolled> away", "{n} <are|were> used up", "{n} {o} <are|were> sold",
)  # fmt: skip
DOUBLE: Final = divide(
    "<doubles|doubled> {his} {o}", "<doubles|doubled> the number of {o}",
    "<ends|ended> up with twice as many", "<has|had> twice as many the next day",
    "<makes|made> it twice as many", "<doubles|doubled> this amount", "<doubles|doubled> that",
    "<gets|got> as many again", "<multiplies|multiplied> the number by 2",
    "<doubles|doubled> the amount", "<doubles|doubled> what {he} <has|had>",
)  # fmt: skip
TIMES: Final = divide(
    "<multiplies|multiplied> the number by {n}", "<ends|ended> up with {n} times as many",
    "<has|had> {n} times as many a week later", "<multiplies|multiplied> the {o} by {n}",
    "<makes|made> it {n} times as many", "<reaches|reached> {n} times that number",
    "<multiplies|multiplied> that by {n}", "<grows|grew> the pile to {n} times its size",
)  # fmt: skip
HALVE: Final = divide(
    "<loses|lost> half of them", "<gives|gave> half of them away", "<sells|sold> half of the {o}",
    "<gives|gave> half of the {o} to {M}", "<keeps|kept> only half of them", "<uses|used> half",
    "<gives|gave> {M} half of the {o}", "<throws|threw> half of the {o} away",
    "<sells|sold> half of them", "<eats|ate> half of them", "<halves|halved> the number of {o}",
)  # fmt: skip
SHARE: Final = divide(
    "<splits|split> them into {n} equal piles and <keeps|kept> one pile",
    "<divides|divided> them into {n} equal parts and <keeps|kept> one part",
    "<shares|shared> them equally among {n} people, {himself} included",
    "<divides|divided> the number by {n}", "<sorts|sorted> them into {n} equal groups and "
    "<keeps|kept> one group", "<splits|split> the {o} equally into {n} bags and <keeps|kept> one",
    "<makes|made> {n} equal shares and <keeps|kept> one share",
)  # fmt: skip
START: Final = divide(
    "{N} <has|had> {a} {o}", "{N} <starts|started> with {a} {o}", "{N} <owns|owned> {a} {o}",
    "There <are|were> {a} {o} in {N}'s {box}", "{N} <keeps|kept> {a} {o} in a {box}",
    "{N} <counts|counted> {a} {o} in the {box}", "In the morning {N} <has|had> {a} {o}",
    "{N} <begins|began> the day with {a} {o}", "At first {N} <has|had> {a} {o}",
    "{a} {o} <belong|belonged> to {N}", "{N} <holds|held> {a} {o}",
    "On {day} {N} <has|had> {a} {o}", "{N} <carries|carried> {a} {o} to the {place}",
    "{N} <has|had> a {box} with {a} {o}", "{N}'s {box} <contains|contained> {a} {o}",
    "{N}'s {box} <holds|held> {a} {o}", "{N} <has|had> collected {a} {o}",
    "{N} <has|had> exactly {a} {o}", "{N} <has|had> {a} {o} in total",
    "{N} <puts|put> {a} {o} on the table", "There <is|was> a {box} with {a} {o} at {N}'s house",
    "{N} <has|had> saved {a} {o}", "{N}, who <lives|lived> near the {place}, <has|had> {a} {o}",
    "{N} <has|had> a collection of {a} {o}", "To begin with, {N} <has|had> {a} {o}",
    "{N} <comes|came> home with {a} {o}", "{N} <stores|stored> {a} {o}",
    "{a} {o} <are|were> in {N}'s {box}", "{N} <finds|found> {a} {o} in the {place}",
    "{N} <buys|bought> {a} {o}", "{N} <makes|made> {a} {o}", "{N} <gets|got> {a} {o} from {M}",
    "{N} <sees|saw> {a} {o} at the {place}", "{N} <works|worked> in a shop with {a} {o}",
)  # fmt: skip
LINK: Final = divide(
    "", "Then ", "Later ", "After that, ", "Next, ", "The next day ", "Afterwards ", "On {day} ",
    "A week later ", "In the evening ", "Then, on {day}, ", "Soon ", "After lunch ", "Now ",
    "At noon ", "But then ", "Suddenly ", "Finally ", "Also, ", "Some time later ",
)  # fmt: skip
ASK: Final = divide(
    "How many {o} does {N} have now", "How many {o} does {he} have now",
    "How many {o} does {N} have", "How many does {N} have now", "How many does {he} have",
    "How many {o} does {N} have in the end", "How many {o} does {he} have at the end",
    "How many {o} are there now", "How many are there now", "How many {o} are there in the end",
    "What is the number of {o} now", "What is {N}'s number of {o} now",
    "How many {o} will {N} have", "How many {o} does {N} end up with",
    "How many {o} does {he} end up with", "How many {o} did {N} have at the end",
    "So how many {o} does {N} have", "How many {o} has {N} got now", "How many {o} has {he} got",
    "How many does that make", "What is the total now", "How many {o} can {N} count now",
    "How many {o} remain in the end", "Now how many {o} does {N} have",
    "How many {o} does {N} have after this", "How many {o} does {N} have after all that",
    "Exactly how many {o} does {N} have now", "What number of {o} does {N} have now",
    "How many {o} are in {N}'s hands now", "How large is the number of {o} now",
)  # fmt: skip
ASK_LEFT: Final = divide(
    "How many {o} are left", "How many are left", "How many {o} does {N} have left",
    "How many does {he} have left", "How many {o} remain", "How many {o} are still there",
    "How many {o} does {he} still have", "What is left", "How many does {N} still have",
    "How many {o} are left over", "How many {o} does {N} keep", "How many {o} has {N} left",
    "What number of {o} is left", "How many of the {o} are left", "How many are still there",
)  # fmt: skip
TELL: Final = divide(
    "Find the number of {o} {N} has now.", "Work out how many {o} {N} has.",
    "Calculate how many {o} {he} has now.", "Say how many {o} there are now.",
    "Compute the number of {o} in the end.", "Tell me how many {o} {N} has now.",
    "Count the {o} that {N} has now.", "Give the number of {o} at the end.",
    "I want to know how many {o} {N} has now.", "Find out how many {o} {he} ends up with.",
    "Work out the final number of {o}.", "Determine how many {o} {N} has in the end.",
)  # fmt: skip
JOIN: Final = divide(
    " and ", ", then ", " and then ", " and later ", ", after which {he} ", " but ", ", and ",
    " and afterwards ", "; then {he} ", " and after that ", " before {he} ", ", and then ",
)  # fmt: skip
FRAME_LIST: Final = divide(
    "{N} <has|had> {a} {o}, {vps}. {ask}", "{N} <has|had> {a} {o} and {vps}. {ask}",
    "If {N} <has|had> {a} {o} and {vps}, {lask}", "{qask} if {he} <has|had> {a} {o} and {vps}?",
    "{qask} if {he} <starts|started> with {a} {o} and {vps}?",
    "{N} <owns|owned> {a} {o} and {vps}. {ask}",
    "Starting with {a} {o}, {N} {vps}. {ask}", "{qask} after {he} <has|had> {a} {o} and {vps}?",
    "With {a} {o} to begin with, {N} {vps}. {ask}", "{start}. {N} {vps}. {ask}",
    "{start}. {He} {vps}. {ask}", "{N} {vps}. Before that {he} had {a} {o}. {ask}",
    "{N}, who <has|had> {a} {o}, {vps}. {ask}", "Suppose {N} <has|had> {a} {o}. {He} {vps}. {ask}",
    "Imagine that {N} <has|had> {a} {o} and {vps}. {ask}", "{ask} {N} <has|had> {a} {o} and {vps}.",
    "{ask} {start}. {He} {vps}.", "Out of {a} {o}, {N} {vps}. {ask}",
    "After starting the day with {a} {o}, {N} {vps}. {ask}", "{He} {vps}, and at first {N} "
    "<has|had> {a} {o}. {ask}", "Let us say {N} <owns|owned> {a} {o} and {vps}. {ask}",
    "Having {a} {o}, {N} {vps}. {ask}", "When {N} <has|had> {a} {o} and {vps}, {lask}",
    "{start}. If {he} {vps}, {lask}", "{N} had {a} {o} at first. {He} {vps}. {ask}",
    "{N} {vps}. {He} had {a} {o} at the start. {ask}",
    "Given that {N} <has|had> {a} {o} and {vps}, {lask}",
)  # fmt: skip
FRAME_SENTENCES: Final = divide(
    "{start}. {subs} {ask}", "{start}. {subs} {ask}", "{ask} {start}. {subs}",
    "Suppose {N} <has|had> {a} {o}. {subs} {ask}", "{N} <has|had> {a} {o} at first. {subs} {ask}",
    "Imagine this: {start}. {subs} {ask}", "There <are|were> {a} {o}. {subs} {ask}",
    "{N} and {kin} <have|had> {a} {o}. {subs} {ask}", "Here is a story. {start}. {subs} {ask}",
    "Say {N} <starts|started> with {a} {o}. {subs} {ask}", "{start}! {subs} {ask}",
    "Listen: {start}. {subs} {ask}", "A {box} <has|had> {a} {o}. {subs} {ask}",
)  # fmt: skip
FRAME_NOTE: Final = divide(
    "{a} {o}, {notes}. {ask}", "{N}: {a} {o}, {notes}. {ask}", "Start: {a} {o}. {Notes}. {ask}",
    "{o}: {a} at first, {notes}. {ask}", "We have {a} {o}, {notes}. {ask}",
    "{a} {o}, {notes}, how many in the end?", "I have {a} {o}, {notes}. How many do I have now?",
)  # fmt: skip
NOTES: Final[dict[str, Bank]] = {
    "+": divide(
        "plus {n} more", "plus {n}", "{n} added", "{n} more bought", "{n} found", "then {n} more",
        "and {n} more came in", "{n} gained", "received {n}", "bought {n} more", "got {n} more",
        "add {n}", "increase of {n}", "{n} won",
    ),
    "-": divide(
        "minus {n}", "{n} taken away", "{n} lost", "{n} sold", "{n} given away", "{n} used",
        "then {n} fewer", "lost {n}", "gave away {n}", "sold {n}", "ate {n}", "take away {n}",
        "decrease of {n}", "less {n}",
    ),
    "*": divide("times {n}", "multiplied by {n}", "then {n} times as many", "make it {n} times"),
    "/": divide("divided by {n}", "split into {n} equal parts", "shared by {n}"),
}  # fmt: skip
KIN: Final = (
    "{his} sister", "{his} brother", "{his} mother", "{his} father", "{his} friend", "{his} cousin",
    "{his} aunt", "{his} uncle", "a friend", "a neighbour", "{his} teacher", "the neighbours",
)  # fmt: skip
