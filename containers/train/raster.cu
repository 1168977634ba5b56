// Blend the Gaussians of each tile front to back, and carry the image's gradient back to them. Compiled at start by NVRTC.
//
// One warp has a block of 8 x 4 PIXELS pixels, PIXELS a lane. A warp takes 32 Gaussians of its tile's list (gsplat) at a
// time, each lane tests one of them exactly against the block, and only those that touch it are blended: so tiles can be
// large, and their lists short to sort.
// Backward walks front to back again with what lies behind the current Gaussian, so forward saves nothing but the image.
// Thresholds are gsplat's: alpha from 1/255 to 0.999, transmittance at least 1e-4.

// TILE, WARPS (of a thread block) and PIXELS are given by launches.py; what is in a record: gaussians.cu, ``pack``.
#define WIDE 8
#define HIGH (4 * PIXELS)
#define ACROSS (TILE / WIDE)
#define BLOCKS (ACROSS * (TILE / HIGH))  // of a tile
#define RECORD 12
#define FULL 0xffffffffu
#define ALPHA_MIN (1.0f / 255.0f)
#define ALPHA_MAX 0.999f
#define T_MIN 1e-4f

// The least value of the quadratic form in the block; without the centre inside, it lies on a side that faces it.
__device__ float least(float4 p, float c, float x, float y) {
    float left = x - p.x, right = left + (WIDE - 1), top = y - p.y, bottom = top + (HIGH - 1);
    float a = p.z, b = p.w;
    float dx = fmaxf(fminf(0.f, right), left), dy = fmaxf(fminf(0.f, bottom), top);
    float y1 = fmaxf(fminf(-0.5f * b / c * dx, bottom), top), x2 = fmaxf(fminf(-0.5f * b / a * dy, right), left);
    float side = dx * (a * dx + b * y1) + c * y1 * y1;
    float other = x2 * (a * x2 + b * dy) + c * dy * dy;
    return fminf(side, other);
}

struct Place {
    int lane, x, y[PIXELS];
    bool live[PIXELS];
    int start, end;
    float left, top;
};

__device__ Place place(const int *offsets, int pairs, int width, int height, int columns, int tiles) {
    Place p;
    int warp = blockIdx.x * WARPS + threadIdx.x / 32, tile = min(warp / BLOCKS, tiles - 1), block = warp % BLOCKS;
    int left = tile % columns * TILE + block % ACROSS * WIDE, top = tile / columns * TILE + block / ACROSS * HIGH;
    p.lane = threadIdx.x % 32;
    p.x = left + p.lane % WIDE;
    for (int k = 0; k < PIXELS; ++k) {
        p.y[k] = top + p.lane / WIDE + 4 * k;
        p.live[k] = p.x < width && p.y[k] < height && warp < tiles * BLOCKS;
    }
    p.start = offsets[tile];
    p.end = tile + 1 == tiles ? pairs : offsets[tile + 1];
    p.left = left + 0.5f;
    p.top = top + 0.5f;
    return p;
}

__device__ bool any_live(const bool *live) {
    bool any = false;
    for (int k = 0; k < PIXELS; ++k) any |= live[k];
    return __any_sync(FULL, any);
}

// Take 32 Gaussians of the list into shared memory; returns the bits of those that touch the block.
__device__ unsigned take(const Place &p, int first, const int *ids, const float4 *records, float4 *shared, int *shared_id) {
    bool hit = false;
    __syncwarp();
    if (first + p.lane < p.end) {
        int id = ids[first + p.lane];
        float4 r0 = records[3 * id], r1 = records[3 * id + 1], r2 = records[3 * id + 2];
        hit = least(r0, r1.x, p.left, p.top) <= r2.y + 1e-3f;
        shared[3 * p.lane] = r0;
        shared[3 * p.lane + 1] = r1;
        shared[3 * p.lane + 2] = r2;
        shared_id[p.lane] = id;
    }
    __syncwarp();
    return __ballot_sync(FULL, hit);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) blend(const int *offsets, const int *ids, int pairs,
                                                               const float4 *records, int width, int height, int columns,
                                                               int tiles, float *image) {
    __shared__ float4 all[WARPS][96];
    __shared__ int all_ids[WARPS][32];
    float4 *shared = all[threadIdx.x / 32];
    Place p = place(offsets, pairs, width, height, columns, tiles);
    float T[PIXELS], rgb[PIXELS][3] = {};
    bool live[PIXELS];
    for (int k = 0; k < PIXELS; ++k) T[k] = 1.f, live[k] = p.live[k];
    bool going = any_live(live);
    for (int first = p.start; going && first < p.end; first += 32) {
        unsigned bits = take(p, first, ids, records, shared, all_ids[threadIdx.x / 32]);
        while (bits) {
            int at = __ffs(bits) - 1;
            bits &= bits - 1;
            float4 r0 = shared[3 * at], r1 = shared[3 * at + 1];
            float blue = shared[3 * at + 2].x;
            float dx = r0.x - (p.x + 0.5f), slope = r0.w * dx, middle = r1.y - r0.z * dx * dx;
#pragma unroll
            for (int k = 0; k < PIXELS; ++k) {
                float dy = r0.y - (p.y[k] + 0.5f);
                float alpha = fminf(exp2f(middle - dy * (slope + r1.x * dy)), ALPHA_MAX);
                if (!live[k] || alpha < ALPHA_MIN) continue;
                float after = T[k] * (1.f - alpha);
                if (after <= T_MIN) {
                    live[k] = false;
                    continue;
                }
                float w = alpha * T[k];
                rgb[k][0] += w * r1.z;
                rgb[k][1] += w * r1.w;
                rgb[k][2] += w * blue;
                T[k] = after;
            }
        }
        going = any_live(live);
    }
    for (int k = 0; k < PIXELS; ++k)
        if (p.live[k])
            for (int channel = 0; channel < 3; ++channel)
                image[3 * (p.y[k] * width + p.x) + channel] = rgb[k][channel];
}

// Sums of v[0..7] over the warp: lane l gets that of v[l / 4]. Half of the values change hands at each step.
__device__ float sums_of_eight(float *v, int lane) {
#pragma unroll
    for (int half = 4; half >= 1; half /= 2) {
        bool upper = lane & (4 * half);
#pragma unroll
        for (int k = 0; k < half; ++k) {
            float give = upper ? v[k] : v[k + half];
            float keep = upper ? v[k + half] : v[k];
            v[k] = keep + __shfl_xor_sync(FULL, give, 4 * half);
        }
    }
    v[0] += __shfl_xor_sync(FULL, v[0], 2);
    return v[0] + __shfl_xor_sync(FULL, v[0], 1);
}

// Adds to ``sums`` [n, RECORD]: with q = alpha dL/dalpha the sums of q, q dx, q dy, q dx dx, q dx dy, q dy dy, and dL/drgb.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    blend_backward(const int *offsets, const int *ids, int pairs, const float4 *records, int width, int height, int columns,
                   int tiles, const float *image, const float *grad, float *sums) {
    __shared__ float4 all[WARPS][96];
    __shared__ int all_ids[WARPS][32];
    float4 *shared = all[threadIdx.x / 32];
    int *shared_id = all_ids[threadIdx.x / 32];
    Place p = place(offsets, pairs, width, height, columns, tiles);
    float T[PIXELS], behind[PIXELS] = {}, g[PIXELS][3] = {};
    bool live[PIXELS];
    for (int k = 0; k < PIXELS; ++k) T[k] = 1.f, live[k] = p.live[k];
    for (int k = 0; k < PIXELS; ++k)
        if (p.live[k])
            for (int channel = 0; channel < 3; ++channel) {
                int at = 3 * (p.y[k] * width + p.x) + channel;
                g[k][channel] = grad[at];
                behind[k] += grad[at] * image[at];
            }
    bool going = any_live(live);
    for (int first = p.start; going && first < p.end; first += 32) {
        unsigned bits = take(p, first, ids, records, shared, shared_id);
        while (bits) {
            int at = __ffs(bits) - 1;
            bits &= bits - 1;
            float4 r0 = shared[3 * at], r1 = shared[3 * at + 1];
            float blue = shared[3 * at + 2].x;
            float dx = r0.x - (p.x + 0.5f), slope = r0.w * dx, middle = r1.y - r0.z * dx * dx;
            float sum_q = 0.f, sum_y = 0.f, sum_yy = 0.f, red = 0.f, green = 0.f, of_blue = 0.f;
            bool any = false;
#pragma unroll
            for (int k = 0; k < PIXELS; ++k) {
                float dy = r0.y - (p.y[k] + 0.5f);
                float whole = exp2f(middle - dy * (slope + r1.x * dy)), alpha = fminf(whole, ALPHA_MAX);
                if (!live[k] || alpha < ALPHA_MIN) continue;
                float after = T[k] * (1.f - alpha);
                if (after <= T_MIN) {
                    live[k] = false;
                    continue;
                }
                any = true;
                float w = alpha * T[k];
                float shade = w * (g[k][0] * r1.z + g[k][1] * r1.w + g[k][2] * blue);
                behind[k] -= shade;
                float q = whole <= ALPHA_MAX ? shade - behind[k] * __fdividef(alpha, 1.f - alpha) : 0.f;
                sum_q += q;
                sum_y += q * dy;
                sum_yy += q * dy * dy;
                red += w * g[k][0];
                green += w * g[k][1];
                of_blue += w * g[k][2];
                T[k] = after;
            }
            if (!__any_sync(FULL, any)) continue;
            float v[8] = {sum_q, sum_q * dx, sum_y, sum_q * dx * dx, sum_y * dx, sum_yy, red, green};
            float sum = sums_of_eight(v, p.lane);
            for (int step = 16; step; step /= 2) of_blue += __shfl_xor_sync(FULL, of_blue, step);
            int column = p.lane == 1 ? 8 : p.lane / 4;
            if (p.lane % 4 == 0 || p.lane == 1)
                atomicAdd(sums + RECORD * shared_id[at] + column, p.lane == 1 ? of_blue : sum);
        }
        going = any_live(live);
    }
}
