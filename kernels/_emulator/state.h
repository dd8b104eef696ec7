// What the parts of the runtime share: threads, findings, and the launch that is under way.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime.h"

namespace rawgrad_emulator {

constexpr int WARP_SIZE = 32;
constexpr size_t ARENA_BYTES = 232448;         // what a block may have on sm_90
constexpr size_t ARENA_STRIDE = 256 << 10;     // from one block's to the next one's
constexpr int MOST_BLOCKS = 8;                 // of a cluster: what each GPU with clusters takes
constexpr size_t STATIC_SHARED_BYTES = 49152;  // and of it in variables, on every GPU
constexpr int MAX_FINDINGS = 32;

// ---- what was found

enum FindingKind : int32_t {  // in the order of KINDS in findings.py
  RACE_SHARED,      // two threads of a block, no barrier between
  RACE_GLOBAL,      // two threads of the grid, nothing orders them
  OUTSIDE,          // an access outside every buffer
  BOUNDS,           // an index that an array with a fixed size does not have
  MISALIGNED,       // an address that is no multiple of what the access needs
  READ_ONLY,        // a write into an argument declared const
  UNWRITTEN,        // a read of what nothing wrote
  IN_FLIGHT,        // an access to what an asynchronous copy has not delivered yet
  BARRIER,          // a barrier that not all threads reach
  WARP_OPERATION,   // a warp operation that not all of its lanes reach
  ABSENT_LANE,      // a value taken from a lane that takes no part
  NEVER_WAITED,     // the kernel ends while asynchronous copies are under way
  SHARED_SIZE,      // more shared memory than there is
  ARITHMETIC,       // arithmetic whose result is not defined: division by zero, a shift too far
  ASSERTION,        // assert() or __trap()
  STACK,            // more local variables than the emulator has room for
  ENDLESS,          // a thread that neither ends nor waits
  MBARRIER,         // an mbarrier that is used against its rules
  MBARRIER_WAIT,    // a wait for a phase that never ends
  OPERANDS,         // a write into what the asynchronous proxy may still read
  ACCUMULATORS,     // accumulators touched while a wgmma may write them, or given to it without its fence
  PROXY,            // written by a thread, used by the asynchronous proxy, without a fence between
  ABSENT_BLOCK,     // shared memory of a block of the cluster that may not run: not yet, no more, or none of that rank
};
enum Space : int32_t { GLOBAL, SHARED, LOCAL, NOWHERE };
enum Access : int32_t { READ, WRITE, ATOMIC };

// One thread's part in a finding.  Mirrored by ctypes in findings.py.
struct Party {
  uint32_t block[3], thread[3];
  int32_t access;      // enum Access
  int32_t line;        // with `file`, where known without debug information
  const char* file;
  const void* caller;  // where in the kernel's code; null if unknown
};
struct Finding {
  int32_t kind, space;
  Party first, second;  // first: who did it now; second: whom it met
  int32_t has_second;   // 2: several blocks, of which no single thread is known
  int32_t buffer;       // index of the argument's range, or -1
  int64_t offset;       // of the access, in bytes from the start of the buffer or of shared memory
  uint64_t address;
  int64_t bytes;
  int64_t limit;        // what there is, where `bytes` are too many
  int32_t count;        // the threads or lanes that are missing
  const char* operation;
  char detail[160];     // more, in words
  uint64_t times;
  uint64_t step;        // of the last time, so that an access counts once
  int32_t foreign;      // whether it is about the shared memory of another block than the first party's
  uint32_t owner[3];    // which one
};

// ---- threads

enum Waiting : int32_t { RUNNABLE, AT_BARRIER, AT_WARP, AT_WARPGROUP, AT_MBARRIER, AT_CLUSTER, FINISHED };
// Of the cluster's barrier: has the thread arrived, and have all others?
enum ClusterPhase : int32_t { OUTSIDE_PHASE, ARRIVED, COMPLETE };

struct AsyncCopy {
  unsigned char* to;
  const unsigned char* from;
  int bytes, from_source;
  const void* caller;
};

// What a thread has seen, through mbarriers and what they order, of the threads of its cluster and of its agents:
// those who act for them asynchronously.  What is beyond the end of a vector is 0, nothing.
//
// An agent is an mbarrier (the copies that land there; its time is the number of phases it has passed), a warp's
// tensor core (its time is the number of its groups of wgmma), or a thread's bulk stores (likewise).
struct Clock {
  std::vector<uint32_t> threads, agents;
  void join(const Clock& other);
};
inline uint32_t at(const std::vector<uint32_t>& times, size_t i) { return i < times.size() ? times[i] : 0; }
inline void raise(std::vector<uint32_t>& times, size_t i, uint32_t time) {
  if (i >= times.size()) times.resize(i + 1);
  if (times[i] < time) times[i] = time;
}

// A fence between the proxies: what the thread had seen of the others.
struct ProxyFence {
  uint32_t epoch, time;
  std::vector<uint32_t> seen;
};

struct Mbarrier;
struct AsyncState;  // wgmma and bulk stores of a thread: async.h

// A CUDA thread as a fiber.
struct Thread {
  Index index;
  int id, lane, warp;  // in its block
  int rank, number;    // of its block in the cluster, and its own there; warps begin at multiples of 32
  Waiting waiting;
  Place place;            // where it waits
  const void* caller;     // likewise, in the code
  const char* operation;  // and in what
  unsigned mask;          // for which lanes, in a warp operation
  bool predicate;
  uint64_t bits;              // what it deposits in a warp operation
  const void* deposit;        // likewise, by address
  uint32_t clock[WARP_SIZE];  // vector clock over the lanes of its warp: what it has seen of each
  Clock seen;
  std::vector<ProxyFence> fences;
  Mbarrier* awaited;        // AT_MBARRIER
  unsigned awaited_parity;  // and which phase of it
  ClusterPhase in_cluster;
  std::shared_ptr<AsyncState> async;  // null until it is needed
  std::vector<AsyncCopy> uncommitted;
  std::vector<std::vector<AsyncCopy>> groups;
  unsigned char* stack;
  bool started = false;  // whether `context` can be gone back to
  jmp_buf context;
};

constexpr size_t STACK_BYTES = 132 << 10;  // the lowest page is never accessible; an odd number of pages spreads
constexpr size_t GUARD_BYTES = 4096;       // the stacks over the processor's caches

extern Thread* current;  // null while no kernel code runs

// A block of the cluster that runs.
struct Block {
  Index index;
  uint32_t serial;    // number of the block, from 1, counted over all launches; of a cluster by their ranks
  uint32_t epoch;     // how many barriers it has passed
  int barrier_count;  // what the last one counted
  bool ended;
};
extern Block blocks[MOST_BLOCKS];
extern int blocks_in_cluster;
extern uint32_t cluster_serial;  // of the block of rank 0
// Of the block of the current thread:
extern uint32_t block_serial, barrier_epoch;
extern unsigned char* arena;
void enter_block(int rank);
extern int turn_order;         // of threads and blocks: 0 forward, 1 backward, from 2 on shuffled
extern bool by_actor;           // the block uses mbarriers or the asynchronous proxy: clocks over all threads are kept
extern uint64_t steps, steps_allowed;  // accesses so far, and when the patience with the current thread ends
Index thread_of_id(int id);
inline bool in_cluster(uint32_t serial) { return serial - cluster_serial < uint32_t(blocks_in_cluster); }
Index block_of_serial(uint32_t serial);
Thread* thread_in_warp(int lane);        // of the current thread's warp; null if the block has no such thread
Thread& thread_at(int i);        // of the cluster, block after block
Thread& thread_of(uint32_t serial, int id);
Thread& thread_of_number(int number);
int number_of(uint32_t serial, int id);
int threads_in_block();
int threads_in_cluster();
void become(Thread* thread);     // act in its name, or in nobody's
int owner_of_stack(const void* place);   // the thread on whose stack `place` lies, or -1

// Stop the launch at once: what comes next cannot be carried out.  Does not return in a kernel.
[[noreturn]] void abandon();
void out_of_patience(const void* caller);  // abandon: the thread makes no end, or the user has interrupted
Party party_now(Access access, const void* caller);
Finding& report(FindingKind kind, const void* caller);  // a new finding by the current thread, to be completed
std::vector<Finding>& all_findings();

// The current thread waits for all lanes of `mask` to come to the same operation at the same place.
void wait_in_warp(unsigned mask, const char* operation, Place place, const void* caller);
void check_copies_finished();  // at the current thread's end
// The same for all 128 threads of the current warpgroup.
void wait_in_warpgroup(const char* operation, Place place, const void* caller);
// The current thread waits until the phase of that parity has passed.
void wait_at_mbarrier(Mbarrier* barrier, unsigned parity, const void* caller);
void wait_at_cluster(const void* caller);

// ---- what is ordered by more than barriers of the block (async.cpp)

void begin_actors();                // from now on clocks are kept
void fold_clock(Thread& thread);    // put what it has seen of its warp's lanes into the clock over all threads
void unfold_clock(Thread& thread);  // and back
uint32_t new_agent();
void async_begin_cluster();
void async_pass_barrier(int rank);       // all threads of that block have met
void publish(Clock& clock);              // what the current thread did comes before what those do who see `clock`
void see(const Clock& clock);
bool async_release();                    // let those go on whose phase has passed; whether there are any
bool async_land();                       // let one copy land for which somebody waits; false if there is none
bool async_report_deadlock();            // who waits for which mbarrier, and what is missing there; whether anybody does
void async_thread_ends();
void async_block_ends(int rank);
void touch_own(const void* place, size_t bytes, Access access, const void* caller);  // a local variable

// ---- clusters (cluster.cpp)

void cluster_begin();
bool cluster_release();                  // let those go on who wait for a phase that has ended; whether there are any
bool cluster_report_deadlock();
void cluster_block_ends(int rank);
void* place_in_block(const void* place, int rank, const void* caller);
void meet(const Clock& clock);  // the current thread has waited for these
void refuse_block(const void* caller, const char* why, unsigned number);
// The current thread touches the shared memory of another block.  Null if that is fine; else why it is not.
const char* visit(int rank, const void* place, size_t bytes, Access access, const void* caller);

// An element of a fragment or a row: the number in a word of 32 bits, or in one half of it.
float tensor_core_number(MmaType type, uint32_t word, int half);

// ---- the checks of memory.cpp

void memory_begin_launch(unsigned dynamic_bytes, bool serials_start_again);
void memory_begin_cluster();
void memory_end_launch();
void access_memory(const void* place, size_t bytes, Access access, const void* caller);
void check_alignment(const void* place, size_t bytes, size_t alignment, Access access, const void* caller);
void check_in_shared(const void* place, size_t bytes, Access access, const void* caller, const char* operation,
                     bool of_any_block = false);
int owner_of_shared(const void* place);  // the rank of the block in whose shared memory it lies, or -1
void misaligned(const void* place, size_t bytes, size_t alignment, Access access, const void* caller);
// The asynchronous proxy.  `begin_landing`: shared memory will be written; it is in flight until `land` has written it
// for `agent` at its `time`.  `read_by_agent`: `agent` reads it, between now and its `time`.
void begin_landing(const void* to, size_t bytes, const void* caller, const char* operation);
void land(const void* to, size_t bytes, uint32_t agent, uint32_t time);
void read_by_agent(const void* from, size_t bytes, uint32_t agent, uint32_t time, const void* caller, const char* operation);
// A new finding about shared memory, or null if the same instruction has been reported for the same already.
Finding* complain_shared(FindingKind kind, const void* place, size_t bytes, Access access, const void* caller);
void begin_async(const AsyncCopy& copy);    // the destination is in flight
void deliver_async(const AsyncCopy& copy);  // and there
bool is_kernel_code(const void* place);  // and not the runtime's own
extern const void* last_access;          // the instruction that made it
extern unsigned char arenas[MOST_BLOCKS * ARENA_STRIDE];

}  // namespace rawgrad_emulator
