// Runs CUDA C++ kernels on a CPU, one block after the other, each thread of a block a fiber. For tests: slow and exact.
//
// A barrier that not every thread of the warp or block comes to ends the launch with an error, as it would hang a GPU.
// Threads run in rising or falling order between barriers: a result that depends on it lacks a barrier.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __constant__ const
#define __shared__ static
#define __launch_bounds__(...)

using std::max;
using std::min;

struct float2 { alignas(8) float x; float y; };
struct float3 { float x, y, z; };
struct float4 { alignas(16) float x; float y, z, w; };
struct int2 { alignas(8) int x; int y; };
struct uint4 { alignas(16) unsigned x; unsigned y, z, w; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
static_assert(sizeof(float2) == 8 && sizeof(float3) == 12 && sizeof(float4) == 16 && sizeof(int2) == 8);
static float2 make_float2(float x, float y) { return {x, y}; }
static float3 make_float3(float x, float y, float z) { return {x, y, z}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static dim3 gridDim, blockDim, blockIdx, threadIdx;

static float rsqrtf(float x) { return 1.f / std::sqrt(x); }
static float __fdividef(float x, float y) { return x / y; }
static int __popc(unsigned bits) { return __builtin_popcount(bits); }
static int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
template <class To, class From>
static To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
static int __float_as_int(float x) { return bits_as<int>(x); }
static float __int_as_float(int x) { return bits_as<float>(x); }
static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

namespace fibers {

constexpr size_t STACK = 128 << 10;

struct Meeting {
    unsigned expected = 0, arrived = 0, generation = 0;
};

struct Warp {
    Meeting meeting;
    uint32_t values[2][32];  // of this meeting and of the one before, which some threads may still read
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool ended;
};

static std::vector<Fiber> all;
static std::vector<Warp> warps;
static Meeting block;
static ucontext_t scheduler;
static unsigned running;
static size_t events;  // arrivals and ends: a round without any means that the block hangs
static std::function<void()> body;

static void run_fiber() {
    body();
    all[running].ended = true;
    ++events;
    swapcontext(&all[running].context, &scheduler);
}

static void meet(Meeting &meeting) {
    unsigned mine = meeting.generation;
    ++events;
    if (++meeting.arrived == meeting.expected) {
        meeting.arrived = 0;
        ++meeting.generation;
        return;
    }
    while (meeting.generation == mine) swapcontext(&all[running].context, &scheduler);
}

static bool run_block(unsigned threads, bool falling) {
    while (all.size() < threads) all.emplace_back();
    warps.assign((threads + 31) / 32, {});
    for (unsigned i = 0; i < warps.size(); ++i) warps[i].meeting.expected = min(32u, threads - 32 * i);
    block = {threads, 0, 0};
    for (unsigned i = 0; i < threads; ++i) {
        Fiber &fiber = all[i];
        fiber.ended = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_fiber, 0);
    }
    for (unsigned left = threads; left;) {
        size_t before = events;
        for (unsigned k = 0; k < threads; ++k) {
            running = falling ? threads - 1 - k : k;
            if (all[running].ended) continue;
            threadIdx.x = running;
            swapcontext(&scheduler, &all[running].context);
            left -= all[running].ended;
        }
        if (events == before) return false;
    }
    return true;
}

// ``combine`` of what the 32 threads of the warp gave.
template <class Combine>
static uint32_t exchange(unsigned mask, uint32_t value, Combine combine) {
    if (mask != 0xffffffffu) __builtin_trap();
    Warp &warp = warps[running / 32];
    uint32_t *values = warp.values[warp.meeting.generation & 1];
    values[running % 32] = value;
    meet(warp.meeting);
    return combine(values);
}

template <class... A, size_t... I>
static int launch(void (*kernel)(A...), unsigned across, unsigned down, unsigned threads, void **arguments, int falling,
                  std::index_sequence<I...>) {
    std::tuple<A...> given(*static_cast<A *>(arguments[I])...);
    gridDim = {across, down, 1}, blockDim = {threads, 1, 1}, threadIdx = {0, 0, 0};
    body = [&] { std::apply(kernel, given); };
    for (unsigned y = 0; y < down; ++y)
        for (unsigned x = 0; x < across; ++x) {
            blockIdx = {x, y, 0};
            if (!run_block(threads, falling)) return 1;
        }
    return 0;
}

template <class... A>
static int enter(void (*kernel)(A...), unsigned across, unsigned down, unsigned threads, void **arguments, int falling) {
    return launch(kernel, across, down, threads, arguments, falling, std::index_sequence_for<A...>());
}

}  // namespace fibers

static void __syncthreads() { fibers::meet(fibers::block); }
static void __syncwarp() { fibers::meet(fibers::warps[fibers::running / 32].meeting); }

static unsigned __ballot_sync(unsigned mask, int predicate) {
    return fibers::exchange(mask, predicate != 0, [](const uint32_t *values) {
        unsigned bits = 0;
        for (int lane = 0; lane < 32; ++lane) bits |= values[lane] << lane;
        return bits;
    });
}

static int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

static float __shfl_xor_sync(unsigned mask, float value, int lanes) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    unsigned from = (fibers::running % 32) ^ (unsigned)lanes;
    bits = fibers::exchange(mask, bits, [from](const uint32_t *values) { return values[from]; });
    std::memcpy(&value, &bits, 4);
    return value;
}

template <class Number>
static Number atomicAdd(Number *at, Number value) {
    Number old = *at;
    *at += value;
    return old;
}

// The entry of a kernel, for whoever loads the library. Returns 1 when a block hangs.
#define KERNEL(name)                                                                                                  \
    extern "C" int run_##name(unsigned across, unsigned down, unsigned threads, void **arguments, int falling) {       \
        return fibers::enter(name, across, down, threads, arguments, falling);                                         \
    }
