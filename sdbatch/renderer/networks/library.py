"""The diffusers library, without what only its other models need: that takes as long to import as torch.

Its packages import all their models when one is asked for, its mixins transformers, and transformers the compiler.
Here such a package is entered without its `__init__`, which runs once somebody asks for a name that only it has. Until
the import is over, transformers and what is optional seem not to be there, and the compiler's decorators do nothing.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch

PACKAGES = ("hooks", "models.autoencoders", "models.transformers", "models.unets")
COMPILER = "torch._dynamo"
LOOKED = "diffusers.utils.import_utils"
BESIDE = ("accelerate", "peft", "scipy", "transformers")


class _Package(ModuleType):
    """One whose `__init__` runs when it is needed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


class _Decorators(ModuleType):
    """In the place of the compiler: decorators that leave everything as it is."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda target=None, *_, **__: target if target is not None else lambda inner: inner


def _enter(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if name in sys.modules or spec is None or spec.submodule_search_locations is None:
        return  # another version of the library: it costs its time
    package = _Package(name)
    package.__spec__, package.__package__, package.__file__ = spec, name, spec.origin
    package.__path__ = [*spec.submodule_search_locations]
    sys.modules[name] = package
    parent, _, leaf = name.rpartition(".")
    setattr(sys.modules[parent], leaf, package)


@contextmanager
def _without_compiler() -> Iterator[None]:
    if COMPILER in sys.modules:
        yield
        return
    sys.modules[COMPILER] = torch._dynamo = _Decorators(COMPILER)  # noqa: SLF001
    try:
        yield
    finally:
        del sys.modules[COMPILER], torch._dynamo  # noqa: SLF001


@contextmanager
def _without_libraries() -> Iterator[None]:
    # Once diffusers has looked for them, it imports those that it found.
    hidden = [name for name in BESIDE if name not in sys.modules] if LOOKED not in sys.modules else []
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment] # which says that there is no such module
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        from diffusers.utils import import_utils  # noqa: PLC0415 - not before all else is away

        # The safety checker and the LAION-400M model do need it. Whatever else was not there stays away.
        import_utils._transformers_available = True  # noqa: SLF001
        import_utils._transformers_version = version("transformers")  # noqa: SLF001


with _without_compiler(), _without_libraries():
    for _name in PACKAGES:
        _enter(f"diffusers.{_name}")
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

__all__ = ["AutoencoderKL", "UNet2DConditionModel"]
