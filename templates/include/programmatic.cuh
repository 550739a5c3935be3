// Programmatic dependent launch (PTX ISA 9.7.13.15, griddepcontrol): from sm_90 on a kernel may start before the one
// before it in the stream has ended. Every kernel waits before any write, and before it reads what another kernel of
// the step writes; weights, and what earlier steps left, it may read at once. On older GPUs both calls are nothing.

__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
