"""T8: a search that goes on training what it would have ended early, and sees how often that was wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.fusion_records import THRESHOLDS, Audit
from benchmarks.fusion_stage import Stage
from benchmarks.fusion_tasks import Scale, task_sets, trained
from fusion.search.config import preset
from fusion.search.search import run
from unified.fusing.cotrain import co_train

SCALE = Scale(num_train=1024, num_validation=2048, num_test=1024, epochs=8, text_epochs=8, width=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """What is to be audited.

    Attributes:
        seed: Of teachers and search.
        candidates: Number of them; each is trained to the end.
        data: Folder of real data, or None.
        threads: Of PyTorch.
    """

    seed: int
    candidates: int
    data: Path | None
    threads: int


def run_audit(plan: AuditPlan) -> Audit:
    """Search over three VGG-13 under audit.

    The models are smaller and the samples fewer than elsewhere, so that enough candidates can be trained to the end; and all
    that are proposed are trained (``screen=1``): who is chosen among proposals is the policy's affair.
    """
    torch.set_num_threads(plan.threads)
    tasks = task_sets(plan.data, SCALE)["vgg"]()
    models, _ = trained(tasks, plan.seed)
    stage = Stage(tasks, models, 1.0)
    config = preset(
        "full", thresholds=THRESHOLDS, max_candidates=plan.candidates, seed=plan.seed, screen=1, audit=True, measure_seconds=1.0
    )
    report = run(stage.search_tasks, stage.data, config, cotrain=co_train)
    ended = [record for record in report.candidates if record["given_up"] is not None]
    return Audit(
        seed=plan.seed,
        candidates=len(report.candidates),
        met=sum(record["status"] == "accepted" for record in report.candidates),
        ended=tuple(
            (
                record["given_up"][0] / config.epochs,
                record["given_up"][1],
                record["status"] == "accepted",
                record["improved"] > 0,
            )
            for record in ended
        ),
    )
