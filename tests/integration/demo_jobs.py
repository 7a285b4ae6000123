"""The jobs of a made-up queue in the middle of its day: one or more in every state."""

from __future__ import annotations

import random
from dataclasses import dataclass

from unified.job_state import JobState

MIB = 1 << 20
_S = JobState


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One job of the story; ``submitted`` and ``started`` are seconds before now."""

    name: str
    user: str
    state: JobState
    reason: str
    submitted: float
    started: float = 0.0
    steps: int = 0
    total: int | None = None
    loss: tuple[float, float] = (2.3, 0.1)  #: at the first step and at the last
    memory: int | None = None
    slot: int = 0
    ended: float = 0.0


# fmt: off
JOBS = (
    Demo(name="lenet-a", user="ada", state=_S.FINISHED, reason="trained, verified and returned", submitted=900, started=590,
         steps=1200, total=1200, loss=(2.31, 0.04), memory=38 * MIB, ended=210),
    Demo(name="lenet-b", user="ada", state=_S.FINISHED, reason="trained, verified and returned", submitted=899, started=580,
         steps=1200, total=1200, loss=(2.29, 0.06), memory=38 * MIB, ended=130),
    Demo(name="diverged", user="dana", state=_S.FAILED,
         reason="loss was not finite at step 212; a smaller learning rate may help",
         submitted=880, started=560, steps=212, total=2000, loss=(3.1, 40.0), memory=52 * MIB, slot=1, ended=480),
    Demo(name="crashes", user="eve", state=_S.DEAD,
         reason="its worker died twice while it trained alone (SIGSEGV); see dead/",
         submitted=860, started=540, steps=3, total=500, memory=20 * MIB, slot=1, ended=400),
    Demo(name="sweep-03", user="bo", state=_S.CANCELLED, reason="cancelled by bo", submitted=820, started=520, steps=340,
         total=4000, loss=(1.8, 1.1), memory=64 * MIB, slot=1, ended=330),
    Demo(name="autoencoder", user="bo", state=_S.PAUSED, reason="paused by bo at step 410", submitted=790, started=470,
         steps=410, total=900, loss=(0.9, 0.3), memory=96 * MIB, slot=1, ended=250),
    Demo(name="resnet18-cifar", user="ada", state=_S.RUNNING, reason="trains on slot 0, in turns with 2 others",
         submitted=700, started=460, steps=1830, total=3910, loss=(2.30, 0.42), memory=412 * MIB),
    Demo(name="mlp-mnist", user="chen", state=_S.RUNNING, reason="trains on slot 0, in turns with 2 others", submitted=640,
         started=430, steps=5200, total=6000, loss=(2.30, 0.09), memory=31 * MIB),
    Demo(name="lstm-names", user="bo", state=_S.RUNNING, reason="trains on slot 0, in turns with 2 others", submitted=600,
         started=300, steps=960, total=2400, loss=(3.40, 1.35), memory=88 * MIB),
    Demo(name="vit-tiny", user="chen", state=_S.RUNNING, reason="trains on slot 1", submitted=560, started=260, steps=720,
         total=5000, loss=(4.61, 2.2), memory=655 * MIB, slot=1),
    Demo(name="unet-small", user="dana", state=_S.PAUSING, reason="asked to pause; its checkpoint is being written",
         submitted=520, started=200, steps=300, total=1500, loss=(0.71, 0.33), memory=240 * MIB, slot=1),
    Demo(name="gpt2-tiny", user="bo", state=_S.LOADING, reason="being taken in by slot 1", submitted=300, started=2,
         total=8000, memory=310 * MIB, slot=1),
    Demo(name="wgan", user="dana", state=_S.RETRY_WAIT, reason="out of memory beside others", submitted=480, started=240,
         steps=88, total=1000, loss=(1.2, 0.9), memory=700 * MIB, slot=1, ended=20),
    Demo(name="bert-probe", user="eve", state=_S.QUEUED, reason="needs 1.2 GiB; 0.9 GiB are free on the largest slot",
         submitted=260, total=2200, memory=1229 * MIB),
    Demo(name="tabular-7", user="chen", state=_S.QUEUED, reason="2 jobs before it", submitted=90, total=600, memory=12 * MIB),
    Demo(name="char-cnn", user="ada", state=_S.QUEUED, reason="its model and data are being checked", submitted=4),
)
# fmt: on

#: What nobody should be able to smuggle into the page.
HOSTILE_TEXT = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
HOSTILE = Demo(
    name=HOSTILE_TEXT, user="<b>mallory</b>", state=_S.QUEUED, reason=f"waits {HOSTILE_TEXT}", submitted=60, total=10
)


def job_id(demo: Demo) -> str:
    """Return the id that a job of the story has."""
    return "hostile-0badc0ffee" if demo is HOSTILE else f"{demo.name}-{random.Random(demo.name).randbytes(5).hex()}"
