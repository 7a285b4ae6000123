"""The networks of the merging benchmark for panels of one channel, as their owners would write them.

Shapes: panels ``(N, 1, H, W)``; logits ``(N, outputs)``, one per label bit.
Widths of VGG and ResNet-18 are an eighth of the published ones, so that they train on two cores in minutes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.fusion_models import ResNet18

HEIGHT, WIDTH = 28, 112
_VGG_STAGES = (1, 1, 2, 2)  # convolutions; the published fifth stage would pool 28 rows to nothing


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max pooling, its 5x5 convolutions padded to keep the size.

    At 496x124 it costs 107.04 MFLOP (2 per multiply-add), where the paper on merging has 106.42; at 28x112 5.48.

    Args:
        outputs: Logits.
        height: Of a panel, in pixels; a multiple of 4.
        width: Of a panel, in pixels; a multiple of 4.
    """

    def __init__(self, outputs: int, *, height: int = HEIGHT, width: int = WIDTH) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(16 * (height // 4) * (width // 4), 120)
        self.fc2 = nn.Linear(120, 84)
        self.out = nn.Linear(84, outputs)

    def forward(self, panels: Tensor) -> Tensor:
        """Map ``(N, 1, height, width)`` to ``(N, outputs)``."""
        x = self.pool(self.relu(self.conv1(panels)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.fc1(x.flatten(1)))
        return self.out(self.relu(self.fc2(x)))


class NarrowVGG(nn.Module):
    """VGG-11 with BatchNorm (Simonyan and Zisserman, 2015) without its last stage, narrowed.

    Args:
        outputs: Logits.
        channels: Of the first stage; published: 64.
        height: Of a panel, in pixels; at least 16.
        width: Of a panel, in pixels; at least 16.
    """

    def __init__(self, outputs: int, *, channels: int = 8, height: int = HEIGHT, width: int = WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for stage, repeats in enumerate(_VGG_STAGES):
            out = channels * 2**stage
            for _ in range(repeats):
                layers += [nn.Conv2d(before, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                before = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        inputs = before * (height // 16) * (width // 16)
        self.classifier = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))

    def forward(self, panels: Tensor) -> Tensor:
        """Map ``(N, 1, height, width)`` to ``(N, outputs)``."""
        return self.classifier(self.features(panels).flatten(1))


def resnet18(outputs: int) -> ResNet18:
    """Return ResNet-18 of BasicBlocks with BatchNorm, 8 channels in its first stage; for panels of any size.

    Its first convolution has a stride of 2, as the published one.
    """
    network = ResNet18(width=8, classes=outputs)
    network.conv1 = nn.Conv2d(1, 8, 3, 2, 1, bias=False)
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"lenet5": LeNet5, "vgg": NarrowVGG, "resnet18": resnet18}
"""Builders for panels of 28x112 by name, given the number of outputs."""
