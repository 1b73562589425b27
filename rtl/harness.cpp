// The Verilated accelerator with the memory contract of arch/memory.py around it, behind a small C interface.
//
// One call runs one stage: it writes the registers, starts, and returns the event log, the counters, the final memory
// and the times of every burst. Cycle 0 is the first in which `running` is high.
#include <cstdint>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "Vgossamer.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
using Wave = VerilatedFstC;
#elif VM_TRACE
#include "verilated_vcd_c.h"
using Wave = VerilatedVcdC;
#endif
#if VM_COVERAGE
#include "verilated_cov.h"
#endif

namespace {

enum Unit { FETCH, LOAD, MATMUL, DRAIN, STORE, UNITS };
constexpr int FIELDS = 8;  // unit, fetched, start, first beat, last beat, free, end, waited
constexpr int64_t FAR = INT64_MAX / 2;

struct Config {  // the same order as in rtl/model.py
  int64_t read_latency, beat_interval, burst_gap, write_latency;
  int64_t data_bytes, fetch_bytes;
  int64_t stall;  // of 256: how often an address, a beat or a response is held back; 0 is the memory contract
  int64_t seed;
  int64_t fetch_error, read_error, write_error;  // the beat, beat and burst that get an error response; -1 for none
  int64_t limit;  // cycles
};

struct Burst {
  uint64_t address;
  int64_t beats, accepted, first, last, response;
};

template <class Port>
void put(Port& port, const uint8_t* from, size_t bytes) {
  std::memcpy(static_cast<void*>(&port), from, bytes);
}
template <class Port>
void get(uint8_t* to, const Port& port, size_t bytes) {
  std::memcpy(to, static_cast<const void*>(&port), bytes);
}

struct Reader {  // the memory's side of a read port
  std::deque<Burst> queue;
  std::vector<Burst> done;
  std::vector<int64_t> beats;
  int64_t sent = 0, last = -FAR;

  // The beat of this cycle, if there is one: its burst.
  const Burst* now(int64_t t, const Config& c, std::mt19937& random) {
    if (queue.empty()) return nullptr;
    Burst& b = queue.front();
    int64_t due = sent == 0 ? std::max(b.accepted + c.read_latency, last + c.beat_interval + c.burst_gap)
                            : last + c.beat_interval;
    if (t < due) return nullptr;
    if (c.stall && static_cast<int64_t>(random() & 255) < c.stall) return nullptr;
    return &b;
  }
  void taken(int64_t t) {
    Burst& b = queue.front();
    if (sent == 0) b.first = t;
    last = b.last = t;
    beats.push_back(t);
    if (++sent == b.beats) {
      done.push_back(b);
      queue.pop_front();
      sent = 0;
    }
  }
};

struct Writer {
  std::deque<Burst> queue, responses;
  std::vector<Burst> done;
  int64_t taken_beats = 0, last = -FAR;

  bool ready(int64_t t, const Config& c, std::mt19937& random) {
    int64_t due = last + c.beat_interval + (taken_beats == 0 ? c.burst_gap : 0);
    if (t < due) return false;
    return !(c.stall && static_cast<int64_t>(random() & 255) < c.stall);
  }
};

struct Host {
  VerilatedContext context;
  std::string coverage;  // a file for the counts, or empty
  Vgossamer* top = nullptr;
  Config c{};
  std::mt19937 random;
  Reader fetch, read;
  Writer write;
  uint8_t* dram = nullptr;
  uint64_t dram_bytes = 0;
  const uint8_t* program = nullptr;
  uint64_t program_bytes = 0;
  int64_t t = -1;  // -1 before the stage
  int64_t clocks = 0;
  bool fault = false;
  int64_t* events = nullptr;
  int64_t count = 0, dispatched = 0;
  std::vector<int64_t> order[UNITS];
  size_t started[UNITS], first[UNITS], lasted[UNITS], freed[UNITS], ended[UNITS];
#if VM_TRACE
  Wave* wave = nullptr;
#endif

  void mark(int unit, size_t* position, int field) {
    size_t k = position[unit]++;
    if (k < order[unit].size() && order[unit][k] < count) events[order[unit][k] * FIELDS + field] = t;
    else fault = true;
  }

  void log() {
    for (int u = LOAD; u < UNITS; ++u) {
      if (top->events_start >> u & 1) {
        size_t k = started[u];
        mark(u, started, 2);
        if (k < order[u].size() && order[u][k] < count)
          events[order[u][k] * FIELDS + 7] = static_cast<int64_t>(waited(u - LOAD));
      }
      if (top->events_first >> u & 1) mark(u, first, 3);
      if (top->events_last >> u & 1) mark(u, lasted, 4);
      if (top->events_free >> u & 1) mark(u, freed, 5);
      if (top->events_end >> u & 1) mark(u, ended, 6);
    }
    for (int u = FETCH; u < UNITS; ++u) {
      if (!(top->events_dispatch >> u & 1)) continue;
      if (dispatched >= count) { fault = true; continue; }
      int64_t* row = events + dispatched * FIELDS;
      row[0] = u;
      for (int f = 1; f < FIELDS; ++f) row[f] = -1;
      if (u == FETCH) {
        row[1] = row[2] = row[5] = row[6] = t;
        row[7] = 0;
      } else {
        row[1] = t + 1;
        order[u].push_back(dispatched);
      }
      ++dispatched;
    }
  }

  uint64_t waited(int worker) const {  // 14 bits each, packed
    uint64_t all = 0;
    std::memcpy(&all, static_cast<const void*>(&top->events_waited), 7);
    return all >> (14 * worker) & 0x3fff;
  }

  bool offered() { return !(c.stall && static_cast<int64_t>(random() & 255) < c.stall); }

  void tick() {
    const int64_t B = c.data_bytes, F = c.fetch_bytes;
    const Burst* f = fetch.now(t, c, random);
    top->fetch_rvalid = f != nullptr;
    if (f) {
      uint64_t at = f->address + static_cast<uint64_t>(fetch.sent * F);
      std::vector<uint8_t> beat(static_cast<size_t>(F), 0);
      if (at + static_cast<uint64_t>(F) <= program_bytes) std::memcpy(beat.data(), program + at, beat.size());
      put(top->fetch_rdata, beat.data(), beat.size());
      top->fetch_rlast = fetch.sent + 1 == f->beats;
      top->fetch_rresp = static_cast<int64_t>(fetch.beats.size()) == c.fetch_error ? 2 : 0;
    }
    const Burst* r = read.now(t, c, random);
    top->read_rvalid = r != nullptr;
    if (r) {
      uint64_t at = r->address + static_cast<uint64_t>(read.sent * B);
      std::vector<uint8_t> beat(static_cast<size_t>(B), 0);
      if (at + static_cast<uint64_t>(B) <= dram_bytes) std::memcpy(beat.data(), dram + at, beat.size());
      else fault = true;
      put(top->read_rdata, beat.data(), beat.size());
      top->read_rlast = read.sent + 1 == r->beats;
      top->read_rresp = static_cast<int64_t>(read.beats.size()) == c.read_error ? 2 : 0;
    }
    top->fetch_arready = offered();
    top->read_arready = offered();
    top->write_awready = offered();
    top->write_wready = write.ready(t, c, random);
    top->write_bvalid = !write.responses.empty() && write.responses.front().last + c.write_latency <= t && offered();
    top->write_bresp = static_cast<int64_t>(write.done.size()) == c.write_error ? 2 : 0;

    top->clk = 0;
    top->eval();
#if VM_TRACE
    if (wave) wave->dump(static_cast<uint64_t>(2 * clocks));
#endif
    if (top->running) log();
    if (f) fetch.taken(t);
    if (r) read.taken(t);
    if (top->fetch_arvalid && top->fetch_arready)
      fetch.queue.push_back({top->fetch_araddr, top->fetch_arlen + 1, t, 0, 0, 0});
    if (top->read_arvalid && top->read_arready) {
      read.queue.push_back({top->read_araddr, top->read_arlen + 1, t, 0, 0, 0});
      check(top->read_araddr, top->read_arlen + 1);
    }
    if (top->write_bvalid && top->write_bready) {
      write.responses.front().response = t;
      write.done.push_back(write.responses.front());
      write.responses.pop_front();
    }
    if (top->write_wvalid && top->write_wready) {
      if (write.queue.empty()) {
        fault = true;  // data before its address
      } else {
        Burst& b = write.queue.front();
        uint64_t at = b.address + static_cast<uint64_t>(write.taken_beats * B);
        if (at + static_cast<uint64_t>(B) <= dram_bytes) get(dram + at, top->write_wdata, static_cast<size_t>(B));
        else fault = true;
        if (write.taken_beats == 0) b.first = t;
        write.last = b.last = t;
        if ((++write.taken_beats == b.beats) != static_cast<bool>(top->write_wlast)) fault = true;
        if (write.taken_beats == b.beats) {
          write.responses.push_back(b);
          write.queue.pop_front();
          write.taken_beats = 0;
        }
      }
    }
    if (top->write_awvalid && top->write_awready) {
      write.queue.push_back({top->write_awaddr, top->write_awlen + 1, t, 0, 0, 0});
      check(top->write_awaddr, top->write_awlen + 1);
    }
    bool running = top->running;
    top->clk = 1;
    top->eval();
#if VM_TRACE
    if (wave) wave->dump(static_cast<uint64_t>(2 * clocks + 1));
#endif
    ++clocks;
    if (running) ++t;
    else if (top->running) t = 0;
  }

  void check(uint64_t address, int64_t beats) {  // AXI4: no burst crosses 4 KiB
    uint64_t end = address + static_cast<uint64_t>(beats * c.data_bytes) - 1;
    if (address >> 12 != end >> 12) fault = true;
  }

  void lite_write(uint32_t address, uint32_t value) {
    top->host_awaddr = static_cast<uint16_t>(address);
    top->host_wdata = value;
    top->host_wstrb = 15;
    top->host_awvalid = top->host_wvalid = 1;
    top->host_bready = 1;
    for (bool taken = false; !taken;) {
      top->clk = 0;
      top->eval();
      taken = top->host_awready;
      tick();
    }
    top->host_awvalid = top->host_wvalid = 0;
    for (int k = 0; k < 2; ++k) tick();
  }

  uint32_t lite_read(uint32_t address) {
    top->host_araddr = static_cast<uint16_t>(address);
    top->host_arvalid = 1;
    top->host_rready = 1;
    tick();
    top->host_arvalid = 0;
    top->eval();
    uint32_t value = top->host_rdata;
    tick();
    return value;
  }
};

}  // namespace

extern "C" {

void* gossamer_create(int64_t seed, const char* wave, const char* coverage) {
  Host* h = new Host;
  h->coverage = coverage ? coverage : "";
  h->context.randReset(2);
  h->context.randSeed(static_cast<int>(seed & 0x7fffffff) + 1);
#if VM_TRACE
  h->context.traceEverOn(true);
#endif
  h->top = new Vgossamer(&h->context);
#if VM_TRACE
  if (wave && *wave) {
    h->wave = new Wave;
    h->top->trace(h->wave, 99);
    h->wave->open(wave);
  }
#else
  (void)wave;
#endif
  h->c.write_error = h->c.read_error = h->c.fetch_error = -1;
  h->top->rst = 1;
  h->top->host_awvalid = h->top->host_wvalid = h->top->host_arvalid = 0;
  h->top->host_bready = h->top->host_rready = 1;
  for (int k = 0; k < 4; ++k) h->tick();
  h->top->rst = 0;
  h->tick();
  return h;
}

void gossamer_destroy(void* handle) {
  Host* h = static_cast<Host*>(handle);
#if VM_TRACE
  if (h->wave) {
    h->wave->close();
    delete h->wave;
  }
#endif
  h->top->final();
#if VM_COVERAGE
  h->context.coveragep()->write(h->coverage.c_str());
#endif
  delete h->top;
  delete h;
}

uint32_t gossamer_register(void* handle, uint32_t address) { return static_cast<Host*>(handle)->lite_read(address); }

// Returns 0 when the interrupt came, 1 at the limit of cycles, 2 when a rule of the bus or of the log was broken.
int gossamer_run(void* handle, const Config* config, uint8_t* dram, uint64_t dram_bytes, const uint8_t* program,
                 uint64_t program_bytes, int64_t* events, int64_t count, const uint32_t* addresses) {
  Host* h = static_cast<Host*>(handle);
  h->c = *config;
  h->random.seed(static_cast<uint32_t>(config->seed));
  h->fetch = Reader();
  h->read = Reader();
  h->write = Writer();
  h->dram = dram;
  h->dram_bytes = dram_bytes;
  h->program = program;
  h->program_bytes = program_bytes;
  h->events = events;
  h->count = count;
  h->dispatched = 0;
  h->fault = false;
  h->t = -1;
  for (int u = 0; u < UNITS; ++u) {
    h->order[u].clear();
    h->started[u] = h->first[u] = h->lasted[u] = h->freed[u] = h->ended[u] = 0;
  }
  enum { CONTROL, LOW, HIGH, LENGTH, ENABLE, STATUS };
  h->lite_write(addresses[ENABLE], 1);
  h->lite_write(addresses[STATUS], 1);
  h->lite_write(addresses[LOW], 0);
  h->lite_write(addresses[HIGH], 0);
  h->lite_write(addresses[LENGTH], static_cast<uint32_t>(count));
  h->lite_write(addresses[CONTROL], 1);
  while (!h->top->irq) {
    if (h->t > config->limit) return 1;
    h->tick();
  }
  return h->fault ? 2 : 0;
}

int64_t gossamer_dispatched(void* handle) { return static_cast<Host*>(handle)->dispatched; }

// The bursts of a port (0 fetch, 1 read, 2 write) as rows of 4: accepted, first, last, response. Without room, counts.
int64_t gossamer_bursts(void* handle, int port, int64_t* rows) {
  Host* h = static_cast<Host*>(handle);
  const std::vector<Burst>& done = port == 0 ? h->fetch.done : port == 1 ? h->read.done : h->write.done;
  if (rows)
    for (const Burst& b : done) {
      *rows++ = b.accepted;
      *rows++ = b.first;
      *rows++ = b.last;
      *rows++ = b.response;
    }
  return static_cast<int64_t>(done.size());
}

int64_t gossamer_fetch_beats(void* handle, int64_t* cycles) {
  Host* h = static_cast<Host*>(handle);
  if (cycles) std::memcpy(cycles, h->fetch.beats.data(), h->fetch.beats.size() * sizeof(int64_t));
  return static_cast<int64_t>(h->fetch.beats.size());
}
}
