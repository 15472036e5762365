"""Presets: all settings of a stage at once, from the file `<project file's stem>.<preset>.yml` beside the project file.

Such a file maps each stage, by its script's name, to values of its flags; `iou` holds what differs with
`--link_cues iou`, whether the command line or the preset itself says so. In texts `{checkpoint_root}` and `{data_root}`
stand for these folders.
"""

import argparse
import os
from pathlib import Path

from datasets.config import BUILT_IN, known_projects, load_project, project_path, read_yaml
from utils.cli import Parser
from utils.misc import InputError

FOLDERS = ("checkpoint_root", "data_root")


def preset_path(dataset: str, preset: str) -> Path:
    """The file of a data set's preset, `dataset` as `--dataset` takes it."""
    return project_path(dataset).with_suffix(f".{preset}.yml")


def parse_with_preset(parser: Parser, stage: str) -> argparse.Namespace:
    """The flags of the command line and, with `--preset`, the preset's values of those that are not there.

    Prints what the preset sets, and what the command line has instead. InputError where the data set has no such
    preset, or that no such stage, flag or value.
    """
    args = parser.parse_args()
    if args.preset is None:
        if args.preset_except:
            raise InputError(f"--preset_except {' '.join(args.preset_except)}: goes with --preset")
        return args
    path = preset_path(args.dataset, args.preset)
    if not path.is_file():
        if path.parent == BUILT_IN and args.dataset not in known_projects():
            load_project(args.dataset, args.data_root)  # which says so
        raise InputError(f"--preset {args.preset}: {args.dataset} has none; it would be {path}")
    stages = read_yaml(path)
    if not isinstance(stages.get(stage), dict):
        raise InputError(f"{path}: this preset has no {stage}.py; leave --preset out")
    folders = {name: getattr(args, name) for name in FOLDERS}
    in_file: dict[str, object] = {}
    for section in (stage, "iou"):
        if section == "iou" and getattr(parser.parse_args(), "link_cues", None) != "iou":
            continue
        in_file |= stages.get(section) or {}
        chosen = {name: value for name, value in in_file.items() if name not in args.preset_except}
        values = {name: _checked(path, parser, name, value, folders) for name, value in chosen.items()}
        parser.set_defaults(**values)
    if unknown := set(args.preset_except) - in_file.keys():
        raise InputError(f"--preset_except {min(unknown)}: the preset does not set it; it sets {', '.join(in_file)}")
    args = parser.parse_args()
    if os.environ.get("RANK", "0") == "0":
        instead = {name: getattr(args, name) for name in values if getattr(args, name) != values[name]}
        given = "; the command line has " + _shown(instead) if instead else ""
        print(f"--preset {args.preset} ({path}) sets {_shown(values)}{given}")
    return args


def _checked(path: Path, parser: Parser, name: str, value: object, folders: dict[str, str]) -> object:
    """The value of a flag as its parser would have it; InputError where it would refuse it."""
    action = parser.action_of(name)
    if action is None:
        raise InputError(f"{path}: {name}: the script has no such flag")
    if isinstance(value, str):
        for folder, path_of_folder in folders.items():
            value = value.replace(f"{{{folder}}}", path_of_folder)
    if action.type is None:
        switch, truth = action.nargs == 0, isinstance(value, bool)
        valid = switch == truth and (action.choices is None or value in action.choices)
    else:
        try:
            value, valid = action.type(str(value)), True
        except (ValueError, argparse.ArgumentTypeError):
            valid = False
    if not valid:
        raise InputError(f"{path}: {name}: {value!r} is not a value of this flag")
    return value


def _shown(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
