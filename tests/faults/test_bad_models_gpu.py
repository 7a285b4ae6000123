"""T11 and T12 on a GPU: a real out-of-memory, and a device-side assert that leaves the worker's CUDA context unusable."""

from __future__ import annotations

import pytest
import torch

from tests.faults.models import Faulty
from tests.faults.service import Service
from unified.job_state import JobState

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    service = Service(tmp_path_factory.mktemp("gpu") / "queue", device="cuda:0", deterministic=True)
    service.begin()
    yield service
    assert service.served[0].end() == 0, service.served[0].said
    service.close()


def weights_of(service, job):
    assert service.row(job).state is JobState.FINISHED, service.log(job)
    return torch.load(service.queue.root.result(job) / "state_dict.pt", weights_only=True)


@pytest.mark.parametrize(
    ("kind", "end", "says"),
    [("device-assert", JobState.DEAD, "quarantined"), ("device-memory", JobState.FAILED, "out-of-memory")],
)
def test_a_bad_model_ends_alone(service, kind, end, says):
    alone = service.submit(f"{kind}-alone", steps=30, step_seconds=0.02)
    service.until_ended(alone)  # what a neighbour's weights must be: on a GPU the CPU's loop rounds otherwise
    beside = service.submit(f"{kind}-beside", steps=30, step_seconds=0.02)
    culprit = service.submit(kind, Faulty, steps=40, kind=kind, step=12, step_seconds=0.02)
    row, _ = service.until_ended(culprit, beside)
    assert (row.state, says in row.reason) == (end, True), (row.reason, service.log(culprit))
    for job in (beside, culprit):
        service.check_story(job)
    expected = weights_of(service, alone)
    for name, value in weights_of(service, beside).items():
        assert torch.equal(value, expected[name]), name
