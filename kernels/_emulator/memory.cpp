// Checks every access of a kernel to memory: is it inside a buffer, was it written, does it race?
//
// Memory is followed in cells (cells.h): of shared memory every four bytes, of a buffer every element of at most
// four bytes; where a kernel uses smaller pieces, every byte.  Compiled without instrumentation.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <memory>

#include "cells.h"
#include "state.h"

namespace rawgrad_emulator {

uintptr_t image_begin, image_end;
const void* last_access;
std::vector<ReadSet> read_sets;

alignas(1024) unsigned char arenas[MOST_BLOCKS * ARENA_STRIDE];
unsigned char* arena = arenas;

namespace {

// ---- shared memory

// The cells of a block.  What earlier ones did here is told by the serial number, that of the cluster's first block.
struct SharedCell : Cell {
  uint32_t written_in, in_flight_in;  // in which it was written, or is being copied to
  uint32_t agents_in, agents;         // likewise in which agents have read it; and which, in `agent_reads`
};
struct AgentRead {
  uint32_t agent, time, code;
  uint32_t block;
  uint16_t thread;  // in whose name
};
std::vector<std::vector<AgentRead>> agent_reads;
// One per byte, block after block; the first of four stands for all unless the cluster has used a part of them.
SharedCell shared_cells[MOST_BLOCKS * ARENA_BYTES];
uint32_t divided_in[MOST_BLOCKS * ARENA_BYTES / 4];
size_t shared_used[MOST_BLOCKS], dynamic_bytes;

// `__shared__` variables of a source that does not use block_shared.  They lie outside the arena, but their cells
// are the arena's, from its end downwards, given out when a launch first uses a variable.
struct StaticShared {
  uintptr_t begin, end;
  size_t account;        // the place of its cells, or UNUSED
  uint32_t poisoned_in;  // the last block that used it
};
constexpr size_t UNUSED = ~size_t(0);
std::vector<StaticShared> static_shared;
size_t static_used;

// ---- buffers

constexpr size_t PAGE_CELLS = 1024;
using Page = std::array<Cell, PAGE_CELLS>;

struct Buffer {
  uintptr_t begin, end;
  bool read_only;
  int cell_bytes;          // 1, 2 or 4
  uint8_t* written;        // bit i of element j: byte 4 j + i of the allocation is written; null: all are
  size_t written_offset;   // of `begin` in the allocation
  std::vector<uint64_t> touched;             // of a read-only buffer: one bit for each cell that was read
  std::vector<std::unique_ptr<Page>> pages;  // of the others
};
std::vector<Buffer> buffers;  // in order of address
std::vector<std::unique_ptr<Page>> free_pages;


uint64_t traffic[8];
enum Traffic { GLOBAL_READ, GLOBAL_WRITTEN, SHARED_READ, SHARED_WRITTEN, ATOMICS, DISTINCT_READ, DISTINCT_WRITTEN };
bool delivering;  // an asynchronous copy, which was counted when it began

void count(Traffic what, size_t bytes) {
  if (!delivering) traffic[what] += bytes;
}

struct Where {
  Space space;
  int buffer;
  int64_t offset;
  int rank = -1;  // of the block whose shared memory it is
};

// A new finding, or null if the same instruction has been reported for the same already.
Finding* complain(FindingKind kind, const void* place, size_t bytes, Access access, const void* caller, Where where) {
  for (Finding& known : all_findings())
    if (known.kind == kind && known.first.caller == caller) {
      known.times += known.step != steps;
      known.step = steps;
      return nullptr;
    }
  Finding& finding = report(kind, caller);
  finding.space = where.space;
  finding.buffer = where.buffer;
  finding.offset = where.offset;
  finding.address = reinterpret_cast<uintptr_t>(place);
  finding.bytes = bytes;
  finding.first.access = access;
  finding.step = steps;
  if (where.space == SHARED && where.rank >= 0 && where.rank != current->rank) {
    const Index& owner = blocks[where.rank].index;
    finding.foreign = 1;
    finding.owner[0] = owner.x, finding.owner[1] = owner.y, finding.owner[2] = owner.z;
  }
  return &finding;
}

// ---- races

void check_race(const Cell& cell, const void* place, size_t bytes, Access access, const void* caller, Where where) {
  const FindingKind kind = where.space == SHARED ? RACE_SHARED : RACE_GLOBAL;
  Party who;
  int known = 1;
  const Writer& w = cell.writer;
  if (!after_writer(w, access))
    who = party_of(w.block, w.thread, w.atomic ? ATOMIC : WRITE, w.code);
  else if (after_readers(cell.readers, access, who, known))
    return;
  if (Finding* f = complain(kind, place, bytes, access, caller, where)) {
    f->second = who;
    f->has_second = known;
  }
}

// ---- accesses to shared memory

// A copy of a cell gets a set of readers of its own.
void own_set(Cell& cell) {
  if (!in_cluster(cell.readers.block) || cell.readers.set == 0) return;
  read_sets.push_back(ReadSet(read_sets[cell.readers.set]));
  cell.readers.set = read_sets.size() - 1;
}

// Call `f` for each cell of shared memory that `bytes` bytes from the one numbered `offset` touch.
template <class F>
void for_shared_cells(size_t offset, size_t bytes, F f) {
  for (size_t i = offset; i < offset + bytes;) {
    uint32_t& divided = divided_in[i / 4];
    const bool whole = i % 4 == 0 && i + 4 <= offset + bytes;
    if (divided != cluster_serial && !whole) {  // from now on its bytes are followed one by one
      divided = cluster_serial;
      for (int b = 1; b < 4; ++b) {
        SharedCell& part = shared_cells[i / 4 * 4 + b] = shared_cells[i / 4 * 4];
        own_set(part);
        if (part.agents_in == cluster_serial) {
          agent_reads.push_back(std::vector<AgentRead>(agent_reads[part.agents]));
          part.agents = agent_reads.size() - 1;
        }
      }
    }
    f(shared_cells[i]);
    i += divided == cluster_serial ? 1 : 4;
  }
}

void fresh(SharedCell& cell) {  // forget what an earlier block did here
  if (!in_cluster(cell.writer.block)) cell.writer.block = NOBODY;
  if (!in_cluster(cell.readers.block)) cell.readers.block = NOBODY;
}

// A write must come after what agents have read here.
void check_agents(SharedCell& cell, const void* place, size_t bytes, Access access, const void* caller, Where where) {
  if (cell.agents_in != cluster_serial) return;
  for (const AgentRead& r : agent_reads[cell.agents]) {
    if (seen_agent(r.agent, r.time)) continue;
    if (Finding* f = complain(OPERANDS, place, bytes, access, caller, where)) {
      f->second = party_of(r.block, r.thread, READ, r.code);
      f->has_second = 1;
    }
    break;
  }
  agent_reads[cell.agents].clear();
}

struct SharedPlace {
  size_t offset, limit;  // in the account of the block's shared memory
  int rank;              // of that block
  size_t cell() const { return rank * ARENA_BYTES + offset; }
  Where where() const { return {SHARED, -1, static_cast<int64_t>(offset), rank}; }
};

void access_shared(SharedPlace at, const void* place, size_t bytes, Access access, const void* caller) {
  const Where where = at.where();
  if (access != WRITE) count(SHARED_READ, bytes);
  if (access != READ) count(SHARED_WRITTEN, bytes);
  if (at.rank != current->rank) {
    const char* why = visit(at.rank, place, bytes, access, caller);
    Finding* f = why ? complain(ABSENT_BLOCK, place, bytes, access, caller, where) : nullptr;
    if (f) snprintf(f->detail, sizeof f->detail, "%s", why);
  }
  if (at.offset + bytes > at.limit) {
    if (Finding* f = complain(OUTSIDE, place, bytes, access, caller, where)) f->limit = at.limit;
    abandon();
  }
  for_shared_cells(at.cell(), bytes, [&](SharedCell& cell) {
    fresh(cell);
    if (cell.in_flight_in == cluster_serial && !delivering) {
      const Writer w = cell.writer;
      if (Finding* f = complain(IN_FLIGHT, place, bytes, access, caller, where)) {
        f->second = party_of(w.block, w.thread, WRITE, w.code);
        f->has_second = 1;
      }
    } else {
      if (access != WRITE && cell.written_in != cluster_serial) complain(UNWRITTEN, place, bytes, access, caller, where);
      check_race(cell, place, bytes, access, caller, where);
      if (access != READ) check_agents(cell, place, bytes, access, caller, where);
    }
    remember(cell, access, caller);
    if (access != READ) cell.written_in = cluster_serial, cell.in_flight_in = NOBODY;
  });
}

// The block uses the first `bytes` of its arena from now on.
void use_shared(int rank, size_t bytes) {
  if (bytes <= shared_used[rank]) return;
  memset(arenas + rank * ARENA_STRIDE + shared_used[rank], 0xff, bytes - shared_used[rank]);
  shared_used[rank] = bytes;
}

void refuse_shared(size_t bytes, size_t limit, const char* what, const void* caller) {
  Finding& finding = report(SHARED_SIZE, caller);
  finding.bytes = bytes;
  finding.limit = limit;
  snprintf(finding.detail, sizeof finding.detail, "%s", what);
  abandon();
}

// Whether `address` is shared memory, and where.
bool find_shared(uintptr_t address, const void* caller, SharedPlace& found) {
  const uintptr_t in_arenas = address - reinterpret_cast<uintptr_t>(arenas);
  if (in_arenas < blocks_in_cluster * ARENA_STRIDE) {
    const int rank = in_arenas / ARENA_STRIDE;
    found = {in_arenas % ARENA_STRIDE, shared_used[rank], rank};
    return true;
  }
  if (address < image_begin || address >= image_end) return false;
  for (StaticShared& s : static_shared) {
    if (address < s.begin || address >= s.end) continue;
    if (blocks_in_cluster > 1) {
      snprintf(report(ASSERTION, caller).detail, sizeof Finding::detail, "%s",
               "the emulator has a __shared__ variable once, not for each block of a cluster: use block_shared()");
      abandon();
    }
    if (s.account == UNUSED) {
      static_used += (s.end - s.begin + 15) / 16 * 16;
      if (static_used > STATIC_SHARED_BYTES)
        refuse_shared(static_used, STATIC_SHARED_BYTES, "in __shared__ variables", caller);
      if (static_used + dynamic_bytes > ARENA_BYTES)
        refuse_shared(static_used + dynamic_bytes, ARENA_BYTES, "in variables and dynamically", caller);
      s.account = ARENA_BYTES - static_used;
    }
    if (s.poisoned_in != cluster_serial) {
      memset(reinterpret_cast<void*>(s.begin), 0xff, s.end - s.begin);
      s.poisoned_in = cluster_serial;
    }
    found = {s.account + (address - s.begin), s.account + (s.end - s.begin), 0};
    return true;
  }
  return false;
}

// ---- accesses to buffers

Cell& cell_of(Buffer& buffer, size_t cell) {
  std::unique_ptr<Page>& page = buffer.pages[cell / PAGE_CELLS];
  if (!page) {
    if (free_pages.empty()) {
      page = std::make_unique<Page>();
    } else {
      page = std::move(free_pages.back());
      free_pages.pop_back();
    }
    memset(static_cast<void*>(page.get()), 0, sizeof(Page));
  }
  return (*page)[cell % PAGE_CELLS];
}

// From now on each byte of the buffer is followed on its own.
void divide(Buffer& buffer) {
  const size_t parts = buffer.cell_bytes, cells = (buffer.end - buffer.begin) / parts;
  Buffer whole = std::move(buffer);
  buffer = Buffer();
  buffer.begin = whole.begin, buffer.end = whole.end;
  buffer.read_only = whole.read_only;
  buffer.cell_bytes = 1;
  buffer.written = whole.written, buffer.written_offset = whole.written_offset;
  buffer.pages.resize(whole.pages.size() * parts);
  buffer.touched.resize(whole.touched.size() * parts);
  for (size_t i = 0; i < cells; ++i)
    for (size_t part = 0; part < parts; ++part) {
      const size_t j = i * parts + part;
      if (whole.read_only)
        buffer.touched[j / 64] |= (whole.touched[i / 64] >> i % 64 & 1) << j % 64;
      else if (whole.pages[i / PAGE_CELLS])
        own_set(cell_of(buffer, j) = cell_of(whole, i));
    }
}

bool is_written(const Buffer& buffer, size_t offset, size_t bytes) {
  for (size_t i = buffer.written_offset + offset, end = i + bytes; i < end; ++i)
    if (!(buffer.written[i / 4] >> i % 4 & 1)) return false;
  return true;
}
void mark_written(const Buffer& buffer, size_t offset, size_t bytes) {
  for (size_t i = buffer.written_offset + offset, end = i + bytes; i < end; ++i)
    buffer.written[i / 4] |= 1 << i % 4;
}

void access_buffer(Buffer& buffer, uintptr_t address, size_t bytes, Access access, const void* caller) {
  const void* place = reinterpret_cast<const void*>(address);
  const size_t offset = address - buffer.begin;
  const Where where{GLOBAL, static_cast<int>(&buffer - buffers.data()), static_cast<int64_t>(offset)};
  if (access != WRITE) count(GLOBAL_READ, bytes);
  if (access != READ) count(GLOBAL_WRITTEN, bytes);
  if (access != READ && buffer.read_only) complain(READ_ONLY, place, bytes, access, caller, where);
  if (buffer.written) {
    if (access != WRITE && !is_written(buffer, offset, bytes)) complain(UNWRITTEN, place, bytes, access, caller, where);
    if (access != READ) mark_written(buffer, offset, bytes);
  }
  if (buffer.cell_bytes > 1 && (offset % buffer.cell_bytes || bytes % buffer.cell_bytes)) divide(buffer);
  const size_t first = offset / buffer.cell_bytes, last = (offset + bytes - 1) / buffer.cell_bytes;
  for (size_t i = first; i <= last; ++i) {
    if (buffer.read_only) {  // nobody writes, so nothing can race
      uint64_t& bits = buffer.touched[i / 64];
      if (!(bits >> i % 64 & 1)) count(DISTINCT_READ, buffer.cell_bytes);
      bits |= uint64_t(1) << i % 64;
      continue;
    }
    Cell& cell = cell_of(buffer, i);
    if (access != WRITE && cell.readers.block == NOBODY && cell.writer.block == NOBODY)
      count(DISTINCT_READ, buffer.cell_bytes);
    if (access != READ && cell.writer.block == NOBODY) count(DISTINCT_WRITTEN, buffer.cell_bytes);
    check_race(cell, place, bytes, access, caller, where);
    remember(cell, access, caller);
  }
}

Buffer* buffer_of(uintptr_t address, size_t bytes) {
  static size_t last = 0;
  if (last < buffers.size() && address >= buffers[last].begin && address + bytes <= buffers[last].end)
    return &buffers[last];
  auto after = std::upper_bound(buffers.begin(), buffers.end(), address,
                                [](uintptr_t a, const Buffer& b) { return a < b.begin; });
  if (after == buffers.begin()) return nullptr;
  Buffer& found = *--after;
  if (address + bytes > found.end) return nullptr;
  last = &found - buffers.data();
  return &found;
}

// What lies at `address`, or most closely before or behind it.
Where nearest(uintptr_t address) {
  const int owner = owner_of_stack(reinterpret_cast<const void*>(address));
  if (owner >= 0) return {LOCAL, -1, owner % threads_in_block()};
  SharedPlace shared;
  if (find_shared(address, nullptr, shared)) return shared.where();
  Where where{NOWHERE, -1, 0};
  uintptr_t best = 1 << 20;  // farther away it means nothing
  for (size_t i = 0; i < buffers.size(); ++i) {
    const Buffer& b = buffers[i];
    const uintptr_t distance = address < b.begin ? b.begin - address : address - std::min(address, b.end);
    if (distance < best) best = distance, where = {GLOBAL, static_cast<int>(i), static_cast<int64_t>(address - b.begin)};
  }
  return where;
}

bool is_own_variable(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(current->stack) < STACK_BYTES;
}

}  // namespace

void access_memory(const void* place, size_t bytes, Access access, const void* caller) {
  if (current == nullptr || bytes == 0) return;
  last_access = caller;
  if (++steps > steps_allowed) out_of_patience(caller);
  const uintptr_t address = reinterpret_cast<uintptr_t>(place);
  if (is_own_variable(address)) {
    if (current->async) touch_own(place, bytes, access, caller);
    return;
  }
  if (Buffer* buffer = buffer_of(address, bytes)) return access_buffer(*buffer, address, bytes, access, caller);
  SharedPlace shared;
  if (find_shared(address, caller, shared)) return access_shared(shared, place, bytes, access, caller);
  if (address >= image_begin && address + bytes <= image_end) return;  // constants and variables of the whole device
  complain(OUTSIDE, place, bytes, access, caller, nearest(address));
  abandon();
}

bool is_kernel_code(const void* place) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(place);
  return address >= image_begin && address < image_end;
}

void misaligned(const void* place, size_t bytes, size_t alignment, Access access, const void* caller) {
  if (current == nullptr || is_own_variable(reinterpret_cast<uintptr_t>(place))) return;
  const Where where = nearest(reinterpret_cast<uintptr_t>(place));
  if (Finding* f = complain(MISALIGNED, place, bytes, access, caller, where)) f->limit = alignment;
  abandon();
}

void check_alignment(const void* place, size_t bytes, size_t alignment, Access access, const void* caller) {
  if (reinterpret_cast<uintptr_t>(place) % alignment) misaligned(place, bytes, alignment, access, caller);
}

void check_in_shared(const void* place, size_t bytes, Access access, const void* caller, const char* operation,
                     bool of_any_block) {
  SharedPlace shared;
  const uintptr_t address = reinterpret_cast<uintptr_t>(place);
  const bool there = find_shared(address, caller, shared);
  if (there && (of_any_block || shared.rank == current->rank)) return;
  if (Finding* f = complain(OUTSIDE, place, bytes, access, caller, nearest(address)))
    snprintf(f->detail, sizeof f->detail, "%s takes %s alone", operation, there ? "the block's own shared memory" : "shared memory");
  abandon();
}

int owner_of_shared(const void* place) {
  const uintptr_t in_arenas = reinterpret_cast<uintptr_t>(place) - reinterpret_cast<uintptr_t>(arenas);
  return in_arenas < blocks_in_cluster * ARENA_STRIDE ? in_arenas / ARENA_STRIDE : -1;
}

// ---- the asynchronous proxy

Finding* complain_shared(FindingKind kind, const void* place, size_t bytes, Access access, const void* caller) {
  return complain(kind, place, bytes, access, caller, nearest(reinterpret_cast<uintptr_t>(place)));
}

void begin_landing(const void* to, size_t bytes, const void* caller, const char* operation) {
  check_in_shared(to, bytes, WRITE, caller, operation, true);
  SharedPlace shared;
  find_shared(reinterpret_cast<uintptr_t>(to), caller, shared);
  if (shared.offset + bytes <= shared.limit)
    for_shared_cells(shared.cell(), bytes, [&](SharedCell& cell) {
      const Writer& w = cell.writer;
      const bool by_copy = w.agent || cell.in_flight_in == cluster_serial;
      if (!in_cluster(w.block) || by_copy || passed_fence(w)) return;
      if (Finding* f = complain(PROXY, to, bytes, WRITE, caller, shared.where())) {
        f->second = party_of(w.block, w.thread, WRITE, w.code);
        f->has_second = 1;
      }
    });
  access_memory(to, bytes, WRITE, caller);
  memset(const_cast<void*>(to), 0xff, bytes);
  for_shared_cells(shared.cell(), bytes, [](SharedCell& cell) { cell.in_flight_in = cluster_serial; });
}

void land(const void* to, size_t bytes, uint32_t agent, uint32_t time) {
  SharedPlace shared;
  find_shared(reinterpret_cast<uintptr_t>(to), nullptr, shared);
  for_shared_cells(shared.cell(), bytes, [&](SharedCell& cell) {
    cell.in_flight_in = NOBODY;
    cell.written_in = cluster_serial;
    cell.writer.agent = agent;
    cell.writer.clock = time;
  });
}

void read_by_agent(const void* from, size_t bytes, uint32_t agent, uint32_t time, const void* caller, const char* operation) {
  if (++steps > steps_allowed) out_of_patience(caller);
  check_in_shared(from, bytes, READ, caller, operation);
  SharedPlace at;
  find_shared(reinterpret_cast<uintptr_t>(from), caller, at);
  const Where where = at.where();
  count(SHARED_READ, bytes);
  if (at.offset + bytes > at.limit) {
    if (Finding* f = complain(OUTSIDE, from, bytes, READ, caller, where)) f->limit = at.limit;
    abandon();
  }
  for_shared_cells(at.cell(), bytes, [&](SharedCell& cell) {
    fresh(cell);
    const Writer& w = cell.writer;
    if (cell.in_flight_in == cluster_serial || (w.block != NOBODY && !w.agent && !passed_fence(w))) {
      const bool flying = cell.in_flight_in == cluster_serial;
      if (Finding* f = complain(flying ? IN_FLIGHT : PROXY, from, bytes, READ, caller, where)) {
        f->second = party_of(w.block, w.thread, WRITE, w.code);
        f->has_second = 1;
      }
    }
    if (cell.in_flight_in != cluster_serial) {
      if (cell.written_in != cluster_serial) complain(UNWRITTEN, from, bytes, READ, caller, where);
      check_race(cell, from, bytes, READ, caller, where);
    }
    if (cell.agents_in != cluster_serial) {
      cell.agents_in = cluster_serial;
      cell.agents = agent_reads.size();
      agent_reads.emplace_back();
    }
    std::vector<AgentRead>& reads = agent_reads[cell.agents];
    const uint16_t thread = current->id;
    for (AgentRead& r : reads)
      if (r.agent == agent) {
        r = {agent, time, code_of(caller), block_serial, thread};
        return;
      }
    reads.push_back({agent, time, code_of(caller), block_serial, thread});
  });
}

// ---- cp.async

void begin_async(const AsyncCopy& copy) {
  check_in_shared(copy.to, copy.bytes, WRITE, copy.caller, "cp.async");
  check_alignment(copy.to, copy.bytes, copy.bytes, WRITE, copy.caller);
  check_alignment(copy.from, copy.bytes, copy.bytes, READ, copy.caller);
  access_memory(copy.from, copy.from_source, READ, copy.caller);
  access_memory(copy.to, copy.bytes, WRITE, copy.caller);
  memset(copy.to, 0xff, copy.bytes);
  SharedPlace shared;
  find_shared(reinterpret_cast<uintptr_t>(copy.to), copy.caller, shared);
  for_shared_cells(shared.cell(), copy.bytes, [](SharedCell& cell) { cell.in_flight_in = cluster_serial; });
}

void deliver_async(const AsyncCopy& copy) {
  delivering = true;  // source and destination must not have been touched until now
  access_memory(copy.from, copy.from_source, READ, copy.caller);
  access_memory(copy.to, copy.bytes, WRITE, copy.caller);
  delivering = false;
  memset(copy.to, 0, copy.bytes);
  memcpy(copy.to, copy.from, copy.from_source);
}

unsigned char* shared_memory(size_t bytes, bool dynamic) {
  const size_t limit = dynamic ? dynamic_bytes : ARENA_BYTES;
  if (bytes > limit) refuse_shared(bytes, limit, "dynamically", __builtin_return_address(0));
  use_shared(current->rank, bytes);
  return arena;
}
unsigned char* dynamic_shared() { return arena; }
uint32_t shared_offset(const void* place) {
  return reinterpret_cast<uintptr_t>(place) - reinterpret_cast<uintptr_t>(arena);
}

void atomic_access(void* place, size_t bytes, void* caller) {
  ++traffic[ATOMICS];
  check_alignment(place, bytes, bytes, ATOMIC, caller);
  access_memory(place, bytes, ATOMIC, caller);
}

void memory_begin_launch(unsigned dynamic, bool serials_start_again) {
  memset(traffic, 0, sizeof traffic);
  if (serials_start_again) {
    memset(static_cast<void*>(shared_cells), 0, sizeof shared_cells);
    memset(divided_in, 0, sizeof divided_in);
  }
  dynamic_bytes = dynamic;
  static_used = 0;
  delivering = false;
  for (Buffer& buffer : buffers) {
    const size_t cells = (buffer.end - buffer.begin) / buffer.cell_bytes;
    if (buffer.read_only) buffer.touched.assign(cells / 64 + 1, 0);
    else buffer.pages.resize(cells / PAGE_CELLS + 1);
  }
}
void memory_begin_cluster() {
  read_sets.assign(1, {});  // the first stands for none
  agent_reads.clear();
  for (int rank = 0; rank < blocks_in_cluster; ++rank) {
    shared_used[rank] = 0;
    use_shared(rank, dynamic_bytes);
  }
}
void memory_end_launch() {
  for (Buffer& buffer : buffers)
    for (auto& page : buffer.pages)
      if (page && free_pages.size() < 1024) free_pages.push_back(std::move(page));
  buffers.clear();
}

}  // namespace rawgrad_emulator

using namespace rawgrad_emulator;

extern "C" {

// The next launch may touch [begin, begin + bytes).  Buffers must come in order of address and not overlap.
void rawgrad_buffer(uintptr_t begin, size_t bytes, int read_only, int cell_bytes, uint8_t* written, size_t written_offset) {
  Buffer buffer;
  buffer.begin = begin;
  buffer.end = begin + bytes;
  buffer.read_only = read_only;
  buffer.cell_bytes = cell_bytes;
  buffer.written = written;
  buffer.written_offset = written_offset;
  buffers.push_back(std::move(buffer));
}

// The image of the library that holds the next launch's kernel; its `__shared__` variables follow.
void rawgrad_image(uintptr_t begin, uintptr_t end) {
  image_begin = begin;
  image_end = end;
  static_shared.clear();
  buffers.clear();
}
void rawgrad_static_shared(uintptr_t begin, size_t bytes) { static_shared.push_back({begin, begin + bytes, UNUSED, 0}); }

void rawgrad_traffic(uint64_t* counts) { memcpy(counts, traffic, sizeof traffic); }

}  // extern "C"
