// Barriers in shared memory that also count what copies and other blocks bring (PTX ISA 9.7.13.15, mbarrier).

// An mbarrier: a phase ends when it has been arrived at `count` times. Phases alternate in parity from 0;
// the one before the first counts as ended.
__device__ __forceinline__ void init_barrier(unsigned barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void wait_for_phase(unsigned barrier, unsigned parity) {
    unsigned ended;
    do {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(ended)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!ended);
}
