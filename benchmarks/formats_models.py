"""The models of the formats benchmark: families that users bring, each as the library or a user writes it, in a small size.

Most are those of the fusion zoo; here are those that matter to an archive and to an estimate beside them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks.fusion_zoo import MakeInputs, ZooModel, floats, images, seeded, zoo

#: Families of the table, each with the names of its models.
FAMILIES: dict[str, tuple[str, ...]] = {
    "VGG": ("vgg11", "vgg13_bn"),
    "ResNet": ("resnet18", "skresnet18"),
    "ResNeXt": ("resnext50_32x4d",),
    "MobileNet": ("mobilenet_v2", "mobilenet_v3_small", "mobilenetv4_conv_small_035"),
    "EfficientNet": ("efficientnet_b0", "lcnet_050"),
    "DenseNet": ("densenet121",),
    "SqueezeNet, ShuffleNet, MNASNet": ("squeezenet1_0", "shufflenet_v2_x0_5", "mnasnet0_5"),
    "RegNet": ("regnet_y_400mf",),
    "GoogLeNet": ("googlenet",),
    "GhostNet, RepVGG": ("ghostnet_100", "repvgg_a0"),
    "ConvNeXt": ("convnext_tiny", "convnextv2_atto", "convnext"),
    "Swin": ("swin_t", "swin"),
    "ViT": ("vit_tiny_patch16_224", "vit"),
    "DeiT": ("deit_tiny_distilled_patch16_224",),
    "MLP-Mixer": ("mixer_s32_224",),
    "MobileViT, PoolFormer, PVT": ("mobilevit_xxs", "poolformer_s12", "pvt_v2_b0"),
    "BERT": ("bert",),
    "DistilBERT": ("distilbert",),
    "RoBERTa": ("roberta",),
    "ALBERT": ("albert",),
    "ELECTRA": ("electra",),
    "DeBERTa-v2": ("deberta_v2",),
    "GPT-2": ("gpt2",),
    "Llama": ("llama",),
    "T5": ("t5", "t5_both"),
    "Segmentation": ("unet", "segformer", "lraspp_mobilenet_v3_large"),
    "LSTM": ("lstm", "lstm_one_way", "lstm_bidirectional", "lstm_projected", "lstm_time_first", "unrolled_cell"),
    "GRU, RNN": ("gru", "gru_wide", "rnn"),
    "torch encoder": ("encoder_layers",),
    "Several inputs": ("several_inputs", "siamese"),
    "Dict input": ("masked_mean",),
    "Dict output": ("dict_output",),
    "Tied weights": ("tied_weights",),
    "Plain": ("mlp", "functional_cnn", "inplace_slices"),
    "Branches on data": ("branch_on_value", "branch_on_item"),
}


def family_of(name: str) -> str:
    """Return the family that the table shows a model under; its library's for one that stands in none."""
    return next((family for family, names in FAMILIES.items() if name in names), entries()[name].family)


def default_names() -> list[str]:
    """Return the models of the table in its order."""
    return [name for names in FAMILIES.values() for name in names]


def entries() -> dict[str, ZooModel]:
    """Return all models that can be asked for, those of the zoo included, by name."""
    return {entry.name: entry for entry in (*zoo(), *_further())}


class Recurrent(nn.Module):
    """A recurrent layer over vectors ``(B, 24, 32)`` with a head on its last step."""

    def __init__(self, kind: str, *, takes_batch_first: bool = True, **arguments: Any) -> None:
        super().__init__()
        self.takes_batch_first = takes_batch_first
        self.layer = getattr(nn, kind)(32, 64, batch_first=takes_batch_first, **arguments)
        width = arguments.get("proj_size", 64) * (2 if arguments.get("bidirectional") else 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, 5)``."""
        out, _ = self.layer(x if self.takes_batch_first else x.transpose(0, 1))
        return self.head(out[:, -1] if self.takes_batch_first else out[-1])


def _further() -> list[ZooModel]:
    recurrent: dict[str, Callable[[], nn.Module]] = {
        "lstm_one_way": lambda: Recurrent("LSTM"),
        "lstm_bidirectional": lambda: Recurrent("LSTM", num_layers=2, bidirectional=True, dropout=0.2),
        "lstm_projected": lambda: Recurrent("LSTM", num_layers=2, proj_size=24),
        "lstm_time_first": lambda: Recurrent("LSTM", takes_batch_first=False, num_layers=3),
        "gru_wide": lambda: Recurrent("GRU", num_layers=2, dropout=0.2),
        "rnn": lambda: Recurrent("RNN", num_layers=2, bidirectional=True),
    }
    return [
        *(_entry(name, "user", make, floats(24, 32)) for name, make in recurrent.items()),
        *(_entry(name, "torchvision", partial(_vgg, name), images(64)) for name in ("vgg11", "vgg13_bn")),
    ]


def _vgg(name: str) -> nn.Module:
    """Return a VGG with a head for ten classes in place of its own, which has more than 100 million parameters."""
    model = getattr(importlib.import_module("torchvision.models"), name)(weights=None, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(25088, 64), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(64, 10))
    return model


def _entry(name: str, library: str, make: Callable[[], nn.Module], inputs: MakeInputs) -> ZooModel:
    return ZooModel(name=name, family=library, build=seeded(make, inputs), inputs=inputs, is_core=False)
