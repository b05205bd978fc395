"""Train a ResNet-20 on Fashion-MNIST, and write models/fashion_resnet20.onnx.

    python tools/train_fashion_resnet.py [--epochs 8] [--seed 7] [--bfloat16] [--out FILE]

SGD with one cycle of the learning rate, images mirrored and shifted by up to two pixels.
Normalisations stay nodes of their own, so that the model can be trained further. Needs torch, onnx,
onnxruntime and numpy, plus apt-get and dpkg for the data set (the Debian package
``dataset-fashion-mnist``). The 10,000 test images are looked at once, after the last epoch: nothing
was selected on them.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

try:
    import onnx
    import torch
    from onnx import helper, numpy_helper
    from torch import nn
except ImportError as missing:
    sys.exit(
        f"train_fashion_resnet.py needs the Python package '{missing.name}': "
        "pip install 'onnxlr[train]'"
    )

from tools.fashion_resnet import (  # noqa: E402  # the folder above must be known
    BATCH,
    Block,
    Schedule,
    build_resnet20,
    train,
)
from tools.train_demo_model import (  # noqa: E402
    CLASSES,
    DATASET,
    DATASET_LICENCE,
    accuracy,
    check_agreement,
    fetch_idx,
    load_split,
    run_onnx,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

OUT = ROOT / "models" / "fashion_resnet20.onnx"

RATE = 0.1
"""Largest learning rate."""


@dataclass
class _Graph:
    """Nodes and initializers, as they are added."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, name: str, module: nn.Module, source: str) -> str:
        """Add a module behind a tensor; return the tensor that it makes."""
        match module:
            case nn.Sequential():
                for inner, layer in module.named_children():
                    source = self.add(_joined(name, inner), layer, source)
                return source
            case Block():
                return self._block(name, module, source)
            case nn.Identity():
                return source
            case nn.Conv2d():
                pads = [int(p) for p in module.padding] * 2
                sizes = {"kernel_shape": list(module.kernel_size), "strides": list(module.stride)}
                return self._node(name, "Conv", source, module, ("weight",), pads=pads, **sizes)
            case nn.BatchNorm2d():
                names = ("weight", "bias", "running_mean", "running_var")
                return self._node(
                    name, "BatchNormalization", source, module, names, epsilon=module.eps
                )
            case nn.Linear():
                return self._node(name, "Gemm", source, module, ("weight", "bias"), transB=1)
        plain = {nn.ReLU: "Relu", nn.AdaptiveAvgPool2d: "GlobalAveragePool", nn.Flatten: "Flatten"}
        return self._node(name, plain[type(module)], source, module, ())

    def _block(self, name: str, block: Block, source: str) -> str:
        inner = source
        for part in ("conv1", "norm1"):
            inner = self.add(f"{name}.{part}", getattr(block, part), inner)
        inner = self.add(f"{name}.relu1", nn.ReLU(), inner)
        for part in ("conv2", "norm2"):
            inner = self.add(f"{name}.{part}", getattr(block, part), inner)
        beside = self.add(f"{name}.shortcut", block.shortcut, source)
        total = f"{name}.sum"
        self.nodes.append(helper.make_node("Add", [inner, beside], [total], f"{name}.add"))
        return self.add(f"{name}.relu2", nn.ReLU(), total)

    def _node(
        self,
        name: str,
        operator: str,
        source: str,
        module: nn.Module,
        constants: Sequence[str],
        **attributes: object,
    ) -> str:
        values = module.state_dict()
        names = [f"{name}.{constant}" for constant in constants]
        for constant, own in zip(constants, names, strict=True):
            self.initializers.append(numpy_helper.from_array(values[constant].numpy(), own))
        target = f"{name}.output"
        self.nodes.append(
            helper.make_node(operator, [source, *names], [target], name, **attributes)
        )
        return target


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def export(network: nn.Sequential) -> onnx.ModelProto:
    """Return the checked ONNX model: `image` float32 (batch, 1, 28, 28) -> `logits` (batch, 10)."""
    made = _Graph()
    last = made.add("", network, "image")
    made.nodes[-1].output[0] = "logits"
    if last != f"{made.nodes[-1].name}.output":
        raise TypeError(f"the network ends in {last}, not in its last node")
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        made.nodes,
        "fashion_mnist_resnet20",
        [helper.make_tensor_value_info("image", float32, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", float32, ["batch", len(CLASSES)])],
        made.initializers,
    )
    model = helper.make_model(
        graph,
        producer_name="onnxlr tools/train_fashion_resnet.py",
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        doc_string="ResNet-20 for Fashion-MNIST, normalisations unfolded. "
        "`image`: grey values 0..1, white garment on black; `logits`: one score per class.",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def say(text: str) -> None:
    """Write a line of progress."""
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_fashion_resnet.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    add = parser.add_argument
    add("--epochs", type=int, default=8, metavar="N", help="default 8")
    add("--seed", type=int, default=7, metavar="N", help="of everything random (default 7)")
    add("--threads", type=int, default=1, metavar="N", help="of torch (default 1)")
    add("--bfloat16", action="store_true", help="products of bfloat16 numbers")
    add("--out", type=Path, default=OUT, metavar="FILE", help="models/fashion_resnet20.onnx")
    add("--cache", type=Path, default=Path(root, "onnxlr"), metavar="DIR", help="of the data set")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, check and write the file."""
    asked = _parser().parse_args(arguments)
    torch.manual_seed(asked.seed)
    torch.set_num_threads(asked.threads)
    folder = fetch_idx(asked.cache)
    training, testing = load_split(folder, "train"), load_split(folder, "t10k")
    network = build_resnet20().to(memory_format=torch.channels_last)
    steps = asked.epochs * (len(training.label) // BATCH)
    seconds = train(network, training, Schedule(steps, RATE, asked.seed, asked.bfloat16), say)
    network = network.to(memory_format=torch.contiguous_format)
    model = export(network)
    logits = run_onnx(model, testing.image)
    check_agreement(network, logits, testing.image)
    reached = accuracy(logits, testing.label)
    exact = " --bfloat16" if asked.bfloat16 else ""
    helper.set_model_props(
        model,
        {
            "dataset": DATASET,
            "dataset_licence": DATASET_LICENCE,
            "accuracy_10000_test_images": f"{reached:.4f}",
            "classes": ", ".join(CLASSES),
            "command": "python tools/train_fashion_resnet.py "
            f"--epochs {asked.epochs} --seed {asked.seed}{exact}",
            "versions": f"torch {torch.__version__}",
        },
    )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, asked.out)
    say(f"{asked.out}: accuracy {reached:.4f} on the 10,000 test images, {seconds:.0f} s")


if __name__ == "__main__":
    main()
