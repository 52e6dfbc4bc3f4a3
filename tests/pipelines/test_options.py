"""Flags: ours, Beam's, and nothing else."""

import pytest

from ot_core import UserError
from pipelines import fit, options, transport

REQUIRED = ["--input", "in", "--map", "m", "--output", "o"]


def test_beams_flags_are_passed_on():
    args, beam_options = options.parse(transport.parser(), [*REQUIRED, "--direct_num_workers", "2"])
    assert args.input == ["in"]
    assert beam_options.get_all_options()["direct_num_workers"] == 2
    assert beam_options.get_all_options()["runner"] == options.LOCAL_RUNNER


def test_an_input_may_be_given_once_or_several_times():
    args, _ = options.parse(transport.parser(), [*REQUIRED, "--input", "b", "c"])
    assert args.input == ["in", "b", "c"]


def test_negative_and_extrapolating_alphas_are_numbers():
    args, _ = options.parse(transport.parser(), [*REQUIRED, "--alpha", "-0.25", "1.5"])
    assert args.alpha == [-0.25, 1.5]


def test_alphas_may_be_given_one_by_one():
    args, _ = options.parse(transport.parser(), [*REQUIRED, "--alpha=0", "--alpha=0.5"])
    assert args.alpha == [0.0, 0.5]
    args, _ = options.parse(transport.parser(), [*REQUIRED, "--alpha", "auto", "1"])
    assert args.alpha == ["auto", 1.0]
    args, _ = options.parse(transport.parser(), REQUIRED)
    assert args.alpha is None  # the map decides


@pytest.mark.parametrize(
    ("extra", "hint"),
    [
        (["--alhpa", "0.5"], "did you mean --alpha"),
        (["--runer", "FlinkRunner"], "did you mean --runner"),
        (["--nonsense=1"], "--nonsense: unknown flag"),
        (["--form", "png"], "--form"),
        (["--alpha", "nan"], "expected a number"),
        (["--alpha", "high"], "high: expected auto or a number"),
        (["--format", "gif"], "invalid choice"),
        (["--quality", "101"], "expected a number from 1 to 100"),
        (["--max_failure_fraction", "2"], "expected a number from 0 to 1"),
        (["--max_pixels", "0"], "expected a number"),
        (["--runner=FlinkRunner", "--ouput", "x"], "did you mean --output"),
        (["--direct_num_workers", "two"], "argument --direct_num_workers: invalid int value: 'two'"),
        (["--direct_num_workers", "-1"], "--direct_num_workers -1: expected 1 to 1024, or 0 for one a core"),
        (["--direct_num_workers=1000000"], "--direct_num_workers 1000000: expected 1 to 1024"),
        (["--direct_running_mode", "fast"], "argument --direct_running_mode: invalid choice"),
        (["--direct_num_workers"], "argument --direct_num_workers: expected one argument"),
    ],
)
def test_what_neither_we_nor_beam_know_is_refused_in_one_line(extra, hint):
    with pytest.raises(UserError, match=hint) as error:
        options.parse(transport.parser(), [*REQUIRED, *extra])
    assert "\n" not in str(error.value)


def test_dashes_within_flags_are_taken_for_underscores():
    flags = ["--target", "t", "--source", "s-s", "--map", "m", "--max-images=3", "--patch-size", "1"]
    args, beam_options = options.parse(fit.parser(), [*flags, "--direct-num-workers", "2", "--job-name=a-b"])
    assert (args.max_images, args.patch_size, args.source) == (3, 1, ["s-s"])
    assert beam_options.get_all_options()["direct_num_workers"] == 2
    assert beam_options.get_all_options()["job_name"] == "a-b"


def test_a_misspelt_flag_is_named_even_where_others_are_missing():
    for flag in ("--max-imagse", "--max_imagse", "--tarrget"):
        with pytest.raises(UserError, match=f"^{flag}: unknown flag; did you mean"):
            options.parse(fit.parser(), [flag, "3"])


def test_a_missing_flag_is_named():
    with pytest.raises(UserError, match="--map"):
        options.parse(fit.parser(), ["--target", "t", "--source", "s"])


def test_flags_of_a_job_server_are_left_to_it():
    _, beam_options = options.parse(transport.parser(), [*REQUIRED, "--runner=PortableRunner", "--flink_master=x"])
    assert beam_options.get_all_options()["runner"] == "PortableRunner"


@pytest.mark.parametrize(
    "spelling", ["DaskRunner", "dask", "daskrunner", "apache_beam.runners.dask.dask_runner.DaskRunner"]
)
def test_a_runner_that_loses_images_is_refused_before_anything_else(spelling, capsys):
    for flags in (["--runner", spelling], [f"--runner={spelling}"]):
        assert transport.main([*REQUIRED, *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"dot-transport: error: --runner {spelling}: Beam's DaskRunner loses images")
        assert "use --direct_running_mode multi_processing --direct_num_workers N" in line


@pytest.mark.parametrize(
    ("runner", "hint"),
    [
        ("FlnkRunner", "did you mean FlinkRunner"),
        ("no.such.Runner", "No module named"),
        ("apache_beam.NoRunner", "NoRunner"),
    ],
)
def test_a_runner_that_beam_does_not_know_is_refused_in_one_line(runner, hint, capsys):
    assert transport.main([*REQUIRED, "--runner", runner]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--runner {runner}: " in line
    assert hint in line
