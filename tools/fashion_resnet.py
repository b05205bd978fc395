"""Small residual networks for Fashion-MNIST, and chains in place of their convolutions, in torch.

They train on the CPU in minutes.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from onnxlr.stages import Convolution, Fold, ModeProduct
from tools.train_demo_model import augment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxlr.stages import Chain, Stage
    from tools.train_demo_model import Split

__all__ = [
    "FactorizedConv",
    "Schedule",
    "accuracy",
    "build_resnet",
    "build_resnet20",
    "factorizable",
    "parameters",
    "replaced",
    "train",
]

BATCH = 128
WIDTHS = (32, 64, 128)
WIDTHS_20 = (16, 32, 64)


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        hidden = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


def build_resnet(widths: Sequence[int] = WIDTHS, classes: int = 10) -> nn.Sequential:
    """Return the network, float32 `(n, 1, 28, 28)` to `(n, classes)`.

    A 3×3 convolution of stride 2, one block for each width, and a mean over the places.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(1, widths[0], 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    inputs = widths[0]
    for place, width in enumerate(widths):
        layers.append(Block(inputs, width, 1 if place == 0 else 2))
        inputs = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers)


def build_resnet20(widths: Sequence[int] = WIDTHS_20, blocks: int = 3) -> nn.Sequential:
    """Return ResNet-20 (He et al. 2016, section 4.2), float32 `(n, 1, 28, 28)` to `(n, 10)`.

    A 3×3 convolution of stride 1, three blocks for each width, and a mean over the places; where
    the width changes, the shortcut is a 1×1 convolution of stride 2.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(1, widths[0], 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(widths[0]),
        relu=nn.ReLU(),
    )
    inputs = widths[0]
    for stage, width in enumerate(widths, 1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            layers[f"stage{stage}_block{block}"] = Block(inputs, width, stride)
            inputs = width
    layers |= {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(inputs, 10),
    }
    return nn.Sequential(layers)


def factorizable(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the 3×3 convolutions by name, all but the first."""
    found = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
    }
    return dict(list(found.items())[1:])


def parameters(network: nn.Module) -> int:
    """Return the numbers that training changes."""
    return sum(value.numel() for value in network.parameters())


class _Step(nn.Module):
    """A convolution along one mode of the channels, which are `(before, inputs, behind)`."""

    def __init__(self, stage: Convolution, before: int, behind: int, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel = stage.weight.decode().astype(np.float32)
        self.weight = nn.Parameter(torch.from_numpy(kernel.copy()))
        self.groups, self.before, self.behind = stage.groups, before, behind
        axes = range(kernel.ndim - 2)
        self.stride = [conv.stride[a] if a in stage.window else 1 for a in axes]
        self.padding = [int(conv.padding[a]) if a in stage.window else 0 for a in axes]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the step's output."""
        count, _, *places = x.shape
        before, behind = self.before, self.behind
        if before * behind > 1:
            x = x.reshape(count, before, -1, behind, *places).movedim(3, 2)
            x = x.reshape(count * before * behind, -1, *places)
        x = nn.functional.conv2d(x, self.weight, None, self.stride, self.padding, 1, self.groups)
        if before * behind == 1:
            return x
        x = x.reshape(count, before, behind, *x.shape[1:]).movedim(2, 3)
        return x.reshape(count, -1, *x.shape[4:])


class _Turn(nn.Module):
    """The channels in another order."""

    def __init__(self, stage: Fold) -> None:
        super().__init__()
        self.dims, self.order = stage.dims, stage.order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same channels, moved."""
        count, _, *places = x.shape
        behind = range(len(self.dims) + 1, len(self.dims) + 1 + len(places))
        axes = (0, *(axis + 1 for axis in self.order), *behind)
        return x.reshape(count, *self.dims, *places).permute(*axes).reshape(count, -1, *places)


class FactorizedConv(nn.Sequential):
    """The stages of a chain in place of a convolution; its factors are what is trained."""

    def __init__(self, chain: Chain, conv: nn.Conv2d) -> None:
        """Take a chain and the convolution, whose stride and padding its stages share.

        Raises
        ------
        TypeError
            If the chain has a stage that no convolution's factors are made of.
        """
        super().__init__(*(_module(stage, conv) for stage in chain.stages))


def _module(stage: Stage, conv: nn.Conv2d) -> nn.Module:
    match stage:
        case Convolution():
            return _Step(stage, 1, 1, conv)
        case ModeProduct(stage=Convolution() as inner):
            return _Step(inner, stage.before, stage.behind, conv)
        case Fold():
            return _Turn(stage)
    raise TypeError(f"a stage {type(stage).__name__} has no module")


def replaced(network: nn.Sequential, chains: Mapping[str, Chain]) -> nn.Sequential:
    """Return a copy with chains in place of convolutions, by their names."""
    made = copy.deepcopy(network)
    for name, chain in chains.items():
        above, _, own = name.rpartition(".")
        conv = made.get_submodule(name)
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"{name} is no convolution")
        setattr(made.get_submodule(above), own, FactorizedConv(chain, conv))
    return made


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: SGD with momentum, one cycle of the learning rate.

    Attributes
    ----------
    steps
        Batches of 128 images.
    rate
        Largest learning rate.
    seed
        Of the order of images, and how they are moved.
    bfloat16
        Whether products take bfloat16 numbers (weights and sums stay float32): twice as fast where
        the processor has such products.
    """

    steps: int
    rate: float
    seed: int
    bfloat16: bool = False


def train(
    network: nn.Sequential,
    data: Split,
    schedule: Schedule,
    report: Callable[[str], Any] = lambda text: None,  # noqa: ARG005
) -> float:
    """Train in place on images that are mirrored and shifted; return the seconds it took."""
    torch.manual_seed(schedule.seed)
    image, label = torch.from_numpy(data.image), torch.from_numpy(data.label)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=schedule.rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    pace = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.rate, total_steps=schedule.steps, pct_start=0.2
    )
    order = torch.randperm(0)
    start = time.perf_counter()
    network.train()
    for step in range(1, schedule.steps + 1):
        if len(order) < BATCH:
            order = torch.randperm(len(image))
        index, order = order[:BATCH], order[BATCH:]
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
            logits = network(augment(image[index]))
        loss = nn.functional.cross_entropy(logits.float(), label[index])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        pace.step()
        if step % 100 == 0:
            seconds = time.perf_counter() - start
            report(f"step {step} of {schedule.steps}, loss {loss.item():.3f}, {seconds:.0f} s")
    network.eval()
    return time.perf_counter() - start


def accuracy(network: nn.Sequential, data: Split) -> float:
    """Return the share of images whose class the network names."""
    network.eval()
    image, correct = torch.from_numpy(data.image), 0
    with torch.inference_mode():
        for start in range(0, len(image), 500):
            found = network(image[start : start + 500]).argmax(1).numpy()
            correct += int((found == data.label[start : start + 500]).sum())
    return correct / len(image)
