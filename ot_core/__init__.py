"""Deep optimal transport: the mathematics, the model and the files. Knows nothing of Beam.

numpy alone carries the statistics and the map; torch starts at patches and the autoencoder.
"""

from typing import TYPE_CHECKING

from ot_core.encoding import encode_image
from ot_core.errors import Cause, ImageError, MapFileError, OTError, UserError
from ot_core.fitted_map import FittedMap
from ot_core.images import DecodedImage, decode_image
from ot_core.latent_space import LatentSpace
from ot_core.lazy import lazy_attributes
from ot_core.map_file import read_map, write_map
from ot_core.noise import noise_floor
from ot_core.parts import Part
from ot_core.statistics import GaussianStatistics
from ot_core.transport_map import TransportMap, gelbrich_distance_squared

if TYPE_CHECKING:
    from ot_core.autoencoder import Autoencoder, load_autoencoder
    from ot_core.decoder import DecoderGeometry, decoder_geometry
    from ot_core.degradation import Degradation
    from ot_core.latent_transport import LatentTransport, ZeroShotTransport, blend
    from ot_core.patches import fold, latent_statistics, unfold
    from ot_core.restorer import Restorer, load_restorer
    from ot_core.transporter import Transporter
else:
    # What needs torch.
    __getattr__ = lazy_attributes(
        __name__,
        {
            "Autoencoder": "autoencoder",
            "DecoderGeometry": "decoder",
            "Degradation": "degradation",
            "LatentTransport": "latent_transport",
            "Restorer": "restorer",
            "Transporter": "transporter",
            "ZeroShotTransport": "latent_transport",
            "blend": "latent_transport",
            "decoder_geometry": "decoder",
            "fold": "patches",
            "latent_statistics": "patches",
            "load_autoencoder": "autoencoder",
            "load_restorer": "restorer",
            "unfold": "patches",
        },
    )


__version__ = "0.1.0"

__all__ = [
    "Autoencoder",
    "Cause",
    "DecodedImage",
    "DecoderGeometry",
    "Degradation",
    "FittedMap",
    "GaussianStatistics",
    "ImageError",
    "LatentSpace",
    "LatentTransport",
    "MapFileError",
    "OTError",
    "Part",
    "Restorer",
    "TransportMap",
    "Transporter",
    "UserError",
    "ZeroShotTransport",
    "blend",
    "decode_image",
    "decoder_geometry",
    "encode_image",
    "fold",
    "gelbrich_distance_squared",
    "latent_statistics",
    "load_autoencoder",
    "load_restorer",
    "noise_floor",
    "read_map",
    "unfold",
    "write_map",
]
