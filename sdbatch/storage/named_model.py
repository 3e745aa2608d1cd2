"""A model under a name of the admin's, in a file of its own: pydantic costs the commands time that need no settings."""

from pydantic import BaseModel, ConfigDict, Field

from sdbatch.storage.file_names import DEFAULT_CONFIG


class NamedModel(BaseModel):
    """A model with a name in the configuration: a job that says `ckpt: NAME` uses all its files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ckpt: str = Field(min_length=1)
    config: str = DEFAULT_CONFIG
    vae: str = ""  # a separate autoencoder; empty: the checkpoint's own
