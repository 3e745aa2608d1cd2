"""Writes of_k_diffusion.json: where k-diffusion's own samplers end, from a fixed start and with fixed noise.

    pip install torchsde torchdiffeq scipy tqdm; pip download --no-deps k-diffusion==0.1.1.post1; unzip k_diffusion*.whl
    python tests/reference_webui/of_k_diffusion.py .

The denoiser is `denoise` below, the levels [10, 5, 2.5, 1, 0.4, 0.1, 0], the noise cos(k), cos(k + 1), ... at call k.
"""

import inspect
import json
import sys
import types
from math import cos

import torch

sys.path.insert(0, sys.argv[1])
package = types.ModuleType("k_diffusion")
package.__path__ = [f"{sys.argv[1]}/k_diffusion"]
utils = types.ModuleType("k_diffusion.utils")
utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
package.utils = utils
sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
from k_diffusion import sampling  # noqa: E402

NAMES = {
    "euler": "euler", "euler_a": "euler_ancestral", "lms": "lms", "heun": "heun", "dpm2": "dpm_2",
    "dpm2_a": "dpm_2_ancestral", "dpmpp_2s_a": "dpmpp_2s_ancestral", "dpmpp_2m": "dpmpp_2m", "dpmpp_sde": "dpmpp_sde",
    "dpmpp_2m_sde": "dpmpp_2m_sde", "dpmpp_3m_sde": "dpmpp_3m_sde",
}  # fmt: skip
SIGMAS = [10.0, 5.0, 2.5, 1.0, 0.4, 0.1, 0.0]
ENDS = {}


def denoise(x, sigma):
    return torch.tanh(x / (1 + sigma)) + 0.1 * x / (1 + sigma**2)


def noise_of(calls):
    def noise(*_):
        k = next(calls)
        return torch.tensor([[cos(k + i) for i in range(3)]])

    return noise


for ours, theirs in NAMES.items():
    sample = getattr(sampling, f"sample_{theirs}")
    has_noise = "noise_sampler" in inspect.signature(sample).parameters
    given = {"noise_sampler": noise_of(iter(range(1000)))} if has_noise else {}
    end = sample(denoise, torch.tensor([[-8.0, 1.5, 11.0]]), torch.tensor(SIGMAS), disable=True, **given)
    ENDS[ours] = end[0].tolist()
print(json.dumps(ENDS, indent=1))
