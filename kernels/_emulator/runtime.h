// The emulator's runtime, as the emulated kernels and headers of kernels/_cuda call it.
//
// One launch runs its blocks one after the other (those of a cluster together), and their threads as fibers: a
// thread runs until it reaches a barrier or a warp operation, then the next one does.  The compiler puts a call
// before each load and store of a kernel (-fsanitize=thread); the runtime answers these calls itself
// and checks each access (memory.cpp).
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
  unsigned x, y, z;
};

namespace rawgrad_emulator {

// Where in a source something stands.
struct Place {
  const char* file;
  int line;
};

using Index = uint3;
// They never change under a running thread, so the compiler may ask once.
__attribute__((const)) Index thread_index();
__attribute__((const)) Index block_index();
__attribute__((const)) Index block_size();
__attribute__((const)) Index grid_size();
__attribute__((const)) int lane();

// Wait for all threads of the block; gives the number of threads whose predicate was true.
int barrier(bool predicate, Place place);
// Wait for the lanes of `mask`, and see what they have written.
void sync_warp(unsigned mask, Place place);
// Meet the lanes of `mask` and take the value of lane `source`.
uint64_t exchange_bits(unsigned mask, uint64_t value, int source, const char* operation, Place place);
unsigned ballot(unsigned mask, bool predicate, const char* operation, Place place);

// The block's shared memory: of `bytes` bytes, for dynamic memory as many as the launch asked for.
unsigned char* shared_memory(size_t bytes, bool dynamic);
unsigned char* dynamic_shared();
uint32_t shared_offset(const void* place);

// An atomic operation is about to read and write.
void atomic_access(void* place, size_t bytes, void* caller);

[[noreturn]] void trap(Place place);
// memcpy, unchecked.
void copy_bytes(void* to, const void* from, size_t bytes);

// cp.async: `bytes` are copied, of which the first `from_source` come from memory and the rest are zeros.
// The destination is poisoned until the thread waits for the group that the copy was committed to.
void async_copy(void* to, const void* from, int bytes, int from_source);
void async_commit();
void async_wait(int groups_left);

// ---- what Hopper added (sm_90a): mbarriers, bulk copies, wgmma

// An mbarrier in shared memory: a phase ends when all arrivals and all bytes that it expects have come.
void mbarrier_init(void* barrier, uint32_t arrivals);
void mbarrier_arrive(void* barrier);
void mbarrier_expect(void* barrier, uint32_t bytes);
void mbarrier_wait(void* barrier, uint32_t parity);
void fence_proxy();     // what was written before may be read by the asynchronous proxy
void fence_mbarriers(); // likewise the mbarriers that this thread has initialised
// Clusters: an mbarrier of another block, and a wait that also sees what other blocks have done before they arrived.
void mbarrier_arrive_at(void* barrier, int rank);
void mbarrier_wait_cluster(void* barrier, uint32_t parity);

// Copies that complete on an mbarrier: of a box of the tensor that `map` describes (from, to and size then follow
// from it), or of plain bytes.
void load_box(void* to, const void* map, void* barrier, int rank, const int* at);
void load_bytes(void* to, const void* from, uint32_t bytes, void* barrier);
// The same box to the same place of several blocks of the cluster, by the bits of their ranks; it completes on the
// mbarrier of each.
void load_box_many(void* to, const void* map, void* barrier, int rank, const int* at, uint32_t blocks);
// The other way; complete when the thread has waited for the group.
void store_box(const void* map, const void* from, int rank, const int* at);
void store_bytes(void* to, const void* from, uint32_t bytes);
void store_commit();
void store_wait(int groups_left);

// ---- clusters: blocks that run together and reach each other's shared memory

int cluster_rank();
int cluster_size();
void cluster_arrive();
void cluster_wait();
// The place in the shared memory of block `rank` that is `place` in one's own.
void* in_block(const void* place, int rank);

// ldmatrix: each lane names a row of 16 bytes; afterwards r[i] holds this lane's piece of matrix i.
void load_matrices(uint32_t* r, int matrices, const void* row, bool transposed, Place place);
// mma.sync m16n8k16 of bf16 or fp16, and m16n8k8 of tf32, all with float32 sums: d += a b.
enum MmaType { MMA_BF16, MMA_FP16, MMA_TF32 };
void multiply_matrices(MmaType type, float* d, const uint32_t* a, const uint32_t* b, Place place);

// wgmma m64nNk8 (tf32) and m64nNk16 (bf16, fp16), by descriptors of PTX's form: d (64 x columns) += or = a b.
uint64_t wgmma_descriptor(const void* place, uint32_t leading_bytes, uint32_t stride_bytes, int swizzle_code);
void wgmma_multiply(MmaType type, float* d, int columns, uint64_t a, uint64_t b, bool accumulate, Place place);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int groups_left);

}  // namespace rawgrad_emulator
