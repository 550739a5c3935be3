// Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), for any kernel that has a row at hand.
//
// A norm is a struct of its attributes. The kernel adds up `summand` of every element of a row, asks for the row's
// `scale`, and gets each normalised element from `apply`.
struct RmsNorm {
    float eps, offset;  // the offset is added to all gains

    static __device__ __forceinline__ float summand(float x) { return x * x; }
    __device__ __forceinline__ float scale(float sum, int width) const { return 1.0f / sqrtf(sum / width + eps); }
    __device__ __forceinline__ float apply(float x, float scale, float gain) const {
        return x * (scale * (offset == 0.0f ? gain : offset + gain));
    }
};
