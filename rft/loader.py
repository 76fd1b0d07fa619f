"""From an experiment's YAML file to an Experiment: extends, overrides, paths, and arms that fit.

A file may name another with `extends: ./other.yaml`; its own keys win. Any string that begins with
`./` or `../` is a path relative to the file it stands in, and is made absolute here, so an experiment
means the same from every folder. Every fault is a ConfigError with file, dotted path and fix.
"""

import copy
import difflib
import os
import typing
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rft.config import Arm, Chat, ConfigError, Experiment, Sample, merge
from rft.config_train import NO_DEEPSPEED
from rft.faults import did_you_mean, explain


def load(path: str | Path, overrides: typing.Sequence[str] = ()) -> Experiment:
    """Reads, merges and checks an experiment file. Raises ConfigError.

    overrides: dotted settings such as `train.lr=1e-4` or `arms.rft.sample.n=16`.
    """
    path = Path(path)
    raw = _read(path, seen=())
    for text in overrides:
        dotted, sign, value = text.partition("=")
        if not sign or not dotted:
            raise ConfigError(f"{text!r} is not a setting: write it as train.lr=1e-4")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as fault:
            raise ConfigError(f"command line: {text!r}: {value!r} is not YAML: {fault}") from None
        keys = dotted.split(".")
        if keys[0] == "arms" and not raw.get("arms"):
            # One arm's setting must not do away with the default arms.
            raw["arms"] = copy.deepcopy(Experiment.model_fields["arms"].get_default())
        if keys[0] == "arms" and len(keys) == 2 and parsed is None:
            there = raw["arms"]
            if keys[1] not in there:
                raise ConfigError(
                    f"command line: {text}: there is no arm {keys[1]!r}"
                    f"{did_you_mean(keys[1], there)}"
                )
        for key in reversed(keys):
            parsed = {key: parsed}
        raw = merge(raw, _absolute(parsed, Path.cwd()))
    if isinstance(raw.get("arms"), dict):
        raw["arms"] = {name: arm for name, arm in raw["arms"].items() if arm is not None}
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as fault:
        raise ConfigError(explain(fault, Experiment, path, overrides=overrides)) from None
    for name in experiment.arms:
        try:
            arm = experiment.arm(name)
        except ValidationError as fault:
            raise ConfigError(
                explain(fault, Arm, path, prefix=f"arms.{name}.", overrides=overrides)
            ) from None
        _check_chats(arm, experiment.arms[name], f"arms.{name}.", path, overrides)
    _check_arms(experiment, path)
    experiment._path = path
    return experiment


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends goes round in a circle")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")])
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read: {fault}") from None
    except yaml.YAMLError as fault:
        raise ConfigError(f"{path}: not valid YAML: {fault}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: an experiment is a mapping with name, model, prompts, ...")
    raw = _absolute(raw, path.parent.resolve())
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends: name one file, for instance ./base.yaml")
    merged: dict[str, Any] = merge(_read(path.parent / parent, (*seen, path.resolve())), raw)
    return merged


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice: PyYAML keeps the last one and drops the rest."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before `<<` is resolved, which writes the merged keys beside a mapping's own.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {k: _absolute(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_absolute(v, folder) for v in value]
    if isinstance(value, str) and value.startswith(("./", "../", "~/")):
        return os.path.normpath(folder / Path(value).expanduser())
    return value


def _check_arms(experiment: Experiment, path: Path) -> None:
    name_parts = Path(experiment.name).parts
    if not name_parts or ".." in name_parts or Path(experiment.name).is_absolute():
        raise ConfigError(f"{path}: name: {experiment.name!r} is no folder under {experiment.runs}")
    if len(set(experiment.seeds)) < len(experiment.seeds):
        raise ConfigError(f"{path}: seeds: each seed once, not {experiment.seeds}")
    names = list(experiment.arms)
    if not names:
        raise ConfigError(f"{path}: arms: name at least one arm")
    if len(names) > 1 and experiment.compare.baseline not in names:
        raise ConfigError(
            f"{path}: compare.baseline: there is no arm {experiment.compare.baseline!r}"
            f"{did_you_mean(experiment.compare.baseline, names)}; arms are {', '.join(names)}"
        )
    for name in names:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"{path}: arms.{name}: use letters, digits, - and _ in arm names")
        arm = experiment.arm(name)
        if arm.eval.k != experiment.eval.k:
            raise ConfigError(
                f"{path}: arms.{name}.eval.k: arms are compared at the same k: set eval.k"
            )
        for where, other in arm_references(arm):
            if other not in names:
                raise ConfigError(
                    f"{path}: arms.{name}.{where}: there is no arm {other!r}"
                    f"{did_you_mean(other, names)}"
                )
            if experiment.arm(other).train is None:
                raise ConfigError(f"{path}: arms.{name}.{where}: arm {other!r} trains nothing")


def _check_chats(
    arm: Arm, own: dict[str, Any], prefix: str, path: Path, overrides: typing.Sequence[str]
) -> None:
    """Checks what an arm samples from, and the prompts that it does so with."""

    def checked(kind: type[BaseModel], where: str, make: typing.Callable[[], typing.Any]) -> Any:
        try:
            return make()
        except ValidationError as fault:
            text = explain(fault, kind, path, prefix=f"{where}.", overrides=overrides)
            raise ConfigError(text) from None

    def at(setting: str) -> str:
        return prefix + setting if setting.split(".")[0] in own else setting

    where = at("eval.chat")
    asked = checked(Chat, where, lambda: arm.asking(arm.eval.chat))
    for there, chat in ((at("chat"), arm.chat), (where, asked)):
        if "{answer}" in chat.prompt:
            raise ConfigError(
                f"{path}: {there}.prompt: {{answer}} would give the answer away where it is asked "
                "for: a hint goes into sample.chat.prompt"
            )
    if arm.sample.use == "reference":
        return
    if arm.sample.only == "unsolved":
        raise ConfigError(f"{path}: {at('sample')}.only: unsolved is for one of several pools")
    names = {scorer.use for scorer in arm.score}
    if arm.train and arm.train.loss.reward and names <= _NO_VALUE:
        raise ConfigError(
            f"{path}: {at('train.loss')}.reward: weighs rows by a value, and {' and '.join(sorted(names))} "
            "gives verdicts alone: add a scorer with a value (reward_model, judge), or set it to null"
        )
    for number, name in enumerate(arm.sample.pools or [""]):
        where = at(f"sample.pools.{name}" if name else "sample")
        pool = arm.sample
        if name:
            pool = checked(Sample, where, partial(arm.sample.pool, name))
        asked = checked(Chat, f"{where}.chat", partial(arm.asking, pool.chat))
        if arm.train and arm.train.loss.clip is not None and (fault := _no_ratio(arm, pool, asked)):
            raise ConfigError(f"{path}: {where}.{fault}, or {at('train.loss')}.clip to null")
        if name and (not name.replace("_", "").replace("-", "").isalnum() or name == "reference"):
            raise ConfigError(
                f"{path}: {where}: a pool's name has letters, digits, - and _, and is not `reference`"
            )
        if name and pool.pools:
            raise ConfigError(f"{path}: {where}.pools: a pool has no pools of its own")
        if name and pool.use == "reference":
            raise ConfigError(
                f"{path}: {where}.use: worked solutions are no pool: see train.include_reference"
            )
        if pool.only == "unsolved" and not number:
            raise ConfigError(
                f"{path}: {where}.only: unsolved is what the pools before it leave: put it after one"
            )


_NO_VALUE = {"answer", "math"}
"""Built-in scorers that never give a value."""


def _no_ratio(arm: Arm, pool: Sample, asked: Chat) -> str | None:
    """Why a pool's samples have no log-probabilities that the trained model's can be divided by."""
    if pool.logprobs != "tokens":
        return (
            f"logprobs: {pool.logprobs} keeps no token's log-probability, and train.loss.clip compares "
            "each with the trained model's: set it to tokens"
        )
    if pool.model is not None and pool.model != arm.model:
        return (
            "model: another model's answers are tokenised anew, and train.loss.clip needs each token's "
            "log-probability: leave it out"
        )
    if asked != arm.chat:
        return (
            "chat: samples are drawn with another prompt than the one trained on, and train.loss.clip "
            "compares probabilities after the same prompt: leave it out"
        )
    return None


def arm_references(arm: Arm) -> list[tuple[str, str]]:
    """(dotted path, arm name) for each `arm:NAME` in an arm."""
    found = []
    if arm.train is not None and arm.sample.use != "reference":
        for name, pool in arm.sample.each_pool().items():
            if pool.policy.startswith("arm:"):
                where = f"sample.pools.{name}.policy" if name else "sample.policy"
                found.append((where, pool.policy[4:]))
    for i, component in enumerate(arm.select if arm.train else []):
        for key, value in component.args.items():
            if isinstance(value, str) and value.startswith("arm:"):
                found.append((f"select.{i}.args.{key}", value[4:]))
    if arm.train and arm.train.match:
        found.append(("train.match", arm.train.match.removeprefix("arm:")))
    return found


def launch_fault(path: Path) -> str | None:
    """Why training can't be launched with this config of accelerate's; None where nothing is seen."""
    if not path.is_file():
        return f"no such file: {path} (beside the YAML: ./file.yaml)"
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        return f"{path} is not YAML: {' '.join(str(fault).split())}"
    if not isinstance(told, dict):
        return f"{path} is no launch config: configs/accelerate/ has some"
    if told.get("distributed_type") == "DEEPSPEED" or told.get("deepspeed_config"):
        return f"{path}: {NO_DEEPSPEED}"
    return None


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML that runs as it is."""
    return yaml.safe_dump(
        experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )
