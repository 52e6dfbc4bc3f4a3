from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ot_core import Autoencoder, UserError, load_autoencoder
from ot_core.autoencoder import _load_once, is_factory

FACTORY_MODULE = '''
import torch
from torch import nn
import torch.nn.functional as F


class Mean(nn.Module):
    """Latents are means of 2 x 2 pixels."""

    downsampling_factor = 2

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def encode(self, x):
        return F.avg_pool2d(x, 2) * self.scale

    def decode(self, z):
        return F.interpolate(z, scale_factor=2.0) / self.scale


class NoFactor(nn.Module):
    def encode(self, x):
        return x

    def decode(self, z):
        return z


class NotAModule:
    downsampling_factor = 1
    encode = decode = staticmethod(lambda x: x)


def broken():
    raise RuntimeError("no weights\\nfound")


number = 5
'''


@pytest.fixture(autouse=True)
def nothing_loaded_yet() -> Iterator[None]:
    _load_once.cache_clear()
    yield
    _load_once.cache_clear()


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an importable module with the factories above."""
    package = tmp_path / "code" / "their_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models.py").write_text(FACTORY_MODULE)
    monkeypatch.syspath_prepend(str(package.parent))
    yield "their_package.models"
    for name in ("their_package.models", "their_package"):
        sys.modules.pop(name, None)


@pytest.fixture
def vae(tiny_vae: Path) -> Autoencoder:
    return load_autoencoder(str(tiny_vae), "cpu")


@pytest.fixture
def pixels(photo: Callable[..., np.ndarray]) -> Tensor:
    return torch.from_numpy(photo(32, 48)).permute(2, 0, 1)[None] / 255


def copy_to(folder: Path, url: str) -> str:
    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(path, exist_ok=True)
    for file in folder.iterdir():
        fs.pipe_file(f"{path}/{file.name}", file.read_bytes())
    return url


class TestLoading:
    def test_a_folder(self, tiny_vae: Path, pixels: Tensor):
        vae = load_autoencoder(str(tiny_vae), "cpu")
        assert (vae.name, vae.latent_channels, vae.downsampling_factor) == (str(tiny_vae), 4, 4)
        latent = vae.encode(pixels)
        assert (latent.shape, latent.dtype) == ((1, 4, 8, 12), torch.float32)
        assert vae.decode(latent).shape == pixels.shape

    def test_a_folder_on_any_store_is_the_same_autoencoder(self, tiny_vae: Path, store: str, vae: Autoencoder):
        url = copy_to(tiny_vae, f"{store}/models/tiny")
        loaded = load_autoencoder(url, "cpu")
        assert loaded.name == url
        assert loaded.fingerprint == vae.fingerprint

    @pytest.mark.parametrize("subfolder", ["", "vae"])
    def test_a_hub_id_loads_from_the_hubs_cache(
        self, tiny_vae: Path, tmp_path: Path, subfolder: str, vae: Autoencoder, monkeypatch: pytest.MonkeyPatch
    ):
        """The layout that the hub's own client leaves behind, as on a worker image with weights baked in."""
        repository = tmp_path / "models--owner--cached"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0123456789abcdef")
        shutil.copytree(tiny_vae, repository / "snapshots" / "0123456789abcdef" / subfolder)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # read from the environment once
        found = load_autoencoder(f"owner/cached/{subfolder}".rstrip("/"), "cpu")
        assert found.fingerprint == vae.fingerprint

    def test_code_of_the_users_own(self, factories: str, pixels: Tensor):
        vae = load_autoencoder(f"{factories}:Mean", "cpu")
        assert (vae.name, vae.latent_channels, vae.downsampling_factor) == (f"{factories}:Mean", 3, 2)
        expected = torch.nn.functional.avg_pool2d(pixels * 2 - 1, 2)
        torch.testing.assert_close(vae.encode(pixels), expected)
        torch.testing.assert_close(vae.encode(vae.decode(expected)), expected)

    @pytest.mark.parametrize("class_name", ["AutoencoderTiny", "AutoencoderDC", "VQModel"])
    def test_other_kinds_of_diffusers(self, tmp_path: Path, pixels: Tensor, class_name: str):
        import diffusers

        options = {
            "AutoencoderTiny": {
                "encoder_block_out_channels": (8, 8, 8),
                "decoder_block_out_channels": (8, 8, 8),
                "num_encoder_blocks": (1, 1, 1),
                "num_decoder_blocks": (1, 1, 1),
            },
            "AutoencoderDC": {
                "latent_channels": 4,
                "encoder_block_out_channels": (8, 8, 8),
                "decoder_block_out_channels": (8, 8, 8),
                "encoder_layers_per_block": (1, 1, 1),
                "decoder_layers_per_block": (1, 1, 1),
                "encoder_block_types": "ResBlock",
                "decoder_block_types": "ResBlock",
                "encoder_qkv_multiscales": ((), (), ()),
                "decoder_qkv_multiscales": ((), (), ()),
            },
            "VQModel": {
                "latent_channels": 4,
                "block_out_channels": (8, 8),
                "norm_num_groups": 4,
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2,
                "lookup_from_codebook": False,
                "mid_block_add_attention": False,
            },
        }
        getattr(diffusers, class_name)(**options[class_name]).save_pretrained(tmp_path)
        vae = load_autoencoder(str(tmp_path), "cpu")
        assert vae.latent_channels == 4
        latent = vae.encode(pixels)
        assert latent.shape[-1] * vae.downsampling_factor == 48
        assert vae.decode(latent).shape == pixels.shape

    def test_is_done_once_per_process(self, tiny_vae: Path):
        assert load_autoencoder(str(tiny_vae)) is load_autoencoder(str(tiny_vae))


class TestErrors:
    def refused(self, spec: str) -> str:
        with pytest.raises(UserError) as error:
            load_autoencoder(spec, "cpu")
        message = str(error.value)
        assert message.startswith(f"vae {spec}: ")
        assert "\n" not in message
        return message

    @pytest.mark.parametrize("spec", ["/no/such/folder", "./no/such", "no-such", "bad spec", "x:y:z"])
    def test_no_such_folder_or_a_bad_spec(self, spec: str):
        assert "expected a folder, a URL, a hub id" in self.refused(spec)

    def test_no_such_url(self, memory: str):
        self.refused(f"{memory}/none")

    def test_no_such_bucket(self, gcs: str):
        self.refused("gs://no-such-bucket/vae")

    def test_an_unknown_protocol(self):
        assert "can't be loaded" in self.refused("nosuch://bucket/vae")

    @pytest.mark.parametrize("spec", ["nobody/nothing", "nobody/nothing/vae", "a/b/../c", "é/è"])
    def test_a_hub_id_that_cant_be_reached(self, spec: str):
        assert "can't be loaded" in self.refused(spec)

    def test_a_folder_without_config(self, tiny_vae: Path, store: str):
        copy_to(tiny_vae, f"{store}/vae")
        fs, path = fsspec.core.url_to_fs(f"{store}/vae/config.json")
        fs.rm_file(path)
        assert "found no config.json" in self.refused(f"{store}/vae")

    def test_a_folder_without_weights(self, tiny_vae: Path, tmp_path: Path):
        shutil.copy(tiny_vae / "config.json", tmp_path)
        self.refused(str(tmp_path))

    def test_weights_that_are_damaged(self, tiny_vae: Path, tmp_path: Path):
        shutil.copytree(tiny_vae, tmp_path, dirs_exist_ok=True)
        (weights,) = tmp_path.glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:-100])
        self.refused(str(tmp_path))

    def test_pickled_weights_are_never_read(self, tiny_vae: Path, tmp_path: Path):
        shutil.copy(tiny_vae / "config.json", tmp_path)
        (weights,) = tiny_vae.glob("*.safetensors")
        torch.save(load_file(weights), tmp_path / "diffusion_pytorch_model.bin")
        self.refused(str(tmp_path))

    def test_a_model_that_isnt_an_autoencoder(self, tmp_path: Path):
        from diffusers import UNet2DModel

        UNet2DModel(
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
            add_attention=False,
        ).save_pretrained(tmp_path)
        assert "a UNet2DModel, which can't encode and decode" in self.refused(str(tmp_path))

    @pytest.mark.parametrize("config", ["{}", "no json", '{"_class_name": "NoSuchModel"}', "[]"])
    def test_a_config_that_isnt_one_of_a_model(self, tmp_path: Path, config: str):
        (tmp_path / "config.json").write_text(config)
        self.refused(str(tmp_path))

    def test_code_that_doesnt_exist(self, factories: str):
        assert "no module named" in self.refused("no_such_package.models:make").lower()
        assert f"{factories} has no function nothing" in self.refused(f"{factories}:nothing")
        assert f"{factories} has no function number" in self.refused(f"{factories}:number")

    def test_code_whose_module_lacks_attributes(self, factories: str):
        assert "lacks ['downsampling_factor']" in self.refused(f"{factories}:NoFactor")

    def test_code_that_doesnt_return_a_torch_module(self, factories: str):
        assert "expected a torch module" in self.refused(f"{factories}:NotAModule")

    def test_code_that_raises(self, factories: str):
        assert "RuntimeError: no weights found" in self.refused(f"{factories}:broken")


class TestEncoding:
    def test_is_deterministic(self, vae: Autoencoder, pixels: Tensor):
        torch.manual_seed(0)
        first = vae.encode(pixels)
        torch.manual_seed(1)
        assert torch.equal(first, vae.encode(pixels))

    def test_is_the_mode_of_the_posterior_without_scaling_factor(
        self, vae: Autoencoder, tiny_vae: Path, pixels: Tensor
    ):
        from diffusers import AutoencoderKL

        module = AutoencoderKL.from_pretrained(str(tiny_vae)).eval()
        with torch.no_grad():
            posterior = module.encode(pixels * 2 - 1).latent_dist
            decoded = module.decode(posterior.mode()).sample
        assert not torch.allclose(posterior.sample(), posterior.mode(), atol=1e-2)
        torch.testing.assert_close(vae.encode(pixels), posterior.mode())
        torch.testing.assert_close(vae.decode(posterior.mode()), (decoded / 2 + 0.5).clamp(0, 1))

    def test_decoded_pixels_lie_in_0_to_1(self, vae: Autoencoder):
        decoded = vae.decode(torch.randn(1, 4, 4, 4) * 1000)
        assert float(decoded.min()) >= 0
        assert float(decoded.max()) <= 1

    def test_leaves_no_gradient_behind(self, vae: Autoencoder, pixels: Tensor):
        assert not vae.decode(vae.encode(pixels)).requires_grad

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (31, 17), (4, 9), (8, 8)])
    def test_odd_sizes_are_padded_by_replication_on_the_right_and_bottom(
        self, vae: Autoencoder, photo: Callable[..., np.ndarray], height: int, width: int
    ):
        x = torch.from_numpy(photo(height, width)).permute(2, 0, 1)[None] / 255
        padded = vae.pad(x)
        size = (-(-height // 4) * 4, -(-width // 4) * 4)
        assert padded.shape[-2:] == size == vae.padded_size(height, width)
        expected = np.pad(x[0].numpy(), ((0, 0), (0, size[0] - height), (0, size[1] - width)), mode="edge")
        np.testing.assert_array_equal(padded[0].numpy(), expected)
        assert vae.decode(vae.encode(padded))[..., :height, :width].shape == x.shape

    def test_each_image_of_a_batch_is_encoded_by_itself(self, vae: Autoencoder, pixels: Tensor):
        batch = torch.cat([pixels, pixels.flip(-1), 1 - pixels])
        alone = torch.cat([vae.encode(one[None]) for one in batch])
        torch.testing.assert_close(vae.encode(batch), alone, rtol=1e-4, atol=1e-5)


class TestFingerprint:
    def test_is_equal_for_two_loads_from_different_places(self, tiny_vae: Path, tmp_path: Path):
        copied = shutil.copytree(tiny_vae, tmp_path / "copy")
        first, second = (load_autoencoder(str(folder), "cpu").fingerprint for folder in (tiny_vae, copied))
        assert first == second
        assert len(first) == 64
        assert int(first, 16)

    def test_changes_with_a_single_weight(self, tiny_vae: Path, tmp_path: Path, vae: Autoencoder):
        shutil.copytree(tiny_vae, tmp_path, dirs_exist_ok=True)
        (path,) = tmp_path.glob("*.safetensors")
        weights = load_file(path)
        weights["decoder.conv_out.bias"][0] += 1e-6
        save_file(weights, path, {"format": "pt"})
        assert load_autoencoder(str(tmp_path), "cpu").fingerprint != vae.fingerprint

    def test_changes_with_the_config(self, tiny_vae: Path, tmp_path: Path, vae: Autoencoder):
        shutil.copytree(tiny_vae, tmp_path, dirs_exist_ok=True)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "act_fn": "relu"}))
        assert load_autoencoder(str(tmp_path), "cpu").fingerprint != vae.fingerprint

    def test_doesnt_change_by_use(self, tiny_vae: Path, vae: Autoencoder, pixels: Tensor):
        vae.decode(vae.encode(pixels))
        _load_once.cache_clear()
        assert load_autoencoder(str(tiny_vae), "cpu").fingerprint == vae.fingerprint

    def test_of_the_users_own_code_depends_on_its_weights(self):
        class Scale(nn.Module):
            downsampling_factor = 1

            def __init__(self, scale: float) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.tensor([scale]))

            def encode(self, x: Tensor) -> Tensor:
                return x * self.scale

            decode = encode

        one, same, two = (Autoencoder(Scale(scale), "theirs").fingerprint for scale in (1.0, 1.0, 2.0))
        assert one == same != two


class TestFactorySpecs:
    @pytest.mark.parametrize("spec", ["package.module:factory", "module:Class", "_a.b_1:_f"])
    def test_name_code(self, spec: str):
        assert is_factory(spec)

    @pytest.mark.parametrize(
        "spec", ["default", "owner/name", "gs://bucket/vae", "/a/b:c", "a.b", "a:b:c", ":f", "m:", "a-b:f", "m:f()"]
    )
    def test_other_specs_dont(self, spec: str):
        assert not is_factory(spec)

    def test_a_folder_of_that_name_isnt_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        (tmp_path / "vae:v1").mkdir()
        monkeypatch.chdir(tmp_path)
        assert not is_factory("vae:v1")


def test_loading_leaves_the_loggers_of_libraries_as_they_were(tmp_path: Path, tiny_vae: Path):
    copy = tmp_path / "vae"  # not loaded before
    shutil.copytree(tiny_vae, copy)
    loggers = [logging.getLogger(name) for name in ("diffusers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(13)
        load_autoencoder(str(copy))
        with pytest.raises(UserError):
            load_autoencoder(str(tmp_path / "none"))
        assert [logger.level for logger in loggers] == [13, 13]
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
