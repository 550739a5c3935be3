// Storage types and their conversions. Arithmetic is in float; bf16_t and half_t are only stored.
// Our own, because cuda_bf16.h costs NVRTC more time than all the kernels of a block.

struct bf16_t { unsigned short bits; };
struct half_t { unsigned short bits; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16_t x) { return __uint_as_float(unsigned(x.bits) << 16); }
__device__ __forceinline__ float to_float(half_t x) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
}

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16_t from_float<bf16_t>(float x) {
    bf16_t out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
}
template <> __device__ __forceinline__ half_t from_float<half_t>(float x) {
    half_t out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
}

// x as it would read after being stored as T: fused kernels round where the separate kernels would.
template <typename T> __device__ __forceinline__ float round_to(float x) { return to_float(from_float<T>(x)); }

// N consecutive elements in one access of N * sizeof(T) bytes (4, 8 or 16), or several of 16; p aligned to match.
template <int BYTES> struct Chunk;
template <> struct Chunk<2> { unsigned short v; };
template <> struct Chunk<4> { unsigned v; };
template <> struct Chunk<8> { uint2 v; };
template <> struct Chunk<16> { uint4 v; };

// The chunk's N elements of type T, as floats.
template <int N, typename T>
__device__ __forceinline__ void unpack(float (&out)[N], const Chunk<N * sizeof(T)>& chunk) {
    union Pack { Chunk<N * sizeof(T)> raw; T items[N]; __device__ Pack() {} } pack;
    pack.raw = chunk;
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = to_float(pack.items[i]);
}

template <int N, typename T> __device__ __forceinline__ void load_vector(float (&out)[N], const T* p) {
    constexpr int PER = N * sizeof(T) <= 16 ? N : 16 / sizeof(T);
    union Pack { Chunk<PER * sizeof(T)> raw; T items[PER]; __device__ Pack() {} };
#pragma unroll
    for (int i = 0; i < N; i += PER) {
        Pack pack;
        pack.raw = *reinterpret_cast<const Chunk<PER * sizeof(T)>*>(p + i);
#pragma unroll
        for (int j = 0; j < PER; j++) out[i + j] = to_float(pack.items[j]);
    }
}

template <int N, typename T> __device__ __forceinline__ void store_vector(T* p, const float (&in)[N]) {
    constexpr int PER = N * sizeof(T) <= 16 ? N : 16 / sizeof(T);
    union Pack { Chunk<PER * sizeof(T)> raw; T items[PER]; __device__ Pack() {} };
#pragma unroll
    for (int i = 0; i < N; i += PER) {
        Pack pack;
#pragma unroll
        for (int j = 0; j < PER; j++) pack.items[j] = from_float<T>(in[i + j]);
        *reinterpret_cast<Chunk<PER * sizeof(T)>*>(p + i) = pack.raw;
    }
}
