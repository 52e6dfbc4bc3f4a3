"""Describes a map, or tells how two maps differ. Runs no job.

dot-map inspect MAP ; dot-map diff A B
"""

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ot_core import FittedMap, UserError, read_map, storage, strict_json
from ot_core.check import MapCheck
from ot_core.drift import DriftMeter
from ot_core.map_file import metadata_of
from ot_core.parts import SIDES
from ot_core.statistics import Array
from pipelines import parsers
from pipelines.command import command, say

parser = parsers.maps
#: Gains that are told.
_SHOWN = 5
#: Metadata that is told by other names.
_TOLD = ("patch_size", "latent_channels", "margin", "vae", "vae_sha256", "noise_floor", "residual", "check")


def inspect(url: str) -> dict[str, Any]:
    """Describes a map."""
    found, data = read_map(url), storage.read_bytes(url)
    space = found.space
    _, gains, directions = np.linalg.svd(found.map.matrix)
    return {
        "map": url,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "method": found.map.method,
        "patch_size": space.patch_size,
        "latent_channels": space.latent_channels,
        "dimension": space.dimension,
        "vae": space.vae,
        "vae_sha256": space.vae_sha256,
        "margin": space.margin,
        **{f"{side}_patches": found.side(side).count for side in SIDES},
        **{f"{side}_parts": len(found.parts_of(side)) for side in SIDES},
        "distance_squared": found.distance_squared(),
        "noise_floor": found.noise_floor,
        "largest_gains": [_gain(*one, space.latent_channels) for one in zip(gains[:_SHOWN], directions, strict=False)],
        "smallest_gain": float(gains[-1]),
        "residual": found.residual,
        "check": _check(found.check),
        "adds_noise": found.map.noise_covariance is not None,
        "provenance": {name: value for name, value in sorted(metadata_of(data).items()) if name not in _TOLD},
    }


def _check(check: MapCheck | None) -> dict[str, Any] | None:
    """What was found on pairs, and what that means."""
    if check is None:
        return None
    return {"sentence": check.sentence, "alpha": check.alpha, **dataclasses.asdict(check)}


def _gain(gain: float, direction: Array, channels: int) -> dict[str, Any]:
    """A direction that the map stretches, and the latent channel that has the largest share in it."""
    shares = np.square(direction).reshape(channels, -1).sum(1)
    return {
        "gain": float(gain),
        "channel": int(shares.argmax()),
        "share": float(shares.max()),
        "direction": direction.tolist(),
    }


def diff(a_url: str, b_url: str) -> dict[str, Any]:
    """How far map B is from map A: its source, its target, and what it does; distances are measured as A does.

    Raises:
        UserError: if their latents aren't the same kind of thing.
    """
    a, b = read_map(a_url), read_map(b_url)
    difference = b.space.difference(a.space)
    if difference:
        raise UserError(
            f"{b_url}: has {difference} as {a_url}; expected maps of the same autoencoder, patch size and margin"
        )
    sides = {}
    for side in SIDES:
        drift = DriftMeter(a, side).drift_of(b.side(side))
        assert drift is not None  # maps hold two patches of each side or more
        counts = {"patches_a": a.side(side).count, "patches_b": drift.patches}
        sides[side] = {**counts, **{k: v for k, v in dataclasses.asdict(drift).items() if k != "patches"}}
    return {
        "a": a_url,
        "b": b_url,
        "methods": [a.map.method, b.map.method],
        "distances_squared": [a.distance_squared(), b.distance_squared()],
        "noise_floors": [a.noise_floor, b.noise_floor],
        **sides,
        "matrix_change": float(np.linalg.norm(b.map.matrix - a.map.matrix) / np.linalg.norm(a.map.matrix)),
        "mean_shift": _mean_shift(a, b),
    }


def _mean_shift(a: FittedMap, b: FittedMap) -> float:
    """How differently the two move A's mean source patch, as a share of how far A moves it."""
    moved, other = a.map(a.source.mean[None]), b.map(a.source.mean[None])
    return float(np.linalg.norm(other - moved) / max(float(np.linalg.norm(moved - a.source.mean)), 1e-300))


def _told(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `inspect`."""
    yield f"map {found['map']}"
    p, channels = found["patch_size"], found["latent_channels"]
    yield f"  method {found['method']}; patches of {p}x{p} of {channels} channels, dimension {found['dimension']}"
    yield f"  autoencoder {found['vae'] or 'unknown'}, fingerprint {_short(found['vae_sha256']) or 'unknown'}"
    for side in SIDES:
        parts = found[f"{side}_parts"]
        yield f"  {side} of {found[f'{side}_patches']} patches{f', in {parts} random parts' if parts else ''}"
    floor = _floor(found["noise_floor"])
    distance = f"{found['distance_squared']:.4g}"
    yield f"  squared Wasserstein distance between them {distance}, of which {floor} by chance (noise floor)"
    gains = ", ".join(
        f"{one['gain']:.3g} (channel {one['channel']} for {one['share']:.0%})" for one in found["largest_gains"]
    )
    noise = "; the source is singular, so noise is added" if found["adds_noise"] else ""
    yield f"  largest gains {gains}; smallest {found['smallest_gain']:.3g}{noise}"
    if found["residual"]:
        yield f"  adds back {found['residual']:.2f} of what the autoencoder loses"
    if found["check"] is not None:
        yield f"  {found['check']['sentence']}"
    yield f"  {found['bytes']} bytes, sha256 {_short(found['sha256'])}"
    yield from (f"  {name} {value}" for name, value in found["provenance"].items())


def _told_difference(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `diff`."""
    yield f"a {found['a']}"
    yield f"b {found['b']}"
    yield f"  methods {found['methods'][0]} and {found['methods'][1]}"
    distances, floors = found["distances_squared"], found["noise_floors"]
    both = [
        f"{d:.4g} (noise floor {'unknown' if f is None else f'{f:.4g}'})"
        for d, f in zip(distances, floors, strict=True)
    ]
    yield f"  squared Wasserstein distance from source to target {both[0]} and {both[1]}"
    for side in SIDES:
        one = found[side]
        yield (
            f"  {side}s of {one['patches_a']} and {one['patches_b']} patches: squared Wasserstein distance "
            f"{one['distance_squared']:.4g}; in a's standard deviations {one['standard_distance_squared']:.4g}, of "
            f"which {_floor(one['standard_noise_floor'])} by chance; the rest is {one['relative']:.3g} times the "
            "distance between a's two sides"
        )
    yield f"  matrices differ by {found['matrix_change']:.3g} of a's norm"
    yield f"  they move a's mean source patch differently, by {found['mean_shift']:.3g} of its way"


def _floor(floor: float | None) -> str:
    return "an unknown part" if floor is None else f"about {floor:.4g}"


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) else value


def run(args: argparse.Namespace) -> None:
    """Prints what the command asks for."""
    expected = 1 if args.command == "inspect" else 2
    if len(args.maps) != expected:
        raise UserError(f"{args.command}: expected {expected} map{'s' * (expected - 1)}, got {len(args.maps)}")
    found = inspect(*args.maps) if args.command == "inspect" else diff(*args.maps)
    tell = _told if args.command == "inspect" else _told_difference
    say(strict_json.dumps(found, indent=2) if args.json else "\n".join(tell(found)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 2, and one line, for what can't be done."""
    flags = parser()

    def work() -> int:
        run(flags.parse_args(argv))
        return 0

    return command(flags.prog, argv, work)


if __name__ == "__main__":
    sys.exit(main())
