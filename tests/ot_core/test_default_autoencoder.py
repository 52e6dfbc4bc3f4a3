"""The autoencoder that ships with the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ot_core
from ot_core import Autoencoder, load_autoencoder


class TestDefault:
    folder = Path(ot_core.__file__).parent / "vae"

    @pytest.fixture
    def default(self) -> Autoencoder:
        return load_autoencoder(device="cpu")

    def test_loads_without_a_spec_and_by_its_name(self, default: Autoencoder):
        assert default.name == "default"
        assert load_autoencoder("default", "cpu").fingerprint == default.fingerprint

    def test_is_small_enough_to_ship(self):
        assert sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file()) <= 6_000_000

    def test_has_no_attention_whose_memory_grows_with_the_square_of_the_image(self, default: Autoencoder):
        names = [f"{name} {type(module).__name__}".lower() for name, module in default._module.named_modules()]
        assert not [name for name in names if "attn" in name or "attention" in name]

    def test_gives_a_photograph_back(self, default: Autoencoder, photo: Callable[..., np.ndarray]):
        x = torch.from_numpy(photo(64, 96)).permute(2, 0, 1)[None] / 255
        error = (default.decode(default.encode(x)) - x).square().mean()
        assert error < 0.25 * x.var()
