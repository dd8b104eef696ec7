// Checks every access of a kernel to memory: is it inside a buffer, was it written, does it race?
//
// Memory is followed in cells: of shared memory every four bytes (or, where a kernel uses smaller
// pieces, every byte), of a buffer every element of at most four bytes.  A cell remembers who wrote it
// last and who has read it since.  Two accesses of which one writes are a race unless they are ordered:
//
//   by a barrier of the block        - their barrier epochs differ;
//   by __syncwarp between two lanes  - the later lane's vector clock has seen the earlier access.
//
// Nothing orders two blocks of a grid.  Method: Flanagan and Freund, "FastTrack", 2009, with barriers in
// the place of most of its clocks.  Compiled without instrumentation.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "state.h"

namespace rawgrad_emulator {

alignas(1024) unsigned char arena[ARENA_BYTES];

namespace {

constexpr uint32_t NOBODY = 0, MANY_BLOCKS = ~0u;

struct Writer {
  uint32_t block;  // serial number; NOBODY if nothing was written in this launch
  uint16_t thread;
  bool atomic;
  uint32_t epoch, clock;
  const void* caller;
};
struct Readers {
  uint32_t block;  // NOBODY, one block, or MANY_BLOCKS
  uint16_t thread;  // the last one
  uint16_t warp;
  bool many_warps, atomic;
  uint32_t epoch, clock, lanes;  // of the warp: which lanes have read, the latest at which time
  const void* caller;
};
struct Cell {
  Writer writer;
  Readers readers;
};

// ---- shared memory

// The cells of a block: those of earlier blocks are told by their serial number.
struct SharedCell : Cell {
  uint32_t written_in, in_flight_in;  // serial of the block in which it was written, or is being copied to
};
SharedCell shared_cells[ARENA_BYTES];       // one per byte; the first of four stands for all ...
uint32_t divided_in[ARENA_BYTES / 4];       // ... unless the block has used a part of them
size_t shared_used, dynamic_bytes;

// ---- buffers

constexpr size_t PAGE_CELLS = 1024;
using Page = std::array<Cell, PAGE_CELLS>;

struct Buffer {
  uintptr_t begin, end;
  bool read_only;
  int cell_bytes;  // 1, 2 or 4
  uint8_t* written;        // bit i of element j: byte 4 j + i of the allocation is written; null: all are
  size_t written_offset;   // of `begin` in the allocation
  std::vector<std::unique_ptr<Page>> pages;
};
std::vector<Buffer> buffers;  // in order of address
std::vector<std::unique_ptr<Page>> free_pages;

// Function-local `__shared__` variables of a source that does not use block_shared: places in the arena's
// account for memory that lies elsewhere.
struct StaticShared {
  uintptr_t begin, end;
  size_t account;
};
std::vector<StaticShared> static_shared;
uintptr_t image_begin, image_end;  // the kernels' own code and constants

uint64_t traffic[8];
enum { GLOBAL_READ, GLOBAL_WRITTEN, SHARED_READ, SHARED_WRITTEN, ATOMICS, DISTINCT_READ, DISTINCT_WRITTEN };

struct Where {
  Space space;
  int buffer;
  int64_t offset;
};

// A new finding, or null if the same instruction has been reported for the same already.
Finding* complain(FindingKind kind, const void* place, size_t bytes, Access access, const void* caller, Where where) {
  for (Finding& known : all_findings())
    if (known.kind == kind && known.first.caller == caller) {
      ++known.times;
      return nullptr;
    }
  Finding& finding = report(kind);
  finding.space = where.space;
  finding.buffer = where.buffer;
  finding.offset = where.offset;
  finding.address = reinterpret_cast<uintptr_t>(place);
  finding.bytes = bytes;
  finding.first = party_now(access, caller);
  return &finding;
}

Party party_of(uint32_t block, int thread, Access access, const void* caller) {
  const Index b = block_of_serial(block), t = thread_of_id(thread);
  return {{b.x, b.y, b.z}, {t.x, t.y, t.z}, access, 0, nullptr, caller};
}

// Whether what lane `lane` of the current warp did at its time `clock` was before now.
bool seen(int lane, uint32_t clock) { return lane == current->lane || current->clock[lane] >= clock; }

bool after_writer(const Writer& w, Access access) {
  if (w.block == NOBODY || (w.atomic && access == ATOMIC)) return true;
  if (w.block != block_serial) return false;
  if (w.epoch != barrier_epoch || w.thread == current->id) return true;
  return w.thread / WARP_SIZE == current->warp && seen(w.thread % WARP_SIZE, w.clock);
}
bool after_readers(const Readers& r, Access access) {
  if (r.block == NOBODY || (r.atomic && access == ATOMIC)) return true;
  if (r.block != block_serial) return false;
  if (r.epoch != barrier_epoch) return true;
  if (r.many_warps || r.warp != current->warp) return false;
  for (int l = 0; l < WARP_SIZE; ++l)
    if (r.lanes >> l & 1 && !seen(l, r.clock)) return false;
  return true;
}

void check_race(Cell& cell, const void* place, size_t bytes, Access access, const void* caller, Where where) {
  const FindingKind kind = where.space == SHARED ? RACE_SHARED : RACE_GLOBAL;
  if (!after_writer(cell.writer, access)) {
    const Writer& w = cell.writer;
    if (Finding* f = complain(kind, place, bytes, access, caller, where)) {
      f->second = party_of(w.block, w.thread, w.atomic ? ATOMIC : WRITE, w.caller);
      f->has_second = 1;
    }
  } else if (access != READ && !after_readers(cell.readers, access)) {
    const Readers& r = cell.readers;
    if (Finding* f = complain(kind, place, bytes, access, caller, where)) {
      if (r.block != MANY_BLOCKS) f->second = party_of(r.block, r.thread, r.atomic ? ATOMIC : READ, r.caller);
      else f->second.caller = r.caller, f->second.access = READ;
      f->has_second = r.block == MANY_BLOCKS ? 2 : 1;
    }
  }
}

void remember(Cell& cell, Access access, const void* caller) {
  if (access != READ) {
    Writer& w = cell.writer;
    w.block = block_serial;
    w.thread = current->id;
    w.atomic = access == ATOMIC;
    w.epoch = barrier_epoch;
    w.clock = current->clock[current->lane];
    w.caller = caller;
  }
  if (access != WRITE) {
    Readers& r = cell.readers;
    if (r.block == NOBODY || (r.block == block_serial && r.epoch != barrier_epoch)) {
      r.block = block_serial;
      r.warp = current->warp;
      r.epoch = barrier_epoch;
      r.many_warps = false;
      r.atomic = access == ATOMIC;
      r.lanes = 0;
      r.clock = 0;
    } else if (r.block != block_serial) {
      r.block = MANY_BLOCKS;
    } else if (r.warp != current->warp) {
      r.many_warps = true;
    }
    r.atomic = r.atomic && access == ATOMIC;
    r.thread = current->id;
    r.lanes |= 1u << current->lane;
    r.clock = std::max(r.clock, current->clock[current->lane]);
    r.caller = caller;
  }
}

// ---- accesses to shared memory

// Call `f` for each cell of shared memory that [offset, offset + bytes) touches.
template <class F>
void for_shared_cells(size_t offset, size_t bytes, F f) {
  for (size_t i = offset; i < offset + bytes;) {
    uint32_t& divided = divided_in[i / 4];
    const bool whole = i % 4 == 0 && i + 4 <= offset + bytes;
    if (divided != block_serial && !whole) {  // from now on its bytes are followed one by one
      divided = block_serial;
      for (int b = 1; b < 4; ++b) shared_cells[i / 4 * 4 + b] = shared_cells[i / 4 * 4];
    }
    f(shared_cells[i]);
    i += divided == block_serial ? 1 : 4;
  }
}

void fresh(SharedCell& cell) {  // forget what an earlier block did here
  if (cell.writer.block != block_serial) cell.writer.block = NOBODY;
  if (cell.readers.block != block_serial) cell.readers.block = NOBODY;
}

void access_shared(size_t offset, const void* place, size_t bytes, Access access, const void* caller, size_t limit) {
  const Where where{SHARED, -1, static_cast<int64_t>(offset)};
  traffic[access == READ ? SHARED_READ : SHARED_WRITTEN] += bytes;
  if (offset + bytes > limit) {
    complain(OUTSIDE, place, bytes, access, caller, where);
    abandon();
  }
  for_shared_cells(offset, bytes, [&](SharedCell& cell) {
    fresh(cell);
    if (access != WRITE && cell.in_flight_in == block_serial)
      complain(IN_FLIGHT, place, bytes, access, caller, where);
    else if (access != WRITE && cell.written_in != block_serial)
      complain(UNWRITTEN, place, bytes, access, caller, where);
    check_race(cell, place, bytes, access, caller, where);
    remember(cell, access, caller);
    if (access != READ) cell.written_in = block_serial, cell.in_flight_in = NOBODY;
  });
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
  if (access != WRITE) traffic[GLOBAL_READ] += bytes;
  if (access != READ) traffic[GLOBAL_WRITTEN] += bytes;
  if (access != READ && buffer.read_only) complain(READ_ONLY, place, bytes, access, caller, where);
  if (buffer.written) {
    if (access != WRITE && !is_written(buffer, offset, bytes)) complain(UNWRITTEN, place, bytes, access, caller, where);
    if (access != READ) mark_written(buffer, offset, bytes);
  }
  const size_t first = offset / buffer.cell_bytes, last = (offset + bytes - 1) / buffer.cell_bytes;
  for (size_t i = first; i <= last; ++i) {
    Cell& cell = cell_of(buffer, i);
    if (access != WRITE && cell.readers.block == NOBODY && cell.writer.block == NOBODY)
      traffic[DISTINCT_READ] += buffer.cell_bytes;
    if (access != READ && cell.writer.block == NOBODY) traffic[DISTINCT_WRITTEN] += buffer.cell_bytes;
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

// The buffer before or behind which `address` lies most closely.
Where nearest(uintptr_t address) {
  Where where{NOWHERE, -1, 0};
  uintptr_t best = 1 << 20;  // farther away it means nothing
  for (size_t i = 0; i < buffers.size(); ++i) {
    const Buffer& b = buffers[i];
    const uintptr_t distance = address < b.begin ? b.begin - address : address - std::min(address, b.end);
    if (distance < best) best = distance, where = {GLOBAL, static_cast<int>(i), static_cast<int64_t>(address - b.begin)};
  }
  return where;
}

// The block uses the first `bytes` of shared memory from now on.
void use_shared(size_t bytes) {
  if (bytes <= shared_used) return;
  memset(arena + shared_used, 0xff, bytes - shared_used);
  shared_used = bytes;
}

}  // namespace

void access_memory(const void* place, size_t bytes, Access access, const void* caller) {
  if (current == nullptr || bytes == 0) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(place);
  const uintptr_t stack = reinterpret_cast<uintptr_t>(current->stack);
  if (address - stack < STACK_BYTES) return;  // the thread's own variables
  const uintptr_t in_arena = address - reinterpret_cast<uintptr_t>(arena);
  if (in_arena < ARENA_BYTES) return access_shared(in_arena, place, bytes, access, caller, shared_used);
  if (Buffer* buffer = buffer_of(address, bytes)) return access_buffer(*buffer, address, bytes, access, caller);
  for (const StaticShared& s : static_shared)
    if (address >= s.begin && address < s.end)
      return access_shared(s.account + (address - s.begin), place, bytes, access, caller, s.account + (s.end - s.begin));
  if (address >= image_begin && address + bytes <= image_end) return;
  complain(OUTSIDE, place, bytes, access, caller, nearest(address));
  abandon();
}

void poison_async(void* place, size_t bytes, const void*) {
  memset(place, 0xff, bytes);
  const uintptr_t offset = reinterpret_cast<uintptr_t>(place) - reinterpret_cast<uintptr_t>(arena);
  if (offset < ARENA_BYTES)
    for_shared_cells(offset, bytes, [](SharedCell& cell) { cell.in_flight_in = block_serial; });
}

void deliver_async(void* place, size_t bytes, const void* caller) { access_memory(place, bytes, WRITE, caller); }

unsigned char* shared_memory(size_t bytes, bool dynamic) {
  const size_t limit = dynamic ? dynamic_bytes : ARENA_BYTES;
  if (bytes > limit) {
    Finding& finding = report(SHARED_SIZE);
    finding.bytes = bytes;
    finding.offset = limit;
    abandon();
  }
  use_shared(bytes);
  return arena;
}
unsigned char* dynamic_shared() {
  use_shared(dynamic_bytes);
  return arena;
}
uint32_t shared_offset(const void* place) {
  return reinterpret_cast<uintptr_t>(place) - reinterpret_cast<uintptr_t>(arena);
}

void atomic_access(void* place, size_t bytes, void* caller) {
  ++traffic[ATOMICS];
  access_memory(place, bytes, ATOMIC, caller);
}

void memory_begin_launch(unsigned dynamic, bool serials_start_again) {
  memset(traffic, 0, sizeof traffic);
  if (serials_start_again) {
    memset(static_cast<void*>(shared_cells), 0, sizeof shared_cells);
    memset(divided_in, 0, sizeof divided_in);
  }
  dynamic_bytes = dynamic;
  for (Buffer& buffer : buffers)
    buffer.pages.resize((buffer.end - buffer.begin) / buffer.cell_bytes / PAGE_CELLS + 1);
}
void memory_begin_block() {
  shared_used = 0;
  for (const StaticShared& s : static_shared) memset(reinterpret_cast<void*>(s.begin), 0xff, s.end - s.begin);
}
void memory_end_launch() {
  for (Buffer& buffer : buffers)
    for (auto& page : buffer.pages)
      if (page && free_pages.size() < 4096) free_pages.push_back(std::move(page));
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
}
// False if there is no room left.
int rawgrad_static_shared(uintptr_t begin, size_t bytes) {
  size_t account = ARENA_BYTES;  // from the end downwards, dynamic shared memory from the beginning upwards
  for (const StaticShared& s : static_shared) account = std::min(account, s.account);
  if (bytes + 16 > account) return 0;
  account = (account - bytes) / 16 * 16;
  static_shared.push_back({begin, begin + bytes, account});
  return 1;
}

void rawgrad_traffic(uint64_t* counts) { memcpy(counts, traffic, sizeof traffic); }

// ---- what -fsanitize=thread calls before each access

#define HOOK(name, bytes, access)                                                              \
  void __tsan_##name(void* place) {                                                            \
    if (reinterpret_cast<uintptr_t>(place) % (bytes)) misaligned(place, bytes, access, __builtin_return_address(0)); \
    access_memory(place, bytes, access, __builtin_return_address(0));                          \
  }
#define HOOK_UNALIGNED(name, bytes, access) \
  void __tsan_unaligned_##name(void* place) { access_memory(place, bytes, access, __builtin_return_address(0)); }

static void misaligned(const void* place, size_t bytes, Access access, const void* caller) {
  if (current == nullptr || reinterpret_cast<uintptr_t>(place) - reinterpret_cast<uintptr_t>(current->stack) < STACK_BYTES)
    return;
  Where where{NOWHERE, -1, 0};
  if (Buffer* b = buffer_of(reinterpret_cast<uintptr_t>(place), 1))
    where = {GLOBAL, static_cast<int>(b - buffers.data()), static_cast<int64_t>(reinterpret_cast<uintptr_t>(place) - b->begin)};
  complain(MISALIGNED, place, bytes, access, caller, where);
  abandon();
}

HOOK(read1, 1, READ)
HOOK(read2, 2, READ)
HOOK(read4, 4, READ)
HOOK(read8, 8, READ)
HOOK(read16, 16, READ)
HOOK(write1, 1, WRITE)
HOOK(write2, 2, WRITE)
HOOK(write4, 4, WRITE)
HOOK(write8, 8, WRITE)
HOOK(write16, 16, WRITE)
HOOK_UNALIGNED(read2, 2, READ)
HOOK_UNALIGNED(read4, 4, READ)
HOOK_UNALIGNED(read8, 8, READ)
HOOK_UNALIGNED(read16, 16, READ)
HOOK_UNALIGNED(write2, 2, WRITE)
HOOK_UNALIGNED(write4, 4, WRITE)
HOOK_UNALIGNED(write8, 8, WRITE)
HOOK_UNALIGNED(write16, 16, WRITE)
void __tsan_read_range(void* place, size_t bytes) { access_memory(place, bytes, READ, __builtin_return_address(0)); }
void __tsan_write_range(void* place, size_t bytes) { access_memory(place, bytes, WRITE, __builtin_return_address(0)); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

}  // extern "C"
