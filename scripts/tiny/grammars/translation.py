"""English-French documents: one structure of meaning generates both sides, sentence by sentence."""

import random
import re
from dataclasses import dataclass, replace

import lexicon

from .engine import ARTICLE, NUMBERS, capital, plural

VOWEL = re.compile(r"[aeiouyhâàéèêîôœ]", re.IGNORECASE)  # each h of the lexicon is mute
COUNTS = {2: "deux", 3: "trois", 4: "quatre", 5: "cinq", 6: "six", 7: "sept", 8: "huit", 9: "neuf", 10: "dix"}
SPECIAL = {"beau": ("bel", "beaux"), "vieux": ("vieil", "vieux"), "nouveau": ("nouvel", "nouveaux")}


def french(text: str) -> str:
    """Apply the elisions and contractions of French: le arbre -> l'arbre, de le -> du, à le -> au."""
    for full, short in (("le", "l'"), ("la", "l'"), ("de", "d'"), ("ne", "n'"), ("que", "qu'"), ("je", "j'")):
        text = re.sub(rf"\b({full}) (?={VOWEL.pattern})", short, text)
    for full, short in (("de le", "du"), ("de les", "des"), ("à le", "au"), ("à les", "aux")):
        text = re.sub(rf"(?<!\w){full} ", short + " ", text)
    return text


def french_plural(word: str) -> str:
    """Return the plural of a French noun or adjective; of a compound, of its first word."""
    if " " in word:
        head, _, rest = word.partition(" ")
        return f"{french_plural(head)} {rest}"
    if word[-1] in "sxz":
        return word
    if word.endswith("eau"):
        return word + "x"
    return word[:-2] + "aux" if word.endswith("al") else word + "s"


@dataclass(frozen=True)
class Adjective:
    english: str
    masculine: str
    feminine: str
    before: bool

    def agree(self, gender: str, number: int, following: str = "") -> str:
        """Return the form for a gender and number; `following` is the noun if it stands directly behind."""
        form = self.masculine if gender == "m" else self.feminine
        if number > 1:
            return SPECIAL.get(form, ("", ""))[1] or french_plural(form)
        return SPECIAL[form][0] if form in SPECIAL and VOWEL.match(following) else form


@dataclass(frozen=True)
class Noun:
    english: str
    french: str
    gender: str
    kind: str


@dataclass(frozen=True)
class Verb:
    english: tuple[str, str, str]  # base, third person, past
    forms: tuple[str, str, str, str, str]  # je, il, nous, ils, participle
    infinitive: str


@dataclass(frozen=True)
class Phrase:
    """A noun phrase in both languages with what agreement needs: person, number and gender."""

    english: str
    french: str
    gender: str = "m"
    number: int = 1
    person: int = 3

    @property
    def pronoun(self) -> "Phrase":
        if self.number > 1:
            return Phrase("they", "ils" if self.gender == "m" else "elles", self.gender, 2)
        return Phrase("it", "il" if self.gender == "m" else "elle", self.gender)


def conjugate(entry: str) -> Verb:
    """Parse a verb entry of the lexicon; verbs in -er without explicit forms follow the regular pattern."""
    base, third, past, rest = entry.split(None, 3)
    infinitive, _, given = rest.partition(":")
    stem = infinitive[:-2]
    soft = stem + "e" if stem.endswith("g") else stem[:-1] + "ç" if stem.endswith("c") else stem
    forms = given.split() or [stem + "e", stem + "e", soft + "ons", stem + "ent", stem + "é"]
    return Verb(tuple(word.replace("_", " ") for word in (base, third, past)), tuple(forms), infinitive)


def adjective(entry: str) -> Adjective:
    english, masculine, feminine = entry.split()
    return Adjective(english, masculine, feminine.rstrip("+"), feminine.endswith("+"))


NOUNS = {
    kind: [Noun(e, f.replace("_", " "), g, kind) for e, f, g in (entry.split() for entry in text.split(","))]
    for kind, text in lexicon.NOUNS.items()
}
ADJECTIVES = {kind: [adjective(entry) for entry in text.split(",")] for kind, text in lexicon.ADJECTIVES.items()}
TRANSITIVE = {kind: [conjugate(entry) for entry in text.split(";")] for kind, text in lexicon.TRANSITIVE.items()}
INTRANSITIVE = {kind: [conjugate(entry) for entry in text.split(";")] for kind, text in lexicon.INTRANSITIVE.items()}
PREPOSITIONS = [("near", "près de"), ("behind", "derrière"), ("in front of", "devant"), ("next to", "à côté de")]


def phrase(noun: Noun, article: str, adjective: Adjective | None = None, number: int = 1) -> Phrase:
    """Return `the|a|number + adjective + noun` in both languages."""
    english, second = plural(noun.english) if number > 1 else noun.english, noun.french
    if number > 1:
        second = french_plural(second)
    if adjective:
        english = f"{adjective.english} {english}"
        form = adjective.agree(noun.gender, number, noun.french if adjective.before else "")
        second = f"{form} {second}" if adjective.before else f"{second} {form}"
    feminine = noun.gender == "f"
    if article == "the":
        words = ("the", "les" if number > 1 else "la" if feminine else "le")
    elif number > 1:
        words = (NUMBERS[number], COUNTS[number])
    else:
        words = ("a", "une" if feminine else "un")
    return Phrase(f"{words[0]} {english}", f"{words[1]} {second}", noun.gender, number)


def clause(subject: Phrase, verb: Verb, rest: tuple[str, str], tense: str = "present", negative: bool = False):
    """Return subject, conjugated verb and the rest, in English and in French."""
    base, third, past = verb.english
    singular = subject.number == 1 and subject.person == 3
    form = verb.forms[(0 if subject.person == 1 else 1) if subject.number == 1 else 2 if subject.person == 1 else 3]
    if tense == "past":
        auxiliary = (
            ("ai" if subject.person == 1 else "a")
            if subject.number == 1
            else ("avons" if subject.person == 1 else "ont")
        )
        english = f"did not {base}" if negative else past
        second = f"ne {auxiliary} pas {verb.forms[4]}" if negative else f"{auxiliary} {verb.forms[4]}"
    elif tense == "future":
        auxiliary = (
            ("vais" if subject.person == 1 else "va")
            if subject.number == 1
            else ("allons" if subject.person == 1 else "vont")
        )
        be = "is" if singular else "am" if subject.number == 1 else "are"
        english = f"{be} {'not ' if negative else ''}going to {base}"
        second = f"ne {auxiliary} pas {verb.infinitive}" if negative else f"{auxiliary} {verb.infinitive}"
    else:
        english = f"{'does' if singular else 'do'} not {base}" if negative else third if singular else base
        second = f"ne {form} pas" if negative else form
    return f"{subject.english} {english} {rest[0]}".strip(), f"{subject.french} {second} {rest[1]}".strip()


def being(subject: Phrase, adjective: Adjective, negative: bool = False) -> tuple[str, str]:
    many = subject.number > 1
    english = f"{subject.english} {'are' if many else 'is'} {'not ' if negative else ''}{adjective.english}"
    verb = "sont" if many else "est"
    verb = f"ne {verb} pas" if negative else verb
    return english, f"{subject.french} {verb} {adjective.agree(subject.gender, subject.number)}"


class Scene:
    """The people and things of one document, which its sentences return to."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        gender = rng.choice("fm")
        name = rng.choice(lexicon.FRENCH_NAMES[gender])
        self.hero = Phrase(name, name, gender)
        self.he = Phrase(*(("she", "elle") if gender == "f" else ("he", "il")), gender)
        self.known = False
        self.qualities = {}
        self.speaker = rng.choice([Phrase("I", "je", number=1, person=1), Phrase("we", "nous", number=2, person=1)])
        self.person = rng.choice(NOUNS["person"])
        self.animal = rng.choice(NOUNS["animal"])
        self.thing = rng.choice(NOUNS["thing"])
        self.food = rng.choice(NOUNS["food"])
        self.place = rng.choice(NOUNS["place"])
        self.landmark = rng.choice(NOUNS["landmark"])

    def subject(self) -> Phrase:
        """The hero by name or, once the name has been said, sometimes by pronoun."""
        return self.he if self.known and self.rng.random() < 0.5 else self.hero

    def a(self, noun: Noun) -> Phrase:
        return phrase(noun, "a", self.quality(noun))

    def the(self, noun: Noun) -> Phrase:
        return phrase(noun, "the")

    def quality(self, noun: Noun) -> Adjective:
        """Return the adjective that belongs to a noun in this document: a red door stays red."""
        general = {"food": 2, "person": 2, "place": 4, "landmark": 4, "animal": 10}.get(noun.kind)
        if noun not in self.qualities:
            self.qualities[noun] = self.rng.choice(ADJECTIVES[noun.kind] + ADJECTIVES["any"][:general])
        return self.qualities[noun]

    def describe(self, noun: Noun, subject: Phrase) -> tuple[str, str]:
        """Say that the subject, a phrase about `noun`, has its quality, or that it is not something else."""
        quality = self.quality(noun)
        if self.rng.random() < 0.8:
            return being(subject, quality)
        return being(subject, self.rng.choice([other for other in ADJECTIVES[noun.kind] if other != quality]), True)

    def where(self) -> tuple[str, str]:
        if self.rng.random() < 0.5:
            place = phrase(self.place, "the", self.rng.choice([None, self.quality(self.place)]))
            return f"in {place.english}", f"dans {place.french}"
        english, second = self.rng.choice(PREPOSITIONS)
        place = phrase(self.landmark, "the", self.rng.choice([None, self.quality(self.landmark)]))
        return f"{english} {place.english}", f"{second} {place.french}"

    def either(self) -> Phrase:
        return self.rng.choice([self.subject(), self.the(self.person), self.speaker])

    def object(self) -> tuple[Noun, Verb]:
        noun = self.rng.choice([self.thing, self.thing, self.food, self.animal])
        return noun, self.rng.choice(TRANSITIVE[noun.kind])


def there_is(scene: Scene):
    noun = scene.rng.choice([scene.animal, scene.thing, scene.person])
    place, what = scene.where(), scene.a(noun)
    return f"there is {what.english} {place[0]}", f"il y a {what.french} {place[1]}"


def there_are(scene: Scene):
    noun = scene.rng.choice([scene.animal, scene.thing, scene.person])
    many = phrase(noun, "number", scene.quality(noun), scene.rng.randint(2, 10))
    place = scene.where()
    return f"there are {many.english} {place[0]}", f"il y a {many.french} {place[1]}"


def acts(scene: Scene):
    noun, verb = scene.object()
    tense = scene.rng.choice(["present", "present", "past", "future"])
    negative = scene.rng.random() < 0.2  # with the definite article, as French would otherwise need `pas de`
    what = scene.the(noun) if negative or scene.rng.random() < 0.5 else scene.a(noun)
    english, second = clause(scene.either(), verb, (what.english, what.french), tense, negative)
    when = {"past": ("yesterday", "hier"), "future": ("tomorrow", "demain"), "present": ("today", "aujourd'hui")}[tense]
    if scene.rng.random() < 0.4:
        day = scene.rng.choice(list(lexicon.WEEKDAYS))
        when = {
            "past": (f"last {day}", f"{lexicon.WEEKDAYS[day]} dernier"),
            "future": (f"next {day}", f"{lexicon.WEEKDAYS[day]} prochain"),
            "present": (f"every {day}", f"chaque {lexicon.WEEKDAYS[day]}"),
        }[tense]
    return f"{when[0]}, {english}", f"{when[1]}, {second}"


def relative(scene: Scene):
    inner = scene.rng.choice(INTRANSITIVE["animal"])
    place = scene.where()
    that = f"that {inner.english[1]} {place[0]}", f"qui {inner.forms[1]} {place[1]}"
    animal = phrase(scene.animal, "the", scene.rng.choice([None, scene.quality(scene.animal)]))
    see = scene.rng.choice(TRANSITIVE["animal"])
    return clause(scene.either(), see, (f"{animal.english} {that[0]}", f"{animal.french} {that[1]}"))


def relative_object(scene: Scene):
    """The key that Marie buys is red."""
    noun, verb = scene.object()
    subject, form = scene.the(noun), clause(scene.subject(), verb, ("", ""))
    whole = replace(subject, english=f"{subject.english} that {form[0]}", french=f"{subject.french} que {form[1]}")
    return scene.describe(noun, whole)


def because(scene: Scene):
    verb, place = scene.rng.choice(INTRANSITIVE["person"]), scene.where()
    noun = scene.rng.choice([scene.animal, scene.thing, scene.food])
    reason = scene.describe(noun, scene.the(noun))
    link = scene.rng.choice([("because", "parce que"), ("but", "mais"), ("and", "et"), ("when", "quand")])
    first = clause(scene.either(), verb, place)
    return f"{first[0]} {link[0]} {reason[0]}", f"{first[1]} {link[1]} {reason[1]}"


def gives(scene: Scene):
    give = conjugate(
        scene.rng.choice(
            [
                "give gives gave donner",
                "show shows showed montrer",
                "sell sells sold vendre:vends vend vendons vendent vendu",
            ]
        )
    )
    what, whom = scene.a(scene.thing), scene.the(scene.person)
    rest = f"{what.english} to {whom.english}", f"{what.french} à {whom.french}"
    return clause(scene.rng.choice([scene.subject(), scene.speaker]), give, rest, scene.rng.choice(["present", "past"]))


def possession(scene: Scene):
    noun = scene.rng.choice([scene.animal, scene.thing])
    whole = scene.the(noun)
    owner = scene.the(scene.person)
    whole = replace(whole, english=f"{owner.english}'s {noun.english}", french=f"{whole.french} de {owner.french}")
    return scene.describe(noun, whole)


def comparison(scene: Scene):
    first = scene.rng.choice([scene.animal, scene.person, scene.thing])
    second = scene.rng.choice([noun for noun in NOUNS[first.kind] if noun != first])
    english, base = scene.rng.choice(
        [("bigger", "big"), ("smaller", "small"), ("older", "old"), ("heavier", "heavy"), ("prettier", "pretty")]
    )
    quality = next(item for item in ADJECTIVES["any"] if item.english == base)
    one, other = scene.the(first), scene.the(second)
    return (
        f"{one.english} is {english} than {other.english}",
        f"{one.french} est plus {quality.agree(first.gender, 1)} que {other.french}",
    )


def works(scene: Scene):
    subject = scene.rng.choice([scene.hero, scene.the(scene.person), scene.speaker, scene.the(scene.animal)])
    kind = "animal" if subject.english == scene.the(scene.animal).english else "person"
    return clause(subject, scene.rng.choice(INTRANSITIVE[kind]), scene.where(), scene.rng.choice(["present", "past"]))


def thinks(scene: Scene):
    noun = scene.rng.choice([scene.animal, scene.thing, scene.food])
    said = scene.describe(noun, scene.the(noun))
    think = conjugate(
        scene.rng.choice(
            [
                "think thinks thought penser",
                "say says said dire:dis dit disons disent dit",
                "know knows knew savoir:sais sait savons savent su",
            ]
        )
    )
    return clause(scene.either(), think, (f"that {said[0]}", f"que {said[1]}"))


def where_is(scene: Scene):
    noun = scene.rng.choice([scene.animal, scene.thing])
    subject, place = scene.the(noun), scene.where()
    it = subject.pronoun
    return (
        f"where is {subject.english}? {capital(it.english)} is {place[0]}",
        f"où est {subject.french} ? {capital(it.french)} est {place[1]}",
    )


OPENINGS = [there_is, there_are, acts, works]
FRAMES = [acts, acts, relative, relative_object, because, gives, possession, comparison, works, thinks, where_is]


def document(rng: random.Random) -> str:
    """Return `English: ...` and `French: ...`, three to five sentences about the same people and things."""
    scene = Scene(rng)
    frames = [rng.choice(OPENINGS), *rng.sample(FRAMES, rng.randint(2, 4))]
    pairs = []
    for frame in frames:
        pairs.append(frame(scene))
        scene.known = scene.known or scene.hero.english in pairs[-1][0]
    english = " ".join(capital(ARTICLE.sub(r"\1n ", pair[0])) + "." for pair in pairs)
    return f"English: {english}\nFrench: " + " ".join(capital(french(pair[1])) + "." for pair in pairs)
