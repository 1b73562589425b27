"""An oracle for time: the accelerator of arch/timing.py and arch/memory.py, stepped clock by clock.

Written from the text of those two files in the plainest form, one small state machine for each unit and each memory
port, all of them looked at once in every cycle. It shares nothing with gossamer.sim but the instruction set and the
latencies of pipelines.

Within a cycle t, first everything that becomes visible in t is applied (posts of instructions that end in t, addresses
that the memory accepts), then every machine acts on what registers held before t.
"""

import random
from dataclasses import dataclass, field

import numpy as np

from gossamer.arch.isa import SEMAPHORES, LoadKind, Op, Unit, from_matrix
from gossamer.arch.memory import Trace
from gossamer.arch.run import COUNTERS
from gossamer.arch.timing import FETCH_LATENCY, LOAD_LATENCY, STORE_LATENCY, drain_latency, matmul_latency

FETCHED_NOW, FREE_NOW = 1 << 12, 1 << 13  # bits of `waited`


class Stuck(Exception):
    """Nothing has happened for so long that nothing ever will."""


@dataclass
class Burst:
    """A burst on its way. owner : instruction (or the last one, of a fetch burst)."""

    beats: int
    owner: int
    last_of_owner: bool
    accepted: int = -1
    beat_cycles: list[int] = field(default_factory=list)
    response: int = -1


class Port:
    """One port of the memory, with the address register of its master.

    In contract (`noise` None) an address is accepted in the cycle it is offered, data is ready `lead` cycles later.
    Otherwise every acceptance, every beat and every response is late by a random number of cycles.
    """

    def __init__(self, lead, interval, gap, respond_after, noise):
        self.lead, self.interval, self.gap, self.respond_after = lead, interval, gap, respond_after
        self.noise = noise
        self.offered = None  # address register: (burst, first cycle it is on the bus)
        self.accept_at = 0
        self.queue = []  # accepted, data not complete
        self.waiting_response = []
        self.next_beat_at = 0  # the bus is free for a beat from here on
        self.done = []  # all bursts in order of acceptance
        self.last_response = -1

    def late(self):
        return 0 if self.noise is None else max(0, self.noise.randrange(-4, 5))

    def offer(self, burst, now):
        """The master decides in cycle `now`: the address is on the bus from the next cycle on."""
        self.offered = burst
        self.accept_at = now + 1 + self.late()

    def accept(self, now):
        """Take the address on the bus in cycle `now`; its register can then be loaded anew in the same cycle."""
        if self.offered is not None and now == self.accept_at:
            self.offered.accepted = now
            self.offered.ready = now + self.lead + self.late()
            self.queue.append(self.offered)
            self.done.append(self.offered)
            self.offered = None

    def step(self, now):
        """Data of cycle `now`: (burst whose beat is on the bus or None, burst whose response came or None)."""
        beat = response = None
        if self.queue:
            head = self.queue[0]
            if now >= head.ready and now >= self.next_beat_at:
                beat = head
                head.beat_cycles.append(now)
                self.next_beat_at = now + self.interval + self.late()
                if len(head.beat_cycles) == head.beats:
                    self.next_beat_at += self.gap
                    self.queue.pop(0)
                    if self.respond_after is not None:
                        when = max(now + self.respond_after + self.late(), self.last_response + 1)
                        self.last_response = when
                        self.waiting_response.append((when, head))
        if self.waiting_response and self.waiting_response[0][0] == now:
            response = self.waiting_response.pop(0)[1]
            response.response = now
        return beat, response


def split(address, beats, spec):
    """Beats of the INCR bursts of one row."""
    out = []
    while beats:
        here = 0
        while here < beats and here < spec.burst_beats:
            here += 1
            if (address + here) * spec.axi_bytes % 4096 == 0:
                break
        out.append(here)
        address += here
        beats -= here
    return out


def bursts_of(index, ins, spec):
    """Bursts of a LOAD or a STORE in order."""
    sizes = []
    for b in range(ins["blocks"]):
        for y in range(ins["rows"]):
            sizes += split(ins["address"] + b * ins["block_stride"] + y * ins["row_stride"], ins["beats"], spec)
    return [Burst(n, index, k == len(sizes) - 1) for k, n in enumerate(sizes)]


class UnitState:
    """What a unit's registers hold."""

    def __init__(self, members):
        self.todo = list(members)  # not yet started, in program order
        self.queue = []  # (instruction, cycle from which it is seen)
        self.started = 0
        self.running = None  # instruction that holds the unit
        self.slots = 0  # MATMUL, DRAIN: slots still to issue
        self.bursts = []  # LOAD, STORE: bursts still to decide
        self.in_flight = 0
        self.free_since = 0


def step_program(matrix, spec, noise_seed=None):
    """Run a stage to its end. Returns (events [N, 8], cycles, counters by name, Trace). Raises Stuck.

    noise_seed : None for the memory contract, else a seed of a memory that is late at random.
    """
    program = from_matrix(matrix)
    count = len(program)
    noise = None if noise_seed is None else random.Random(noise_seed)
    fetch_port = Port(spec.read_latency, spec.beat_interval, spec.burst_gap, None, noise)
    read_port = Port(spec.read_latency, spec.beat_interval, spec.burst_gap, None, noise)
    write_port = Port(STORE_LATENCY, spec.beat_interval, spec.burst_gap, spec.write_latency, noise)
    ports = {Unit.LOAD: read_port, Unit.STORE: write_port}
    most = {Unit.LOAD: spec.outstanding_reads, Unit.STORE: spec.outstanding_writes}
    units = {
        u: UnitState(i for i, ins in enumerate(program) if ins.unit is u)
        for u in (Unit.LOAD, Unit.MATMUL, Unit.DRAIN, Unit.STORE)
    }
    semaphores = [0] * len(SEMAPHORES)
    events = np.full((count, 8), -1, dtype=np.int64)
    events[:, 0] = [ins.unit for ins in program]
    counters = dict.fromkeys(COUNTERS, 0)

    fetch_beats = max(1, 32 // spec.axi_bytes)
    fetch_bursts = [
        Burst(min(spec.fetch_burst, count - k) * fetch_beats, k, True) for k in range(0, count, spec.fetch_burst)
    ]
    fetch_decided = 0
    buffered = []  # (instruction, cycle from which it can be dispatched)
    buffer_bursts = 0  # bursts that hold a place in the buffer
    dispatched = 0
    beats_in = 0
    fetch_beat_cycles = []
    end_at = {}  # cycle: instructions that end in it
    ended = 0
    end_dispatch = None

    now, quiet = -1, 0
    while True:
        now += 1
        quiet += 1
        if quiet > 20000:
            raise Stuck
        # Everything that becomes visible in this cycle.
        arrived = 0
        for i in end_at.pop(now, ()):
            events[i, 6] = now
            ended += 1
            quiet = 0
            for s in range(len(SEMAPHORES)):
                if program[i].post >> s & 1:
                    if semaphores[s] == 0:
                        arrived |= 1 << s
                    semaphores[s] += 1

        for port in (fetch_port, read_port, write_port):
            port.accept(now)

        # FETCH, what its registers say: room for a burst, the head of its buffer, places in the queues.
        room_for_burst = buffer_bursts < 2
        head = buffered[0] if buffered and buffered[0][1] <= now else None
        if head is not None:
            i = head[0]
            unit = program[i].unit
            if unit is Unit.FETCH or len(units[unit].queue) < spec.queue_depth:
                buffered.pop(0)
                dispatched += 1
                quiet = 0
                if dispatched % spec.fetch_burst == 0:
                    buffer_bursts -= 1
                if unit is Unit.FETCH:
                    end_dispatch = now
                    events[i, [1, 2, 5, 6]] = now
                    events[i, 7] = 0
                else:
                    units[unit].queue.append((i, now + 1))
                    events[i, 1] = now + 1
        if fetch_decided < len(fetch_bursts) and room_for_burst and fetch_port.offered is None:
            fetch_port.offer(fetch_bursts[fetch_decided], now)
            counters["bursts_fetched"] += 1
            fetch_decided += 1
            buffer_bursts += 1

        # Units: start, then work. A queue place that a start frees is seen by FETCH in the next cycle.
        for u, unit in units.items():
            lower = u.name.lower()
            if unit.running is None and unit.todo:
                if not unit.queue or unit.queue[0][1] > now:
                    counters[f"stall_{lower}_fetch"] += 1
                else:
                    i, seen = unit.queue[0]
                    ins = program[i]
                    missing = [s.name for s in SEMAPHORES if ins.wait >> s.index & 1 and not semaphores[s.index]]
                    if missing:
                        counters[f"stall_{lower}_{missing[0]}"] += 1
                    else:
                        unit.queue.pop(0)
                        unit.todo.pop(0)
                        quiet = 0
                        waited = ins.wait & arrived
                        if seen == now:
                            waited |= FETCHED_NOW
                        if unit.started and unit.free_since == now:
                            waited |= FREE_NOW
                        for s in range(len(SEMAPHORES)):
                            semaphores[s] -= ins.wait >> s & 1
                        events[i, 2], events[i, 7] = now, waited
                        unit.started += 1
                        unit.running = i
                        begin(unit, ins, i, spec, counters)
            if unit.running is not None:
                counters[f"busy_{lower}"] += 1
                i = unit.running
                finished = False
                if u in ports:
                    if ports[u].offered is None and unit.in_flight < most[u] and unit.bursts:
                        ports[u].offer(unit.bursts.pop(0), now)
                        unit.in_flight += 1
                    # free is the cycle in which the last address is accepted
                    finished = not unit.bursts and ports[u].offered is not None and ports[u].accept_at == now + 1
                else:
                    unit.slots -= 1
                    if unit.slots == 0:
                        finished = True
                        latency = matmul_latency(spec) if u is Unit.MATMUL else drain_latency(spec)
                        end_at.setdefault(now + 1 + latency, []).append(i)
                if finished:
                    events[i, 5] = unit.free_since = now + 1
                    unit.running = None

        # The memory. What the bus shows in this cycle, masters see in the next.
        beat, _ = fetch_port.step(now)
        if beat is not None:
            quiet = 0
            beats_in += 1
            fetch_beat_cycles.append(now)
            counters["beats_fetched"] += 1
            if beats_in % fetch_beats == 0:
                buffered.append((beats_in // fetch_beats - 1, now + FETCH_LATENCY))
        beat, _ = read_port.step(now)
        if beat is not None:
            quiet = 0
            note_beat(beat, events, now)
            counters[f"beats_read_{LoadKind(program[beat.owner]['kind']).name.lower()}"] += 1
            if len(beat.beat_cycles) == beat.beats:
                units[Unit.LOAD].in_flight -= 1
                if beat.last_of_owner:
                    end_at.setdefault(now + LOAD_LATENCY, []).append(beat.owner)
        beat, response = write_port.step(now)
        if beat is not None:
            quiet = 0
            note_beat(beat, events, now)
            counters["beats_written"] += 1
        if response is not None:
            units[Unit.STORE].in_flight -= 1
            if response.last_of_owner:
                end_at.setdefault(now + 1, []).append(response.owner)
        if end_dispatch is not None and ended == count - 1:
            break

    counters["bursts_read"], counters["bursts_written"] = len(read_port.done), len(write_port.done)
    trace = Trace(
        fetch=_table([(b.accepted, b.beat_cycles[0], b.beat_cycles[-1]) for b in fetch_port.done], 3),
        fetch_beats=np.array(fetch_beat_cycles, dtype=np.int64),
        read=_table([(b.accepted, b.beat_cycles[0], b.beat_cycles[-1]) for b in read_port.done], 3),
        write=_table([(b.accepted, b.beat_cycles[0], b.beat_cycles[-1], b.response) for b in write_port.done], 4),
    )
    return events, now + 1, counters, trace


def begin(unit, ins, index, spec, counters):
    """Load the counters of a unit that starts an instruction."""
    if ins.op is Op.MATMUL:
        unit.slots = ins["steps"] * ins["nx"] * ins["ny"]
        counters["steps"] += ins["steps"]
        counters["slots"] += unit.slots
    elif ins.op is Op.DRAIN:
        unit.slots = ins["nx"] * ins["ny"] * ins["column_groups"]
    else:
        unit.bursts = bursts_of(index, ins, spec)


def note_beat(burst, events, now):
    """First and last beat of an instruction."""
    if events[burst.owner, 3] < 0:
        events[burst.owner, 3] = now
    events[burst.owner, 4] = now


def _table(rows, width):
    return np.array(rows, dtype=np.int64).reshape(-1, width)
