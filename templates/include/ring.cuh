// A ring of blocks in shared memory, which warps that load fill ahead of warps that multiply (wgmma.cuh).

// Where a warp is among the SLOTS blocks that shared memory holds in turn.
template <int SLOTS> struct Turn {
    int slot = 0;
    unsigned parity = 0;

    __device__ __forceinline__ void next() {
        if (++slot < SLOTS) return;
        slot = 0;
        parity ^= 1;
    }
};

// The blocks in shared memory. Barrier `full` of a slot ends a phase when all that was loaded into it has landed,
// `empty` when all warps that multiply have done with it.
template <int SLOTS, int BYTES> struct Ring {
    unsigned blocks, barriers;  // shared addresses

    static constexpr int BYTES_IN_ALL = SLOTS * BYTES, BARRIER_BYTES = 2 * SLOTS * 8;
    using Turn = ::Turn<SLOTS>;

    __device__ __forceinline__ void init(int loading_threads, int multiplying_warps) const {
        for (int slot = 0; slot < SLOTS; slot++) {
            init_barrier(full(slot), loading_threads);
            init_barrier(empty(slot), multiplying_warps);
        }
    }
    __device__ __forceinline__ unsigned full(int slot) const { return barriers + slot * 8; }
    __device__ __forceinline__ unsigned empty(int slot) const { return barriers + (SLOTS + slot) * 8; }
    __device__ __forceinline__ unsigned block(const Turn& turn) const { return blocks + turn.slot * BYTES; }

    __device__ __forceinline__ void wait_until_empty(const Turn& turn) const {
        wait_for_phase(empty(turn.slot), turn.parity ^ 1);
    }
    __device__ __forceinline__ void landing(const Turn& turn) const { arrive_after_copies(full(turn.slot)); }
    __device__ __forceinline__ void landed(const Turn& turn) const { arrive(full(turn.slot)); }
    __device__ __forceinline__ void wait_until_full(const Turn& turn) const {
        wait_for_phase(full(turn.slot), turn.parity);
        let_products_see_writes();
    }
    __device__ __forceinline__ void release(const Turn& turn) const {
        if (threadIdx.x % 32 == 0) arrive(empty(turn.slot));
    }
};
