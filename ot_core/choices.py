"""What some settings may be, apart from the modules that import torch, so that a command line is checked at once."""

from typing import Final

#: Of the autoencoder's arithmetic.
PRECISIONS: Final = ("float32", "bfloat16", "float16")
#: Where models compute; auto is a CUDA device that no other process has taken where there is one, else the CPU.
AUTO_DEVICE: Final = "auto"
DEVICES: Final = (AUTO_DEVICE, "cuda", "mps", "cpu")
#: Of fitting: see `ot_core.fitting.fit_map`.
METHODS: Final = ("matched", "pixels", "paper")
#: What alpha mixes: see `ot_core.pixel_transport`.
INTERPOLATIONS: Final = ("pixels", "latents")
