// mbarriers: barriers in shared memory on which threads and asynchronous copies meet (sm_90 and newer).
//
// A barrier counts, phase after phase, arrivals of threads and bytes of copies.  A phase ends when all the
// arrivals that init_barrier named and all the bytes that arrivals announced have come; the next begins at once.
// A thread waits for the phase of parity 0, then of parity 1, and so on; for the phase "before the first" (parity 1)
// no wait is needed, so that a ring of buffers can begin with all of them empty.
//
// Who has waited sees what those have written who arrived, and what the copies brought.
// Source: PTX ISA, "Parallel synchronization and communication instructions: mbarrier".
#pragma once
#include "common.cuh"

struct alignas(8) Barrier {
  uint64_t state;  // opaque
};

// One thread does this; then comes fence_barrier_init() by the same thread, then a __syncthreads.
__device__ __forceinline__ void init_barrier(Barrier& barrier, int arrivals) {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::mbarrier_init(&barrier, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
#endif
}

// The barriers that this thread has initialised may be used by copies.
__device__ __forceinline__ void fence_barrier_init() {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::fence_mbarriers();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void arrive(Barrier& barrier) {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::mbarrier_arrive(&barrier);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
#endif
}

// Announce that copies will bring so many bytes in this phase, and arrive.
__device__ __forceinline__ void arrive_expect(Barrier& barrier, int bytes) {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::mbarrier_expect(&barrier, bytes);
  rawgrad_emulator::mbarrier_arrive(&barrier);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
#endif
}

// Wait until the phase of that parity has ended.
__device__ __forceinline__ void wait(Barrier& barrier, int parity) {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::mbarrier_wait(&barrier, parity);
#else
  uint32_t ended;
  do {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(ended)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
  } while (!ended);
#endif
}
