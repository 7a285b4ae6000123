"""Who may be on a slot together: memory, users, pairs that must not meet, slots of one's own. Pure, free of torch.

The records that the packer decides over, and the one question that everything else is made of: what keeps a unit from a slot?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import inf

from unified.packing import Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A unit, queued or resident, as the packer sees it.

    Attributes:
        id: Its name.
        demand: What it needs of a slot's memory; of a stack, what its members need together.
        members: The names of its jobs.
        users: Whose its jobs are.
        keeps_to_its_user: Its process may host these users' jobs only, from the process's start to its end.
        needs_own_slot: Nobody may be resident beside it.
        dataset: Key of its training data: equal keys are one dataset.
        kind: Equal for units whose steps are alike, so that what is measured of one holds for the other.
    """

    id: str
    demand: Demand
    members: tuple[str, ...] = ()
    users: frozenset[str] = frozenset({""})
    keeps_to_its_user: bool = False
    needs_own_slot: bool = False
    dataset: str = ""
    kind: str = ""

    @property
    def domain(self) -> frozenset[str] | None:
        """Its trust domain: the users whom it shares a process with, None if that is anybody."""
        return self.users if self.keeps_to_its_user else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A unit that is on a slot.

    Attributes:
        tenant: The unit.
        slot: The slot.
        is_running: It has a turn.
        is_leaving: It was told to leave.
        may_leave: It is parked: it has had a turn since it came, and can be sent away.
        seconds_left: Slot time that it needs to its end, by measured steps; infinite if unknown.
        submit_time: When it was handed in.
    """

    tenant: Tenant
    slot: int
    is_running: bool = False
    is_leaving: bool = False
    may_leave: bool = False
    seconds_left: float = inf
    submit_time: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Berth:
    """A slot, as the packer sees it.

    Attributes:
        id: Its number.
        device: Where it is; slots of one device disturb each other.
        pool: Slots of one pool share its capacity: all of a CPU host; on GPUs each slot has its own.
        is_busy: A turn is under way there.
        users: Whose jobs its process has hosted since it was started.
        is_one_users: The process hosted a job that keeps to its user.
    """

    id: int
    device: str = "cpu"
    pool: int = 0
    is_busy: bool = False
    users: frozenset[str] = frozenset()
    is_one_users: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """What the residents of a slot come to.

    Attributes:
        resident_bytes: Held by all of them.
        step_bytes: What the largest step needs beyond that.
        count: How many they are.
        names: The names of their jobs.
        users: Whose these are.
        is_one_users: One of them keeps to its user.
        is_private: One of them must have the slot to itself.
    """

    resident_bytes: int = 0
    step_bytes: int = 0
    count: int = 0
    names: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    is_one_users: bool = False
    is_private: bool = False

    @property
    def bytes(self) -> int:
        """What the slot needs: all that is held, and the largest step (the paper's equation (2), with the parked weights)."""
        return self.resident_bytes + self.step_bytes

    def bytes_with(self, demand: Demand) -> int:
        """Return what the slot would need with one more."""
        return self.resident_bytes + demand.resident_bytes + max(self.step_bytes, demand.step_bytes)


def load_of(tenants: Iterable[Tenant]) -> Load:
    """Add up what is on one slot."""
    held = step = count = 0
    names: set[str] = set()
    users: set[str] = set()
    is_one_users = is_private = False
    for tenant in tenants:
        held += tenant.demand.resident_bytes
        step = max(step, tenant.demand.step_bytes)
        count += 1
        names.update(tenant.members or (tenant.id,))
        users |= tenant.users
        is_one_users |= tenant.keeps_to_its_user
        is_private |= tenant.needs_own_slot
    return Load(held, step, count, frozenset(names), frozenset(users), is_one_users, is_private)


def obstacle(
    tenant: Tenant, berth: Berth, load: Load, free_bytes: int, bans: AbstractSet[frozenset[str]] = frozenset()
) -> str | None:
    """Say what keeps a unit that is not on a slot from it: ``"trust"``, ``"alone"``, ``"ban"``, ``"memory"`` or None.

    Args:
        tenant: The unit.
        berth: The slot.
        load: What is on it.
        free_bytes: What the slot may take in all: its pool's capacity without what the other slots need.
        bans: Pairs of jobs that must not meet.
    """
    if not may_share_process(tenant, berth, load):
        return "trust"
    if load.count and (tenant.needs_own_slot or load.is_private):
        return "alone"
    if bans and any(frozenset({one, other}) in bans for one in tenant.members or (tenant.id,) for other in load.names):
        return "ban"
    return "memory" if load.bytes_with(tenant.demand) > free_bytes else None


def may_share_process(tenant: Tenant, berth: Berth, load: Load) -> bool:
    """Whether a unit may be in the slot's process; an empty slot gets a new one where that helps.

    What a process has hosted counts to its end: memory of earlier jobs may linger in it, and code that ran in it may stay.
    """
    users, is_one_users = tenant.users, tenant.keeps_to_its_user
    if load.count:
        users = users | load.users | berth.users
        is_one_users = is_one_users or load.is_one_users or berth.is_one_users
    return not is_one_users or len(users) == 1


def loads_of(berths: Sequence[Berth], residents: Iterable[Resident]) -> dict[int, Load]:
    """Return what is on each slot."""
    there: dict[int, list[Tenant]] = {berth.id: [] for berth in berths}
    for resident in residents:
        there[resident.slot].append(resident.tenant)
    return {slot: load_of(tenants) for slot, tenants in there.items()}


def free_bytes(berth: Berth, berths: Sequence[Berth], loads: dict[int, Load], capacity_bytes: int) -> int:
    """Return what a slot may take in all: what its pool has, without what the pool's other slots need."""
    others = sum(loads[other.id].bytes for other in berths if other.pool == berth.pool and other.id != berth.id)
    return capacity_bytes - others
