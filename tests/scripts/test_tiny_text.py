"""The text of the tiny models is what its grammars write, says only what is true, and its held-out split is new."""

import ast
import doctest
import itertools
import re
import statistics

import grammar
import lexicon
import pytest

from shared import files

TINY = files.DATA / "tiny"

DOMAINS = tuple(grammar.DOMAINS)
PROSE = ("creative_writing", "scientific_explanation", "summarisation")
OPENING = {
    "code": r"(def \w+\(.*\):|class \w+:)\n",
    "mathematics": r"Problem: .+\nSolution: .+",
    "creative_writing": r"Story: .+",
    "scientific_explanation": r"Question: (Why|How) .+\?\nExplanation: .+",
    "logical_reasoning": r"Premises: .+\nQuestion: .+\?\nAnswer: .+",
    "translation": r"English: .+\nFrench: .+",
    "summarisation": r"Text: .+\nSummary: .+",
}


def shipped(split: str) -> dict[str, str]:
    return {domain: (TINY / "text" / split / f"{domain}.txt").read_text(encoding="utf-8") for domain in DOMAINS}


TEXT = {split: shipped(split) for split in ("train", "heldout")}
DOCUMENTS = {split: {domain: text.rstrip("\n").split("\n\n") for domain, text in TEXT[split].items()} for split in TEXT}
BOTH = {domain: DOCUMENTS["train"][domain] + DOCUMENTS["heldout"][domain] for domain in DOMAINS}
LONG = (TINY / "text" / "long.txt").read_text(encoding="utf-8")


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def long_sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.?!])\s+|\n", text) if len(part.split()) >= 8]


# --- Form ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_grammars_write_the_shipped_bytes(tmp_path):
    grammar.write(tmp_path)
    ours = {path.relative_to(TINY / "text"): path.read_bytes() for path in (TINY / "text").rglob("*.txt")}
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.txt")}
    assert ours == again and len(ours) == 2 * len(DOMAINS) + 1


def test_every_domain_has_the_same_share_of_about_a_megabyte():
    for split, size in (("train", 145_000), ("heldout", 17_500)):
        for domain, text in TEXT[split].items():
            assert size <= len(text.encode()) < size + 1_000, (split, domain)
    assert len(LONG.encode()) >= 60_000


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_open_in_the_form_of_their_domain_and_of_no_other(domain):
    for document in BOTH[domain]:
        assert 100 <= len(document) <= 900, document
        assert [name for name, form in OPENING.items() if re.match(form, document)] == [domain], document


def test_one_of_a_kind_is_never_in_the_plural():
    for domain in (*PROSE, "mathematics"):
        assert not re.search(r"(?<![\d*/+-] )\b1 [a-z]+s\b", TEXT["train"][domain] + TEXT["heldout"][domain]), domain


def test_sentences_begin_with_a_capital():
    for domain in set(DOMAINS) - {"code"}:
        assert not re.search(r"[.?!] [a-zà-ÿ]", TEXT["train"][domain] + TEXT["heldout"][domain]), domain


def test_no_template_is_left_unexpanded():
    for domain in set(DOMAINS) - {"code"}:
        assert not re.search(r"[\[\]{}|$]|  ", TEXT["train"][domain] + TEXT["heldout"][domain]), domain
    assert not re.search(r"[\[\]{}|$]|  ", LONG)
    assert "CALL" not in TEXT["train"]["code"] + TEXT["heldout"]["code"]


def test_characters_are_ascii_and_french_letters():
    text = "".join(itertools.chain(*(TEXT[split].values() for split in TEXT), [LONG]))
    assert {char for char in text if not char.isascii()} <= set("àâçéèêîôœùûÉÀÊ")


def test_an_stands_before_vowels_and_a_before_consonants():
    for domain in (*PROSE, "mathematics", "logical_reasoning"):
        text = TEXT["train"][domain]
        assert not re.findall(r"\b[Aa] (?!uni|use|one )[aeiou]\w+", text), domain
        assert not re.findall(r"\b[Aa]n (?!hour|honest)[^aeiouAEIOU]\w+", text), domain


def test_the_vocabulary_is_wide_and_its_words_return():
    counts = {}
    for word in words("\n".join(TEXT["train"].values())):
        counts[word] = counts.get(word, 0) + 1
    assert len(counts) >= 2_500
    assert statistics.median(counts.values()) >= 15


# --- The held-out split -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_heldout_document_is_a_training_document(domain):
    assert len(set(BOTH[domain])) == len(BOTH[domain])


def test_heldout_sentences_are_new():
    seen = {sentence for text in TEXT["train"].values() for sentence in long_sentences(text)}
    repeated, total = 0, 0
    for domain, text in TEXT["heldout"].items():
        sentences = long_sentences(text)
        again = sum(sentence.removeprefix("Story: ") in seen or sentence in seen for sentence in sentences)
        assert again <= 0.1 * len(sentences), domain
        repeated, total = repeated + again, total + len(sentences)
    assert repeated < 0.02 * total
    story = long_sentences(LONG)
    assert sum(sentence in seen for sentence in story) < 0.02 * len(story)


def test_heldout_words_are_known_from_training():
    for domain in DOMAINS:
        known = set(words(TEXT["train"][domain]))
        assert set(words(TEXT["heldout"][domain])) <= known, domain


# --- Stories ------------------------------------------------------------------------------------------------------


def test_prose_has_relative_and_subordinate_clauses():
    clause = r"\b(that|which|who|whom|whose|where|because|since|although|while|when|before|until|as|so|if)\b"
    for domain in PROSE:
        nested = [len(re.findall(clause, document)) >= 2 for document in BOTH[domain]]
        assert sum(nested) > 0.8 * len(nested), domain
    assert len(re.findall(r"\b(that|qui|que)\b", TEXT["train"]["translation"])) > 300


def test_stories_return_to_their_people_and_keep_their_pronouns():
    for story in BOTH["creative_writing"]:
        names = re.findall(r"\b[A-Z][a-z]+\b", story)
        cast = {name for name in names if name in lexicon.WOMEN + lexicon.MEN}
        assert len(cast) == 2, story
        assert all(names.count(name) >= 2 for name in cast) and max(map(names.count, cast)) >= 3, story
        if cast <= set(lexicon.WOMEN):
            assert not re.search(r"\b([Hh]e|[Hh]is|[Hh]im)\b", story), story
        if cast <= set(lexicon.MEN):
            assert not re.search(r"\b([Ss]he|[Hh]er)\b", story), story


def test_the_long_story_recalls_its_earlier_chapters():
    chapters = LONG.strip().split("\n")
    things = {}
    for number, chapter in enumerate(chapters):
        for material, thing in re.findall(r"\b(?:a|an|the) (\w+) (\w+)", chapter):
            if material in lexicon.MATERIALS and thing in lexicon.OBJECTS:
                things.setdefault((material, thing), set()).add(number)
    far = [max(where) - min(where) for where in things.values() if len(where) > 1]
    assert len(far) > 20 and max(far) > len(chapters) / 2
    assert len({name for name in words(LONG) if name.capitalize() in lexicon.WOMEN + lexicon.MEN}) == 6


# --- Mathematics --------------------------------------------------------------------------------------------------


def wrong_equations(document: str) -> list[str]:
    """Return the equations that do not hold, with the unknown replaced by its answer."""
    unknown = re.search(r"Answer: ([a-z]) = (\d+)\.", document)
    text = re.sub(rf"\b{unknown[1]}\b", unknown[2], document) if unknown else document
    chains = re.findall(r"[\d+\-*/ ]*\d(?: = [\d+\-*/ ]*\d)+", text)
    values = [[eval(side) for side in chain.split(" = ")] for chain in chains]
    return [chain for chain, sides in zip(chains, values, strict=True) if len(set(sides)) > 1] if chains else ["none"]


def solve(problem: str) -> list[float]:
    """Work out the answer of a problem from its wording and its numbers alone."""
    n = [int(number) for number in re.findall(r"\d+", problem)]
    if found := re.search(r"(\d+) \* [a-z] ([+-]) (\d+) = (\d+)", problem):
        a, sign, b, c = int(found[1]), found[2], int(found[3]), int(found[4])
        return [(c - b if sign == "+" else c + b) / a]
    if "sequence" in problem:
        a, b, c, d = n
        ratio = b / a == c / b == d / c
        step = (lambda x: x * b / a) if ratio else (lambda x: x + b - a)
        return [step(d), step(step(d))]
    if "percent" in problem:
        return [n[0] * (100 + n[1] * (1 if "raises" in problem else -1)) / 100]
    if "square meter of" in problem:
        return [n[0] * n[1] * n[2]]
    if "in reserve" in problem:
        return [2 * (n[0] + n[1]) + n[2]]
    if "triangle" in problem:
        return [n[0] * n[1] / 2]
    if "there and back" in problem:
        return [2 * n[0] * n[1]]
    if "on foot" in problem:
        return [n[0] * n[1] + n[2]]
    if "on average" in problem:
        return [sum(n[:-1]) / n[-1]]
    if "years old" in problem:
        return [sum(n)]
    if "equally" in problem:
        return [sum(n) / 3]
    if "get back" in problem:
        return [n[4] - n[0] * n[2] - n[1] * n[3]]
    if "holds exactly" in problem:
        return [n[0] // n[1], n[0] % n[1]]
    if found := re.search(r"(half|a third|a quarter|a fifth|a tenth) of", problem.lower()):
        parts = {"half": 2, "a third": 3, "a quarter": 4, "a fifth": 5, "a tenth": 10}[found[1]]
        return [n[0] - n[0] / parts]
    return [n[0] * n[1] - n[2]]


def test_every_equation_holds_and_every_answer_follows_from_its_problem():
    for document in BOTH["mathematics"]:
        assert wrong_equations(document) == [], document
        problem, answer = document.split("\n")[0], document.split("Answer: ")[1]
        assert solve(problem) == [int(number) for number in re.findall(r"\d+", answer)], document


def test_a_wrong_number_is_found_in_every_solution():
    for document in BOTH["mathematics"]:
        last = re.findall(r"= \d+", document)[-2]
        assert wrong_equations(document.replace(last, last + "1")), document


# --- Code ---------------------------------------------------------------------------------------------------------


def test_code_parses_and_its_examples_are_true():
    finder, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    for document in BOTH["code"]:
        tree = ast.parse(document)
        assert ast.get_docstring(tree.body[0]), document
        asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert asserts or ">>>" in document, document
        namespace = {}
        exec(compile(tree, "document", "exec"), namespace)
        examples = finder.get_doctest(ast.get_docstring(tree.body[0]), namespace, "document", None, 0)
        assert runner.run(examples).failed == 0, document


def test_code_is_varied():
    kinds = {type(node) for document in BOTH["code"] for node in ast.walk(ast.parse(document))}
    assert {ast.For, ast.While, ast.If, ast.ListComp, ast.ClassDef, ast.Dict, ast.Raise, ast.JoinedStr} <= kinds


# --- Logic --------------------------------------------------------------------------------------------------------

MORE = ["older", "taller", "faster", "heavier", "stronger", "richer"]
LESS = ["younger", "shorter", "slower", "lighter", "weaker", "poorer"]


def verdict(possible: set[bool]) -> str:
    return "It cannot be decided" if len(possible) == 2 else "Yes" if True in possible else "No"


def order(premises: list[str]) -> set[tuple[str, str]]:
    """Return the transitive closure of the comparisons: pairs (more, less)."""
    pairs = set()
    for premise in premises:
        if found := re.fullmatch(r"(.+) is (\w+) than (.+)|(.+) stands (left|right) of (.+)", premise):
            one, relation, other = (part for part in found.groups() if part)
            pairs.add((one, other) if relation in [*MORE, "left"] else (other, one))
    while more := {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs:
        pairs |= more
    return pairs


def literal(text: str) -> tuple[str, bool]:
    return text.replace(" is not ", " is "), " is not " not in text


def worlds(atoms: list[str], rules: list[tuple], facts: list[tuple], asked: str) -> set[bool]:
    """Return the truth values that `asked` can take in the worlds that fit the rules and facts."""
    possible = set()
    for values in itertools.product([True, False], repeat=len(atoms)):
        world = dict(zip(atoms, values, strict=True))
        fits = all(world[atom] == value for atom, value in facts) and all(
            world[a] != value or world[b] == then for (a, value), (b, then) in rules
        )
        if fits:
            possible.add(world[asked])
    return possible


def derive(document: str) -> str:
    """Derive the verdict, the name or the place that the premises of a document imply."""
    premises, question = (line.split(": ", 1)[1] for line in document.split("\n")[:2])
    premises = [part[0].lower() + part[1:] if part.startswith(("The ", "If ", "Every ", "No ")) else part
                for part in premises.rstrip(".").split(". ")]  # fmt: skip
    if question.startswith("Where"):
        places = set(re.search(r"is in the (\w+), the (\w+) or the (\w+)", " ".join(premises)).groups())
        places -= {found[1] for part in premises if (found := re.search(r"is not in the (\w+)", part))}
        return f"In the {places.pop()}" if len(places) == 1 else "It cannot be decided"
    pairs = order(premises)
    if found := re.match(r"(?:Who|Which) is the (\w+)\?|Which \w+ stands farthest to the (left|right)", question):
        names = {name for pair in pairs for name in pair}
        low = (found[1] or "").endswith(("youngest", "shortest", "slowest", "lightest", "weakest", "poorest"))
        low = low or found[2] == "right"
        best = [name for name in names if len([pair for pair in pairs if pair[low] == name]) == len(names) - 1]
        return best[0]
    found = re.match(r"Is (.+) (\w+) than (.+)\?|Does (.+) stand (left) of (.+)\?", question)
    if found:
        one, relation, other = (part for part in found.groups() if part)
        one, other = (other, one) if relation in LESS else (one, other)
        return verdict({True} if (one, other) in pairs else {False} if (other, one) in pairs else {True, False})
    rules, facts = [], []
    if found := re.match(r"Is (.+) an? (\w+)\?", question):
        asked = found[2]
        for part in premises:
            if rule := re.fullmatch(r"(every|no) (\w+) is an? (\w+)", part):
                rules.append(((rule[2], True), (rule[3], rule[1] == "every")))
            elif fact := re.fullmatch(rf"{re.escape(found[1])} is an? (\w+)", part):
                facts.append((fact[1], True))
    else:
        subject, state = re.match(r"Is (the \w+) (\w+)\?", question).groups()
        asked = f"{subject} is {state}"
        for part in premises:
            if part.startswith("if "):
                rules.append(tuple(map(literal, part[3:].split(", "))))
            else:
                facts.append(literal(part))
    atoms = sorted({atom for rule in rules for atom, _ in rule} | {atom for atom, _ in facts} | {asked})
    return verdict(worlds(atoms, rules, facts, asked))


def test_every_conclusion_follows_from_its_premises():
    verdicts = set()
    for document in BOTH["logical_reasoning"]:
        result, answer = derive(document), document.split("\nAnswer: ")[1]
        verdicts.add(result)
        if result[0].isupper() and not answer.startswith("From"):
            assert answer.startswith(result + "."), document
        elif answer.startswith("From"):
            assert re.search(rf"so (it is )?{re.escape(result)}( is the \w+)?\.$", answer), document
        else:
            assert answer.startswith((result, "Yes", "No")), document
    assert {"Yes", "No", "It cannot be decided"} <= verdicts


def test_the_solver_refuses_a_turned_premise():
    document = "Premises: Ben is older than Ada. Ada is older than Eva.\nQuestion: Is Ben older than Eva?\nAnswer: Yes."
    assert derive(document) == "Yes"
    assert derive(document.replace("Ben is older than Ada", "Ben is younger than Ada")) == "It cannot be decided"
    assert derive(document.replace("Is Ben older than Eva", "Is Eva older than Ben")) == "No"


# --- Translation --------------------------------------------------------------------------------------------------

NOUNS = {entry.split()[0]: entry.split()[1:] for text in lexicon.NOUNS.values() for entry in text.split(",")}
GENDER = {french.replace("_", " "): gender for french, gender in NOUNS.values()}


def halves(document: str) -> tuple[str, str]:
    english, french = document.split("\n")
    return english.removeprefix("English: "), french.removeprefix("French: ")


def test_every_english_noun_has_its_french_noun():
    assert len(NOUNS) > 100
    singular = {plural: noun for noun, plural in lexicon.IRREGULAR_PLURALS.items()}
    for document in BOTH["translation"]:
        english, french = halves(document)
        assert len(re.findall(r"[.?](?: |$)", english)) == len(re.findall(r"[.?](?: |$)", french)), document
        for word in words(english):
            forms = (word, singular.get(word), word.removesuffix("s"), word.removesuffix("es"))
            noun = next((form for form in forms if form in NOUNS), None)
            if noun and not word.startswith(("watch", "cook")):
                stem = NOUNS[noun][0].split("_")[0].removesuffix("al")
                assert stem in french.lower(), (word, document)


def test_french_articles_agree_and_are_elided():
    checked = 0
    for document in BOTH["translation"]:
        french = halves(document)[1].lower()
        for article, word in re.findall(r"\b(un|une|le|la|du|au|de la|à la) ([^\W\d_]+)", french):
            if word in GENDER:
                feminine = article in ("une", "la", "de la", "à la")
                assert feminine == (GENDER[word] == "f"), (article, word, document)
                checked += 1
        assert not re.search(r"\b([Ll]e|[Ll]a|de|ne|que|[Jj]e) [aeiouâàéèêîôœh]", halves(document)[1]), document
        assert not re.search(r"\b(de les?|à les?)\b(?! [a-z]+er\b)", french), document
    assert checked > 1_000


def test_french_participles_and_pronouns_agree_with_their_subjects():
    for document in BOTH["translation"]:
        english, french = halves(document)
        assert len(re.findall(r"\b[Ss]he\b", english)) <= len(re.findall(r"\b[Ee]lle\b", french)), document
        assert len(re.findall(r"\bnous\b", french.lower())) == len(re.findall(r"\bwe\b", english.lower())), document
        assert len(re.findall(r"\bje\b|\bj'", french.lower())) == len(re.findall(r"\bI\b", english)), document
        assert (" not " in english) == (" pas " in french), document
        for verb, subject in re.findall(r"\b(nous|je|il|elle) (?:n'|ne )?([^\W\d_]+)", french.lower()):
            assert verb != "nous" or subject.endswith("ons"), document


# --- Science and summaries ----------------------------------------------------------------------------------------


def test_an_explanation_returns_to_what_was_asked():
    for document in BOTH["scientific_explanation"]:
        question, explanation = document.split("\n")
        asked = {word for word in words(question) if len(word) > 2} - {
            "question",
            "why",
            "how",
            "does",
            "the",
            "become",
        }
        assert len(asked & set(words(explanation))) >= 1, document
        assert len(re.findall(r"\.(?: |$)", explanation)) >= 4, document


def test_science_covers_many_topics():
    assert len(grammar.science.TOPICS) >= 30


def unsupported(document: str) -> set[str]:
    """Return the words of a summary that its text does not contain, little words and letter frames aside."""
    text, summary = document.split("\nSummary: ")
    little = set(words("a an the by in and but that so of with from to was for because although writes works asks"))
    return set(re.findall(r"\w+", summary.lower())) - set(re.findall(r"\w+", text.lower())) - little


def test_a_summary_is_one_sentence_made_of_facts_of_its_text():
    for document in BOTH["summarisation"]:
        assert unsupported(document) == set(), document
        assert re.fullmatch(r"[^.!?]+\.", document.split("\nSummary: ")[1]), document
    assert unsupported("Text: Ben sold a dog.\nSummary: Ben sold a cat.") == {"cat"}
