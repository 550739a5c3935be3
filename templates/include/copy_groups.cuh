// Copies to shared memory by groups, which end in the order they began: what a ring of several under way waits for.

// Ends the group of copies that this thread has started since the last one (PTX ISA 9.7.9.25.3, cp.async).
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most PENDING groups of this thread are under way.
template <int PENDING> __device__ __forceinline__ void wait_for_older_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
