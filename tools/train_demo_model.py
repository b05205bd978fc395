"""Train the demo model of onnxlr, a small CNN on Fashion-MNIST, and write models/.

    python tools/train_demo_model.py [--epochs 14] [--seed 7] [--out models] [--cache FOLDER]

Needs torch, onnx, onnxruntime and numpy, plus apt-get and dpkg for the data set (the Debian package
``dataset-fashion-mnist``). Writes demo.onnx, demo_calibration.npz, demo_test.npz and demo.json.
The 10,000 test images are looked at once, after the last epoch: no figure was selected on them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

try:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnxruntime as ort
    import torch
    from onnx import helper, numpy_helper
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval
except ImportError as missing:
    sys.exit(
        f"train_demo_model.py needs the Python package '{missing.name}': "
        "install torch, onnx, onnxruntime and numpy."
    )

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

PACKAGE = "dataset-fashion-mnist"
# Of the IDX content, not of the .gz: Debian recompresses the upstream files.
IDX_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DATASET = "Fashion-MNIST"
DATASET_LICENCE = "MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com"
CALIBRATION_COUNT = 256
TEST_COUNT = 512
BATCH = 128
AGREEMENT = 1e-4
HIDDEN = "classifier.hidden"
POINTWISE = ("features.pointwise1", "features.pointwise2")
# What is truncated, and to which share of its parameters. With 0.38 of `classifier.hidden` alone
# the whole model is at half of its parameters.
SVD_CASES: dict[str, tuple[tuple[str, ...], float]] = {
    "hidden_at_half": ((HIDDEN,), 0.5),
    "hidden_at_quarter": ((HIDDEN,), 0.25),
    "whole_model_at_half_by_hidden_alone": ((HIDDEN,), 0.38),
    "hidden_and_pointwise_at_half": ((HIDDEN, *POINTWISE), 0.5),
    "all_but_conv1_and_logits_at_half": (
        (HIDDEN, *POINTWISE, "features.conv2", "features.conv3"),
        0.5,
    ),
}


@dataclass(frozen=True)
class Split:
    """Images float32 (N, 1, 28, 28) with values k/255, and labels int64 (N,)."""

    image: Images
    label: Labels

    def take(self, index: Labels) -> Split:
        """Return the samples at `index`, int64 (M,)."""
        return Split(self.image[index], self.label[index])

    def save(self, path: Path) -> None:
        """Write both arrays to a compressed .npz file."""
        np.savez_compressed(path, image=self.image, label=self.label)


def fetch_idx(cache: Path) -> Path:
    """Return the folder of the four gzipped IDX files, unpacked from the Debian package."""
    folder = cache / PACKAGE
    if all((folder / f"{name}.gz").is_file() for name in IDX_SHA256):
        return folder
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            sys.exit(
                f"'{tool}' is missing, so {PACKAGE} cannot be fetched: put its four "
                f"*-ubyte.gz files into {folder} by hand."
            )
    with tempfile.TemporaryDirectory() as temporary:
        download = subprocess.run(
            ["apt-get", "download", PACKAGE],
            check=False,
            cwd=temporary,
            capture_output=True,
            text=True,
        )
        packages = list(Path(temporary).glob("*.deb"))
        if download.returncode or not packages:
            reason = " ".join(download.stderr.split())
            sys.exit(f"Debian package {PACKAGE} not found, try 'apt-get update' first: {reason}")
        subprocess.run(["dpkg", "-x", str(packages[0]), temporary], check=True)
        folder.mkdir(parents=True, exist_ok=True)
        for name in IDX_SHA256:
            unpacked = Path(temporary, "usr/share/datasets/fashion-mnist", f"{name}.gz")
            shutil.copyfile(unpacked, folder / unpacked.name)
    return folder


def read_idx(folder: Path, name: str) -> npt.NDArray[np.uint8]:
    """Read one verified IDX file: uint8, (N, 28, 28) for images or (N,) for labels."""
    content = gzip.decompress((folder / f"{name}.gz").read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if found != IDX_SHA256[name]:
        sys.exit(
            f"{folder / name}.gz holds sha256 {found} where {IDX_SHA256[name]} is expected: "
            "delete the file and run again."
        )
    # IDX: two zero bytes, the type (8 = uint8), the number of axes, then each extent, big-endian.
    axes = content[3]
    shape = np.frombuffer(content, ">u4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape.tolist())


def load_split(folder: Path, prefix: str) -> Split:
    """Load the split `prefix`, "train" (60,000 samples) or "t10k" (10,000)."""
    pixels = read_idx(folder, f"{prefix}-images-idx3-ubyte")
    labels = read_idx(folder, f"{prefix}-labels-idx1-ubyte")
    return Split(pixels[:, None].astype(np.float32) / np.float32(255), labels.astype(np.int64))


def balanced_sample(label: Labels, count: int, rng: np.random.Generator) -> Labels:
    """Return `count` indices, int64 (count,), whose class counts differ by at most one."""
    order = rng.permutation(len(label))
    by_class = [order[label[order] == k] for k in range(len(CLASSES))]
    turns = np.array([by_class[i % len(CLASSES)][i // len(CLASSES)] for i in range(count)])
    return rng.permutation(turns).astype(np.int64)


def convolution(name: str, inputs: int, outputs: int, kernel: int) -> OrderedDict[str, nn.Module]:
    """Return a "same" convolution, its batch norm and its ReLU, keyed by module name."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return OrderedDict(
        {name: conv, f"{name}_norm": nn.BatchNorm2d(outputs), f"{name}_relu": nn.ReLU()}
    )


def build_network() -> nn.Sequential:
    """Return the CNN, float32 (N, 1, 28, 28) -> (N, 10), about 1 M parameters."""
    features: OrderedDict[str, nn.Module] = OrderedDict()
    features.update(convolution("conv1", 1, 32, 3))
    features["pool1"] = nn.MaxPool2d(2)
    features.update(convolution("conv2", 32, 64, 3))
    features.update(convolution("pointwise1", 64, 128, 1))
    features["pool2"] = nn.MaxPool2d(2)
    features.update(convolution("conv3", 128, 128, 3))
    features.update(convolution("pointwise2", 128, 128, 1))
    classifier: OrderedDict[str, nn.Module] = OrderedDict(
        flatten=nn.Flatten(),
        dropout=nn.Dropout(0.3),
        hidden=nn.Linear(128 * 7 * 7, 128),
        hidden_relu=nn.ReLU(),
        logits=nn.Linear(128, len(CLASSES)),
    )
    parts = {"features": nn.Sequential(features), "classifier": nn.Sequential(classifier)}
    return nn.Sequential(OrderedDict(parts))


def augment(image: torch.Tensor) -> torch.Tensor:
    """Mirror half of the images (N, 1, 28, 28) and shift each by up to 2 pixels per axis."""
    count = len(image)
    mirrored = torch.where(torch.rand(count, 1, 1, 1) < 0.5, image.flip(3), image)
    windows = nn.functional.pad(mirrored, (2, 2, 2, 2)).unfold(2, 28, 1).unfold(3, 28, 1)
    shift = torch.randint(0, 5, (2, count))
    return windows[torch.arange(count), :, shift[0], shift[1]]


def train(network: nn.Sequential, data: Split, epochs: int) -> float:
    """Train in place with SGD and OneCycle; return the seconds it took.

    The weight decay is what makes the spectrum of the large Gemm fall off.
    """
    image, label = torch.from_numpy(data.image), torch.from_numpy(data.label)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = epochs * (len(image) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.2)
    start = time.perf_counter()
    network.train()
    for epoch in range(1, epochs + 1):
        loss_sum, correct = 0.0, 0
        batches = torch.randperm(len(image))[: len(image) // BATCH * BATCH].view(-1, BATCH)
        for index in batches:
            logits = network(augment(image[index]))
            loss = nn.functional.cross_entropy(logits, label[index])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            loss_sum += loss.item()
            correct += int((logits.argmax(1) == label[index]).sum())
        print(
            f"epoch {epoch:2d}/{epochs}  train loss {loss_sum / len(batches):.4f}  "
            f"train accuracy {correct / batches.numel():.4f}  {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    network.eval()
    return time.perf_counter() - start


def folded_layers(network: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Return (dotted name, layer) in order, batch norms folded into the convolution before."""
    layers: list[tuple[str, nn.Module]] = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            conv_name, conv = layers.pop()
            if not isinstance(conv, nn.Conv2d):
                raise TypeError(f"{name}: a batch norm follows {conv_name}, not a convolution")
            layers.append((conv_name, fuse_conv_bn_eval(conv, layer)))
        elif not isinstance(layer, nn.Sequential | nn.Dropout):
            layers.append((name, layer))
    return layers


def layer_node(name: str, layer: nn.Module, source: str, target: str) -> onnx.NodeProto:
    """Return the ONNX node of one folded layer, reading `source` and writing `target`."""
    weighted = [source, f"{name}.weight", f"{name}.bias"]
    match layer:
        case nn.Conv2d():
            kernel, pad = list(layer.kernel_size), layer.kernel_size[0] // 2
            return helper.make_node(
                "Conv", weighted, [target], name, kernel_shape=kernel, pads=[pad] * 4
            )
        case nn.Linear():
            return helper.make_node("Gemm", weighted, [target], name, transB=1)
        case nn.MaxPool2d():
            return helper.make_node(
                "MaxPool", [source], [target], name, kernel_shape=[2, 2], strides=[2, 2]
            )
        case nn.ReLU():
            return helper.make_node("Relu", [source], [target], name)
        case nn.Flatten():
            return helper.make_node("Flatten", [source], [target], name, axis=1)
    raise TypeError(f"layer {name}: no ONNX node is defined for {type(layer).__name__}")


def export(network: nn.Sequential) -> onnx.ModelProto:
    """Return the checked ONNX model: `image` float32 (batch, 1, 28, 28) -> `logits` (batch, 10)."""
    layers = folded_layers(network)
    nodes, initializers, source = [], [], "image"
    for position, (name, layer) in enumerate(layers):
        target = "logits" if position == len(layers) - 1 else f"{name}.output"
        nodes.append(layer_node(name, layer, source, target))
        for key, value in layer.state_dict().items():
            initializers.append(numpy_helper.from_array(value.numpy(), f"{name}.{key}"))
        source = target
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "fashion_mnist_cnn",
        [helper.make_tensor_value_info("image", float32, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", float32, ["batch", len(CLASSES)])],
        initializers,
    )
    model = helper.make_model(
        graph,
        producer_name="onnxlr tools/train_demo_model.py",
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
        doc_string="Small CNN for Fashion-MNIST, the demo model of onnxlr. "
        "`image`: grey values 0..1, white garment on black; `logits`: one score per class.",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def run_onnx(model: onnx.ModelProto, image: Images) -> Images:
    """Return the logits (N, 10) that ONNX Runtime computes on the CPU, 1,000 images at a time."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    chunks = [image[i : i + 1000] for i in range(0, len(image), 1000)]
    return np.concatenate([session.run(["logits"], {"image": chunk})[0] for chunk in chunks])


def accuracy(logits: Images, label: Labels) -> float:
    """Return the share of rows of `logits` (N, classes) whose maximum is at `label` (N,)."""
    return float((logits.argmax(1) == label).mean())


def truncate(model: onnx.ModelProto, names: tuple[str, ...], keep: float) -> onnx.ModelProto:
    """Return a copy whose named weights are their best approximation of `keep` x the parameters.

    A weight (m, n), kernels flattened to (outputs, inputs*kh*kw), costs r * (m + n) at rank r.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name.removesuffix(".weight") not in names:
            continue
        weight = numpy_helper.to_array(tensor)
        matrix = weight.reshape(len(weight), -1).astype(np.float64)
        rank = int(keep * matrix.size / sum(matrix.shape))
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        lost = float(np.linalg.norm(s[rank:]) / np.linalg.norm(s))
        print(f"  {tensor.name} {matrix.shape}: rank {rank} of {len(s)}, relative error {lost:.3f}")
        low = ((u[:, :rank] * s[:rank]) @ vt[:rank]).reshape(weight.shape).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(low, tensor.name))
    return copy


def svd_accuracies(model: onnx.ModelProto, data: Split) -> dict[str, float]:
    """Return the accuracy on `data` of each of SVD_CASES."""
    measured = {}
    for case, (names, keep) in SVD_CASES.items():
        print(f"SVD, {case}:")
        logits = run_onnx(truncate(model, names, keep), data.image)
        measured[case] = accuracy(logits, data.label)
        print(f"  accuracy {measured[case]:.4f}")
    return measured


def check_agreement(network: nn.Sequential, logits: Images, image: Images) -> float:
    """Return max |torch - ONNX Runtime| over the logits; exit above AGREEMENT."""
    with torch.inference_mode():
        chunks = [torch.from_numpy(image[i : i + 1000]) for i in range(0, len(image), 1000)]
        expected = torch.cat([network(chunk) for chunk in chunks]).numpy()
    difference = float(np.abs(expected - logits).max())
    if not difference <= AGREEMENT:
        sys.exit(
            f"demo.onnx is not saved: ONNX Runtime and torch differ by {difference:.2e}, "
            f"allowed is {AGREEMENT:.0e}."
        )
    return difference


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the demo model of onnxlr.")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "models")
    parser.add_argument("--cache", type=Path, default=Path(root, "onnxlr"))
    return parser.parse_args()


def measure(
    network: nn.Sequential, model: onnx.ModelProto, testing: Split, sample: Labels
) -> dict[str, object]:
    """Check `model` against `network`; return its size and accuracies, overall and on `sample`."""
    logits = run_onnx(model, testing.image)
    return {
        "parameters": sum(numpy_helper.to_array(t).size for t in model.graph.initializer),
        "max_abs_difference_torch_onnxruntime": check_agreement(network, logits, testing.image),
        "accuracy_10000_test_images": accuracy(logits, testing.label),
        "accuracy_demo_test_512": accuracy(logits[sample], testing.label[sample]),
        "accuracy_svd_10000_test_images": svd_accuracies(model, testing),
    }


def main() -> None:
    """Train, check and write the four files."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    folder = fetch_idx(args.cache)
    training, testing = load_split(folder, "train"), load_split(folder, "t10k")
    calibration = training.take(balanced_sample(training.label, CALIBRATION_COUNT, rng))
    sample = rng.permutation(len(testing.label))[:TEST_COUNT]

    network = build_network()
    seconds = train(network, training, args.epochs)
    model = export(network)
    figures = measure(network, model, testing, sample) | {
        "seed": args.seed,
        "epochs": args.epochs,
        "threads": args.threads,
        "training_seconds": round(seconds, 1),
        "versions": {m.__name__: m.__version__ for m in (torch, onnx, ort, np)},
        "command": f"python tools/train_demo_model.py --epochs {args.epochs} --seed {args.seed}",
    }
    metadata = {
        "dataset": DATASET,
        "dataset_licence": DATASET_LICENCE,
        "accuracy_10000_test_images": f"{figures['accuracy_10000_test_images']:.4f}",
        "classes": ", ".join(CLASSES),
    }
    helper.set_model_props(model, metadata)
    args.out.mkdir(parents=True, exist_ok=True)
    onnx.save(model, args.out / "demo.onnx")
    calibration.save(args.out / "demo_calibration.npz")
    testing.take(sample).save(args.out / "demo_test.npz")
    (args.out / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
