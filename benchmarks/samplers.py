"""What an evaluation of the network costs with each sampler, and how much of it is the sampler's own work.

    OMP_NUM_THREADS=1 python benchmarks/samplers.py

The demo's model, one image of 64x64 pixels, 20 steps. CPU time, the least of some rounds in which the samplers take
turns.
"""

import argparse
from importlib.resources import as_file, files
from time import process_time

import torch
from torch import Tensor

from sdbatch.job.parameters import Txt2Img
from sdbatch.renderer.draw import predict, samplings
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.samplers import SAMPLERS
from sdbatch.renderer.sampling.guidance import Rows
from sdbatch.renderer.sampling.sampler import run


@torch.inference_mode()
def milliseconds(model: Model, sampler: str, steps: int) -> tuple[float, float]:
    """Of one evaluation: with the network, and without it."""
    fallback, inside = MemoryFallback(model.device), []

    def network(rows: Rows) -> Tensor:
        began = process_time()
        noise = predict(model, fallback, rows)
        inside.append(process_time() - began)
        return noise

    fields = {"prompt": "a red apple", "sampler": sampler, "ddim_steps": steps, "H": 64, "W": 64}
    job = Txt2Img.model_validate({**fields, "n_samples": 1, "n_iter": 1})
    for _, asking in samplings(model, job, None, None, [0], lambda *_: None, fallback):
        began = process_time()
        run(asking, network)
        whole = process_time() - began
    return whole / len(inside) * 1000, (whole - sum(inside)) / len(inside) * 1000


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    with as_file(files("sdbatch") / "data" / "demo") as demo:
        model = load_model(demo / "model.safetensors", demo / "v1-inference.yaml")
    taken = [{name: milliseconds(model, name, 20) for name in SAMPLERS} for _ in range(rounds)]
    best = {name: [min(each) for each in zip(*(turn[name] for turn in taken), strict=True)] for name in SAMPLERS}
    print("| sampler | ms | to DDIM's | its own ms |\n|---|---|---|---|")
    for name, (whole, own) in best.items():
        print(f"| `{name}` | {whole:.2f} | {whole / best['ddim'][0]:.2f} | {own:.2f} |")


if __name__ == "__main__":
    main()
