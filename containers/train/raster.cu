// Blend the Gaussians of each tile front to back, and carry the image's gradient back to them. Compiled at start by NVRTC.
//
// One warp has a block of 8 x 4 PIXELS pixels, and each of its four groups of eight lanes a quarter of it, PIXELS a lane. A
// warp takes 32 TAKE Gaussians of its tile's list (gsplat) at a time, each lane tests some of them exactly against the four
// quarters, and each group blends only those that touch its own: so tiles can be large, and their lists short to sort, and
// a small Gaussian occupies eight lanes rather than 32. Sums over a group take three exchanges, those over a warp five.
// Backward walks front to back again with what lies behind the current Gaussian, so forward saves nothing but the image.
// Thresholds are gsplat's: alpha from 1/255 to 0.999, transmittance at least 1e-4.

// TILE, WARPS (of a thread block), PIXELS and TAKE are given by launches.py; what is in a record: gaussians.cu, ``pack``.
#define WIDE 8
#define HIGH (4 * PIXELS)
#define ACROSS (TILE / WIDE)
#define BLOCKS (ACROSS * (TILE / HIGH))  // of a tile
#define GROUPS 4
#define LANES 8  // of a group: four across, two down
#define BATCH (32 * TAKE)
#define RECORD 12
#define FULL 0xffffffffu
#define ALPHA_MIN (1.0f / 255.0f)
#define ALPHA_MAX 0.999f
#define T_MIN 1e-4f
#define NOTHING -1e30f  // log2 of the opacity of a Gaussian that is not there

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
    int group = p.lane / LANES;
    p.x = left + group % 2 * (WIDE / 2) + p.lane % 4;
    for (int k = 0; k < PIXELS; ++k) {
        p.y[k] = top + group / 2 * (HIGH / 2) + p.lane % LANES / 4 + 2 * k;
        p.live[k] = p.x < width && p.y[k] < height && warp < tiles * BLOCKS;
    }
    p.start = offsets[tile];
    p.end = tile + 1 == tiles ? pairs : offsets[tile + 1];
    p.left = left + 0.5f;
    p.top = top + 0.5f;
    return p;
}

// The lanes that have a pixel left to blend.
__device__ unsigned lanes_alive(const bool *live) {
    bool any = false;
    for (int k = 0; k < PIXELS; ++k) any |= live[k];
    return __ballot_sync(FULL, any);
}

__device__ bool is_among(unsigned lanes, int group) { return lanes >> (LANES * group) & 0xffu; }

// Whether a Gaussian of record (p, c) reaches ``limit`` in the quarter with this first pixel. The least value of the
// quadratic form: without the centre inside, it lies on a side that faces it. by_x = -b / 2c, by_y = -b / 2a.
__device__ bool touches(float4 p, float c, float by_x, float by_y, float limit, float x, float y) {
    float left = x - p.x, right = left + (WIDE / 2 - 1), top = y - p.y, bottom = top + (HIGH / 2 - 1);
    float a = p.z, b = p.w;
    float dx = fmaxf(fminf(0.f, right), left), dy = fmaxf(fminf(0.f, bottom), top);
    float y1 = fmaxf(fminf(by_x * dx, bottom), top), x2 = fmaxf(fminf(by_y * dy, right), left);
    float side = dx * (a * dx + b * y1) + c * y1 * y1;
    float other = x2 * (a * x2 + b * dy) + c * dy * dy;
    return fminf(side, other) <= limit;
}

struct Batch {
    float4 records[3 * BATCH];
    int ids[BATCH];
    unsigned char order[GROUPS][BATCH];  // of each group: the numbers of those that touch its quarter
};

struct Counts {
    int mine, most;  // Gaussians of this lane's group, and of the group that has most
};

// Take the next Gaussians of the list into shared memory, and note those that touch the quarter of a group in ``alive``.
__device__ Counts take(const Place &p, int first, unsigned alive, const int *ids, const float4 *records, Batch &batch) {
    int counts[GROUPS] = {};
    __syncwarp();
#pragma unroll
    for (int part = 0; part < TAKE; ++part) {
        int at = 32 * part + p.lane;
        bool hits[GROUPS] = {};
        if (first + at < p.end) {
            int id = ids[first + at];
            float4 r0 = records[3 * id], r1 = records[3 * id + 1], r2 = records[3 * id + 2];
            float by_x = -0.5f * r0.w / r1.x, by_y = -0.5f * r0.w / r0.z, limit = r2.y + 1e-3f;
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                float x = p.left + group % 2 * (WIDE / 2), y = p.top + group / 2 * (HIGH / 2);
                hits[group] = is_among(alive, group) && touches(r0, r1.x, by_x, by_y, limit, x, y);
            }
            batch.records[3 * at] = r0;
            batch.records[3 * at + 1] = r1;
            batch.records[3 * at + 2] = r2;
            batch.ids[at] = id;
        }
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            unsigned bits = __ballot_sync(FULL, hits[group]);
            if (hits[group]) batch.order[group][counts[group] + __popc(bits & ((1u << p.lane) - 1u))] = at;
            counts[group] += __popc(bits);
        }
    }
    __syncwarp();
    int group = p.lane / LANES;
    int mine = group == 0 ? counts[0] : group == 1 ? counts[1] : group == 2 ? counts[2] : counts[3];
    return {mine, max(max(counts[0], counts[1]), max(counts[2], counts[3]))};
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) blend(const int *offsets, const int *ids, int pairs,
                                                               const float4 *records, int width, int height, int columns,
                                                               int tiles, float *image) {
    __shared__ Batch batches[WARPS];
    Batch &batch = batches[threadIdx.x / 32];
    Place p = place(offsets, pairs, width, height, columns, tiles);
    const unsigned char *order = batch.order[p.lane / LANES];
    float T[PIXELS], rgb[PIXELS][3] = {};
    bool live[PIXELS];
    for (int k = 0; k < PIXELS; ++k) T[k] = 1.f, live[k] = p.live[k];
    unsigned alive = lanes_alive(live);
    for (int first = p.start; alive && first < p.end; first += BATCH) {
        Counts counts = take(p, first, alive, ids, records, batch);
        for (int i = 0; i < counts.most; ++i) {
            bool there = i < counts.mine;
            int at = there ? order[i] : 0;
            float4 r0 = batch.records[3 * at], r1 = batch.records[3 * at + 1];
            float blue = batch.records[3 * at + 2].x;
            float dx = r0.x - (p.x + 0.5f), slope = r0.w * dx, middle = (there ? r1.y : NOTHING) - r0.z * dx * dx;
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
        alive = lanes_alive(live);
    }
    for (int k = 0; k < PIXELS; ++k)
        if (p.live[k])
            for (int channel = 0; channel < 3; ++channel)
                image[3 * (p.y[k] * width + p.x) + channel] = rgb[k][channel];
}

// Sums of v[0..7] over the group: lane l of it gets that of v[l]. Half of the values change hands at each step.
__device__ float sums_of_eight(float *v, int lane) {
#pragma unroll
    for (int half = 4; half >= 1; half /= 2) {
        bool upper = lane & half;
#pragma unroll
        for (int k = 0; k < half; ++k) {
            float give = upper ? v[k] : v[k + half];
            float keep = upper ? v[k + half] : v[k];
            v[k] = keep + __shfl_xor_sync(FULL, give, half);
        }
    }
    return v[0];
}

// Adds to ``sums`` [n, RECORD]: with q = alpha dL/dalpha the sums of q, q dx, q dy, q dx dx, q dx dy, q dy dy, and dL/drgb.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    blend_backward(const int *offsets, const int *ids, int pairs, const float4 *records, int width, int height, int columns,
                   int tiles, const float *image, const float *grad, float *sums) {
    __shared__ Batch batches[WARPS];
    Batch &batch = batches[threadIdx.x / 32];
    Place p = place(offsets, pairs, width, height, columns, tiles);
    const unsigned char *order = batch.order[p.lane / LANES];
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
    unsigned alive = lanes_alive(live);
    for (int first = p.start; alive && first < p.end; first += BATCH) {
        Counts counts = take(p, first, alive, ids, records, batch);
        for (int i = 0; i < counts.most; ++i) {
            bool there = i < counts.mine;
            int at = there ? order[i] : 0;
            float4 r0 = batch.records[3 * at], r1 = batch.records[3 * at + 1];
            float blue = batch.records[3 * at + 2].x;
            float dx = r0.x - (p.x + 0.5f), slope = r0.w * dx, middle = (there ? r1.y : NOTHING) - r0.z * dx * dx;
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
            unsigned blended = __ballot_sync(FULL, any);
            if (!blended) continue;
            float v[8] = {sum_q, sum_q * dx, sum_y, sum_q * dx * dx, sum_y * dx, sum_yy, red, green};
            float sum = sums_of_eight(v, p.lane);
            for (int step = LANES / 2; step; step /= 2) of_blue += __shfl_xor_sync(FULL, of_blue, step);
            if (!is_among(blended, p.lane / LANES)) continue;
            float *row = sums + RECORD * batch.ids[at];
            atomicAdd(row + p.lane % LANES, sum);
            if (p.lane % LANES == 0) atomicAdd(row + 8, of_blue);
        }
        alive = lanes_alive(live);
    }
}
