"""What lab 2.4.6 claims, asserted on the run that `make run` gave."""

import ast
import copy
import re
from collections import Counter

import pytest
import torch
from conftest import numbers, published_bytes, rows_of
from peft import LoraConfig, get_peft_model
from transformers import NemotronHForCausalLM

from shared import models, notebooks, reference
from shared.kits import finetune
from shared.models.sizes import published_config

LAB = "2.4.6"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("made")]


def test_dt_proj_is_dead_and_the_others_live(said):
    for line in said["first-figure-numbers"].splitlines():
        alive, matrices = numbers(line.split(":")[1])
        assert matrices == 2 * published_layers() and alive == (0 if line.startswith("dt_proj") else matrices)


BATCH = {"input_ids": torch.arange(4, 36).view(2, 16)}
ANSWERS = notebooks.solution(LAB)


def adapted(*modules: str, random_b: bool = True):
    """The base of the lab with adapters at these modules."""
    config = LoraConfig(r=2, target_modules=list(modules), init_lora_weights=not random_b)
    torch.manual_seed(0)
    return get_peft_model(finetune.base("mamba")[0], config)


def test_a_training_with_adapters_at_all_three_goes_on_and_leaves_dt_proj_as_it_is():
    model = adapted("in_proj", "x_proj", "dt_proj", random_b=False).train()
    before = {name: p.detach().clone() for name, p in finetune.trainable(model).items()}
    optimizer = torch.optim.AdamW(finetune.trainable(model).values(), weight_decay=0.0)
    for _ in range(2):
        model(**BATCH, labels=BATCH["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    still = {finetune.module_of(name) for name, p in finetune.trainable(model).items() if torch.equal(p, before[name])}
    moved = {finetune.module_of(name) for name, p in finetune.trainable(model).items() if p.ne(before[name]).any()}
    assert still == {"dt_proj"} and moved == {"in_proj", "x_proj"}


def test_with_dt_proj_alone_the_first_step_raises():
    with pytest.raises(RuntimeError, match="does not require grad"):
        adapted("dt_proj")(**BATCH, labels=BATCH["input_ids"]).loss.backward()


def test_merging_an_adapter_with_a_random_b_shows_both_traps():
    logits = {}
    for module in ("in_proj", "dt_proj", "embeddings"):
        model = adapted(module).eval()
        with torch.no_grad():
            beside = model(**BATCH, use_cache=False).logits
            into = finetune.quietly(copy.deepcopy(model).merge_and_unload)(**BATCH, use_cache=False).logits
        logits[module] = ((into - beside).abs().max() / beside.abs().max()).item()
    assert logits["in_proj"] < 1e-4 and min(logits["dt_proj"], logits["embeddings"]) > 0.1
    batch = BATCH | {"labels": BATCH["input_ids"]}
    assert ANSWERS.without_gradient(adapted("embeddings"), batch) == [], "gradients do not show this one"


def published_layers() -> int:
    return finetune.base("mamba")[0].config.num_hidden_layers


def test_what_peft_refuses_is_refused_in_one_sentence_each(said):
    lines = said["refused"].splitlines()
    assert len(lines) == 4
    assert all("incompatible with Mamba" in line for line in lines[:3]) and "not found" in lines[3]


def test_beside_a_right_name_peft_drops_a_wrong_one_without_a_word(recwarn):
    adapted = get_peft_model(finetune.base("mamba")[0], LoraConfig(target_modules=["in_proj", "q_proj"]))
    reached = set(map(finetune.module_of, finetune.trainable(adapted)))
    assert reached == {"in_proj"} and not [w for w in recwarn if "q_proj" in str(w.message)]


def test_the_fused_path_gives_the_same_loss_and_kills_x_proj(said):
    assert said["same-loss"].strip().endswith("True")
    apart, fused = said["fused-probe"].splitlines()
    assert apart.endswith("['dt_proj']") and fused.endswith("['dt_proj', 'x_proj']")


def test_less_than_three_percent_train_at_tiny_and_less_than_one_percent_of_the_real_model(said):
    assert 0 < numbers(said["choose-rank"].splitlines()[1])[-1] < 3
    line = next(line for line in said["ranks"].splitlines() if line.startswith("mamba-1.4b"))
    rank, trained, share = re.search(r"below 1%: rank (\d+), ([\d,]+) \(([\d.]+)%\)", line).groups()
    config = published_config("mamba-1.4b")
    per_layer = (config.hidden_size + 2 * config.intermediate_size) + (
        config.intermediate_size + config.time_step_rank + 2 * config.state_size
    )
    counted = int(rank) * per_layer * config.num_hidden_layers
    assert int(trained.replace(",", "")) == counted
    total = models.size("mamba-1.4b").total
    assert counted < 0.01 * (total + counted) <= counted + per_layer * config.num_hidden_layers
    assert float(share) == pytest.approx(100 * counted / (total + counted), abs=0.006)


def test_nothing_that_is_asked_was_trained_on(said):
    assert numbers(said["examples"].splitlines()[-1]) == [0]


def test_the_prompt_is_masked_and_the_end_is_learned(said):
    lines = said["encoded"].splitlines()
    assert "label -100" in lines[1] and "Response" in lines[1]
    assert "<eos>" in lines[-1] and "-100" not in lines[-1]


def test_no_held_out_example_is_scored_twice_by_one_process_or_two():
    settings = lab_settings()
    held_out = {"tiny": len(finetune.examples("tiny")[1]), "full": settings["full"]["examples"] // 10}
    for scale, found in held_out.items():
        assert found % (2 * settings[scale]["eval_batch"]) == 0, scale


def lab_settings() -> dict:
    source = next(cell.source for cell in notebooks.read(LAB).cells if cell.id == "settings")
    return ast.literal_eval(source.split("SETTINGS = ")[1].split("\nsettings")[0])


def test_before_the_first_step_a_model_with_adapters_is_the_base(said):
    assert said["fresh-adapter"].strip().endswith("True")


def test_every_adapter_gets_a_gradient_and_the_base_keeps_every_bit(said):
    dead, base = said["only-adapters-trained"].splitlines()
    assert numbers(dead) == [0] and base.endswith("True")


def test_exact_match_goes_from_below_ten_to_above_eighty_percent_on_both(said):
    before, after = re.search(r"(\d+)% before, (\d+)% after", said["after"]).groups()
    assert int(before) < 10 and int(after) > 80
    for name in ("mamba", "transformer"):
        _, before, after, _ = rows_of(said["after-twin"])[name]
        assert before < 0.1 and after > 0.8, name


def test_the_twin_trains_as_many_parameters(said):
    mamba, twin = (rows_of(said["after-twin"])[name][0] for name in ("mamba", "transformer"))
    assert twin == pytest.approx(mamba, rel=0.05)


def test_the_losses_fall_together(said):
    found = dict(re.findall(r"'(\w+)': ([\d.]+)", said["results"]))
    assert float(found["train_loss"]) < 0.3 and float(found["heldout_loss"]) < 0.4


def test_measured_memory_is_the_formula_and_activations_that_lora_does_not_save(said):
    table = {}
    for line in said["memory-measure"].splitlines()[1:]:
        name, way, *values = re.match(r" *(\w+) +(full|LoRA, checkpointing|LoRA) +(\S+) +(\S+) +(\S+)", line).groups()
        table[name, way] = [float(value) for value in values]
    assert len(table) == 6
    for name in ("mamba", "transformer"):
        (full, full_peak, full_rest), (lora, lora_peak, lora_rest) = table[name, "full"], table[name, "LoRA"]
        _, least, checkpointed = table[name, "LoRA, checkpointing"]
        assert lora < 0.3 * full and full_peak > lora_peak > least > lora
        assert 0.6 * full_rest < lora_rest < 1.5 * full_rest, "LoRA keeps the activations"
        assert checkpointed < 0.8 * lora_rest
    assert table["mamba", "LoRA"][2] > table["transformer", "LoRA"][2]
    layers = {name: finetune.for_memory(name, "tiny", full=True).config.num_hidden_layers for name in finetune.BASES}
    assert layers["mamba"] == 2 * layers["transformer"]


def test_the_formula_for_the_real_models(said):
    full, lora = (float(n) for n in re.findall(r"([\d.]+) GB", said["real-sizes"].splitlines()[0]))
    total = models.size("mamba-1.4b").total
    assert full == pytest.approx(16 * total / 1e9, abs=0.1) and 2 * total / 1e9 < lora < 0.15 * full


def test_a_saved_adapter_comes_back_to_the_bit_and_merges(said):
    assert said["reload"].count("True") == 2 and "False" not in said["reload"]
    assert said["merge"].count("True") == 2 and "adapters left: 0" in said["merge"]


def test_merging_an_adapter_of_the_tied_embeddings_goes_wrong(said):
    assert numbers(said["trap"])[0] > 0.5


def test_a_stopped_training_that_goes_on_is_the_one_in_one_piece(said):
    assert all(said[cell].strip().endswith("True") for cell in ("interrupted-equal", "interrupted-log"))
    assert "stopped after step" in said["interrupted"]


def test_the_old_skills_are_forgotten_and_replay_brings_them_back(said):
    text = said["forgetting"]
    base, tuned, replay = (rows_of(text)[name][2:] for name in ("base", "fine-tuned", "with replay"))
    assert base[0] < 0.1 and min(base[1:]) > 0.95
    assert tuned[0] > 0.8 and sum(tuned[1:]) / 3 < 0.3
    assert replay[0] > 0.8 and min(replay[1:]) > 0.8
    assert said["switched-off"].strip().endswith("True")


def test_the_download_that_the_header_names_is_that_of_the_published_files():
    header = next(cell.source for cell in notebooks.read(LAB).cells if cell.id == "needs")
    published = published_bytes("mamba-1.4b", "pythia-1.4b")
    assert f"{published / 1e9:.2f} GB of models" in header


def test_the_memory_that_machines_have_measured_stands_beside_this_run(said):
    measured = reference.machines("tiny")
    assert measured and all(machine in said["memory-figure"] for machine in measured)


def test_the_path_of_the_scan_is_said_before_anything_is_trained(said):
    assert "path of the scan: course" in said["load"]  # these machines have no kernel


# ---- a hybrid --------------------------------------------------------------------------------------------------------


def test_peft_s_own_list_reaches_attention_alone_and_only_parameters_reach_the_routed_experts(said):
    found = dict(re.findall(r"(.+): (\d) of 9 layers learn", said["hybrid-learning"]))
    assert {name: int(n) for name, n in found.items()} == {
        "peft's own": 1,
        "in_proj, q_proj": 5,
        "up_proj, down_proj": 4,
        "experts' parameters": 4,
        "every kind": 9,
    }
    assert "(1 of 1 attention)" in said["hybrid-learning"].splitlines()[0]
    assert set(re.findall(r"without a gradient: (\d+)", said["hybrid-learning"])) == {"0"}
    by_name, by_parameter = said["experts-found"].splitlines()
    assert by_name.endswith("shared_experts.down_proj, shared_experts.up_proj") and by_parameter.endswith(": experts")
    assert said["unmatched"].strip() == "accepted; names that matched nothing: ['q_proj']"


def test_peft_s_own_list_for_the_class_is_attention_s():
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as lists

    assert lists["nemotron_h"] == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_nemotron_3_nano_has_three_kinds_of_layers_of_which_six_are_attention():
    kinds = Counter(published_config("nemotron-3-nano-30b-a3b").layers_block_type)
    assert sorted(kinds.values()) == [6, 23, 23] and kinds["full_attention"] == 6


def test_the_routed_experts_of_a_layer_are_two_parameters_of_three_dimensions():
    config = published_config("nemotron-3-nano-30b-a3b")
    with torch.device("meta"):
        model = NemotronHForCausalLM(config)
    layer = next(n for n, kind in enumerate(config.layers_block_type) if kind == "moe")
    experts = model.get_submodule(f"model.layers.{layer}.mixer.experts")
    assert {name: p.dim() for name, p in experts.named_parameters()} == {"up_proj": 3, "down_proj": 3}
