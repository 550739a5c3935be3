// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of pairs (i, i + HEAD_DIM / 2).

// Sine and cosine of an angle in radians of up to a few hundred thousand, to about 2e-7.
//
// sincosf reduces such angles by its slow path (Payne and Hanek), in local memory. sincospif has none, as a whole
// number of half turns is subtracted exactly; so the angle is divided by pi first, in two floats (Dekker 1971):
// 1/pi = INV_PI_HIGH + INV_PI_LOW to 2^-50, and the product's rounding error is recovered by one fused multiply-add.
__device__ __forceinline__ void sine_cosine(float angle, float& sine, float& cosine) {
    constexpr float INV_PI_HIGH = 0.318309873342514038f, INV_PI_LOW = 1.28412765e-8f;
    const float high = __fmul_rn(angle, INV_PI_HIGH);  // never contracted: `low` is the error of this very product
    const float low = fmaf(angle, INV_PI_LOW, fmaf(angle, INV_PI_HIGH, -high));
    const float whole_turns = 2.0f * rintf(0.5f * high);
    sincospif((high - whole_turns) + low, &sine, &cosine);
}

// The sines and cosines of N neighbouring pairs at one position. The product is rounded to float, as the
// reference's is, so that both turn by the same angle.
template <int N> struct Rotation {
    float sine[N], cosine[N];

    __device__ __forceinline__ Rotation(int position, const float (&inv_freq)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) sine_cosine(float(position) * inv_freq[i], sine[i], cosine[i]);
    }

    __device__ __forceinline__ void turn(float (&first)[N], float (&second)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float turned = first[i] * cosine[i] - second[i] * sine[i];
            second[i] = second[i] * cosine[i] + first[i] * sine[i];
            first[i] = turned;
        }
    }
};
