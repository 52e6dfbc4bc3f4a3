"""Restorers of every kind behind one interface: networks that spandrel knows, ONNX models, users' own."""

import importlib
import io
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ot_core import Cause, ImageError, UserError, load_restorer, storage
from ot_core.restorer import OVERLAP

spandrel = pytest.importorskip("spandrel", reason="the extra `restorers` is not installed")

_SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 8}
_STYLE = {"dim_in": 16, "dim_out": 16, "depth": 1}
#: Class and options of a network of each architecture, small where that is a matter of options.
ARCHITECTURES = {
    "ATD": ("ATD", {}),
    "AuraSR": ("AuraSR", {"dim": 8, "image_size": None, "input_image_size": None, "style_network": _STYLE}),
    "CRAFT": ("CRAFT", {}),
    "Compact": ("Compact", {"num_feat": 16, "num_conv": 4}),
    "DAT": ("DAT", {"embed_dim": 36, "depth": [1], "num_heads": [2]}),
    "DCTLSA": ("DCTLSA", {}),
    "DITN": ("DITN", {}),
    "DRCT": ("DRCT", {"embed_dim": 36, "depths": (6,), "num_heads": (6,)}),
    "DRUNet": ("DRUNet", {"in_nc": 4, "out_nc": 3, "nc": [8, 16, 32, 64], "nb": 2}),
    "DnCNN": ("DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 9}),
    "ESRGAN": ("ESRGAN", {"num_blocks": 1, "num_filters": 16}),
    "FBCNN": ("FBCNN", {"nb": 2}),
    "FDAT": ("FDAT", {"num_groups": 1}),
    "FFTformer": ("FFTformer", {"dim": 16, "num_blocks": [1, 1, 1]}),
    "GFPGAN": ("GFPGAN", {}),
    "GRL": ("GRL", {"embed_dim": 24, "depths": [1], "num_heads_window": [2], "num_heads_stripe": [2]}),
    "HAT": ("HAT", {"depths": (1,), "num_heads": (6,), "window_size": 16}),
    "HVICIDNet": ("HVICIDNet", {}),
    "IPT": ("IPT", {"patch_size": 24, "n_feats": 16, "num_layers": 1}),
    "KBNet": ("KBNet_l", {"num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}),
    "MMRealSR": ("MMRealSR", {"num_in_ch": 3, "num_out_ch": 3, "num_block": 1}),
    "MixDehazeNet": ("MixDehazeNet", {}),
    "MoESR": ("MoESR", {"n_blocks": 1, "n_block": 1}),
    "MoSR": ("MoSR", {"n_block": 2}),
    "NAFNet": ("NAFNet", {"enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    "OmniSR": ("OmniSR", {}),
    "PLKSR": ("PLKSR", {"n_blocks": 2}),
    "RCAN": ("RCAN", {"n_resgroups": 1, "n_resblocks": 2, "n_feats": 32}),
    "RGT": ("RGT", {"embed_dim": 36, "depth": [1], "num_heads": [2]}),
    "RealCUGAN": ("UpCunet2x", {}),
    "RestoreFormer": ("RestoreFormer", {"ch": 32}),
    "RetinexFormer": ("RetinexFormer", {}),
    "SAFMN": ("SAFMN", {"dim": 16, "n_blocks": 2}),
    "SAFMNBCIE": ("SAFMNBCIE", {"dim": 16, "n_blocks": 2}),
    "SCUNet": ("SCUNet", {"config": [1, 1, 1, 1, 1, 1, 1]}),
    "SPAN": ("SPAN", {"num_in_ch": 3, "num_out_ch": 3}),
    "SeemoRe": ("SeemoRe", {}),
    "SwiftSRGAN": ("SwiftSRGAN", {}),
    "Swin2SR": ("Swin2SR", {**_SWIN, "upsampler": "pixelshuffledirect"}),
    "SwinIR": ("SwinIR", {**_SWIN, "upscale": 2, "upsampler": "pixelshuffledirect"}),
    "Uformer": ("Uformer", {"embed_dim": 16}),
}


def _weights(architecture, path, **options):
    class_name, small = ARCHITECTURES[architecture]
    module = importlib.import_module(f"spandrel.architectures.{architecture}")
    torch.manual_seed(0)
    network = getattr(module, class_name)(**{**small, **options})
    tensors = {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return str(path)


def test_no_architecture_of_spandrel_is_left_out():
    known = {architecture.architecture.id for architecture in spandrel.MAIN_REGISTRY.architectures()}
    known = {{"RealESRGAN": "ESRGAN", "SRVGGNetCompact": "Compact", "M3SNet": ""}.get(name, name) for name in known}
    assert known - set(ARCHITECTURES) <= {"LaMa", ""}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_of_every_architecture_restores_an_image_of_odd_size(architecture, photo, tmp_path):
    restorer = load_restorer(_weights(architecture, tmp_path / "weights.safetensors"))
    image = photo(37, 51)
    (result,) = restorer([image])
    assert result.shape == (37 * restorer.scale, 51 * restorer.scale, 3)
    assert result.dtype == np.uint8


def test_a_network_that_draws_random_numbers_gives_the_same_result_each_time(photo, tmp_path):
    restorer = load_restorer(_weights("AuraSR", tmp_path / "weights.safetensors"))
    image = photo(37, 51)
    np.testing.assert_array_equal(restorer([image])[0], restorer([image])[0])


def test_a_network_that_needs_a_mask_is_refused():
    from ot_core.restorer_files import _from_weights

    network = importlib.import_module("spandrel.architectures.LaMa").LaMa(in_nc=4, out_nc=3)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    with pytest.raises(UserError, match="needs a mask"):
        _from_weights(buffer.getvalue(), ".pth", "", "cpu", False)


@pytest.mark.parametrize("size", [(7, 5), (64, 64), (1, 1), (129, 200)])
@pytest.mark.parametrize(("scale", "channels"), [(1, 3), (2, 3), (4, 3), (2, 1)])
def test_scales_channels_and_sizes(scale, channels, size, photo, tmp_path):
    options = {"upscale": scale, "num_in_ch": channels, "num_out_ch": channels}
    restorer = load_restorer(_weights("Compact", tmp_path / "w.safetensors", **options))
    (result,) = restorer([photo(*size)])
    assert restorer.scale == scale
    assert result.shape == (size[0] * scale, size[1] * scale, 3)


def test_a_grey_network_restores_each_channel(photo, tmp_path):
    restorer = load_restorer(_weights("DnCNN", tmp_path / "w.safetensors", in_nc=1, out_nc=1))
    image = photo(40, 30)
    (result,) = restorer([image])
    for channel in range(3):
        (alone,) = restorer([np.repeat(image[:, :, channel : channel + 1], 3, axis=2)])
        np.testing.assert_array_equal(alone[:, :, 0], result[:, :, channel])


@pytest.mark.parametrize("architecture", ["Compact", "DnCNN", "SwinIR", "SCUNet"])
def test_tiles_change_a_large_image_by_less_than_a_grey_level(architecture, photo, tmp_path):
    restorer = load_restorer(_weights(architecture, tmp_path / "w.safetensors"))
    image = photo(300, 420)
    (whole,), (tiled,) = restorer([image], 300 * 420 * 4), restorer([image], (4 * OVERLAP) ** 2)
    assert np.abs(whole.astype(float) - tiled).mean() < 1


def test_images_of_one_padded_size_share_a_batch(photo, tmp_path):
    restorer = load_restorer(_weights("DRUNet", tmp_path / "w.safetensors"))
    images = [photo(33, 47, seed=1), photo(39, 41, seed=2)]
    assert len({restorer.padded_size(*image.shape[:2]) for image in images}) == 1
    for image, result in zip(images, restorer(images), strict=True):
        assert np.abs(restorer([image])[0].astype(int) - result).max() <= 1


@pytest.mark.parametrize(("name", "sigma", "gain"), [("s-15", 15, 6), ("s-25", 25, 7), ("s-50", 50, 8), ("b", 25, 7)])
def test_denoisers_of_dncnn_pytorch_restore_as_they_should(name, sigma, gain, shared, photo):
    """Their weights go by other names than those that spandrel knows."""
    restorer = load_restorer(str(shared / f"data/denoisers/dncnn-{name}.safetensors"))
    image = photo(64, 64)
    noisy = image + np.random.default_rng(0).normal(0, sigma, image.shape)
    noisy = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)

    def psnr(pixels):
        return 10 * np.log10(255**2 / np.mean((pixels.astype(float) - image) ** 2))

    assert psnr(restorer([noisy])[0]) > psnr(noisy) + gain


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_pickled_weights_load_without_running_code(suffix, photo, tmp_path):
    expected = load_restorer(_weights("Compact", tmp_path / "w.safetensors"))
    found = load_restorer(_weights("Compact", tmp_path / f"w{suffix}"))
    image = photo(20, 20)
    np.testing.assert_array_equal(found([image])[0], expected([image])[0])


class _Touch:
    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return open, (self._path, "w")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(suffix, tmp_path):
    victim, path = str(tmp_path / "victim"), tmp_path / f"evil{suffix}"
    torch.save({"weight": _Touch(victim)}, path)
    with pytest.raises(UserError, match="forbidden"):
        load_restorer(str(path))
    path.write_bytes(pickle.dumps(_Touch(victim)))
    (tmp_path / "victim").unlink(missing_ok=True)
    with pytest.raises(UserError, match="can't be read"):
        load_restorer(str(path))
    assert not (tmp_path / "victim").exists()


def test_weights_are_read_from_any_store(store, photo, tmp_path):
    local = _weights("Compact", tmp_path / "weights.safetensors")
    url = storage.join(store, "weights [1].safetensors")
    storage.upload(local, url)
    found, expected = load_restorer(url), load_restorer(local)
    assert found.fingerprint == expected.fingerprint
    image = photo(20, 20)
    np.testing.assert_array_equal(found([image])[0], expected([image])[0])


def test_what_is_no_restorer_is_told_in_one_line(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    (tmp_path / "c.onnx").write_bytes(b"nothing")
    for name, said in (
        ("a.safetensors", "not the weights of an architecture"),
        ("b.safetensors", "can't be read"),
        ("c.onnx", "can't be loaded"),
        ("d.pth", "no such file"),
        ("e.txt", "expected a file ending in"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            load_restorer(str(tmp_path / name))
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def _onnx(path, *, scale=2, channels=3, fixed=None, multiple_of=1):
    onnx = pytest.importorskip("onnx")
    height, width = fixed or ("h", "w")
    shapes = [1 if fixed else "n", channels, height, width], [1 if fixed else "n", channels, None, None]
    given, made = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip(("x", "y"), shapes, strict=True)
    )
    scales = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [4], [1, 1, scale * multiple_of, scale * multiple_of])
    nodes = [onnx.helper.make_node("Resize", ["p", "", "s"], ["y"], mode="nearest")]
    # A pool with a stride takes any size, but what doesn't fill its last square is lost.
    nodes.insert(
        0, onnx.helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[multiple_of] * 2, strides=[multiple_of] * 2)
    )
    graph = onnx.helper.make_graph(nodes, "g", [given], [made], [scales])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    return str(path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fixed", [None, (64, 48)])
def test_an_onnx_model_of_any_or_of_one_size(channels, fixed, photo, tmp_path):
    restorer = load_restorer(_onnx(tmp_path / "m.onnx", channels=channels, fixed=fixed))
    for size in ((64, 48), (20, 31), (150, 90)):
        image = photo(*size)
        (result,) = restorer([image])
        expected = image.repeat(2, axis=0).repeat(2, axis=1)
        assert np.abs(result.astype(int) - expected).max() <= (0 if fixed is None else 1)


def test_an_onnx_model_that_needs_multiples_gets_them(photo, tmp_path):
    restorer = load_restorer(_onnx(tmp_path / "m.onnx", scale=1, multiple_of=4))
    assert restorer([photo(30, 41)])[0].shape == (30, 41, 3)


class _Halves(nn.Module):
    """Darkens all but one image."""

    def forward(self, x):
        return x / 2


def halves():
    return _Halves()


def names():
    return lambda pixels: "a picture"


def test_users_own_come_from_a_factory(photo):
    restorer = load_restorer("tests.ot_core.test_restorer:halves")
    image = photo(20, 30)
    np.testing.assert_array_equal(restorer([image])[0], np.rint(image / np.float32(255) / 2 * 255).astype(np.uint8))
    with pytest.raises(UserError, match="gave str; expected an array of uint8"):
        load_restorer("tests.ot_core.test_restorer:names")


def test_an_image_that_becomes_nan_is_one_error(photo, monkeypatch):
    restorer = load_restorer("tests.ot_core.test_restorer:halves")
    monkeypatch.setattr(_Halves, "forward", lambda self, x: torch.where(x > 0.999, torch.nan, x))
    white = np.full((16, 16, 3), 255, np.uint8)
    good, bad = restorer([photo(16, 16) // 2, white])
    assert isinstance(good, np.ndarray)
    assert isinstance(bad, ImageError)
    assert bad.cause == Cause.NOT_FINITE
