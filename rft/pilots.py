"""The part of a run that tells what the whole will bring and cost (rft/forecast.py)."""

from rft.nodes import Node
from rft.plan import Plan


def to_pilot(plan: Plan) -> list[tuple[Node, Node]]:
    """What the first round of the first seed samples for training, with its scores: (sample,
    score) of each pool but those that others' verdicts are needed for."""
    found: dict[str, tuple[Node, Node]] = {}
    for name, arm in plan.arms.items():
        if arm.train is None or arm.sample.use == "reference":
            continue
        for suffix, pair in plan.pools(name, plan.experiment.seeds[0], 1).items():
            if suffix != "_reference" and not pair[0].job["unless_solved_by"]:
                found.setdefault(pair[1].key, pair)
    return list(found.values())


def pilot(plan: Plan, pair: tuple[Node, Node], prompts: int, samples: int) -> tuple[Node, Node]:
    """Stages that sample and score a part of what a pair of `to_pilot` will."""
    sample, score = pair
    adapts = ("allocate", "verdicts", "ways")
    jobs = [{k: v for k, v in node.job.items() if k not in ("folder", "label")} for node in pair]
    n = min(samples, sample.inputs["n"])
    small = plan.node(
        "sample",
        f"pilot of {sample.label}",
        {k: v for k, v in sample.inputs.items() if k not in adapts} | {"n": n, "pilot": prompts},
        *sample.needs,
        **{
            **jobs[0],
            "decoding": {**sample.job["decoding"], "n": n},
            "allocate": {"use": "uniform", "args": {}},
            "pilot": {"prompts": prompts, "seed": sample.inputs["decoding"].get("seed", 0)},
        },
    )
    scored = plan.node(
        "score",
        f"pilot of {score.label}",
        {**score.inputs, "candidates": small.key},
        *(small if need is sample else need for need in score.needs),
        **{**jobs[1], "sample": str(small.dir.path)},
    )
    return small, scored
