"""Stories: a plot fixes who wants what and where; the wording of every step varies, the names and things recur."""
# ruff: noqa: E501, SIM905 (a template reads best on one line; word lists are strings, as quotes would double them)

import random

import lexicon

from .engine import paragraph, people

OPENINGS = [
    "[One|On a] {weather} [morning|evening|afternoon] in {month}, {hero} [the {job} |]walked [slowly|quietly|alone] to the "
    "{place} [near|outside|behind] {town}.",
    "{hero}, who [worked as a {job}|lived with a {job}|had once been a {job}] in {town}, [owned|kept|treasured] a "
    "{material} {object} that [came from|had been found in|smelled of] the {place}.",
    "When the [first snow|autumn rain|spring wind|summer heat] came to {town}, {hero} was [still|already] [working|waiting"
    "|sitting|sleeping] [in|near|beside] the {place} with {hero.his} {animal}.",
    "Every {day}, the {job} of {town} told {hero} [the same|an old|a strange] story about the {place} and a {material} "
    "{object}.",
    "In {town}, [not far from|just behind|right beside] the {place}, there lived a {job} called {hero}, who "
    "[trusted|loved|feared] nobody [but|except] {hero.his} {animal}.",
]
# Each plot: steps in order; {object} is the thing it is about, {friend} the second character, {animal} a companion.
PLOTS = {
    "lost": [
        "{hero.He} [wanted|hoped|had promised] to show the {material} {object} to {friend}, but [the pocket|the drawer|the "
        "bag] where [it belonged|{hero.he} kept it] was empty.",
        '"[Have you seen|Did you take|Where is] my {object}?" {hero.he} asked {friend}, who [was mending a net|was peeling '
        "apples|had just come home|was feeding the {animal}].",
        '"[I saw it|It was lying|Somebody left it] [yesterday|this morning|last night] [near|behind|under the stairs of] the '
        '{other}," said {friend}, [and pointed at the door|and smiled|without looking up|in a low voice].',
        "[Together|Before sunset|Without another word], {hero} and {friend} [hurried|ran|climbed|walked] to the {other}, "
        "while the {animal} [followed them|ran ahead|stayed behind].",
        "[There, between|There, beneath|At last, among] the [old boards|wet leaves|empty barrels|grey stones], lay the "
        "{object}, [covered with dust|wet with rain|cold as ice|bright as the moon].",
        "{hero} [thanked|hugged|laughed with] {friend} and [never again|never after that day] left the {material} {object} "
        "[out of sight|on a windowsill|in an open bag].",
    ],
    "gift": [
        "It was {friend}'s birthday, and {hero} had [saved|hidden|carried home] a {material} {object} that {friend} had [long "
        "wished for|once admired|asked about].",
        "But on the way to the {other}, the {animal} [jumped over|knocked down|grabbed] the parcel, and the {object} [fell "
        "into|rolled towards|sank into] the [mud|ditch|stream|snow].",
        '"[What shall I do|How can I come|What will {friend} say] now?" [thought|whispered|sighed] {hero}, [wiping|drying'
        "|holding] the {object} with {hero.his} [sleeve|gloves|apron].",
        "{hero} [told|confessed to] {friend} [everything|the whole truth], [from the parcel to|and even about] the {animal}, "
        "and [waited|blushed|looked down].",
        '"[A {object} that has survived|A {object} with] [a journey|an adventure|a little mud] is worth [twice as much|more '
        'than gold]," [said|answered|replied] {friend}, who [laughed|smiled|was not angry].',
        "[Since then|To this day], the {material} {object} has [hung|stood|stayed] [above|beside] {friend}'s [bed|stove|door], "
        "and the {animal} [sleeps|sits|waits] [under it|near it].",
    ],
    "storm": [
        "[In the night|Towards evening|Soon after midnight], a storm [broke over|came down on|shook] the {place}, and the "
        "[thunder|wind|hail] [frightened|woke] the {animal}.",
        "{friend}, {hero}'s [neighbour|cousin|oldest friend], was [still out|all alone] at the {other} with [no light|nothing] "
        "but a {material} {object}.",
        '"[I must go|I cannot wait|I have to find {friend.him}]," [said|cried] {hero}, and [pulled on|grabbed|buttoned] a '
        "[thick|warm|patched] coat.",
        "[Branches|Tiles|Planks] [lay|flew] across the [path|road], and the [water|snow] [rose|reached] [to {hero.his} "
        "knees|higher with every step], but {hero} did not [stop|turn back].",
        "[At the {other}|Behind the {other}|On the steps of the {other}], {friend} [lifted|raised|waved] the {object} as soon "
        "as {friend.he} [heard|saw] the {animal}.",
        "They [waited|sat|stayed] [side by side|close together] until [dawn|the storm ended], and {friend} gave {hero} the "
        "{material} {object} [as thanks|to remember the night].",
    ],
    "secret": [
        "[Under the {object}|Behind the {object}|Next to the {object}], {hero} [discovered|found|noticed] a [note|page|scrap of "
        "paper] that {friend} had [signed|written|folded] [years before|long ago].",
        'It said: "[Whoever reads this|If you find this|Dear stranger], [look|dig|search] [behind|under|inside] the {other} '
        '[at noon|before winter|when the {animal} sleeps]."',
        "{hero} [could not sleep|forgot {hero.his} supper|told nobody], [because|for] the {other} had [been locked|stood "
        "empty] since {friend} [left|went to sea|disappeared].",
        "With [a borrowed|a rusty] [shovel|hammer|candle], {hero.he} [opened|searched|entered] the {other}, and the {animal} "
        "[scratched|sniffed] at [a loose stone|the floor|the wall].",
        "[Out came|There was|{hero.He} lifted out] a [second|smaller] {object}, as {material} as the first, and [a portrait|a "
        "letter] of {friend}.",
        '"[So it was true|So {friend.he} did come back|Then nobody lied]," [whispered|murmured|said] {hero}, and [carried|took'
        "|brought] both home to {town}.",
    ],
    "quarrel": [
        "{hero} and {friend} had [shared|owned] the {material} {object} since [childhood|school], but [one|that] {day} they "
        "[quarrelled|argued] about it [bitterly|for hours].",
        '"[You never clean it|You always keep it|It belongs to my family]," [shouted|complained|said] {friend}, and [slammed '
        "the door|left the {place}|kicked a chair].",
        "For [three days|a week|a whole month], {hero} [worked|ate|sat] alone in the {place} and [missed|thought of] "
        "{friend}, although {hero.he} would not [admit|say] it.",
        "Then the {animal} [fell ill|ran away|got lost] near the {other}, and {friend}, who [heard of it|knew the paths], "
        "[came at once|brought it back|searched all night].",
        '"[Keep the {object}|Let us share the {object} again|I was wrong about the {object}]," said {hero}, and {friend} [shook '
        "{hero.his} hand|nodded|began to laugh].",
        "[Now|Since that evening] the {object} [spends|stays] [one week|one month] with {hero} and [the next|another] with "
        "{friend}, [and nobody counts the days|as it should be].",
    ],
    "stranger": [
        "[A stranger|A traveller|A pale visitor] named {friend} [stepped|came] into the {place} and [asked for|offered to buy"
        "|wanted to see] the {material} {object}.",
        '"[My grandmother|My brother|My teacher] [lost it|sold it|made it] in {town}," [explained|said] {friend}, "and [I have '
        'searched|I have travelled] [for years|through every {other}]."',
        "{hero} did not [know|see] whether {friend.he} [told the truth|could be trusted], so {hero.he} [watched|asked|looked "
        "at] the {animal}, which [looked away|sat down|came closer].",
        "{friend} [described|drew|remembered] [a mark|a scratch|two letters] on the {object} that nobody [else|in {town}] "
        "[could know|had ever seen].",
        '"[Then it is yours|Take it|It has waited for you]," said {hero}, who [had grown fond of it|felt both sad and glad|was '
        "no longer afraid].",
        "[Years later|The next spring], a [parcel|letter] from {friend} [arrived|reached {town}]: it [held|contained] a "
        "[drawing|picture] of the {object} and [a word of thanks|an invitation].",
    ],
    "contest": [
        "[Each|Every] {month}, {town} held a [race|contest] [from the {place} to the {other}|around the {place}], and the "
        "[prize|winner's prize] was a {material} {object}.",
        "{friend}, who had won [twice|three times|last year], [laughed at|teased|pitied] {hero} and the [old|slow|limping] "
        "{animal} that {hero.he} [loved|trained|trusted].",
        '"[We will see|Wait until Sunday|Laugh while you can]," [said|answered] {hero}, and [practised|trained|ran] [before '
        "sunrise|every night|in the rain].",
        "On the day of the [race|contest], {friend} [took the lead|was far ahead], but [slipped|fell] near the {other} and "
        "[hurt|twisted] {friend.his} [ankle|knee].",
        "Instead of [winning|running past], {hero} [stopped|turned round] and [helped|carried|supported] {friend} [to the end"
        "|as far as the {other}], while the {animal} [followed|watched|waited].",
        "[The judges|The people of {town}] gave the {object} to {hero}, and {friend} [clapped|cheered] [the loudest|longest of "
        "all].",
    ],
    "repair": [
        "The {object} that {friend} had [left|inherited|brought] was {material} but [damaged|useless|worn out], and no {job} in "
        "{town} [could|would] repair it.",
        '"[Give me a week|Let me try|I know what it needs]," said {hero}, and [took it|carried it] to the {other}, where '
        "[tools|oil and glue] were [kept|easy to find].",
        "[Night after night|Hour after hour], {hero} [filed|sanded|cleaned] [each|every] part, and the {animal} [slept|sat] "
        "[on the bench|beside the lamp].",
        "[Once|Twice], {hero.he} [nearly gave up|threw down the tools|cut {hero.his} thumb], but {friend}'s [hopeful|sad|tired] "
        "face [came to mind|did not leave {hero.him}].",
        "On {day}, the {object} [worked|was whole] again, and {friend} [could not|was unable to] [speak|stop smiling] when "
        "{hero} [brought|showed] it.",
        '"[How can I pay you|What do I owe you]?" asked {friend}. "[Come to supper|Teach me your song|Lend me the {animal}]," '
        "[said|replied] {hero}.",
    ],
    "journey": [
        "[An old map|A faded letter|A rumour] [promised|said] that a {material} {object} [lay|was hidden] in the {other}, [two"
        "|three] days [east|north|south] of {town}.",
        "{hero} [packed|took] [bread and cheese|dried fish|a blanket], [woke|called] {friend}, and [set out|left] with the "
        "{animal} [at dawn|before anybody woke].",
        "They [crossed|followed] [a frozen river|a dusty road|a dark wood], and {friend}, who was [afraid of|used to] the "
        "[dark|cold], [sang|counted steps|told jokes].",
        '"[What if there is nothing|What if it is only a story]?" asked {friend}. "Then we [had a good walk|saw the world]," '
        "[said|laughed] {hero}.",
        "The {other} was [empty|silent|half ruined], but the {animal} [found|dug up] the {object} [under|behind] [a fallen "
        "beam|a broken chest|a heap of stones].",
        "[Back in {town}|When they came home], {hero} and {friend} [hung|placed] the {object} in the {place}, where [anybody|"
        "every child] could [touch|admire] it.",
    ],
}
ENDINGS = [
    "[Even now|Today|On quiet evenings], people in {town} [tell|repeat] the [tale|story] of {hero}, {friend} and the "
    "{material} {object}.",
    "That [night|evening], {hero} [wrote|noted] in {hero.his} diary: the {object}, the {animal}, and {friend} [beside me|under "
    "the stars].",
    "And the {animal}, [of course|as always], [got|was given] the [best|warmest] [place|corner] [by the fire|at the table].",
]
# Plots whose thing does not belong to the hero at first.
NOT_OWNED = ("storm", "repair", "journey", "contest")
WEATHER = "cold foggy rainy bright windy frosty stormy golden misty mild".split()


def cast(rng: random.Random, **fixed) -> dict:
    """Draw the people, places and things of one story; `fixed` overrides."""
    hero, friend = people(rng, 2)
    place, other = rng.sample(lexicon.PLACES, 2)
    drawn = {
        "hero": hero,
        "friend": friend,
        "place": place,
        "other": other,
        "town": rng.choice(lexicon.TOWNS),
        "object": rng.choice(lexicon.OBJECTS),
        "material": rng.choice(lexicon.MATERIALS),
        "animal": rng.choice(lexicon.ANIMALS),
        "job": rng.choice(lexicon.JOBS),
        "weather": rng.choice(WEATHER),
        "month": rng.choice(lexicon.MONTHS),
        "day": rng.choice(lexicon.DAYS),
    }
    return drawn | fixed


def beginning(rng: random.Random, without: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    """Draw a plot, none of `without`, and an opening that agrees with it about who owns the thing."""
    name = rng.choice(sorted(set(PLOTS) - set(without)))
    openings = [text for text in OPENINGS if name not in NOT_OWNED or "treasured" not in text]
    return rng.choice(openings), PLOTS[name]


def document(rng: random.Random) -> str:
    """Return `Story: ...`: an opening, the steps of a plot, and sometimes an ending."""
    opening, plot = beginning(rng)
    ending = [rng.choice(ENDINGS)] if rng.random() < 0.5 else []
    return "Story: " + paragraph(rng, [opening, *plot, *ending], **cast(rng))
