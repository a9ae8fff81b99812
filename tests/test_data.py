"""Prompts, instruction format, random tokens and the tiny text: what needs no download."""

import ast
import math
import re
import subprocess
import sys
from decimal import Decimal
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared import data, files, models
from shared.errors import BadInput, NotEnoughMemory

OPENINGS = {
    "code": ("def ", "class "),
    "mathematics": ("Problem: ",),
    "creative_writing": ("Story: ",),
    "scientific_explanation": ("Question: Why ", "Question: How "),
    "logical_reasoning": ("Premises: ",),
    "translation": ("English: ",),
    "summarisation": ("Text: ",),
}
CLOSINGS = {
    "mathematics": "\nSolution:",
    "scientific_explanation": "?\nExplanation:",
    "logical_reasoning": "?\nAnswer:",
    "translation": "\nFrench:",
    "summarisation": "\nSummary:",
}


@pytest.mark.slow
def test_importing_data_loads_neither_torch_nor_transformers():
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, shared.data; print({'torch', 'transformers', 'pandas'} & set(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "set()"


# ---------------------------------------------------------------------------------------------------------- prompts


def test_every_domain_has_fifty_different_prompts():
    assert tuple(data.EXPERT_PROMPTS) == data.DOMAINS
    for prompts in data.EXPERT_PROMPTS.values():
        assert len(set(prompts)) == len(prompts) >= 50


@pytest.mark.parametrize("domain", data.DOMAINS)
def test_prompts_open_like_the_documents_of_their_domain_and_stop_where_a_model_goes_on(domain):
    for prompt in data.EXPERT_PROMPTS[domain]:
        assert prompt.startswith(OPENINGS[domain])
        assert prompt.endswith(CLOSINGS.get(domain, ""))
        assert 10 <= len(prompt.split()) <= 60
        assert "\n\n" not in prompt  # a blank line would end the document
        assert prompt == prompt.rstrip()


@pytest.mark.parametrize("prompt", data.EXPERT_PROMPTS["code"])
def test_code_prompts_are_the_beginning_of_code_that_parses(prompt):
    last = prompt.splitlines()[-1]
    indent = last[: len(last) - len(last.lstrip())]
    # Whatever a prompt leaves open, one of these closes it.
    endings = ("", " pass", f"\n{indent}    pass", ")", "]", f"\n{indent}except ValueError: pass", "\n    pass")
    endings += (
        f"\n{indent}    pass\n{indent}except ValueError:\n{indent}    pass",
        "\n    x for x in y)",
        "\n    x for x in y]",
    )

    def parses(code):
        try:
            return bool(ast.parse(code))
        except SyntaxError:
            return False

    assert any(parses(prompt + ending) for ending in endings)


@pytest.mark.parametrize("name", ["EXPERT_PROMPT", "nothing"])
def test_a_misspelt_name_in_data_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=name):
        getattr(data, name)


# ----------------------------------------------------------------------------------------------- instruction format


def test_instruction_format_has_three_sections_with_a_blank_line_between():
    example = {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}
    assert data.format_instruction(example) == (
        "### Instruction:\nAdd the numbers.\n\n### Input:\n2 and 3\n\n### Response:\n5"
    )


@pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": None}, {"input": "  \n"}])
def test_instruction_format_leaves_out_an_empty_input(empty):
    text = data.format_instruction({"instruction": "Greet.", "output": "Hello.", **empty})
    assert text == "### Instruction:\nGreet.\n\n### Response:\nHello."


def test_instruction_format_without_an_output_ends_where_the_model_goes_on():
    assert data.format_instruction({"instruction": "Greet."}) == "### Instruction:\nGreet.\n\n### Response:\n"


def test_instruction_format_keeps_the_indentation_of_code():
    text = data.format_instruction({"instruction": "Fix.", "input": "    return x\n", "output": "    return y\n\n"})
    assert text == "### Instruction:\nFix.\n\n### Input:\n    return x\n\n### Response:\n    return y"


@pytest.mark.parametrize("example", [{}, {"output": "x"}, {"instruction": ""}, {"instruction": None}])
def test_an_example_without_an_instruction_is_refused_in_one_sentence(example):
    with pytest.raises(BadInput, match=r'^An example needs an "instruction"[^.]*\.$'):
        data.format_instruction(example)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"), (False, "False"), (12.5, "12.5"), (True, "True"), (np.int64(0), "0"), (np.float32(0.5), "0.5"),
        (torch.tensor(3), "3"), (Decimal("0.10"), "0.10"), (np.str_("x"), "x"), (None, ""), (math.nan, ""), (pd.NA, ""),
        ("0", "0"),
    ],
)  # fmt: skip
def test_a_number_in_a_field_is_written(value, written):
    text = data.format_instruction({"instruction": "Count.", "input": value, "output": value})
    section = f"### Input:\n{written}\n\n" if written else ""
    assert text == f"### Instruction:\nCount.\n\n{section}### Response:\n{written}"


def test_a_number_can_be_the_instruction_and_a_row_of_a_table_an_example():
    assert data.format_instruction({"instruction": 0}) == "### Instruction:\n0\n\n### Response:\n"
    table = pd.DataFrame({"instruction": ["Add."], "input": [math.nan], "output": [0]})
    assert data.format_instruction(table.iloc[0]) == "### Instruction:\nAdd.\n\n### Response:\n0"


@pytest.mark.parametrize("key", ["instruction", "input", "output"])
@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a", {1}, np.zeros(2)])
def test_a_field_that_is_no_text_is_named(key, value):
    with pytest.raises(BadInput, match=f'^The field "{key}" .* not of type {type(value).__name__}\\.$'):
        data.format_instruction({"instruction": "Add.", key: value})


@pytest.mark.parametrize("example", [None, "text", 3, ["Add."], SimpleNamespace(keys=1)])
def test_an_example_that_is_no_mapping_is_one_sentence(example):
    with pytest.raises(BadInput, match=f"mapping .* not of type {type(example).__name__}"):
        data.format_instruction(example)


@pytest.mark.parametrize("key", ["instruction", "input", "output"])
def test_a_field_that_is_no_unicode_is_named(key):
    with pytest.raises(BadInput, match=rf'^The field "{key}" of an example has a lone surrogate, .* at character 2, '):
        data.format_instruction({"instruction": "Add.", key: "ab\udcff"})


LINES = st.text(alphabet=st.characters(exclude_characters="#", exclude_categories=["Cs"]), max_size=30)


@pytest.mark.slow
@given(instruction=LINES.filter(str.strip), given_input=LINES, output=LINES)
def test_an_instruction_can_be_read_back(instruction, given_input, output):
    text = data.format_instruction({"instruction": instruction, "input": given_input, "output": output})
    sections = re.split(r"(?:^|\n\n)### (Instruction|Input|Response):\n", text)[1:]
    found = dict(zip(sections[::2], sections[1::2], strict=True))
    plain = lambda field: field.strip("\n").rstrip()  # noqa: E731
    expected = {"Instruction": plain(instruction), "Input": plain(given_input), "Response": plain(output)}
    assert found == {heading: field for heading, field in expected.items() if field or heading == "Response"}
    assert data.format_instruction({"instruction": instruction, "input": given_input}) + plain(output) == text


MARKED = st.lists(
    st.sampled_from(["### Instruction:", "### Input:\n", "### Response:", "\n\n", "\n", "#", " ", "x", "é"]), max_size=6
).map("".join)


@given(instruction=MARKED.filter(str.strip), given_input=MARKED, output=MARKED)
def test_fields_with_the_formats_own_marks_stand_as_they_are_after_one_and_the_same_prompt(
    instruction, given_input, output
):
    """What trains on the response alone takes the prompt's length from the example without its output."""
    example = {"instruction": instruction, "input": given_input, "output": output}
    text, prompt = data.format_instruction(example), data.format_instruction({**example, "output": None})
    plain = {key: field.strip("\n").rstrip() for key, field in example.items()}
    assert text == prompt + plain["output"]
    assert prompt.startswith(f"### Instruction:\n{plain['instruction']}\n\n### ")
    assert prompt.endswith(f"### Input:\n{plain['input']}\n\n" * bool(plain["input"]) + "### Response:\n")
    assert data.format_instruction(plain) == text


# ---------------------------------------------------------------------------------------------------- random tokens


def test_random_tokens_have_the_lengths_of_the_course_and_batch_one():
    tokens = data.random_tokens(50_280)
    assert list(tokens) == [1024, 4096, 16384, 32768]
    for length, ids in tokens.items():
        assert ids.shape == (1, length) and ids.dtype == torch.long


@pytest.mark.parametrize("vocab_size", [399, 1024, 32_000, 50_280])
def test_random_tokens_stay_100_away_from_both_ends_and_reach_that_far(vocab_size):
    ids = data.random_tokens(vocab_size, [200_000])[200_000]
    assert ids.min() >= 100 and ids.max() < vocab_size - 100
    assert ids.unique().numel() > 0.9 * (vocab_size - 200)


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 4, 5, 17, 100, 200, 201, 398])
def test_random_tokens_work_for_a_vocabulary_of_any_size(vocab_size):
    ids = data.random_tokens(vocab_size, [2000])[2000]
    margin = (vocab_size + 1) // 4
    assert margin <= ids.min() and ids.max() < vocab_size - margin
    assert ids.unique().numel() >= vocab_size / 3  # the margins never eat the vocabulary


def test_random_tokens_never_contain_special_tokens():
    # DeepSeekMoE's begin and end of text lie 2,399 ids below the end of its embedding, inside the margins.
    special = {100_000, 100_001}
    without = data.random_tokens(102_400, [600_000])[600_000]
    assert special & set(without[0].tolist())
    given = data.random_tokens(102_400, [600_000], special_ids=special)[600_000]
    assert not special & set(given[0].tolist())


def test_random_tokens_avoid_the_special_tokens_of_the_tiny_tokenizer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(files.DATA / "tiny" / "tokenizer")
    ids = data.random_tokens(len(tokenizer), [100_000])[100_000]
    assert not set(tokenizer.all_special_ids) & set(ids[0].tolist())


def test_random_tokens_repeat_with_their_seed_and_differ_between_seeds():
    first, again, other = (data.random_tokens(1000, [512], seed=seed)[512] for seed in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_seeds_beyond_32_bits_still_differ():
    # torch's CPU generator keeps the lower 32 bits of a seed.
    a, b = (data.random_tokens(1000, [512], seed=seed)[512] for seed in (1, 1 + 2**32))
    assert not torch.equal(a, b)


def test_a_length_has_the_same_tokens_whatever_else_is_asked_for():
    alone, among = data.random_tokens(1000, [256]), data.random_tokens(1000, [64, 512, 256])
    assert torch.equal(alone[256], among[256])
    assert not torch.equal(among[512][:, :256], among[256])


def test_random_tokens_leave_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    data.random_tokens(1000, [64])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares GPU with CPU")
def test_random_tokens_are_the_same_on_the_gpu():
    on_gpu = data.random_tokens(1000, [256], device="cuda")[256]
    assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), data.random_tokens(1000, [256])[256])


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_filled_up_as_a_tokenizer_does_it(side):
    tokenizer = models.tiny_tokenizer()
    rows = [[5, 6, 7], [0], [8, 9]]  # a token that equals the padding is a token
    theirs = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side=side)
    ids, mask = data.padded(rows, tokenizer.pad_token_id, side)
    assert torch.equal(ids, theirs["input_ids"]) and torch.equal(mask, theirs["attention_mask"])
    assert ids.dtype == mask.dtype == torch.int64
    assert torch.equal(data.padded([torch.tensor(row) for row in rows], side=side)[0], ids)


def test_one_place_fills_rows_up():
    by_hand = re.compile(r"\] \* \(?\w+ - len\(|new_full\(\(len\(|pad_sequence")
    sources = [path for part in ("shared", "scripts") for path in (files.ROOT / part).rglob("*.py")]
    found = {path.name for path in sources if by_hand.search(path.read_text(encoding="utf-8"))}
    # experts fills up rows of experts, not of tokens, and a check makes the mistakes that it knows.
    assert found == {"data.py", "experts.py", "lab_2_4_6.py"}


@pytest.mark.parametrize("arguments", [{"vocab_size": 0}, {"vocab_size": -5}, {"vocab_size": 2, "special_ids": [0, 1]}])
def test_a_vocabulary_with_nothing_to_draw_is_refused_in_one_sentence(arguments):
    with pytest.raises(BadInput, match=r"^A vocabulary of -?\d ids .* leaves nothing to draw[^.]*\.$"):
        data.random_tokens(**arguments)


@pytest.mark.parametrize("length", [256, np.int64(256)])
def test_one_length_is_taken_as_a_list_of_it(length):
    assert torch.equal(data.random_tokens(1024, length)[256], data.random_tokens(1024, [256])[256])
    assert 500 not in data.random_tokens(1024, 5000, special_ids=500)[5000]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lengths", ["256", [2.5], [None], None, 256.0, b"ab", True, [True], [[8]], np.float64(8)]),
        ("vocab_size", ["1024", 1.5, None, True, math.inf, [1024]]),
        ("seed", [None, "x", 1.5, math.nan, [1], True]),
        ("special_ids", [None, "a", ["a"], [None], 1.5]),
    ],
)
def test_what_is_no_whole_number_is_one_sentence(name, values):
    for value in values:
        with pytest.raises(BadInput, match=r"^(A|The) [^\n]* is a whole number, not [^\n]*\.$"):
            data.random_tokens(**({"vocab_size": 1024, "lengths": 8} | {name: value}))


def test_whole_numbers_of_numpy_and_torch_are_whole_numbers_too():
    expected = data.random_tokens(1024, [4, 5], seed=3, special_ids=[500])
    for several, one in ((np.array, np.int64), (torch.tensor, torch.tensor)):
        found = data.random_tokens(one(1024), several([4, 5]), seed=one(3), special_ids=one(500))
        assert list(found) == [4, 5] and all(torch.equal(found[n], expected[n]) for n in expected)
    assert list(data.random_tokens(1024, range(1, 4))) == [1, 2, 3] and list(data.random_tokens(1024, [8, 8])) == [8]
    assert data.random_tokens(1024, 4, seed=-1)[4].shape == data.random_tokens(1024, 4, seed=10**40)[4].shape


def test_more_random_tokens_than_memory_and_a_device_that_is_not_there_are_one_sentence():
    with pytest.raises(NotEnoughMemory, match="1,000,000,000,000 random tokens take 16 TB"):
        data.random_tokens(1024, 10**12)
    with pytest.raises(BadInput, match="device"):
        data.random_tokens(1024, 8, device="gpu")


@pytest.mark.parametrize("read", [data.pg19, data.alpaca])
def test_a_count_of_books_or_examples_that_is_none_is_one_sentence(read, monkeypatch):
    monkeypatch.setattr(data, "_rows", lambda name, split: datasets.Dataset.from_dict({"text": ["x"] * 100}))
    assert len(read(np.int64(3))) == 3
    for count in (True, 1.5, "3", None, [3], math.nan, 0, -1, 101, 10**30):
        with pytest.raises(BadInput, match=r"^The(re are 100| number of) (books|examples)[^\n]*\.$"):
            read(count)


def test_an_empty_sequence_is_refused():
    with pytest.raises(BadInput, match="a length of 0 was asked for"):
        data.random_tokens(1000, [0])


# -------------------------------------------------------------------------------------------------------- tiny text


@pytest.mark.parametrize("split", data.SPLITS)
def test_tiny_text_has_documents_of_every_domain(split):
    text = data.tiny_text(split)
    assert tuple(text) == data.DOMAINS
    for domain, documents in text.items():
        documents = documents.strip().split("\n\n")
        assert len(documents) > 20
        opening = tuple(form.split(" ")[0] for form in OPENINGS[domain])
        assert sum(document.startswith(opening) for document in documents) > 0.8 * len(documents)


def test_the_held_out_documents_are_new():
    train, heldout = data.tiny_text("train"), data.tiny_text("heldout")
    for domain in data.DOMAINS:
        documents = set(heldout[domain].strip().split("\n\n"))
        seen = documents & set(train[domain].strip().split("\n\n"))
        # A grammar for short functions draws the same one twice now and then; elsewhere no document repeats.
        assert len(seen) <= (0.05 * len(documents) if domain == "code" else 0)


def test_the_long_text_is_one_document_of_sixty_kilobytes():
    text = data.tiny_long_text().strip()
    assert len(text.encode()) >= 60_000 and "\n\n" not in text


@pytest.mark.parametrize("split", ["test", "", "Train"])
def test_an_unknown_split_is_refused_in_one_sentence(split):
    with pytest.raises(BadInput, match=rf"^The tiny text has the splits 'train' and 'heldout', not '{split}'\.$"):
        data.tiny_text(split)
