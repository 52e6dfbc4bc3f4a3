"""What latent patches are patches of. Statistics and maps go together where this is the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ot_core.autoencoder import Autoencoder


@dataclass(frozen=True)
class LatentSpace:
    """The space of the latent patches of an autoencoder.

    Attributes:
        patch_size: p, odd.
        latent_channels: C.
        vae: the name that the autoencoder was loaded from, or "" if unknown.
        vae_sha256: fingerprint of the autoencoder's weights and config, or "" if unknown.
        margin: pixels that images are continued by before they are encoded (`ot_core.margin`).

    Raises:
        ValueError: if the patch size is even or not positive.
    """

    patch_size: int
    latent_channels: int
    vae: str = ""
    vae_sha256: str = ""
    margin: int = 0

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.patch_size % 2 == 0:
            raise ValueError(f"patch_size {self.patch_size}: expected a positive odd number")

    @classmethod
    def of(cls, autoencoder: Autoencoder, patch_size: int) -> LatentSpace:
        """The space of an autoencoder's patches of one size."""
        named = (autoencoder.name, autoencoder.fingerprint, autoencoder.margin)
        return cls(patch_size, autoencoder.latent_channels, *named)

    @property
    def dimension(self) -> int:
        """D = C p^2."""
        return self.latent_channels * self.patch_size**2

    def difference(self, other: LatentSpace) -> str | None:
        """What this space has and the other hasn't, in words; None where they are the same.

        An autoencoder that isn't known goes with any.
        """
        fingerprints = self.vae_sha256, other.vae_sha256
        if all(fingerprints) and self.vae_sha256 != other.vae_sha256:
            return f"latents of the autoencoder {self.vae_sha256[:12]}, not of {other.vae_sha256[:12]}"
        if self.patch_size != other.patch_size:
            return f"patches of size {self.patch_size}, not {other.patch_size}"
        if self.margin != other.margin:
            return f"a margin of {self.margin} pixels, not {other.margin}"
        if self.latent_channels != other.latent_channels:
            return f"{self.latent_channels} latent channels, not {other.latent_channels}"
        return None
