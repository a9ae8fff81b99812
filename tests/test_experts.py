"""What `experts.capture` says is what the model dispatches: on every MoE architecture of transformers, by ablation."""

import copy
import functools
import gc
import pickle
import statistics
import threading
import time
import weakref

import pandas
import pytest
import torch
from small_models import MIXTRAL, SMALL
from transformers import AutoModelForCausalLM, Cache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.mamba import modeling_mamba

from shared import experts, models, scan
from shared.errors import BadInput, CourseError
from shared.files import DATA
from shared.models import deepseek
from shared.models.cards import TINY

deepseek.register()

# ---- every architecture of the registry, tiny -----------------------------------------------------------------------

# The fields that make a config small, where it has them. One that a new architecture adds is worth a line here.
FIELDS = {
    **dict.fromkeys(("hidden_size", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_key_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "linear_head_dim"), 8),
    **dict.fromkeys(("ffn_hidden_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "router_hidden_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "decoder_sparse_step"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "max_position_embeddings", "max_seq_len"), 64),
    # Experts in both layers, also where the published model starts dense or has them as an option.
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 0),
    **dict.fromkeys(("is_moe", "enable_moe_block"), True),
    "mlp_layer_types": ["sparse", "sparse"],
    "mlp_only_layers": [],
    "zero_expert_num": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OF_ONE = {
    "dbrx": {
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 4, "clip_qkv": 8, "rope_theta": 10000.0},
    },
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
}
WITHOUT_INTERFACE = ("doge", "jetmoe", "llama4_text")


def fields(config_class) -> set[str]:
    return {name for kind in config_class.__mro__ for name in getattr(kind, "__annotations__", ())}


def registry() -> dict[str, tuple]:
    """model_type -> model class and config class, of every causal language model with a config field for experts."""
    found = {}
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        config = CONFIG_MAPPING[model_type]
        parts = (config, *getattr(config, "sub_configs", {}).values())
        # A multimodal config has its language model's class, or a class that is no causal language model alone.
        if name.endswith("ForCausalLM") and any("experts" in field for part in parts for field in fields(part)):
            model = AutoModelForCausalLM._model_mapping[config]
            found[model.config_class.model_type] = model, model.config_class
    return found


REGISTRY = registry()
PADDED = torch.tensor([[0, 0, 7, 9, 23, 41, 5, 60], [11, 50, 31, 8, 19, 44, 62, 33]])
MASK = (PADDED != 0).long()


def randomised(model):
    """The same model with every weight and every router's bias drawn: transformers starts some routers at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # norms stay near one and biases near zero
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(0.5 * noise if parameter.ndim > 1 else parameter + 0.05 * noise)
        for bias in (b for name, b in model.named_buffers() if "bias" in name):
            bias.normal_(0, 0.05, generator=generator)
        # DeepSeek-V4's first layers look the experts of a token up in a table, which starts as zeros.
        for table in (b for name, b in model.named_buffers() if name.endswith("tid2eid")):
            table.copy_(torch.rand(len(table), 8, generator=generator).argsort(-1)[:, : table.shape[1]])
    return model.eval()


def build(model_type: str):
    model, config = REGISTRY[model_type]
    small = {name: value for name, value in FIELDS.items() if name in fields(config)} | OF_ONE.get(model_type, {})
    return randomised(model(config(**small)))


def mixture(kind="olmoe", **options):
    config = {**(MIXTRAL if kind == "mixtral" else SMALL[kind]), "vocab_size": 64, "pad_token_id": 0, **options}
    return randomised(AutoModelForCausalLM.from_config(CONFIG_MAPPING[config.pop("model_type")](**config)))


# ---- the oracle -----------------------------------------------------------------------------------------------------


def block_calls(model, blocks: dict, **call) -> dict[int, tuple]:
    """Layer -> what the block around its experts is given in one forward: positional and named arguments."""
    given, handles = {}, []
    for layer, block in blocks.items():

        def keep(module, args, kwargs, layer=layer):
            given[layer] = tuple(a.clone() if torch.is_tensor(a) else a for a in args), kwargs

        handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))
    model(**call)
    for handle in handles:
        handle.remove()
    return given


def rows(block, args, kwargs) -> torch.Tensor:
    """Output rows (B * T, d_model) of a block."""
    output = block(*(a.clone() if torch.is_tensor(a) else a for a in args), **kwargs)
    return (output[0] if isinstance(output, tuple) else output).flatten(0, -2).clone()


@torch.no_grad()
def ablation_oracle(model, **call) -> int:
    """Zero each expert of each layer: exactly the rows captured for it change. Returns how many were zeroed."""
    with experts.capture(model) as trace:
        model(**call)
    watched = experts.experts_modules(model)
    names = {module: name for name, module in model.named_modules()}
    blocks = {layer: model.get_submodule(names[m].rpartition(".")[0]) for layer, m in watched.items()}
    given = block_calls(model, blocks, **call)
    assert set(trace.indices) == set(watched) == set(given), "a layer with experts was not seen"
    real, zeroed = trace.tokens.flatten() >= 0, 0
    for layer, module in watched.items():
        whole = rows(blocks[layer], *given[layer])
        E = len(trace.counts[layer])
        # The identity experts of LongCat have no weights that could be zeroed.
        for expert in range(getattr(module, "num_routed_experts", E)):
            # Its first matrix is enough. (E, ...), or DBRX's (E * d, ...)
            matrix = next(module.parameters()).unflatten(0, (E, -1))[expert]
            kept = matrix.clone()
            matrix.zero_()
            changed = (rows(blocks[layer], *given[layer]) != whole).any(-1)
            matrix.copy_(kept)
            routed = (trace.indices[layer] == expert).any(-1).flatten()
            assert torch.equal(changed[real], routed[real]), f"layer {layer}, expert {expert}"
            zeroed += 1
        assert (trace.counts[layer] > 0).sum() > 1, "with one expert for all tokens the oracle proves nothing"
    return zeroed


@functools.cache
def verdict(model_type: str) -> str:
    """ "" where the oracle holds; otherwise why it could not be asked. A wrong capture is an AssertionError."""
    try:
        model = build(model_type)
        with torch.no_grad():
            output = model(input_ids=PADDED[1:], use_cache=False)
        assert output.logits.isfinite().all()
    except Exception as error:  # a new architecture may need fields that are not in FIELDS
        return f"cannot be built tiny here: {type(error).__name__}: {error}"
    try:
        experts.experts_modules(model)
    except BadInput as error:
        return str(error)
    ablation_oracle(model, input_ids=PADDED, attention_mask=MASK, use_cache=False)
    return ""


@pytest.mark.parametrize("model_type", REGISTRY)
def test_capture_sees_what_is_dispatched(model_type):
    reason = verdict(model_type)
    if model_type in WITHOUT_INTERFACE:
        assert model_type.removesuffix("_text") in reason and "hook its router" in reason
    elif reason:
        pytest.skip(reason)


def test_at_least_54_architectures_pass_the_oracle():
    reasons = {model_type: verdict(model_type) for model_type in REGISTRY}
    passed = [model_type for model_type, reason in reasons.items() if not reason]
    print(f"\n{len(passed)} of {len(REGISTRY)} architectures pass: {', '.join(passed)}")
    for model_type, reason in reasons.items():
        if reason:
            print(f"- {model_type}: {reason}")
    assert len(passed) >= 54


def test_the_oracle_refuses_a_wrong_capture(monkeypatch):
    model, join = mixture(), experts.Trace._join

    def swapped(trace):
        joined = dict(join(trace))
        joined["indices"] = {layer: i.roll(1, 1) for layer, i in joined["indices"].items()}
        return joined

    monkeypatch.setattr(experts.Trace, "_join", swapped)
    with pytest.raises(AssertionError, match="layer 0, expert"):
        ablation_oracle(model, input_ids=PADDED[1:])


def test_with_a_selection_bias_top_k_of_the_logits_is_wrong_and_the_capture_is_right():
    model = build("deepseek_v3")
    gate = model.model.layers[0].mlp.gate

    def share_equal() -> float:
        seen = []
        handle = gate.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, -2)))
        with torch.no_grad(), experts.capture(model) as trace:
            model(PADDED[1:])
        handle.remove()
        by_logits = (seen[0].float() @ gate.weight.float().T).topk(2).indices.sort(-1).values
        return (by_logits == trace.indices[0][0].sort(-1).values).all(-1).float().mean().item()

    gate.e_score_correction_bias.zero_()
    assert share_equal() == 1, "without a bias the logits decide"
    gate.e_score_correction_bias.copy_(torch.linspace(-0.5, 0.5, 8))
    assert share_equal() < 0.5
    assert ablation_oracle(model, input_ids=PADDED[1:]) == 16


def test_ranks_are_by_weight_also_where_the_router_orders_by_something_else():
    model, given = build("deepseek_v3"), []
    model.model.layers[0].mlp.gate.e_score_correction_bias.copy_(torch.linspace(-0.5, 0.5, 8))
    module = experts.experts_modules(model)[0]
    handle = module.register_forward_pre_hook(lambda m, args: given.append(args[1:]))
    with torch.no_grad(), experts.capture(model) as trace:
        model(PADDED[1:])
    handle.remove()
    ((indices, weights),) = given
    assert (weights[:, 0] < weights[:, 1]).any(), "the router orders by weight itself: the test proves nothing"
    for row, pairs in enumerate(zip(indices.tolist(), weights.tolist(), strict=True)):
        ranked = sorted(zip(*pairs, strict=True), key=lambda pair: -pair[1])
        assert trace.indices[0][0, row].tolist() == [expert for expert, _ in ranked]
        assert trace.weights[0][0, row].tolist() == [weight for _, weight in ranked]


# ---- the models that ship -------------------------------------------------------------------------------------------

SHIPPED = [name for name in TINY if "olmoe" in name or "deepseek" in name or "jamba" in name]


@functools.cache
def shipped(name: str):
    # float32: with bfloat16 a near tie may fall differently in one pass and token by token.
    return AutoModelForCausalLM.from_pretrained(DATA / name, dtype=torch.float32).eval()


def prompt(rows=2, tokens=12):
    # Not seed 3: there two experts of the shipped olmoe are 1e-8 apart, and rounding decides.
    return torch.randint(5, 800, (rows, tokens), generator=torch.Generator().manual_seed(4))


def padded(ids: torch.Tensor, by: int) -> dict:
    """The arguments for `ids` in which the first `by` tokens of the first row are padding."""
    ids, mask = ids.clone(), torch.ones_like(ids)
    ids[0, :by], mask[0, :by] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, n=5, **call):
    return model.generate(**call, max_new_tokens=n, min_new_tokens=n, do_sample=call.pop("do_sample", False))


def assert_same(one: experts.Trace, other: experts.Trace, rows=slice(None)):
    assert torch.equal(one.tokens, other.tokens[rows]) and torch.equal(one.positions, other.positions[rows])
    assert one.indices.keys() == other.indices.keys()
    for layer in one.indices:
        assert torch.equal(one.indices[layer], other.indices[layer][rows]), f"layer {layer}"
        torch.testing.assert_close(one.weights[layer], other.weights[layer][rows], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SHIPPED)
def test_capture_of_the_shipped_models_passes_the_oracle(name):
    E, layers = {"jamba": (8, 2), "deepseek-moe": (32, 3)}.get(name.removeprefix("tiny/"), (16, 4))
    assert ablation_oracle(shipped(name), **padded(prompt(), 3), use_cache=False) == E * layers


@pytest.mark.parametrize("name", SHIPPED)
def test_capture_of_a_text_equals_that_of_generating_it_with_a_cache(name):
    model = shipped(name)
    with experts.capture(model) as stepwise:
        text = generate(model, input_ids=prompt())
    with torch.inference_mode(), experts.capture(model) as whole:
        model(text[:, :-1])
    assert whole.tokens.shape == (2, 12 + 5 - 1), "the last token is never fed back"
    assert_same(stepwise, whole)


@pytest.mark.parametrize("name", SHIPPED)
def test_left_padding_changes_nothing_but_the_columns(name):
    model, ids = shipped(name), prompt()
    with experts.capture(model) as trace:
        generate(model, **padded(ids, 4))
    with experts.capture(model) as alone:
        generate(model, input_ids=ids[:1, 4:])
    for layer, indices in trace.indices.items():
        assert (indices[0, :4] == -1).all() and (indices[0, 4:] >= 0).all() and (indices[1] >= 0).all()
        assert torch.equal(indices[0, 4:], alone.indices[layer][0])
    frame = trace.frame().query("sequence == 0").reset_index(drop=True)
    pandas.testing.assert_frame_equal(frame, alone.frame(), check_exact=False, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_static_cache_with_its_masks_of_four_dimensions_gives_the_same(attention):
    model = mixture("mixtral", attn_implementation=attention)
    with experts.capture(model) as dynamic:
        generate(model, **padded(PADDED, 2))
    with experts.capture(model) as static:
        generate(model, **padded(PADDED, 2), cache_implementation="static", disable_compile=True)
    assert_same(static, dynamic)


def test_generation_without_a_cache_dispatches_the_whole_text_at_each_step():
    model, ids = shipped("tiny/olmoe"), prompt()
    with experts.capture(model) as cached:
        generate(model, input_ids=ids)
    with experts.capture(model) as trace:
        generate(model, input_ids=ids, use_cache=False)
    assert trace.tokens.shape == (2 * 5, 12 + 4)
    assert (trace.tokens >= 0).sum(1).tolist() == [12, 12, 13, 13, 14, 14, 15, 15, 16, 16]
    assert_same(cached, trace, rows=slice(-2, None))


def test_beams_are_the_rows_that_the_model_computes():
    model, ids, computed = shipped("tiny/olmoe"), prompt(), []
    module = experts.experts_modules(model)[0]
    handle = module.register_forward_pre_hook(lambda m, args: computed.append(args[1].clone()))
    with experts.capture(model) as trace:
        generate(model, input_ids=ids, num_beams=3)
    handle.remove()
    assert trace.indices[0].shape == (2 * 3, 12 + 5 - 1, 2)
    assert torch.equal(trace.counts[0], torch.cat(computed).flatten().bincount(minlength=16))
    with experts.capture(model) as alone:
        model(ids)
    assert torch.equal(trace.indices[0][::3, :12], alone.indices[0])


@pytest.mark.slow
def test_a_cache_continues_its_own_sequences():
    model, a, b = shipped("tiny/deepseek-moe"), prompt(1, 9), prompt(2, 7)
    with torch.no_grad(), experts.capture(model) as whole:
        model(a), model(b)
    with torch.no_grad(), experts.capture(model) as trace:
        caches = [model(ids[:, :5], use_cache=True).past_key_values for ids in (a, b)]
        for ids, cache in zip((a, b), caches, strict=True):
            model(ids[:, 5:6], past_key_values=cache)
        for ids, cache in zip((b, a), caches[::-1], strict=True):
            model(ids[:, 6:], past_key_values=cache)
    assert_same(trace, whole)
    cache = weakref.ref(caches.pop())
    del caches
    gc.collect()
    assert cache() is None, "the trace must not keep a model's cache in memory"


def test_a_cache_from_before_the_trace_moves_the_positions():
    model, ids = shipped("tiny/olmoe"), prompt()
    for call in ({"input_ids": ids}, padded(ids, 3)):
        first = {name: tensor[:, :8] for name, tensor in call.items()}
        with torch.no_grad():
            cache = model(**first, use_cache=True).past_key_values
            with experts.capture(model) as trace:
                model(**call | {"input_ids": ids[:, 8:]}, past_key_values=cache)
        assert trace.positions[0].tolist() == ([5, 6, 7, 8] if "attention_mask" in call else [8, 9, 10, 11])


def repeated(rows=1) -> torch.Tensor:
    """A prompt of which prompt-lookup decoding finds continuations."""
    return prompt(rows, 6).repeat(1, 4)


@pytest.mark.parametrize("how", ["prompt lookup", "assistant", "itself"])
def test_drafts_that_are_refused_are_left_out(how):
    model, ids = shipped("tiny/olmoe"), repeated()
    other = {"assistant": shipped("tiny/transformer"), "itself": model}
    more = {"prompt_lookup_num_tokens": 4} if how == "prompt lookup" else {"assistant_model": other[how]}
    with experts.capture(model) as plain:
        text = generate(model, 12, input_ids=ids)
    rows = []
    handle = model.register_forward_pre_hook(
        lambda m, args, kwargs: rows.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with experts.capture(model) as trace:
        same = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, **more)
    handle.remove()
    assert torch.equal(same, text)
    if how == "itself":  # the drafts are the model's own text, and they are traced as sequences of their own
        assert (trace.tokens[:, : ids.shape[1]] == ids).all()
        return
    assert sum(rows) > plain.tokens.shape[1], "no draft was refused: the test proves nothing"
    assert_same(trace, plain)
    if how == "prompt lookup":
        with pytest.raises(CourseError, match="leave counts_only out"), experts.capture(model, counts_only=True):
            model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, **more)


@pytest.mark.parametrize("name", ["tiny/olmoe", "tiny/deepseek-moe"])
def test_what_an_early_exit_drafts_is_left_out(name):
    """The first layer drafts alone; in DeepSeekMoE it has no experts at all."""
    model, ids = shipped(name), repeated()
    with experts.capture(model) as plain:
        text = generate(model, 12, input_ids=ids)
    with experts.capture(model) as trace:
        same = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, assistant_early_exit=1)
    assert torch.equal(same, text) and model.config.num_hidden_layers == trace._depth > 1
    assert_same(trace, plain)


@pytest.mark.parametrize("lost", [1, 4, 9])
def test_what_a_cropped_cache_has_lost_is_not_traced(lost):
    model, ids = shipped("tiny/deepseek-moe"), prompt(2, 9)
    with torch.no_grad(), experts.capture(model) as trace:
        cache = model(ids[:, :6], use_cache=True).past_key_values
        model(ids[:, 6:], past_key_values=cache)
        cache.crop(-lost)
        if lost < 9:
            assert torch.equal(trace.tokens, ids[:, :-lost])
        model(ids[:, 9 - lost :], past_key_values=cache)
    with torch.no_grad(), experts.capture(model) as whole:
        model(ids)
    assert_same(trace, whole)


def test_a_model_with_adapters_is_traced_once_however_it_is_called():
    from peft import LoraConfig, get_peft_model

    ids = prompt(2, 9)
    base = mixture("olmoe", vocab_size=1024)
    with torch.no_grad(), experts.capture(base) as plain:
        generate(base, input_ids=ids)
    with torch.no_grad(), experts.capture(base) as once:
        base(ids)
    before = hooks(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    for counts_only in (False, True):
        with torch.no_grad(), experts.capture(model, counts_only) as called:
            model(ids)
        with torch.no_grad(), experts.capture(model, counts_only) as generated:
            generate(model, input_ids=ids)
        assert called.counts[0].sum() == once.counts[0].sum()
        assert generated.counts[0].sum() == plain.counts[0].sum()
        if not counts_only:
            assert_same(called, once)
            assert_same(generated, plain)
    assert hooks(model) == before


def test_a_call_without_tokens_is_the_models_own_error():
    for model in (mixture(), mixture("mixtral"), Rows(8)):
        for call in ({}, {"input_ids": None}, {"input_ids": None, "inputs_embeds": None}):
            if call and isinstance(model, Rows):
                continue
            with pytest.raises(Exception) as own:
                model(**call)
            with experts.capture(model) as trace, pytest.raises(type(own.value)) as error:
                model(**call)
            assert str(error.value) == str(own.value)
            with pytest.raises(CourseError, match="Nothing was traced"):
                trace.counts  # noqa: B018


# ---- training, errors, nesting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_gradient_checkpointing_recomputes_is_not_counted_twice(reentrant):
    model, calls = mixture().train(), []
    model.get_input_embeddings().weight.requires_grad_()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    with experts.capture(model) as trace, experts.capture(model, counts_only=True) as counted:
        handle = experts.experts_modules(model)[0].register_forward_pre_hook(lambda m, args: calls.append(1))
        model(PADDED, labels=PADDED).loss.backward()
        handle.remove()
    assert len(calls) == 2, "the layer was not recomputed: the test proves nothing"
    assert trace.indices[0].shape == (2, 8, 2) and not trace.weights[0].requires_grad
    assert trace.counts[0].sum() == counted.counts[0].sum() == 2 * 8 * 2


def hooks(model) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_mid_forward_leaves_no_hooks_and_no_half_call(error):
    model, ids = mixture(), PADDED[1:]
    before = hooks(model)

    def stop(module, args):
        raise error("in the second layer")

    with pytest.raises(error), experts.capture(model) as trace:
        model(ids)
        handle = experts.experts_modules(model)[1].register_forward_pre_hook(stop)
        model(ids)
    handle.remove()
    assert hooks(model) == before
    assert trace.tokens.shape == (1, 8) and trace.indices.keys() == {0, 1}
    with experts.capture(model) as again:
        handle = experts.experts_modules(model)[1].register_forward_pre_hook(stop)
        with pytest.raises(error):
            model(ids)
        handle.remove()
        model(ids)
    assert_same(again, trace)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_what_a_copy_of_the_traced_model_does_is_not_traced(copied):
    model, ids = mixture(), PADDED[1:]
    with experts.capture(model) as trace:
        model(ids)
        other = copied(model)
        other(ids)
    assert trace.tokens.tolist() == ids.tolist()
    torch.testing.assert_close(other(ids).logits, model(ids).logits, rtol=0, atol=0)
    with experts.capture(other) as again:
        other(ids)
    assert_same(again, trace)


def test_captures_nest_and_repeat():
    model = mixture()
    before = hooks(model)
    with experts.capture(model) as outer:
        model(PADDED[:1])
        with experts.capture(model) as inner:
            model(PADDED[1:])
        model(PADDED)
    model(PADDED)
    assert hooks(model) == before
    assert inner.tokens.tolist() == PADDED[1:].tolist()
    assert outer.tokens.tolist() == torch.cat([PADDED, PADDED]).tolist()


def test_a_capture_that_is_entered_again_is_one_sentence_and_leaves_nothing_hooked():
    model = mixture()
    before, crop = hooks(model), Cache.crop
    capture = experts.capture(model)
    with capture as trace:
        model(PADDED[:1])
        with (
            pytest.raises(CourseError, match=r"^One capture\(\.\.\.\) is for one block.* again for the next\.$"),
            capture,
        ):
            pass
        model(PADDED[1:])
    with pytest.raises(CourseError, match="for one block"), capture:
        pass
    assert hooks(model) == before and Cache.crop is crop
    assert trace.tokens.tolist() == PADDED.tolist(), "the block went on as it was"
    with pytest.raises(BadInput, match="dense"), (dense := experts.capture(torch.nn.Linear(2, 2))):
        pass
    with pytest.raises(CourseError, match="for one block"), dense:
        pass
    with pytest.raises(CourseError, match=r"before its with"):
        experts.capture(model).__exit__(None, None, None)


def test_captures_that_end_in_another_order_than_they_began_leave_nothing_hooked():
    model = mixture()
    before, crop = hooks(model), Cache.crop
    first, second = experts.capture(model), experts.capture(model)
    first.__enter__()
    trace = second.__enter__()
    first.__exit__(None, None, None)
    cache = model(PADDED[1:], use_cache=True).past_key_values
    cache.crop(-3)
    second.__exit__(None, None, None)
    assert hooks(model) == before and Cache.crop is crop
    assert trace.tokens.tolist() == PADDED[1:, :5].tolist(), "what the crop took back is seen by who is still there"


def test_a_block_that_patches_transformers_is_entered_once():
    before = modeling_mamba.mamba_selective_scan
    block = scan.in_transformers()
    with block, pytest.raises(CourseError, match=r"^One in_transformers\(\.\.\.\) is for one block"), block:
        pass
    assert modeling_mamba.mamba_selective_scan is before


def test_calls_of_different_lengths_are_padded_at_the_right():
    model = mixture()
    with experts.capture(model) as trace:
        model(PADDED[:, :3])
        assert trace.tokens.shape == (2, 3), "it can be read while it grows"
        model(PADDED[1:])
    assert trace.indices[1].shape == (3, 8, 2)
    assert (trace.indices[1][:2, 3:] == -1).all() and (trace.weights[1][:2, 3:] == 0).all()
    assert (trace.indices[1][2] >= 0).all()


def held_bytes() -> int:
    gc.collect()
    return sum(o.nbytes for o in gc.get_objects() if type(o) is torch.Tensor)


@pytest.mark.slow
def test_counts_of_a_book_take_no_more_memory_than_those_of_a_page():
    model, pages = mixture(), [padded(torch.randint(1, 64, (2, 40)), 7) for _ in range(12)]
    traces, grown = {}, {}
    for counts_only in (True, False):
        with torch.no_grad(), experts.capture(model, counts_only) as traces[counts_only]:
            model(**pages[0], use_cache=False)
            before = held_bytes()
            for page in pages[1:]:
                model(**page, use_cache=False)
            grown[counts_only] = held_bytes() - before
    assert grown[True] == 0 and grown[False] >= 11 * 2 * 40 * 2 * 8, (
        "a token costs nothing, or 8 bytes per layer and rank"
    )
    for layer, count in traces[False].counts.items():
        assert torch.equal(traces[True].counts[layer], count) and count.sum() == (12 * 2 * 40 - 12 * 7) * 2
    with pytest.raises(CourseError, match="keeps counts only"):
        traces[True].frame()


def test_frame_has_a_row_for_each_token_layer_and_rank():
    model = mixture()
    with experts.capture(model) as trace:
        model(**padded(PADDED, 2))
    frame = trace.frame()
    assert list(frame) == ["sequence", "position", "token", "layer", "rank", "expert", "weight"]
    assert len(frame) == (16 - 2) * 2 * 2 and not frame.duplicated(["sequence", "position", "layer", "rank"]).any()
    assert frame.query("sequence == 0").token.unique().tolist() == [7, 9, 23, 41, 5, 60]
    wide = frame.pivot(index=["sequence", "position", "layer"], columns="rank", values="weight")
    assert (wide[0] >= wide[1]).all() and (wide[1] > 0).all()
    for row in frame.itertuples():
        column = row.position + (2 if row.sequence == 0 else 0)
        assert trace.indices[row.layer][row.sequence, column, row.rank] == row.expert
        assert trace.weights[row.layer][row.sequence, column, row.rank].item() == pytest.approx(row.weight)
    assert (
        trace.counts[1].tolist()
        == frame[frame.layer == 1].expert.value_counts().reindex(range(8), fill_value=0).tolist()
    )


def test_embeddings_instead_of_tokens_are_traced_without_token_ids():
    model = mixture()
    with experts.capture(model) as ids:
        model(PADDED)
    with experts.capture(model) as embeddings:
        model(inputs_embeds=model.get_input_embeddings()(PADDED))
    assert (embeddings.tokens == -1).all() and torch.equal(embeddings.indices[1], ids.indices[1])
    assert len(embeddings.frame()) == len(ids.frame())


def test_a_dense_model_is_named():
    with (
        pytest.raises(BadInput, match="This gpt_neox model is dense: it has no experts to trace"),
        experts.capture(mixture("transformer")),
    ):
        pass


def test_an_empty_trace_says_what_to_call():
    model = mixture()
    for counts_only in (False, True):
        with experts.capture(model, counts_only) as trace:
            model.model(PADDED)
        with pytest.raises(CourseError, match="call the model that capture was given, itself"):
            trace.counts  # noqa: B018


class Experts(torch.nn.Module):
    num_experts = 4

    def forward(self, hidden, indices, weights):
        return hidden


class Rows(torch.nn.Module):
    """A model that gives its experts `rows` rows, whatever its tokens are, as one of pictures and text may."""

    def __init__(self, rows: int):
        super().__init__()
        self.rows, self.layers = rows, torch.nn.ModuleList([torch.nn.ModuleDict({"experts": Experts()})])

    def forward(self, input_ids, attention_mask=None):
        if self.rows:
            ones = torch.ones(self.rows, 1)
            self.layers[0]["experts"](ones, ones.long(), ones)


def test_what_cannot_be_traced_rightly_is_refused():
    ids = torch.ones(2, 4, dtype=torch.int64)
    with experts.capture(model := Rows(8)) as trace:
        model(ids)
    assert trace.counts[0].tolist() == [0, 8, 0, 0], "with the right rows it works"
    for rows, mask, message in (
        (5, None, "Layer 0 dispatches 5 rows for 2 x 4 tokens"),
        (0, None, "none of its experts did"),
        (8, torch.ones(2, 3), r"mask of shape \(2, 3\) does not say which of 2 x 4"),
    ):
        model = Rows(rows)
        with experts.capture(model), pytest.raises(CourseError, match=message):
            model(ids, attention_mask=mask)
    twice = torch.nn.ModuleDict({"0": torch.nn.ModuleDict({"text": Rows(1).layers[0], "image": Rows(1).layers[0]})})
    with pytest.raises(BadInput, match="Two modules named experts are in layer 0"), experts.capture(twice):
        pass


# ---- what it costs --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_overhead_on_the_shipped_models_is_a_few_percent(name):
    """Processor time of a forward with the hooks over one without, interleaved; `pytest -s -k overhead` prints it."""
    model, ids = AutoModelForCausalLM.from_pretrained(DATA / name).eval(), prompt(rows=4, tokens=64)

    def seconds() -> float:
        start = time.process_time()  # of this process: other work on the machine does not count
        model(ids)
        return time.process_time() - start

    ratios = {False: [], True: []}
    with torch.inference_mode():
        seconds()
        for _ in range(15):
            for counts_only, found in ratios.items():
                with experts.capture(model, counts_only):
                    traced = seconds()
                found.append(traced / seconds())
    trace, counts = (statistics.median(found) - 1 for found in ratios.values())
    print(f"\n{name}, 4 x 64 tokens: the trace costs {trace:+.1%} of a forward, counts only {counts:+.1%}")
    assert max(trace, counts) < 0.25, "generous: the machine may be busy"


# ---- further hands -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def olmoe():
    return models.load("tiny/olmoe", dtype=torch.float32, device="cpu")[0]


def test_threads_that_call_one_model_do_not_meet_in_its_trace(olmoe):
    """Each thread's calls are whole: their experts are those of a call by itself."""
    ids = torch.arange(200, 224).view(2, 12)
    with experts.capture(olmoe) as alone, torch.inference_mode():
        for row in ids:
            olmoe(row[None])
    failed = []

    @torch.inference_mode()
    def read(row):
        try:
            for _ in range(10):
                olmoe(row[None])
        except Exception as error:
            failed.append(error)

    with experts.capture(olmoe) as trace:
        threads = [threading.Thread(target=read, args=(row,)) for row in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed and len(trace.tokens) == 20
    for row, tokens in enumerate(trace.tokens):
        same = int(torch.equal(tokens, ids[1]))
        assert all(torch.equal(trace.indices[layer][row], alone.indices[layer][same]) for layer in alone.indices)


@pytest.mark.parametrize("wrong", [None, "tiny/olmoe", 3])
def test_what_is_no_model_is_one_sentence(wrong):
    with pytest.raises(BadInput, match=r"^A model is what models\.load gives, not "), experts.capture(wrong):
        pass


def test_a_trace_in_a_trace_and_traces_of_two_models_do_not_mix(olmoe):
    ids, other = torch.arange(200, 212).view(2, 6), copy.deepcopy(olmoe)
    with experts.capture(olmoe) as outer, experts.capture(other) as beside, torch.inference_mode():
        olmoe(ids)
        with experts.capture(olmoe) as inner:
            olmoe(ids[:1])
        other(ids)
    assert outer.tokens.tolist() == [*ids.tolist(), *ids[:1].tolist()]
    assert inner.tokens.tolist() == ids[:1].tolist() and beside.tokens.tolist() == ids.tolist()
    assert all(torch.equal(outer.indices[n][:2], beside.indices[n]) for n in outer.indices)


def test_a_forward_that_is_interrupted_stays_out_of_the_trace(olmoe):
    def interrupt(*_):
        raise KeyboardInterrupt

    ids = torch.arange(200, 212).view(2, 6)
    with experts.capture(olmoe) as trace, torch.inference_mode():
        hook = olmoe.model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            olmoe(ids)
        hook.remove()
        olmoe(ids[:1])
    assert trace.tokens.tolist() == ids[:1].tolist()
