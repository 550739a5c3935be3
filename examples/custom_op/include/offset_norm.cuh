// Root-mean-square normalisation, the weight stored less 1. See rms_norm.cuh for what a norm is.
struct OffsetNorm {
    float eps;

    static __device__ __forceinline__ float summand(float x) { return x * x; }
    __device__ __forceinline__ float scale(float sum, int width) const { return 1.0f / sqrtf(sum / width + eps); }
    static __device__ __forceinline__ float apply(float x, float scale, float gain) {
        return x * scale * (1.0f + gain);
    }
};
