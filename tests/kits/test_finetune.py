"""The shipped instructions and bases hold what the lab says of them, and training and measuring are right."""

import json
import os
import re
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import finetune as program
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_disk
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoTokenizer, Trainer, TrainerCallback

from shared import data, files, models, notebooks, scan
from shared.errors import BadInput, DiskFull
from shared.kits import finetune

REFERENCE = json.loads(program.OUT.read_text())
ANSWERS = notebooks.solution("2.4.6")
SOLVERS = {
    "copy": lambda words: words,
    "first": lambda words: words[:1],
    "last": lambda words: words[-1:],
    "swap": lambda words: words[::-1],
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with scan.in_transformers():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mamba():
    return finetune.base("mamba")


# ---- what ships ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", finetune.SPLITS)
def test_every_answer_follows_from_its_input(split):
    for example in finetune.instructions(split):
        assert SOLVERS[example["skill"]](example["input"].split()) == example["output"].split()
        assert example["instruction"] in program.SKILLS[example["skill"]][0]


def test_no_held_out_pair_stands_in_any_training_example_of_any_skill():
    held = {example["input"] for example in finetune.instructions("heldout")}
    assert not held & {example["input"] for example in finetune.instructions("train")}
    assert not held & {" ".join(pair) for pair in program.pairs("train")}, "the bases learned from these"
    words = {word for pair in program.pairs("train") for word in pair}
    assert {word for example in held for word in example.split()} <= words, "the words themselves are known"


def test_the_files_are_what_the_program_writes(tmp_path, monkeypatch):
    shipped = finetune.INSTRUCT
    monkeypatch.setattr(finetune, "INSTRUCT", tmp_path)
    program.write_instructions()
    program.write_tokenizer()
    for name in ("train.jsonl", "heldout.jsonl", "tokenizer/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes(), name
    assert sum(file.stat().st_size for file in shipped.rglob("*") if file.is_file()) < 350_000


def test_the_tokenizer_knows_every_word_and_gives_a_heading_one_token():
    tokenizer = AutoTokenizer.from_pretrained(finetune.INSTRUCT / "tokenizer")
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    for split in finetune.SPLITS:
        for example in finetune.instructions(split):
            ids = tokenizer(finetune.prompt(example) + example["output"])["input_ids"]
            assert tokenizer.unk_token_id not in ids
            words = f"{example['instruction']} {example['input']} {example['output']}".replace(".", " .").split()
            assert len(ids) == 3 + len(words)
            assert tokenizer.decode(tokenizer(example["output"])["input_ids"]) == example["output"]


def test_unknown_splits_and_skills_are_refused():
    with pytest.raises(BadInput, match="'train' and 'heldout', not 'test'"):
        finetune.instructions("test")
    for skills in (("sort",), "sort"):
        with pytest.raises(BadInput, match=r"no skill \['sort'\]"):
            finetune.instructions("train", skills)


def test_one_skill_and_one_example_are_taken_as_lists_of_them():
    assert finetune.instructions("heldout", "copy") == finetune.instructions("heldout", ("copy",))
    example, *_ = finetune.instructions("heldout", "copy")
    model, tokenizer = finetune.base("mamba")
    assert finetune.answers(model, tokenizer, example) == finetune.answers(model, tokenizer, [example])
    assert finetune.exact_match(model, tokenizer, example) in (0, 1)
    with pytest.raises(BadInput, match="no example"):
        finetune.exact_match(model, tokenizer, [])


@pytest.mark.parametrize("name", finetune.BASES)
def test_a_base_knows_the_old_skills_and_not_the_new_one(name):
    model, tokenizer = finetune.base(name)
    known = REFERENCE["bases"][name]
    assert sum(p.numel() for p in model.parameters()) == known["parameters"] < 100_000
    found = program.exact(model, tokenizer)
    assert found == known["exact"]
    assert min(found[skill] for skill in finetune.OLD) > 0.95 and found["swap"] < 0.1


def test_prompts_to_look_at_gradients_with_are_cut_to_one_length():
    tokenizer = finetune.base("mamba")[1]
    batch = finetune.eight_prompts("tiny", "trained", tokenizer, "cpu")
    prompts = map(finetune.prompt, finetune.instructions("train", finetune.NEW)[:8])
    whole = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    rows = batch["input_ids"].tolist()
    assert len(rows) == 8 and len(rows[0]) == min(map(len, whole))
    assert rows == [ids[: len(rows[0])] for ids in whole] == batch["labels"].tolist()


def test_windows_are_a_text_in_order_in_which_every_token_is_learned(monkeypatch):
    text, tokenizer = data.tiny_text("heldout")["mathematics"], finetune.base("mamba")[1]
    monkeypatch.setattr(data, "wikitext", {"2": text}.get)  # a text that ships
    ids = tokenizer(text, verbose=False)["input_ids"]
    rows = finetune.windows(tokenizer, 3, tokens=10)
    assert [row["input_ids"] for row in rows] == [ids[:10], ids[10:20], ids[20:30]]
    assert all(row["labels"] == row["input_ids"] for row in rows)
    *_, last = finetune.windows(tokenizer, 10**6)
    assert last["input_ids"] == ids[-(len(ids) % 256) :], "a short text ends before"


# ---- measuring -----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", finetune.BASES)
def test_answers_are_those_of_a_plain_loop_without_padding(name):
    model, tokenizer = finetune.base(name)
    examples = [finetune.instructions("heldout", (skill,))[n] for n, skill in enumerate(finetune.OLD * 2)]
    examples.append({"instruction": "Repeat the words.", "output": ""})
    lengths = {len(tokenizer(finetune.prompt(example))["input_ids"]) for example in examples}
    assert len(lengths) > 2, "some are padded"
    for example, said in zip(examples, finetune.answers(model, tokenizer, examples, 5), strict=True):
        ids = tokenizer(finetune.prompt(example))["input_ids"]
        written = []
        while len(written) < 5 and tokenizer.eos_token_id not in written:
            logits = model(torch.tensor([ids + written]), use_cache=False).logits
            written.append(logits[0, -1].argmax().item())
        ended = tokenizer.eos_token_id in written
        assert said == tokenizer.decode(written[: written.index(tokenizer.eos_token_id)] if ended else written) + (
            "" if ended else " ..."
        )


def test_a_response_that_does_not_end_is_no_match(mamba):
    examples = finetune.instructions("heldout", ("copy",))[:10]
    assert finetune.exact_match(*mamba, examples, new_tokens=3) == 1
    assert finetune.exact_match(*mamba, examples, new_tokens=2) == 0, "two words fit, their end does not"


def test_asking_leaves_a_model_in_the_mode_in_which_it_was(mamba):
    model, tokenizer = mamba
    for training in (True, False):
        model.train(training)
        finetune.exact_match(model, tokenizer, finetune.instructions("heldout")[:2])
        assert model.training == training


def test_a_fingerprint_sees_one_bit():
    weights = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    before = models.fingerprint(weights)
    assert before == models.fingerprint({name: w.clone() for name, w in weights.items()})
    weights["b"][1, 1] = -0.0
    assert before != models.fingerprint(weights)


# ---- training ------------------------------------------------------------------------------------------------------


def adapted(rank=2):
    model, tokenizer = finetune.base("mamba")
    torch.manual_seed(0)
    return ANSWERS.adapt(model, rank), tokenizer


def test_the_parameters_that_train_are_counted_beside_those_that_do_not_and_say_where_they_stand():
    model, _ = adapted()
    run = REFERENCE["runs"]["in_proj + x_proj"]
    assert finetune.counts(model) == (REFERENCE["bases"]["mamba"]["parameters"], run["parameters"])
    assert finetune.counts(finetune.base("mamba")[0]) == (0, REFERENCE["bases"]["mamba"]["parameters"])
    assert set(map(finetune.module_of, finetune.trainable(model))) == {"in_proj", "x_proj"}


def rows_of(tokenizer, count=64):
    return [ANSWERS.encode(e, tokenizer) for e in finetune.instructions("train", finetune.NEW)[:count]]


def test_the_loss_is_the_cross_entropy_of_response_and_end_alone():
    model, tokenizer = adapted()
    examples = [finetune.instructions("train", (skill,))[0] for skill in ("swap", "first")]
    batch = ANSWERS.collate([ANSWERS.encode(e, tokenizer) for e in examples], tokenizer.pad_token_id)
    nll = []
    for example in examples:
        prompt, response = (tokenizer(t)["input_ids"] for t in (finetune.prompt(example), example["output"]))
        response.append(tokenizer.eos_token_id)
        logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0]
        nll.append(F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(response), reduction="none"))
    assert len(torch.cat(nll)) == 3 + 2
    torch.testing.assert_close(model(**batch).loss, torch.cat(nll).mean(), rtol=1e-5, atol=0)


def test_checkpointing_of_activations_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        model, tokenizer = adapted()
        for parameter in finetune.trainable(model).values():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()(**ANSWERS.collate(rows_of(tokenizer, 8), tokenizer.pad_token_id)).loss.backward()
        found.append([parameter.grad for parameter in finetune.trainable(model).values()])
    assert all(gradient is not None and gradient.any() for gradient in found[1])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.TrainingArguments, "world_size", property(lambda self: 3))
    with pytest.raises(BadInput, match="batch of 32 cannot be shared evenly by 3 processes"):
        finetune.arguments(tmp_path, 10, 32, 1e-3)
    assert finetune.arguments(tmp_path, 10, 30, 1e-3).per_device_train_batch_size == 10


def test_the_newest_whole_checkpoint_is_found_and_one_that_was_cut_off_is_not(tmp_path):
    assert finetune.last_checkpoint(tmp_path / "never") is None
    for step, state in ((8, "{}"), (16, "{}"), (9, "{}"), (24, None), (32, "")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert finetune.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-16")


def test_a_checkpoint_with_a_file_that_was_cut_off_is_not_whole(tmp_path):
    """As a full disk, a copy that broke or a laptop that went down leaves it."""

    def write(step: int) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"weight": torch.ones(100)}, folder / "adapter_model.safetensors")
        for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
            torch.save({"a": torch.ones(100)}, folder / name)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        return folder

    whole, names = write(8), [path.name for path in write(16).iterdir()]
    (tmp_path / "checkpoint-old").mkdir()
    assert finetune.last_checkpoint(tmp_path).endswith("checkpoint-16")
    for name in names:
        cut = tmp_path / "checkpoint-16" / name
        all_of_it = cut.read_bytes()
        for end in (0, 1, len(all_of_it) // 2, len(all_of_it) - 1):
            cut.write_bytes(all_of_it[:end])
            assert finetune.last_checkpoint(tmp_path) == str(whole), (name, end)
        cut.write_bytes(all_of_it)


def test_large_arrays_of_other_numbers_have_other_checkpoints():
    one, other = np.zeros(10_000), np.zeros(10_000)
    other[5_000] = 1
    assert finetune.checkpoints("mamba", [one]) != finetune.checkpoints("mamba", [other])


def test_other_settings_or_processes_have_other_checkpoints(monkeypatch):
    one = finetune.checkpoints("mamba", [200, "tiny"])
    assert one == finetune.checkpoints("mamba", [200, "tiny"]) != finetune.checkpoints("mamba", [100, "tiny"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert one != finetune.checkpoints("mamba", [200, "tiny"])


THREE = """
import json, multiprocessing, signal
from shared.kits import finetune

def train(pipe):
    for _ in range(2):
        pipe.send(finetune.checkpoints("mamba", [1]).name)
    signal.pause()

fork, processes, found = multiprocessing.get_context("fork"), [], []
for number in range(3):
    here, there = fork.Pipe()
    processes.append(fork.Process(target=train, args=[there], daemon=True))
    processes[-1].start()
    found.append([here.recv(), here.recv()])
    if number == 1:  # the second one dies
        processes[-1].kill()
        processes[-1].join()
assert processes[0].is_alive() and processes[2].is_alive()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_that_train_the_same_have_folders_of_their_own(tmp_path):
    """The second takes one beside; a killed one leaves its folder to the next, and a cell that runs twice its own."""
    environment = {**os.environ, "COURSE_BUILD": str(tmp_path)}
    environment.pop("WORLD_SIZE", None)
    command = [sys.executable, "-c", THREE]
    done = subprocess.run(command, cwd=files.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first = found[0][0]
    assert found == [[first] * 2, [f"{first}-2"] * 2, [f"{first}-2"] * 2]


def test_a_training_of_other_rows_or_other_adapters_has_other_checkpoints():
    _, tokenizer = adapted()
    rows = rows_of(tokenizer, 4)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["in_proj", "x_proj"])
    batch = ANSWERS.collate(rows, tokenizer.pad_token_id)
    whole = [row | {"labels": row["input_ids"]} for row in rows]  # as an `encode` that hides no prompt gives them
    others = [
        [whole, {"default": lora}, batch],
        [rows, {"default": LoraConfig(r=2, lora_alpha=8, target_modules=["in_proj", "x_proj"])}, batch],
        [rows, {"default": LoraConfig(r=2, lora_alpha=4, target_modules=["in_proj"])}, batch],
        [rows, None, batch],
        [rows, {"default": lora}, batch | {"labels": batch["input_ids"]}],
    ]
    again = LoraConfig(r=2, lora_alpha=4, target_modules=["x_proj", "in_proj"])
    folder = finetune.checkpoints("mamba", [rows, {"default": lora}, batch])
    assert folder == finetune.checkpoints("mamba", [rows, {"default": again}, batch])
    assert len({folder, *(finetune.checkpoints("mamba", other) for other in others)}) == 1 + len(others)


def test_a_training_in_which_something_else_is_learned_has_other_checkpoints():
    base = finetune.base("mamba")[0]
    models_of = [adapted(2)[0], adapted(3)[0], adapted(2)[0].bfloat16(), base, base.backbone]
    folders = [finetune.checkpoints("mamba", finetune.learned(model)) for model in models_of]
    assert len(set(folders)) == len(folders)
    other = adapted(2)[0]
    torch.nn.init.ones_(next(iter(finetune.trainable(other).values())))
    assert finetune.checkpoints("mamba", finetune.learned(other)) == folders[0], "values are what a checkpoint is for"


def test_a_training_that_goes_on_says_so(tmp_path, capsys):
    assert finetune.last_checkpoint(tmp_path) is None and not capsys.readouterr().out
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("{}")
    assert finetune.last_checkpoint(tmp_path).endswith("checkpoint-8")
    assert capsys.readouterr().out == "The same training was stopped: it goes on after step 8.\n"


def train(folder, callbacks=()):
    """Six steps on adapters with a checkpoint after every second: hash of the weights, curves, trainer."""
    model, tokenizer = adapted()
    settings = finetune.arguments(folder, 6, 16, 1e-2, save_steps=2, disable_tqdm=True)
    collate = partial(ANSWERS.collate, pad_id=tokenizer.pad_token_id)
    rows = rows_of(tokenizer)
    trainer = Trainer(
        model,
        settings,
        train_dataset=rows,
        eval_dataset=rows[:20],
        data_collator=collate,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(program.PrinterCallback)
    with finetune.saving(folder):
        trainer.train(resume_from_checkpoint=finetune.last_checkpoint(folder))
    return models.fingerprint(finetune.trainable(model)), finetune.curves(trainer), trainer


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_weights_and_the_same_log(tmp_path):
    weights, curves, _ = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", [finetune.StopAfter(5)])
    assert finetune.last_checkpoint(tmp_path / "stopped").endswith("checkpoint-4")
    again, more, trainer = train(tmp_path / "stopped")
    assert again == weights and more == curves
    assert [step for step, _ in more["train"]] == [1, 2, 3, 4, 5, 6]
    finetune.finish(trainer)
    assert not (tmp_path / "stopped").exists()


class FullAfter(TrainerCallback):
    """From a step on no file can grow beyond so many bytes, as on a disk that has filled up."""

    def __init__(self, step: int, limit: int):
        self.step, self.limit = step, limit

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))


@pytest.mark.slow
@pytest.mark.parametrize(("step", "kept"), [(3, "goes on after step 2"), (1, "begins anew")])
@pytest.mark.parametrize("limit", [0, 1000, 10_000])
def test_a_disk_that_is_full_at_a_checkpoint_is_one_sentence_with_what_is_kept(step, kept, limit, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(DiskFull) as full:
            train(tmp_path / "stopped", [FullAfter(step, limit)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = str(full.value)
    assert f"checkpoint of this training could not be written to {tmp_path / 'stopped'}" in said
    assert kept in said and said.count(". ") == 0
    left = [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")]
    assert left == (["checkpoint-2"] if step == 3 else []), "what was cut off is deleted"
    assert train(tmp_path / "stopped")[0] == train(tmp_path / "whole")[0]


@pytest.mark.slow
def test_a_small_disk_is_one_sentence_too(tmp_path):
    disk = tmp_path / "disk"
    code = f"""
import test_finetune
from pathlib import Path
from shared.errors import CourseError
try:
    test_finetune.train(Path({str(disk)!r}) / "training")
except CourseError as problem:
    print(type(problem).__name__, problem)
"""
    command = [*small_disk(disk, "100k"), sys.executable, "-c", code]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # as pytest has them
    done = subprocess.run(command, env=paths, capture_output=True, text=True)
    said = (done.stdout.strip() or done.stderr).splitlines()[-1]
    assert re.fullmatch("DiskFull .* free: make room there, .* goes on after step 2, which is kept[.]", said), (
        done.stdout + done.stderr
    )


def test_another_error_of_a_training_passes_as_it_is(tmp_path):
    for problem in (OSError(2, "No such file"), RuntimeError("a shape"), KeyboardInterrupt()):
        with pytest.raises(type(problem)) as came, finetune.saving(tmp_path):
            raise problem
        assert came.value is problem


# ---- the shipped runs ----------------------------------------------------------------------------------------------


def last(name, what="new"):
    return [seed[what][-1] for seed in REFERENCE["runs"][name]["seeds"].values()]


def test_the_runs_were_made_with_the_settings_of_the_program():
    assert REFERENCE["settings"] == {
        "steps": program.STEPS,
        "batch": program.BATCH,
        "evaluations": program.EVALUATIONS,
        "seeds": list(program.SEEDS),
    }
    assert REFERENCE["runs"].keys() == program.RUNS.keys() and REFERENCE["made"]["command"] == "make finetune"
    for run in REFERENCE["runs"].values():
        assert run["seeds"].keys() == set(map(str, program.SEEDS))
        assert all(seed["steps"][-1] == program.STEPS and seed["new"][0] == 0 for seed in run["seeds"].values())


def test_with_less_than_three_percent_every_seed_goes_from_below_ten_to_above_eighty_percent():
    for name in ("in_proj + x_proj", "transformer"):
        assert REFERENCE["runs"][name]["share"] < 0.03
        assert max(seed["new"][0] for seed in REFERENCE["runs"][name]["seeds"].values()) < 0.1
        assert min(last(name)) > 0.8


def test_what_the_lab_says_of_the_runs():
    at = REFERENCE["runs"]["full"]["seeds"]["0"]["steps"].index(75)
    early = {name: [seed["new"][at] for seed in run["seeds"].values()] for name, run in REFERENCE["runs"].items()}
    mean = {name: sum(shares) / len(shares) for name, shares in early.items()}
    assert mean["in_proj + x_proj"] > max(mean["in_proj"], mean["x_proj"]), "both together are ahead early"
    assert max(last("x_proj")) < min(last("in_proj") + last("in_proj + x_proj")), "x_proj alone ends lowest"
    assert min(early["rank 8"] + early["full"]) >= max(early["in_proj + x_proj"]) - 0.01, "quicker"
    assert min(last("transformer")) < min(last("in_proj + x_proj")) < max(last("transformer"))
    assert min(last("prompt learned too")) > min(last("in_proj + x_proj")) - 0.1, "costs little here"


def test_all_ways_forget_and_replay_brings_it_back():
    for name in program.RUNS:
        if name.startswith("replay 50"):
            assert min(last(name, "old")) > 0.95 and min(last(name)) > 0.95
        else:
            assert max(last(name, "old")) < 0.4, name
    assert max(last("in_proj + x_proj", "old")) < min(last("replay 10 %", "old"))
