// Clusters: blocks that run at the same time and reach each other's shared memory (PTX ISA 3.3.2, from sm_90 on).

__device__ __forceinline__ int blocks_in_cluster() {
    int count;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count));
    return count;
}

__device__ __forceinline__ int rank_in_cluster() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Every thread of the cluster arrives, and may do other work before it waits until all have. Nothing is promised of
// memory but that the barriers that this thread has prepared are known (PTX ISA 9.7.13.4, barrier.cluster).
__device__ __forceinline__ void arrive_at_cluster() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// Arrive at an mbarrier whose phase then ends when so many bytes have come, be it before or after.
__device__ __forceinline__ void arrive_expecting(unsigned barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// What block `rank` of the cluster has where this block has `address` in its shared memory (PTX ISA 9.7.9.22, mapa).
__device__ __forceinline__ unsigned address_in_block(unsigned address, int rank) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

// Send values to another block, which has started; its mbarrier counts their bytes when they have come
// (PTX ISA 9.7.9.12, st.async). Unlike a store and a barrier of the cluster, it waits for nothing else.
__device__ __forceinline__ void send(unsigned to, float4 values, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "f"(values.x), "f"(values.y), "f"(values.z), "f"(values.w), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void send(unsigned to, float2 values, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
                 "f"(values.x), "f"(values.y), "r"(barrier)
                 : "memory");
}

// Wait for every thread of the cluster, and see what all have written to their shared memory.
__device__ __forceinline__ void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// What block `rank` of the cluster has in its shared memory where this block has `own`.
template <typename T> __device__ __forceinline__ const T* in_block(const T* own, int rank) {
    const T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(own), "r"(rank));
    return there;
}
