"""dot-map: what it tells of maps, in lines and as JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ot_core import FittedMap, GaussianStatistics, LatentSpace, Part, gelbrich_distance_squared, write_map
from pipelines import maps

CHANNELS, PATCH = 2, 3


def _sets(seed: int, mean: float, scale: float = 1.0) -> list[GaussianStatistics]:
    rng = np.random.default_rng(seed)
    mixing = scale * np.random.default_rng(99).standard_normal((18, 18))
    return [GaussianStatistics.of(rng.standard_normal((400, 18)) @ mixing + mean) for _ in range(4)]


def _map(
    url, seed: int = 0, mean: float = 0.0, patch_size: int = PATCH, vae_sha256: str = "ab" * 32, **known
) -> FittedMap:
    source, target = _sets(seed, mean, 0.5), _sets(seed + 50, 3.0)
    parts = {Part(side, i): s for side, of in (("source", source), ("target", target)) for i, s in enumerate(of)}
    space = LatentSpace(patch_size, 18 // patch_size**2, "some/vae", vae_sha256)
    made = replace(FittedMap.fit(parts, space, **known), noise_floor=0.5)
    write_map(made, str(url))
    return made


def _json(capsys, *arguments: str) -> dict:
    assert maps.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_tells_what_a_map_was_fitted_from_and_does(tmp_path, capsys):
    made = _map(tmp_path / "a.safetensors")
    found = _json(capsys, "inspect", str(tmp_path / "a.safetensors"))
    assert (found["source_patches"], found["target_patches"], found["source_parts"]) == (1600, 1600, 4)
    assert (found["patch_size"], found["latent_channels"], found["dimension"]) == (3, 2, 18)
    assert (found["vae"], found["vae_sha256"], found["method"]) == ("some/vae", "ab" * 32, "paper")
    assert found["distance_squared"] == gelbrich_distance_squared(made.source, made.target)
    assert found["noise_floor"] == 0.5
    eigenvalues = np.linalg.eigvalsh(made.map.matrix)  # which are its gains: this map is symmetric
    np.testing.assert_allclose([one["gain"] for one in found["largest_gains"]], eigenvalues[::-1][:5])
    for one in found["largest_gains"]:
        np.testing.assert_allclose(
            made.map.matrix @ one["direction"], one["gain"] * np.array(one["direction"]), atol=1e-9
        )
        squares = np.square(one["direction"]).reshape(CHANNELS, -1).sum(1)
        assert squares[one["channel"]] == pytest.approx(one["share"])
        assert one["share"] == squares.max()
    assert found["smallest_gain"] == pytest.approx(eigenvalues[0])
    assert found["provenance"] == {"created_by": "dot-beam", "format_version": "1"}


def test_inspect_in_lines(tmp_path, capsys):
    _map(tmp_path / "a.safetensors")
    assert maps.main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    printed = capsys.readouterr().out
    for part in (
        "method paper; patches of 3x3 of 2 channels, dimension 18",
        "autoencoder some/vae, fingerprint abababababab\n",
        "source of 1600 patches, in 4 random parts",
        "of which about 0.5 by chance",
        "largest gains",
        "created_by dot-beam",
    ):
        assert part in printed


def test_inspect_knows_each_method_and_what_an_older_map_lacks(tmp_path, capsys):
    url = str(tmp_path / "a.safetensors")
    made = _map(url, metric=np.eye(18), invariant=np.eye(18)[:2])
    wholes = {Part(side): made.side(side) for side in ("source", "target")}
    write_map(replace(made, statistics=wholes, noise_floor=None), url)
    assert maps.main(["inspect", url]) == 0
    printed = capsys.readouterr().out
    assert "method matched" in printed
    assert "of which an unknown part by chance" in printed
    assert "random parts" not in printed
    _map(url, metric=np.eye(18))
    assert _json(capsys, "inspect", url)["method"] == "pixels"


def test_diff_tells_sources_that_moved_from_those_that_only_differ_by_chance(tmp_path, capsys):
    a, alike, moved = (str(tmp_path / f"{name}.safetensors") for name in ("a", "alike", "moved"))
    made, other = _map(a), _map(moved, seed=2, mean=2.0)
    _map(alike, seed=1)
    same, far = _json(capsys, "diff", a, alike), _json(capsys, "diff", a, moved)
    assert far["source"]["distance_squared"] == pytest.approx(gelbrich_distance_squared(other.source, made.source))
    assert same["source"]["standard_distance_squared"] < 3 * same["source"]["standard_noise_floor"]
    assert far["source"]["standard_distance_squared"] > 30 * far["source"]["standard_noise_floor"]
    assert far["source"]["relative"] > 10 * same["source"]["relative"]
    assert far["target"]["standard_distance_squared"] < 3 * far["target"]["standard_noise_floor"]
    assert far["mean_shift"] > 5 * same["mean_shift"]
    assert maps.main(["diff", a, moved]) == 0
    assert "sources of 1600 and 1600 patches: squared Wasserstein distance" in capsys.readouterr().out


def test_a_map_does_not_differ_from_itself(tmp_path, capsys):
    url = str(tmp_path / "a.safetensors")
    _map(url)
    found = _json(capsys, "diff", url, url)
    assert found["matrix_change"] == found["mean_shift"] == found["source"]["relative"] == 0
    assert found["source"]["distance_squared"] < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "none.safetensors"], "not found"),
        (["inspect", "text.safetensors"], "not a safetensors file"),
        (["inspect", "a", "b"], "inspect: expected 1 map, got 2"),
        (["diff", "a"], "diff: expected 2 maps, got 1"),
        (["diff", "a", "vae"], "has latents of the autoencoder cdcdcdcdcdcd, not of abababababab as a"),
        (["diff", "a", "patch"], "has patches of size 1, not 3 as a"),
        (["show", "a"], "invalid choice: 'show'"),
        (["inspect", "a", "--jsn"], "unrecognized arguments: --jsn"),
        ([], "required"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("no map")
    _map("a"), _map("b"), _map("vae", vae_sha256="cd" * 32), _map("patch", patch_size=1)
    assert maps.main(arguments) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("dot-map: error: ")
    assert message in line
    assert printed.out == ""
