"""DeepSeekMoE-16B without remote code: the published checkpoint on classes that transformers has.

The model's own code no longer imports. transformers' DeepSeek-OCR-2 has the same language model inside (multi-head
attention, a dense first layer, softmax top-k that is not renormalised, shared experts), so a config and a head are all
that is missing. After `register`, `AutoModelForCausalLM.from_pretrained` reads the published layout and
`save_pretrained` writes it. Architecture: Dai et al. 2024, "DeepSeekMoE", sections 2 and 3.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2TextConfig
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import (
    DeepseekOcr2TextModel,
    DeepseekOcr2TextPreTrainedModel,
)


@strict
class DeepseekConfig(DeepseekOcr2TextConfig):
    """The fields of the published config, by default those of DeepSeekMoE-16B.

    Raises: ValueError for a field that asks for what these classes do not compute.
    """

    model_type = "deepseek"
    hidden_size: int = 2048
    intermediate_size: int = 10944
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    max_position_embeddings: int = 4096
    bos_token_id: int | None = 100000
    eos_token_id: int | list[int] | None = 100001
    num_experts_per_tok: int | None = 6
    moe_intermediate_size: int = 1408
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"

    def __post_init__(self, **kwargs):
        for name, honoured in (("norm_topk_prob", False), ("scoring_func", "softmax"), ("topk_method", "greedy")):
            if (value := getattr(self, name)) != honoured:
                raise ValueError(
                    f"This DeepSeekMoE has {name}={value!r}, but only {honoured!r}, the published model's, is built "
                    "here: its outputs would be wrong. Use a checkpoint with that value."
                )
        self.mlp_layer_types = [
            "sparse" if layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0 else "dense"
            for layer in range(self.num_hidden_layers)
        ]
        super().__post_init__(**kwargs)


class DeepseekForCausalLM(DeepseekOcr2TextPreTrainedModel, GenerationMixin):
    """DeepSeekMoE with its language-model head."""

    config: DeepseekConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: DeepseekConfig):
        super().__init__(config)
        self.model = DeepseekOcr2TextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # The library looks for a decorator in the file of the class, which is not that of the experts. Without it they
        # run one by one, 64 of them a layer.
        return True

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> MoeCausalLMOutputWithPast:
        """Logits (B, T, vocabulary) for input_ids (B, T), of the last `logits_to_keep` positions where it is not 0."""
        outputs = self.model(input_ids=input_ids, **kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )


def register() -> None:
    """From here on transformers knows the model_type "deepseek". A second call changes nothing."""
    # The library fuses the experts into one tensor; this conversion reads and writes them one by one, as published.
    register_checkpoint_conversion_mapping("deepseek", get_checkpoint_conversion_mapping("qwen2_moe"), overwrite=True)
    AutoConfig.register("deepseek", DeepseekConfig, exist_ok=True)
    AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM, exist_ok=True)
