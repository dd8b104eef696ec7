// cp.async: copies from global to shared memory that go on while the thread computes (sm_80 and newer).
//
// A thread starts copies, commits them as a group, and later waits until at most N of its groups are
// under way.  Its own copies have then arrived; those of other threads only after a barrier.
// Source: PTX ISA, "cp.async".
#pragma once
#include "common.cuh"

// Copy BYTES (4, 8 or 16), both places aligned to as many.  Without `inside` nothing is read and zeros arrive; `from`
// must be a valid address all the same.  NEAR: through the first-level cache, for what is asked for again soon.
template <int BYTES, bool NEAR = BYTES < 16>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
  static_assert(BYTES == 16 || (NEAR && (BYTES == 4 || BYTES == 8)), "cp.async moves 4, 8 or 16 bytes");
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::async_copy(to, from, BYTES, inside ? BYTES : 0);
#else
  const int from_source = inside ? BYTES : 0;
  if constexpr (!NEAR)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(from_source)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES),
                 "r"(from_source)
                 : "memory");
#endif
}

// The copies started since the last commit become a group.
__device__ __forceinline__ void commit_copies() {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most GROUPS_LEFT of this thread's groups, the latest ones, are under way.
template <int GROUPS_LEFT>
__device__ __forceinline__ void wait_copies() {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::async_wait(GROUPS_LEFT);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
#endif
}
