"""The models of the zoo that come from torchvision, timm and transformers: small inputs, nothing is downloaded."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from benchmarks.fusion_zoo import MakeInputs, ZooModel, floats, images, named, seeded, tokens

_SURVEY = (
    "resnet18",
    "vgg11_bn",
    "alexnet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "densenet121",
    "squeezenet1_0",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "efficientnet_b0",
    "regnet_y_400mf",
    "convnext_tiny",
    "googlenet",
    "vit_b_32",
    "swin_t",
)
SURVEYED = (*_SURVEY, "functional_cnn", "top_skip", "reused_relu")  # the 18 of target C2

_TIMM_AT_64 = (
    "convnextv2_atto",
    "mobilevit_xxs",
    "repvgg_a0",
    "ghostnet_100",
    "poolformer_s12",
    "edgenext_xx_small",
    "pvt_v2_b0",
    "skresnet18",
)
_TIMM_WITH_SIZE = (
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "mixer_s32_224",
    "resmlp_12_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
)
_TIMM_MORE_AT_64 = (
    "mambaout_femto",
    "res2net50_14w_8s",
    "dla46_c",
    "hrnet_w18_small",
    "test_nfnet",
    "test_efficientnet_evos",
    "starnet_s050",
    "mobilenetv4_conv_small_035",
    "ese_vovnet19b_slim_dw",
    "resnest14d",
    "lcnet_050",
    "tiny_vit_5m_224",
)
_TIMM_MORE_WITH_SIZE = ("levit_128s", "test_maxvit", "test_coatnet", "gmlp_ti16_224", "beit_base_patch16_224")

_TEXT = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_PICTURE = {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_DECODER = {**_TEXT, "num_key_value_heads": 1, "pad_token_id": 0, "max_position_embeddings": 64}


def library_models() -> list[ZooModel]:
    """Return the models of the three libraries, installed or not."""
    return [*_torchvision(), *_timm(), *_transformers()]


def _torchvision() -> list[ZooModel]:
    arguments: dict[str, dict[str, Any]] = {"googlenet": {"init_weights": False}, "vit_b_32": {"image_size": 64}}
    core = [from_torchvision(name, 64, **arguments.get(name, {})) for name in _SURVEY]
    core.append(from_torchvision("resnext50_32x4d", 64))
    return [
        *core,
        from_torchvision("inception_v3", 96, is_core=False, init_weights=False),
        from_torchvision("maxvit_t", 224, is_core=False),
        from_torchvision("segmentation.lraspp_mobilenet_v3_large", 64, is_core=False, weights_backbone=None),
        from_torchvision("segmentation.deeplabv3_mobilenet_v3_large", 64, is_core=False, weights_backbone=None),
        from_torchvision("video.r3d_18", (3, 4, 32, 32), is_core=False),
    ]


def from_torchvision(path: str, size: int | tuple[int, ...], *, is_core: bool = True, **arguments: Any) -> ZooModel:
    """Return the model that torchvision has at ``path``, without weights, for pictures of ``size``."""
    *folders, name = path.split(".")

    def make() -> nn.Module:
        return getattr(importlib.import_module(".".join(["torchvision.models", *folders])), name)(weights=None, **arguments)

    inputs = images(size) if isinstance(size, int) else floats(*size)
    return ZooModel(name=name, family="torchvision", build=seeded(make, inputs), inputs=inputs, is_core=is_core)


def _timm() -> list[ZooModel]:
    return [
        *(from_timm(name) for name in _TIMM_AT_64),
        *(from_timm(name, img_size=64) for name in _TIMM_WITH_SIZE),
        *(from_timm(name, is_core=False) for name in _TIMM_MORE_AT_64),
        from_timm("efficientformerv2_s0", 224, is_core=False),
        *(from_timm(name, is_core=False, img_size=64) for name in _TIMM_MORE_WITH_SIZE),
    ]


def from_timm(name: str, size: int = 64, *, is_core: bool = True, **arguments: Any) -> ZooModel:
    """Return the model that timm has under ``name``, without weights, for pictures of ``size``."""

    def make() -> nn.Module:
        return importlib.import_module("timm").create_model(name, pretrained=False, num_classes=10, **arguments)

    inputs = images(size)
    return ZooModel(name=name, family="timm", build=seeded(make, inputs), inputs=inputs, is_core=is_core)


def _transformers() -> list[ZooModel]:
    masked, plain = tokens(12, with_mask=True), tokens(12)
    gpt2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 1}
    distilled = {"vocab_size": 100, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}
    t5 = {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    segments = {"num_encoder_blocks": 4, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 32}
    segments |= {"num_attention_heads": [1, 2, 2, 4], "num_labels": 5}
    return [
        _hub("bert", "BertForSequenceClassification", "BertConfig", _TEXT, masked),
        _hub("distilbert", "DistilBertForSequenceClassification", "DistilBertConfig", distilled, masked),
        _hub("roberta", "RobertaForTokenClassification", "RobertaConfig", {**_TEXT, "pad_token_id": 0}, masked),
        _hub("albert", "AlbertForSequenceClassification", "AlbertConfig", {**_TEXT, "embedding_size": 16}, masked),
        _hub("electra", "ElectraForSequenceClassification", "ElectraConfig", {**_TEXT, "embedding_size": 16}, masked),
        _hub("deberta_v2", "DebertaV2ForSequenceClassification", "DebertaV2Config", _deberta(), masked),
        _hub("gpt2", "GPT2LMHeadModel", "GPT2Config", gpt2, plain),
        _hub("t5", "T5EncoderModel", "T5Config", t5, masked),
        _hub("vit", "ViTForImageClassification", "ViTConfig", {**_PICTURE, "patch_size": 8}, images(32)),
        _hub("segformer", "SegformerForSemanticSegmentation", "SegformerConfig", segments, images(64)),
        _hub("llama", "LlamaForSequenceClassification", "LlamaConfig", _DECODER, masked),
        *_more_transformers(masked, plain, t5),
    ]


def _more_transformers(masked: MakeInputs, plain: MakeInputs, t5: dict[str, Any]) -> list[ZooModel]:
    bart = {"vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 32}
    bart |= {
        f"{side}_{what}": 2 if "heads" in what else 64
        for side in ("encoder", "decoder")
        for what in ("attention_heads", "ffn_dim")
    }
    both = tokens(12, decoder_input_ids=8)
    swin = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    convnext = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_labels": 4}
    sound = {**{key: value for key, value in _TEXT.items() if key != "vocab_size"}, "vocab_size": 20}
    sound |= {"conv_dim": [16, 16], "conv_kernel": [10, 4], "conv_stride": [5, 4], "num_feat_extract_layers": 2}
    sound |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    speech = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_source_positions": 20}
    speech |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 100, "pad_token_id": 0}
    speech |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}
    experts = {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
    heard = named(input_features=(16, 40))
    return [
        _hub("t5_both", "T5ForConditionalGeneration", "T5Config", t5, both, is_core=False, primary="input_ids"),
        _hub("bart", "BartForConditionalGeneration", "BartConfig", bart, both, is_core=False, primary="input_ids"),
        _hub("swin", "SwinForImageClassification", "SwinConfig", swin, images(32), is_core=False),
        _hub("convnext", "ConvNextForImageClassification", "ConvNextConfig", convnext, images(64), is_core=False),
        _hub("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _DECODER, masked, is_core=False),
        _hub("mixtral", "MixtralForCausalLM", "MixtralConfig", experts, plain, is_core=False),
        _hub("mamba", "MambaForCausalLM", "MambaConfig", {**_short_mamba()}, plain, is_core=False),
        _hub("wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", sound, floats(400), is_core=False),
        _hub("whisper", "WhisperForAudioClassification", "WhisperConfig", speech, heard, is_core=False),
        _hub("clip_vision", "CLIPVisionModel", "CLIPVisionConfig", {**_PICTURE, "patch_size": 8}, images(32), is_core=False),
        _hub("bert_qa", "BertForQuestionAnswering", "BertConfig", _TEXT, masked, is_core=False),
    ]


def _deberta() -> dict[str, Any]:
    return {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16}


def _short_mamba() -> dict[str, Any]:
    return {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}


def _hub(name: str, kind: str, config: str, values: dict[str, Any], inputs: MakeInputs, **more: Any) -> ZooModel:
    """Return a model of transformers from a configuration; attention as the library chooses it."""

    def make() -> nn.Module:
        library = importlib.import_module("transformers")
        return getattr(library, kind)(getattr(library, config)(**values))

    return ZooModel(name=name, family="transformers", build=seeded(make, inputs), inputs=inputs, **more)
