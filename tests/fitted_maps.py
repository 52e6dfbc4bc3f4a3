"""Maps of sides that are known as a whole."""

from ot_core import FittedMap, GaussianStatistics, LatentSpace, Part


def fit(
    source: GaussianStatistics,
    target: GaussianStatistics,
    patch_size: int,
    vae: str = "",
    vae_sha256: str = "",
    **known,
) -> FittedMap:
    """A map between two sides; what is known goes to `FittedMap.fit`."""
    space = LatentSpace(patch_size, source.dimension // patch_size**2, vae, vae_sha256)
    return FittedMap.fit({Part("source"): source, Part("target"): target}, space, **known)
