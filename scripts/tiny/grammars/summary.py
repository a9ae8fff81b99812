"""Texts of several sentences about one event, and a summary of one sentence that only uses facts of the text."""
# ruff: noqa: E501 (a template reads best on one line)

import random

import lexicon

from .engine import NUMBERS, capital, expand, paragraph, people

OPENERS = "[On {day}|Last {day}|In {month}|Late in {month}|Early in {month}|On a {day} in {month}]"
# Each kind: words to draw, the sentences of the text (the last may be left out), and the summary.
EVENTS = {
    "storm": {
        "struck": "struck|hit|reached",
        "damage": "roof of the school|roof of the chapel|wooden bridge|railway line|old lighthouse|covered market",
        "measure": "closed all roads|moved forty families|opened a shelter|cut the power|cancelled the ferry",
        "cause": "a warm wind from the south|a sudden fall in pressure|heavy clouds over the coast",
        "text": [
            OPENERS + ", a [violent|fierce|sudden] storm {struck} {town} and [badly|] damaged the {damage}.",
            "{expert}, who [runs|directs] the weather station, [explained|reported] that the storm came from {cause}.",
            "Mayor {mayor} {measure} and [asked|urged] everybody to stay [indoors|at home] until {day2}.",
            "The repair of the {damage} will cost {number} thousand crowns, [which|and this] the town [cannot pay alone|has to borrow].",
            "[Nobody was hurt|Two people were hurt], although the wind [broke|bent] trees that had stood for {age} years.",
        ],
        "summary": "A storm {struck} {town} and damaged the {damage}, so Mayor {mayor} {measure}.",
    },
    "discovery": {
        "find": "Roman coins|clay pots|painted tiles|bronze tools|stone tombs|glass beads|iron swords",
        "site": "a field|a cellar|a quarry|a river bed|a garden|a cave",
        "found": "found|discovered|uncovered",
        "plans": "plans to|wants to",
        "plan": "build a museum|continue the search|publish a catalogue|invite other experts",
        "text": [
            OPENERS + ", workers who were digging in {site} near {town} {found} {number} {find}.",
            "Professor {expert}, who [examined|studied] the {find}, [believes|thinks] that they are about {old} years old.",
            "The {find} were [lying|buried] under a [layer|bed] of [sand|clay|gravel] that had [protected|preserved] them.",
            "{mayor}, the owner of the land, [gave|lent] the {find} to the town, which {plans} {plan}.",
            "Until {day2}, visitors can [see|admire] them in the [town hall|library|school].",
        ],
        "summary": "Workers {found} {number} {find} in {site} near {town}, and the town {plans} {plan}.",
    },
    "match": {
        "sport": "football|handball|hockey|water polo|ice hockey|youth football",
        "reason": "a mistake of the goalkeeper|an injury of the captain|a long pass|a change of tactics",
        "prize": "the silver cup|the regional title|a place in the final|the golden trophy",
        "text": [
            OPENERS + ", the {sport} team of {town} played against {town2} [before|in front of] {number}00 spectators.",
            "{town} won by {goals} to {less}, and {expert}, who [scored twice|joined the team this year], was the best player.",
            "The [decisive|last] goal followed {reason}, which [surprised|annoyed] the coach of {town2}, {mayor}.",
            "With this victory, {town} secured {prize}, for which the club had waited {age} years.",
            "The teams will meet again on {day2}, [if|provided that] the weather [allows it|stays dry].",
        ],
        "summary": "The {sport} team of {town} won against {town2} by {goals} to {less} and secured {prize}.",
    },
    "meeting": {
        "topic": "new playground|public swimming pool|bus line to the coast|cheaper tickets for pupils|bicycle path|larger hospital",
        "objection": "costs too much|disturbs the neighbours|needs too much land|comes too early",
        "argued": "argued|objected",
        "text": [
            OPENERS + ", the council of {town} [discussed|debated] the plan for a {topic} for {goals} hours.",
            "Mayor {mayor} [supports|defended] the plan, because [many families|most citizens] had [asked|signed a petition] for it.",
            "{expert}, who speaks for the opposition, {argued} that it {objection}.",
            "[In the end|After a break], {number} members voted for the plan and {few} against it.",
            "Work [will begin|starts] on the first {day2} of {month2}[, and a firm from {town2} will do it|].",
        ],
        "summary": "The council of {town} voted for the plan for a {topic}, although {expert} {argued} that it {objection}.",
    },
    "rescue": {
        "victim": "climber|fisherman|child|farmer|student|hiker",
        "spot": "on a narrow ledge|in a flooded cave|on a frozen lake|in a burning barn|in a deep ravine|in a drifting boat",
        "saved": "saved|rescued",
        "helper": "a helicopter|a rescue dog|a long rope|a rubber boat|a powerful lamp",
        "text": [
            OPENERS + ", a {victim} [called for help|was in danger] {spot} near {town}.",
            "{expert}, who [heard|noticed] the cries [by chance|while walking home], [alerted|called] the fire brigade at once.",
            "With {helper}, the brigade {saved} the {victim} after {goals} hours of hard work.",
            "[Fog|Darkness|Wind] had [delayed|hindered] the {number} helpers, whom Captain {mayor} [led|commanded].",
            "A doctor [treated|examined] the {victim} and [recommended|ordered] rest until {day2}.",
        ],
        "summary": "With {helper}, the fire brigade {saved} a {victim} {spot} near {town}.",
    },
    "opening": {
        "house": "library|theatre|swimming pool|museum|concert hall|cinema|railway station|art gallery",
        "feature": "a glass roof|a large terrace|heating from the sun|a room for children|a collection of maps",
        "donor": "a bank|a retired teacher|a local club|a rich merchant|the state",
        "text": [
            OPENERS
            + ", after {age} months of work, a new {house} opened in {town2} [Street|Road], in the [centre|north] of {town}.",
            "The {house}, which {expert} designed, has {feature} and [room|space] for {number} visitors.",
            "It [replaces|follows] an older building that [burned down|was closed] {goals} years ago.",
            "Of the money, {donor} gave [half|the largest part], [while|and] the town [paid|added] the rest.",
            'Mayor {mayor} said: "[We needed|Everybody wanted] this {house}, and it [belongs to|is for] all of us."',
        ],
        "summary": "A new {house} with {feature}, which {expert} designed, opened in {town}.",
    },
    "letter": {
        "work": "the hotel|a hospital|the harbour office|a newspaper|a garden centre|a ship",
        "trouble": "the rent is high|the room is cold|the language is difficult|the streets are noisy",
        "wish": "a warm coat|a photograph of the dog|a dictionary|a jar of honey|the blue blanket",
        "text": [
            "Dear {mayor}, [I have lived|I have been] in {town} for {goals} weeks now, and [much|nearly everything] is new to me.",
            "I work at {work}, where {number} people are employed, and {expert}, who shares my desk, [helps|teaches] me.",
            "[Sometimes I am homesick|The evenings are long], [because|since] {trouble} and I [know|have met] few people.",
            "Could you [please|perhaps] send me {wish}? I [forgot|left] it when I moved here in {month}.",
            "I will come home on the {goals2} {day2} of {month2} and stay until [Christmas|the fair|the wedding] is over. Yours, {friend}.",
        ],
        "summary": "{friend} writes to {mayor} from {town}, works at {work} and asks for {wish}.",
    },
    "harvest": {
        "effect+cause": "larger than/the warm spring|larger than/the new machines|larger than/the many bees|"
        "smaller than/the dry summer|smaller than/the late frost|smaller than/the long rain",
        "usual": "last year|in most years|expected",
        "crop": "apples|grapes|potatoes|cherries|pumpkins|olives|onions",
        "use": "build a new barn|sell them abroad|hire more workers|lower the price",
        "text": [
            OPENERS + ", the farmers around {town} [finished|ended] the harvest of {crop}.",
            "With {number} tons, it was {effect} {usual}, as {expert} of the farmers' union [announced|counted].",
            "[Experts|Merchants] like {mayor} [say|think] that it [is due|goes back] to {cause}, which [nobody|few] had [foreseen|noticed].",
            "The farmers will {use}, [while|and] the market of {town2} [opens|begins] on {day2}.",
            "[A festival|A parade|A dinner] with {goals} [bands|choirs] will [thank|honour] the workers who [had come|came] from other countries.",
        ],
        "summary": "Because of {cause}, the harvest of {crop} around {town} was {effect} {usual}, and the farmers will {use}.",
    },
    "strike": {
        "demanded": "demanded|asked for",
        "group+result": "bus drivers/many people walked to work|nurses/operations were postponed|teachers/schools stayed closed|"
        "dock workers/ships had to wait|bakers/shops ran out of bread|postmen/letters came late|"
        "train drivers/the trains stood still",
        "demand": "higher wages|shorter shifts|longer breaks|safer machines|more staff",
        "text": [
            OPENERS + ", the {group} of {town} stopped work for {goals} days and {demanded} {demand}.",
            "[As a result|For this reason], {result}, and [some|many] citizens [lost patience|complained].",
            "{expert}, who [leads|represents] the {group}, said that nothing had [improved|changed] for {age} years.",
            "The employers first [refused|rejected] this, but [then|after {day2}] {mayor} [offered|promised] to [talk|negotiate].",
            "[Both sides|They] will meet in {town2}, where {number} [other firms|companies] [have|face] the same problem.",
        ],
        "summary": "The {group} of {town} stopped work for {goals} days and {demanded} {demand}, so that {result}.",
    },
    "study": {
        "shows": "suggests|shows",
        "warns": "warns|admits",
        "subject": "walking|reading aloud|cold water|quiet music|an hour of rest|green tea|gardening|singing in a choir",
        "benefit": "improves sleep|lowers the pulse|strengthens memory|reduces pain|calms the mind",
        "limit": "the group was small|most of them were young|the winter was mild|they knew the aim",
        "text": [
            OPENERS + ", researchers in {town} [presented|published] a study about {subject}.",
            "They [observed|compared] {number} adults, half of whom chose {subject} [every day|each morning] for {goals} months.",
            "The result {shows} that {subject} {benefit}, [at least|above all] in people over {age}.",
            "Doctor {expert}, who led the study, {warns} that {limit}, so [the result|it] [needs|requires] a second test.",
            "[This|A second test] will [begin|start] in {town2} in {month2}, with {mayor} as [director|partner].",
        ],
        "summary": "A study in {town} {shows} that {subject} {benefit}, but Doctor {expert} {warns} that {limit}.",
    },
}


def facts(rng: random.Random, kind: str) -> dict[str, object]:
    """Draw the facts of one event."""
    town, town2 = rng.sample(lexicon.TOWNS, 2)
    day, day2 = rng.sample(lexicon.DAYS, 2)
    month = rng.randrange(12)
    expert, mayor = rng.sample(lexicon.SURNAMES, 2)
    who, helper, friend = people(rng, 3)
    less, goals = sorted(rng.sample(range(2, 8), 2))
    drawn = {}
    for names, words in EVENTS[kind].items():
        if names not in ("text", "summary"):  # `a+b` draws two slots that go together, as `one/other`
            drawn |= dict(zip(names.split("+"), rng.choice(words.split("|")).split("/"), strict=True))
    return drawn | {
        "town": town,
        "town2": town2,
        "day": day,
        "day2": day2,
        "month": lexicon.MONTHS[month],
        "month2": lexicon.MONTHS[(month + rng.randint(1, 4)) % 12],
        "friend": friend,
        "less": NUMBERS[less],
        "goals": NUMBERS[goals],
        "goals2": rng.choice(["first", "second", "third"]),
        "number": rng.randint(12, 99),
        "few": NUMBERS[rng.randint(3, 11)],
        "old": rng.choice([1500, 1600, 1700, 1800]),
        "age": rng.choice([20, 30, 40, 50, 60, 70]),
        "expert": expert if kind in ("discovery", "study") else f"{who} {expert}",
        "mayor": helper
        if kind == "letter"
        else mayor
        if kind in ("storm", "meeting", "opening", "rescue")
        else f"{helper} {mayor}",
    }


def document(rng: random.Random) -> str:
    """Return `Text: ...` and `Summary: ...`."""
    kind = rng.choice(sorted(EVENTS))
    event = EVENTS[kind]
    slots = facts(rng, kind)
    text = event["text"][: 4 if kind != "letter" and rng.random() < 0.3 else 5]
    return f"Text: {paragraph(rng, text, **slots)}\nSummary: {capital(expand(rng, event['summary'], **slots))}"
