// Copies that do not look at what they copy.

// VECTOR elements in one access of at most 16 bytes; both pointers aligned to its size.
template <int VECTOR, typename T> __device__ __forceinline__ void copy_vector(T* to, const T* from) {
    using Access = Chunk<VECTOR * sizeof(T)>;
    *reinterpret_cast<Access*>(to) = *reinterpret_cast<const Access*>(from);
}

// One row of WIDTH elements, by a whole block.
template <int WIDTH, int VECTOR, int THREADS, typename T>
__device__ __forceinline__ void copy_row(T* to, const T* from) {
#pragma unroll
    for (int column = threadIdx.x * VECTOR; column < WIDTH; column += THREADS * VECTOR) {
        copy_vector<VECTOR>(to + column, from + column);
    }
}
