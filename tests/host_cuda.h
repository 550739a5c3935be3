// Emitted CUDA as C++ for the host: what kernels without inline PTX use of the language. The threads of a block are
// fibers of one thread, each of which runs until it waits for others; blocks run one after another. So arithmetic and
// control flow are those of a GPU, but races, caches and its memory model do not exist here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <sched.h>
#include <setjmp.h>
#include <time.h>
#include <ucontext.h>

#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::isfinite;
using std::isnan;
using std::max;
using std::min;

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

namespace host {

constexpr int LANES = 32, STACK_BYTES = 1 << 16, MOST_ROUNDS = 1000000;

// A fiber lives on from block to block. It is begun by setcontext, and entered again by _longjmp, which unlike
// swapcontext asks nothing of the kernel.
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    int thread = 0;
    bool begun = false, ended = false;
};

// What lanes give each other: in the exchange under way, and in the one before, which some have yet to read.
struct Warp {
    uint64_t values[2][LANES];
    int arrived;
    long exchanges;
};

struct Index { int x = 0, y = 0, z = 0; };

static std::vector<std::unique_ptr<Fiber>> fibers;
static std::vector<Warp> warps;
static std::function<void()> kernel;
static jmp_buf scheduler;
static Fiber* running = nullptr;
static int alive = 0, arrived = 0, counting = 0, counted = 0;
static long barriers = 0;

inline void let_others_run() {
    if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}
inline int lane() { return running->thread % LANES; }

inline void open_barrier() {
    arrived = 0;
    counted = counting;
    counting = 0;
    barriers++;
}

inline void wait_at_barrier(bool counts) {
    counting += counts;
    const long before = barriers;
    if (++arrived == alive) return open_barrier();
    while (barriers == before) let_others_run();
}

// All 32 lanes give a value and see those of the others.
template <typename T> struct Exchange {
    T values[LANES];

    explicit Exchange(T mine) {
        Warp& warp = warps[running->thread / LANES];
        const long before = warp.exchanges;
        uint64_t(&slots)[LANES] = warp.values[before % 2];
        std::memcpy(&slots[lane()], &mine, sizeof(T));
        if (++warp.arrived == LANES) {
            warp.arrived = 0;
            warp.exchanges++;
        }
        while (warp.exchanges == before) let_others_run();
        for (int i = 0; i < LANES; i++) std::memcpy(&values[i], &slots[i], sizeof(T));
    }
};

inline void run_threads() {
    for (;;) {
        kernel();
        running->ended = true;
        if (--alive > 0 && arrived == alive) open_barrier();  // who has returned is not waited for
        let_others_run();
    }
}

inline void let_run(Fiber& fiber) {
    running = &fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, STACK_BYTES};
    makecontext(&fiber.context, run_threads, 0);
    setcontext(&fiber.context);
}

template <typename To, typename From> To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

}  // namespace host

static host::Index blockIdx, gridDim;
static const struct { struct { operator unsigned() const { return host::running->thread; } } x; } threadIdx;

namespace host {

inline void run_block(int threads) {
    while (int(fibers.size()) < threads) fibers.push_back(std::make_unique<Fiber>());
    warps.assign((threads + LANES - 1) / LANES, Warp{});
    alive = threads;
    arrived = counting = 0;
    for (int thread = 0; thread < threads; thread++) {
        fibers[thread]->thread = thread;
        fibers[thread]->ended = false;
    }
    for (int round = 0; alive > 0; round++) {
        if (round == MOST_ROUNDS) {
            std::fputs("a thread waits for one that does not come\n", stderr);
            std::abort();
        }
        for (int thread = 0; thread < threads; thread++)
            if (!fibers[thread]->ended) let_run(*fibers[thread]);
    }
}

inline void launch(const int* grid, int threads, std::function<void()> body) {
    kernel = std::move(body);
    gridDim = {grid[0], grid[1], grid[2]};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) run_block(threads);
}

}  // namespace host

inline void __syncthreads() { host::wait_at_barrier(false); }
inline int __syncthreads_count(bool counts) {
    host::wait_at_barrier(counts);
    return host::counted;  // until all are at the next barrier
}

template <typename T> T __shfl_sync(unsigned, T x, int from) { return host::Exchange<T>(x).values[from]; }
template <typename T> T __shfl_xor_sync(unsigned, T x, int mask) {
    return host::Exchange<T>(x).values[host::lane() ^ mask];
}
template <typename T> T __shfl_up_sync(unsigned, T x, int distance) {
    const int lane = host::lane();
    return host::Exchange<T>(x).values[lane < distance ? lane : lane - distance];
}
inline unsigned __ballot_sync(unsigned, bool x) {
    const host::Exchange<bool> all(x);
    unsigned found = 0;
    for (int i = 0; i < host::LANES; i++) found |= unsigned(all.values[i]) << i;
    return found;
}
inline unsigned __reduce_max_sync(unsigned, unsigned x) {
    const host::Exchange<unsigned> all(x);
    return *std::max_element(all.values, all.values + host::LANES);
}
inline int __reduce_min_sync(unsigned, int x) {
    const host::Exchange<int> all(x);
    return *std::min_element(all.values, all.values + host::LANES);
}

// Of kernels that wait for those of another thread of the process: half a nanosecond, and a turn for the others.
inline long long clock64() {
    sched_yield();
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 2 * (now.tv_sec * 1000000000LL + now.tv_nsec);
}
inline void __trap() { std::abort(); }
inline void __threadfence() {}

template <typename T> T atomicAdd(T* at, T x) { return std::exchange(*at, *at + x); }
template <typename T> T atomicMin(T* at, T x) { return std::exchange(*at, min(*at, x)); }
inline int atomicOr(int* at, int x) { return std::exchange(*at, *at | x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __double2float_rn(double x) { return float(x); }
inline int __clzll(unsigned long long x) { return __builtin_clzll(x); }
inline double __ull2double_rn(unsigned long long x) { return double(x); }
inline unsigned long long __double2ull_ru(double x) { return x > 0 ? std::ceil(x) : 0; }
inline unsigned long long __float2ull_rn(float x) { return std::rint(x); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned __int128>(a) * b >> 64;
}
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float __fdividef(float a, float b) { return a / b; }
inline void sincospif(float x, float* sine, float* cosine) {
    *sine = std::sin(M_PI * double(x));
    *cosine = std::cos(M_PI * double(x));
}
inline float __int_as_float(int x) { return host::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return host::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return host::bits<unsigned>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(x); }
