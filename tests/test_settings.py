"""Settings: one definition gives the check, the option and the documentation of each."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, fields

import pytest

from openmm_sd.adapt.settings import AdaptSettings
from openmm_sd.benchmark.settings import BenchmarkSettings
from openmm_sd.cli import COMMANDS, main
from openmm_sd.cli.options import add_settings, given_of, option_of
from openmm_sd.data.settings import ImportSettings
from openmm_sd.demo.settings import DemoSettings
from openmm_sd.generate.settings import GenerateSettings
from openmm_sd.prepare.settings import PrepareSettings
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.run.settings import RunSettings
from openmm_sd.settings import Settings, declared_fields, default_of, kinds_of, setting
from openmm_sd.train.settings import (
    DistillSettings,
    NetworkSettings,
    StageSettings,
    StudentSettings,
    TrainSettings,
)
from openmm_sd.validate.settings import ValidateSettings

OF_COMMAND = {
    "adapt": AdaptSettings,
    "benchmark": BenchmarkSettings,
    "import": ImportSettings,
    "demo": DemoSettings,
    "generate": GenerateSettings,
    "prepare": PrepareSettings,
    "rollout": RolloutSettings,
    "run": RunSettings,
    "distill": DistillSettings,
    "train": StageSettings,
    "validate": ValidateSettings,
}
EVERY = (*OF_COMMAND.values(), NetworkSettings, StudentSettings, TrainSettings)
#: Needed besides the settings.
POSITIONAL = {
    "adapt": ["ala2-water", "a.pdb", "-o", "m.safetensors"],
    "benchmark": [],
    "import": ["t.xtc", "-o", "d.h5"],
    "demo": ["-o", "out"],
    "generate": ["a.pdb", "-o", "d.h5"],
    "prepare": ["a.pdb", "-o", "out"],
    "rollout": ["ala2-water", "-o", "out"],
    "run": ["a.pdb", "-o", "out"],
    "distill": ["ala2-water", "-o", "m.safetensors"],
    "train": ["d.h5", "-o", "m.safetensors"],
    "validate": ["ala2-water", "-o", "out"],
}
NUMBERS = [
    (command, option_of(one), kinds_of(one))
    for command, settings in [
        *OF_COMMAND.items(),
        ("train", NetworkSettings),
        ("train", TrainSettings),
        ("distill", StudentSettings),
    ]
    for one in declared_fields(settings)
    if one.metadata["declared"].option != ""
    and {"int", "float"} & set(kinds_of(one))
    and (command, one.name) not in {("distill", "sigma_min"), ("distill", "sigma_max")}
]


@pytest.mark.parametrize("settings", EVERY)
def test_every_field_is_declared_and_documented(settings):
    settings()
    assert [one.name for one in declared_fields(settings)] == [one.name for one in fields(settings)]
    for one in declared_fields(settings):
        assert f"    {one.name} : {one.type}\n" in settings.__doc__
        if default_of(one):
            assert f"({default_of(one)})" in settings.__doc__


@pytest.mark.parametrize("command", OF_COMMAND)
def test_help_shows_every_setting_with_its_default(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for one in declared_fields(OF_COMMAND[command]):
        if one.metadata["declared"].option == "" or one.name == "variants":
            continue
        found = re.search(rf"\n +--{option_of(one)}(?![\w-])(.*?)(?=\n +-|\n\n)", shown, re.DOTALL)
        # A rollout's device is chosen by itself on the command line, torsions are the command's.
        if one.name not in ("device", "torsions"):
            assert default_of(one) in found.group(1)


@pytest.mark.parametrize(
    ("command", "option", "kinds"), NUMBERS, ids=[f"{c}-{o}" for c, o, _ in NUMBERS]
)
def test_senseless_numbers_are_refused_in_a_line(
    command, option, kinds, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    values = ["-1", "nan", "1e308"] if "float" in kinds else ["-1", "0.5", "nan"]
    if "str" in kinds and "int" in kinds:
        values = ["-1"]  # a chain's id may be any other word
    for value in values:
        assert main([command, *POSITIONAL[command], f"--{option}={value}"]) == 2, value
        said = capsys.readouterr()
        assert said.out == ""
        assert "must be" in said.err
        assert "Traceback" not in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--steps", "--start"])
def test_an_option_given_twice_is_refused(capsys, option):
    assert main(["rollout", "ala2-water", "-o", "out", option, "3", option, "4"]) == 2
    assert f"{option}: given more than once" in capsys.readouterr().err


@pytest.mark.parametrize("command", OF_COMMAND)
def test_a_printed_file_of_settings_gives_the_same_settings(command, capsys, tmp_path):
    words = [command, *POSITIONAL[command]]
    more = {"run": ["--lag", "30", "--max-novelty", "off", "--force-field", "a.xml"]}
    more |= {"train": ["--no-bf16", "--without", "one", "--without", "two"]}
    more |= {"validate": ["--lags", "10,50"], "prepare": ["--caps", "--no-neutralise"]}
    assert main([*words, *more.get(command, []), "--print-config"]) == 0
    file, printed = tmp_path / "settings.yaml", capsys.readouterr().out
    file.write_text(printed)
    assert main([*words, "--config", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lagg: 3", "lagg is not a setting of this command"),
        ("- 3", "holds no names with values"),
        ("lag: [", "cannot be read"),
        ("lag: -3", "lag_ps must be a positive number of ps, got -3"),
        ("lag: soon", "argument --lag: must be a number, got 'soon'"),
        ("max_novelty: off\nlag: -1", "lag_ps must be"),
    ],
)
def test_wrong_files_of_settings(text, said, capsys, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert main(["run", "a.pdb", "-o", str(tmp_path / "out"), "--config", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err.splitlines()[-1]


def test_the_command_line_goes_before_the_file(capsys, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("lag: 20\nseed: 7\nsolute_only: true\nmodel: mine.safetensors")
    words = ["run", "a.pdb", "-o", "out", "--config", str(file), "--lag=30", "--print-config"]
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert {"lag: 30.0", "seed: 7", "solute_only: true"} <= set(shown)


@dataclass(frozen=True)
class _Few(Settings):
    """Few."""

    time_ps: float = setting(2.0, "a time")
    share: float = setting(0.5, "a share", above=0, below=1)
    count: int | None = setting(3, "a count, or off", most=9)
    word: str = setting("yes", "a word", choices=("yes", "no"))
    either: float | str | None = setting("card", "a number or a word")
    names: tuple[str, ...] = setting((), "names")
    lags: tuple[float, ...] = setting((1.0, 10.0), "lags", unit="ps")
    quiet: bool = setting(False, "say less")
    tidy: bool = setting(True, "leave nothing")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"time_ps": 0}, "time_ps must be a positive number of ps, got 0"),
        ({"time_ps": "2"}, "time_ps must be a positive number of ps, got '2'"),
        ({"time_ps": True}, "time_ps must be a positive number of ps, got True"),
        ({"time_ps": None}, "time_ps must be a positive number of ps, got None"),
        ({"share": 1.0}, "share must be a number between 0 and 1, got 1"),
        ({"count": 0}, "count must be a whole number from 1 to 9, got 0"),
        ({"count": 2.0}, "count must be a whole number from 1 to 9, got 2"),
        ({"word": "maybe"}, "word must be one of yes, no, got 'maybe'"),
        ({"either": -1.0}, "either must be a positive number, got -1"),
        ({"lags": ()}, "lags must be a tuple of numbers"),
        ({"lags": (1.0, -1.0)}, "lags must be a positive number of ps, got -1"),
    ],
)
def test_refusals(given, said):
    with pytest.raises(ValueError, match=said):
        _Few(**given)


def test_options_become_settings():
    parser = argparse.ArgumentParser()
    add_settings(parser, _Few, {"words": "word either"})
    assert given_of(parser.parse_args([]), _Few) == {}
    arguments = parser.parse_args(
        "--time 3 --count off --word no --either 4 --names a --names b --lags 5,50 --quiet "
        "--no-tidy".split()
    )
    assert _Few(**given_of(arguments, _Few)) == _Few(
        *(3.0, 0.5, None, "no", 4.0, ("a", "b"), (5.0, 50.0), True, False)
    )


def test_every_command_of_the_list_is_looked_at():
    without_settings = {"doctor", "models", "report", "completion"}
    assert set(COMMANDS) == set(OF_COMMAND) | without_settings
