"""What CDAM costs beside a plain forward pass, and beside other ways to the same map.

    pip install grad-cam    # one of the compared methods; left out where it is not installed
    python benchmarks/cdam.py table  [--rounds 9] [--names dino_vits8,dinov2_vits14_reg] [--batches 1,16]
    python benchmarks/cdam.py curves [--rounds 5]

`table` writes docs/cdam_benchmark.csv: time and peak memory with eight targets at 224 x 224, a plain
`torch.inference_mode` forward pass being 1. `curves` writes docs/cdam_curves.csv and .png: time over the number of
targets (dino_vits16) and of tokens (dino_vits8).

Methods take turns within a round and each ratio is the median over rounds of ratios within one round. On the CPU the
clock is the processor time of one thread, which other work on the machine disturbs little; on CUDA it is the wall's.
Memory is the peak resident size of a fresh process that runs one method, less its size before the first image.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn

from lidc_cdam.backbones import build_backbone
from lidc_cdam.explain import explain
from lidc_cdam.model import NoduleModel
from lidc_cdam.vocabulary import BIOMARKERS

DOCS = Path(__file__).parents[1] / "docs"
BARS = {"cdam": 1.1, "integrated_cdam": 1.25, "smooth_cdam": 1.7}
SLOW = ("published", "captum", "grad-cam")
MEMORY_BAR = 1.5
Job = Callable[[NoduleModel, Tensor], object]


def forward(model: NoduleModel, images: Tensor) -> object:
    """What everything is measured by."""
    with torch.inference_mode():
        return model(images)


def published(model: NoduleModel, images: Tensor) -> object:
    """Hooks on norm1, then a backward pass through the whole model per target, one image at a time."""
    kept: dict[str, Tensor] = {}
    norm1 = model.backbone.blocks[-1].norm1
    hooks = [
        norm1.register_forward_hook(lambda module, given, output: kept.update(tokens=output.detach())),
        norm1.register_full_backward_hook(lambda module, given, output: kept.update(gradients=output[0])),
    ]
    maps = []
    for image in images:
        outputs = model(image[None].requires_grad_())[0]
        for output in outputs:
            model.zero_grad()
            output.backward(retain_graph=True)
            maps.append((kept["tokens"] * kept["gradients"]).sum(-1))
    for hook in hooks:
        hook.remove()
    return maps


def captum_layer(model: NoduleModel, images: Tensor) -> object:
    """Captum's LayerGradientXActivation on norm1, target by target."""
    method = LayerGradientXActivation(model, model.backbone.blocks[-1].norm1)
    return [method.attribute(images, target=index).sum(-1) for index in range(len(model.targets))]


def grad_cam(model: NoduleModel, images: Tensor) -> object:
    """Grad-CAM of pytorch-grad-cam on norm1, target by target."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    rows, columns = model.backbone.patch_embed.grid_size
    prefix = model.backbone.num_prefix_tokens

    def on_grid(tokens: Tensor) -> Tensor:
        return tokens[:, prefix:].reshape(len(tokens), rows, columns, -1).permute(0, 3, 1, 2)

    with GradCAM(model, [model.backbone.blocks[-1].norm1], on_grid) as method:
        outputs = range(len(model.targets))
        return [method(images, [ClassifierOutputTarget(index)] * len(images)) for index in outputs]


JOBS: dict[str, Job] = {
    "forward": forward,
    "cdam": explain,
    "integrated_cdam": lambda model, images: explain(model, images, method="integrated_cdam"),
    "smooth_cdam": lambda model, images: explain(model, images, method="smooth_cdam"),
    "published": published,
    "captum": captum_layer,
    "grad-cam": grad_cam,
}


def world(name: str, batch: int, targets: int = 8, side: int = 224, device: str = "cpu") -> tuple[NoduleModel, Tensor]:
    """A random model with this many outputs, and images."""
    torch.manual_seed(0)
    model = NoduleModel(build_backbone(name, image_size=side), [biomarker.key for biomarker in BIOMARKERS])
    model.targets = tuple(f"output {index}" for index in range(targets))
    model.head = nn.Linear(model.backbone.num_features, targets)
    return model.eval().to(device), torch.randn(batch, 3, side, side, device=device)


def seconds(job: Job, model: NoduleModel, images: Tensor) -> float:
    """Time of one call."""
    if images.is_cuda:
        torch.cuda.synchronize()
        start = time.perf_counter()
        job(model, images)
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    job(model, images)
    return time.process_time() - start


def ratios(names: Iterable[str], model: NoduleModel, images: Tensor, rounds: int) -> dict[str, tuple[float, float]]:
    """Per method: median seconds, and median over rounds of its time by the forward pass's of the same round."""
    names = list(names)
    for name in names:
        if name not in SLOW:
            JOBS[name](model, images)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names:
            if not turn or name not in SLOW:
                taken[name].append(seconds(JOBS[name], model, images))
    return {
        name: (
            statistics.median(times),
            statistics.median(one / base for one, base in zip(times, taken["forward"], strict=False)),
        )
        for name, times in taken.items()
    }


def peak_mib(name: str, batch: int, method: str) -> float:
    """Memory that one method takes in a process of its own."""
    command = [sys.executable, __file__, "memory", "--names", name, "--batches", str(batch), "--method", method]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory(name: str, batch: int, method: str) -> None:
    """Print by how many MiB this process's resident size peaks while it runs one method (Linux)."""
    JOBS[method](*world("tiny", 1, side=32))  # what a method loads once is not what it needs per image
    model, images = world(name, batch)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident_mib("VmRSS")
    JOBS[method](model, images)
    print(resident_mib("VmHWM") - before)


def resident_mib(key: str) -> float:
    """Resident size of this process now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(key))) / 1024


def installed() -> list[str]:
    """The methods at hand."""
    try:
        import pytorch_grad_cam  # noqa: F401
    except ImportError:
        return [name for name in JOBS if name != "grad-cam"]
    return list(JOBS)


def table(names: list[str], batches: list[int], rounds: int, device: str) -> None:
    """Time and memory with eight targets."""
    rows: list[tuple[object, ...]] = []
    for batch in batches:
        for name in names:
            # What needs a graph of the whole model scales with the batch; one image shows its ratio.
            methods = [method for method in installed() if batch == 1 or method not in SLOW]
            model, images = world(name, batch, device=device)
            found = ratios(methods, model, images, rounds)
            base = peak_mib(name, batch, "forward") if device == "cpu" else float("nan")
            for method, (time_s, ratio) in found.items():
                mib = peak_mib(name, batch, method) if device == "cpu" else float("nan")
                bar = BARS.get(method)
                verdict = "" if bar is None else ("met" if ratio <= bar and mib <= MEMORY_BAR * base else "missed")
                rows.append((name, batch, method, f"{time_s:.3f}", f"{ratio:.2f}", f"{mib:.0f}", f"{mib / base:.2f}"))
                print(*rows[-1], "" if bar is None else f"bar {bar}, memory {MEMORY_BAR}: {verdict}", flush=True)
            write(DOCS / "cdam_benchmark.csv", "backbone images method seconds time_ratio peak_mib memory_ratio", rows)


def curves(rounds: int, device: str) -> None:
    """Time over the number of targets, and of tokens."""
    rows: list[tuple[object, ...]] = []
    quick = ["forward", "cdam", "integrated_cdam", "smooth_cdam"]
    for targets in (1, 2, 4, 8, 16, 32, 64):
        found = ratios([*quick, "published"], *world("dino_vits16", 1, targets, device=device), rounds)
        rows += [("targets", targets, method, f"{ratio:.3f}") for method, (_, ratio) in found.items()]
        print(*rows[-5:], flush=True)
    for side in (64, 128, 224, 320, 568):
        model, images = world("dino_vits8", 1, 8, side, device)
        found = ratios(quick, model, images, rounds if side < 500 else 1)
        tokens = (side // 8) ** 2 + 1
        rows += [("tokens", tokens, method, f"{ratio:.3f}") for method, (_, ratio) in found.items()]
        print(*rows[-4:], flush=True)
    write(DOCS / "cdam_curves.csv", "over count method time_ratio", rows)
    draw(rows)


def write(path: Path, header: str, rows: list[tuple[object, ...]]) -> None:
    """A table as CSV."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(), *rows])


def draw(rows: list[tuple[object, ...]]) -> None:
    """The curves as a picture."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, over in zip(axes, ("targets", "tokens"), strict=True):
        for method in dict.fromkeys(row[2] for row in rows if row[0] == over):
            points = [(row[1], float(str(row[3]))) for row in rows if row[0] == over and row[2] == method]
            axis.plot(*zip(*points, strict=True), marker="o", label=method)
        axis.set(xscale="log", yscale="log", xlabel=over, ylabel="time, plain forward pass = 1")
        axis.legend(fontsize=8)
    figure.savefig(DOCS / "cdam_curves.png", dpi=150)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "curves", "memory"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--names", default="dino_vits8,dinov2_vits14_reg")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--method", default="forward", choices=list(JOBS))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names, batches = options.names.split(","), [int(batch) for batch in options.batches.split(",")]
    if options.what == "memory":
        memory(names[0], batches[0], options.method)
    elif options.what == "curves":
        curves(options.rounds, options.device)
    else:
        table(names, batches, options.rounds, options.device)


if __name__ == "__main__":
    main()
