"""T8: checkpoints that were damaged while nobody looked."""

from __future__ import annotations

import signal

import pytest

from tests.faults.service import Service, until

OFTEN = {"checkpoint": {"every_steps": 5}}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


DAMAGES = [(file, damage) for file in (".pt", ".json") for damage in (truncate, flip_a_bit, empty, delete)]


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path / "queue")
    yield service
    service.close()


def test_damage_costs_a_generation_at_most_and_is_told(service):
    names = [f"{damage.__name__}{file}" for file, damage in DAMAGES]
    jobs = [service.submit(name.replace("_", "-"), steps=80, step_seconds=0.02, job=OFTEN) for name in names]
    row, nothing, seal = (service.submit(name, steps=80, step_seconds=0.02, job=OFTEN) for name in ("row", "all", "rows"))
    everybody = [*jobs, row, nothing, seal]
    served = service.begin()
    for job in everybody:
        service.until_saved(job, 2)
    assert served.end(signal.SIGKILL) == -signal.SIGKILL

    store, root = service.queue.store, service.queue.root
    saved = {job: store.checkpoints(job) for job in everybody}
    for job, (file, damage) in zip(jobs, DAMAGES, strict=True):
        damage((root.path / saved[job][0].path).with_suffix(file))
    for one in saved[nothing]:
        flip_a_bit((root.path / one.path).with_suffix(".pt"))
    for one in saved[row][:1] + saved[seal]:
        store.drop_checkpoint(one.job, one.epoch, one.step)

    again = service.begin()
    service.until_ended(*everybody)
    service.check_finished(*everybody)
    for job in jobs:
        name = root.path.joinpath(saved[job][0].path).name
        until(lambda job=job, name=name: f"checkpoint {name} is damaged and was passed over" in service.log(job), job)
        assert f"trains from step {saved[job][1].step}\n" in service.log(job), service.log(job)
    assert f"trains from step {saved[row][1].step}\n" in service.log(row), service.log(row)
    assert "NO SOUND CHECKPOINT IS LEFT" in service.log(nothing)
    assert again.end() == 0, again.said
