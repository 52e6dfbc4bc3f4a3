"""What a command line says before Beam and torch are there: help, versions, mistakes, and flags from a file."""

import subprocess
import sys
from typing import ClassVar

import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

from ot_core import UserError
from pipelines import options, parsers
from pipelines.flags import beams_flags

COMMANDS = ("fit", "transport", "evaluate", "trial", "maps", "demo")
_PROGRAM = """
import sys
from pipelines import commands
sys.argv[1:] = {argv!r}
try:
    code = commands.{command}()
except SystemExit as end:
    code = end.code
heavy = {{"torch", "apache_beam", "diffusers"}} & sys.modules.keys()
print(code, sorted(heavy), file=sys.stderr)
"""


def _told(command, *argv):
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(command=command, argv=list(argv))], capture_output=True, text=True
    )
    *lines, last = ended.stderr.splitlines()
    return ended.stdout, lines, last


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_told_without_torch_and_beam(command):
    printed, errors, last = _told(command, "--help")
    assert (errors, last) == ([], "0 []")
    assert "example:" in printed


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--imput", "x"], "--imput: unknown flag; did you mean --input?"),
        (["--runer", "x"], "--runer: unknown flag; did you mean --runner?"),
        (["--zzzz"], "--zzzz: unknown flag; see dot-transport --help"),
        (["--input", "x"], "the following arguments are required: --map, --output (see dot-transport --help)"),
        (["--alpha", "much"], "argument --alpha: much: expected auto or a number (see dot-transport --help)"),
        (["--config", "none.yaml"], "--config none.yaml: not found"),
    ],
)
def test_a_mistake_is_told_without_torch_and_beam(argv, said):
    assert _told("transport", *argv)[1:] == ([f"dot-transport: error: {said}"], "2 []")


def test_the_version_is_told():
    assert _told("fit", "--version")[0].startswith("dot-fit ")


def test_names_of_beams_flags_are_all_known():
    """They are read from Beam's source, without importing it."""
    parser = _BeamArgumentParser()
    for options_of_beam in PipelineOptions.__subclasses__():
        if options_of_beam.__module__ == PipelineOptions.__module__:
            options_of_beam._add_argparse_args(parser)
    known = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    assert known - beams_flags() == {"--help"}


def test_what_job_servers_know_passes():
    parsers.transport().check(
        ["--input=i", "--map=m", "--output=o", "--runner=FlinkRunner", "--parallelism=3", "--of_flink=1"]
    )


class TestConfig:
    HELD: ClassVar = {
        **{"input": ["a", "b c"], "map": "m", "output": "o", "alpha": [0, 0.5], "resume": True, "compile": False}
    }

    def parse(self, path, held, *argv):
        path.write_text(yaml.safe_dump(held))
        return options.parse(parsers.transport(), ["--config", str(path), *argv])

    def test_a_file_holds_any_flags(self, tmp_path):
        held = {**self.HELD, "direct-num-workers": 3, "experiments": ["x", "y"], "vae": None}
        args, beams = self.parse(tmp_path / "job.yaml", held)
        assert (args.input, args.alpha, args.resume, args.compile) == (["a", "b c"], [0, 0.5], True, False)
        assert (args.map, args.vae) == ("m", None)
        assert beams.get_all_options()["direct_num_workers"] == 3
        assert {"x", "y"} <= set(beams.get_all_options()["experiments"])

    def test_the_command_line_wins(self, tmp_path):
        args, _ = self.parse(tmp_path / "job.yaml", self.HELD, "--input", "c", "--alpha=1")
        assert (args.input, args.alpha, args.map) == (["c"], [1], "m")

    def test_of_several_files_the_last_wins(self, tmp_path):
        (tmp_path / "first.yaml").write_text(yaml.safe_dump({**self.HELD, "map": "other", "quality": 80}))
        (tmp_path / "job.yaml").write_text("map: m")
        first = ["--config", str(tmp_path / "first.yaml"), "--config", str(tmp_path / "job.yaml")]
        args, _ = options.parse(parsers.transport(), first)
        assert (args.map, args.quality) == ("m", 80)

    @pytest.mark.parametrize(
        ("held", "said"),
        [
            ({"imput": "x"}, "imput: unknown flag; did you mean --input?"),
            ({"resume": "yes"}, "resume: expected true or false, not 'yes'"),
            ({"map": True}, "map: expected a value, not true"),
            ({"map": {"a": 1}}, "map: expected text or numbers, not {'a': 1} (a date is text in quotes)"),
            (["map"], "expected the names of flags and their values, such as `alpha: 0.5`"),
        ],
    )
    def test_what_a_file_should_not_hold_is_told(self, held, said, tmp_path):
        path = tmp_path / "job.yaml"
        with pytest.raises(UserError) as raised:
            self.parse(path, held)
        assert str(raised.value) == f"--config {path}: {said}"

    def test_what_is_not_yaml_is_told(self, tmp_path):
        (tmp_path / "job.yaml").write_text("a: [")
        with pytest.raises(UserError, match="is not YAML"):
            options.parse(parsers.transport(), ["--config", str(tmp_path / "job.yaml")])
