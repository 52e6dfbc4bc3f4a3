"""Neither an import of ours nor a job leaves anything of the process changed that others in it rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]

#: Run by a process of its own, since it sets what it watches to values that nobody else would.
_PROGRAM = '''
import importlib, locale, logging, multiprocessing, os, pathlib, random, signal, socket, sys, warnings

sys.path.insert(0, {root!r})
PACKAGES = ("ot_core", "transforms", "pipelines", "deploy")

def import_all():
    """Every module of ours, but those that only run in Airflow or where the launcher of a template is."""
    for package in PACKAGES:
        for found in pathlib.Path({root!r}, package).rglob("*.py"):
            name = ".".join(found.relative_to({root!r}).with_suffix("").parts).removesuffix(".__init__")
            if name.startswith("deploy.airflow"):
                continue
            importlib.import_module(name)

import pipelines  # before anything else imports Beam, which would set up logging
assert logging.root.handlers == [] and logging.root.filters == [] and logging.root.level == logging.WARNING
import_all()
for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
    del sys.modules[name]
import apache_beam.runners.worker.operations, fsspec, numpy, torch  # the first sets a filter of warnings
from PIL import Image, ImageFile

def state():
    """Everything that a program may have set up for the whole process."""
    names = ("", "apache_beam", "diffusers", "huggingface_hub", "PIL", "fsspec", "py.warnings", "transforms", "ot_core")
    loggers = [logging.getLogger(name) for name in names]
    return dict(
        levels=[(logger.level, logger.propagate, logger.disabled) for logger in loggers],
        handlers=[list(logger.handlers) for logger in loggers],
        log_filters=[list(logger.filters) for logger in loggers],
        disabled=logging.root.manager.disable,
        warnings=list(warnings.filters),
        show_warning=warnings.showwarning,
        pillow=(Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK),
        threads=(torch.get_num_threads(), torch.get_num_interop_threads()),
        torch=(torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision()),
        deterministic=(torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        torch_random=hash(torch.get_rng_state().numpy().tobytes()),
        numpy_random=hash(numpy.random.get_state()[1].tobytes()),
        random=hash(random.getstate()),
        numpy=(numpy.geterr(), numpy.get_printoptions()),
        environment=dict(os.environ),
        signals={{number: signal.getsignal(number) for number in signal.valid_signals()}},
        start_method=multiprocessing.get_start_method(),
        timeout=socket.getdefaulttimeout(),
        locale=locale.setlocale(locale.LC_ALL),
        fsspec=dict(fsspec.config.conf),
        path=list(sys.path),
        folder=os.getcwd(),
        hooks=(sys.excepthook, sys.displayhook, sys.unraisablehook, sys.stdout, sys.stderr),
        umask=os.umask(0o22),
        recursion=sys.getrecursionlimit(),
    )

# Values that no library would set, so that setting anything shows.
for name, level in (("", 15), ("apache_beam", 16), ("diffusers", 17), ("huggingface_hub", 18), ("PIL", 19)):
    logging.getLogger(name).setLevel(level)
logging.root.handlers[:] = [logging.NullHandler()]
warnings.resetwarnings()
warnings.filterwarnings("ignore", message="mine")
Image.MAX_IMAGE_PIXELS, ImageFile.MAXBLOCK = 12_345_678, 99_999
torch.set_num_threads(3)
socket.setdefaulttimeout(77)
os.umask(0o22)
numpy.seterr(under="raise")
torch.manual_seed(7), numpy.random.seed(7), random.seed(7)

def changed(before, what, but=()):
    after = state()
    wrong = {{name: (before[name], after[name]) for name in before if before[name] != after[name] and name not in but}}
    assert not wrong, f"{{what}} changed {{wrong}}"

before = state()
import_all()
changed(before, "importing")
for argv in {jobs!r}:
    assert importlib.import_module("pipelines." + argv[0]).main(argv[1:]) == 0, argv
    changed(before, argv[0], but=["random"])  # Beam draws the names of its services
print("unchanged")
'''


def test_importing_and_running_leave_the_process_as_it_was(tmp_path: Path):
    for folder in ("natural", "restored"):
        (tmp_path / folder).mkdir()
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels // (1 if folder == "natural" else 2)).save(tmp_path / folder / f"{index}.png")
    natural, restored, fitted = str(tmp_path / "natural"), str(tmp_path / "restored"), str(tmp_path / "m.safetensors")
    output, report = str(tmp_path / "out"), str(tmp_path / "report")
    jobs = [
        ["fit", "--target", natural, "--source", restored, "--map", fitted, "--vae", "pixels", "--paired"],
        ["transport", "--input", restored, "--map", fitted, "--output", output, "--vae", "pixels"],
        ["maps", "inspect", fitted],
        [
            "evaluate",
            "--reference",
            natural,
            "--candidate",
            f"restored={restored}",
            "--report",
            report,
            "--vae",
            "pixels",
        ],
    ]
    program = _PROGRAM.format(root=str(ROOT), jobs=jobs)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.endswith("unchanged\n"), done.stderr[-3000:]
    assert not done.stderr.startswith("WARNING"), done.stderr[:300]  # which Beam gives where nobody stops it
