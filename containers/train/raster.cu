// Blend the Gaussians of each tile front to back, and carry the image's gradient back to them. Compiled at start by NVRTC.
//
// One warp has a block of 8x8 pixels, two a lane. The lists are those of 16x16 tiles (gsplat); a warp takes 32 Gaussians
// of its list at a time, each lane tests one of them exactly against the block, and only those that touch it are blended.
// Backward walks front to back again with what lies behind the current Gaussian, so forward saves nothing but the image.
// Thresholds are gsplat's: alpha from 1/255 to 0.999, transmittance at least 1e-4.

#define TILE 16
#define BLOCK 8
#define WARPS ((TILE / BLOCK) * (TILE / BLOCK))
#define RECORD 12
#define FULL 0xffffffffu
#define ALPHA_MIN (1.0f / 255.0f)
#define ALPHA_MAX 0.999f
#define T_MIN 1e-4f

// A record: mean x, y; conic a, b, c; opacity; red, green, blue; ln(255 opacity), the form's value where alpha is 1/255.
extern "C" __global__ void pack(const float *means2d, const float *conics, const float *opacities, const float *sh_colors,
                                int n, float4 *records) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float o = opacities[i];
    records[3 * i] = make_float4(means2d[2 * i], means2d[2 * i + 1], conics[3 * i], conics[3 * i + 1]);
    records[3 * i + 1] = make_float4(conics[3 * i + 2], o, fmaxf(sh_colors[3 * i] + 0.5f, 0.f),
                                     fmaxf(sh_colors[3 * i + 1] + 0.5f, 0.f));
    records[3 * i + 2] = make_float4(fmaxf(sh_colors[3 * i + 2] + 0.5f, 0.f), logf(255.f * o), 0.f, 0.f);
}

// The least value of the quadratic form in the block; without the centre inside, it lies on a side that faces it.
__device__ float least(float4 p, float c, float x, float y) {
    float left = x - p.x, right = left + (BLOCK - 1), top = y - p.y, bottom = top + (BLOCK - 1);
    float a = p.z, b = p.w;
    float dx = fmaxf(fminf(0.f, right), left), dy = fmaxf(fminf(0.f, bottom), top);
    float y1 = fmaxf(fminf(-b / c * dx, bottom), top), x2 = fmaxf(fminf(-b / a * dy, right), left);
    float side = 0.5f * (a * dx * dx + c * y1 * y1) + b * dx * y1;
    float other = 0.5f * (a * x2 * x2 + c * dy * dy) + b * x2 * dy;
    return fminf(side, other);
}

struct Place {
    int lane, x, y[2];
    bool inside[2];
    int start, end;
    float left, top;
};

__device__ Place place(const int *offsets, int pairs, int width, int height, int columns, int tiles) {
    Place p;
    int warp = threadIdx.x / 32, tile = blockIdx.x;
    int left = tile % columns * TILE + warp % (TILE / BLOCK) * BLOCK;
    int top = tile / columns * TILE + warp / (TILE / BLOCK) * BLOCK;
    p.lane = threadIdx.x % 32;
    p.x = left + p.lane % BLOCK;
    for (int k = 0; k < 2; ++k) {
        p.y[k] = top + p.lane / BLOCK + 4 * k;
        p.inside[k] = p.x < width && p.y[k] < height;
    }
    p.start = offsets[tile];
    p.end = tile + 1 == tiles ? pairs : offsets[tile + 1];
    p.left = left + 0.5f;
    p.top = top + 0.5f;
    return p;
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
    float T[2] = {1.f, 1.f}, rgb[2][3] = {};
    bool live[2] = {p.inside[0], p.inside[1]};
    bool going = __any_sync(FULL, live[0] || live[1]);
    for (int first = p.start; going && first < p.end; first += 32) {
        unsigned bits = take(p, first, ids, records, shared, all_ids[threadIdx.x / 32]);
        while (bits) {
            int at = __ffs(bits) - 1;
            bits &= bits - 1;
            float4 r0 = shared[3 * at], r1 = shared[3 * at + 1];
            float blue = shared[3 * at + 2].x;
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                float dx = r0.x - (p.x + 0.5f), dy = r0.y - (p.y[k] + 0.5f);
                float sigma = 0.5f * (r0.z * dx * dx + r1.x * dy * dy) + r0.w * dx * dy;
                float alpha = fminf(r1.y * __expf(-sigma), ALPHA_MAX);
                if (!live[k] || sigma < 0.f || alpha < ALPHA_MIN) continue;
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
        going = __any_sync(FULL, live[0] || live[1]);
    }
    for (int k = 0; k < 2; ++k)
        if (p.inside[k])
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
    float T[2] = {1.f, 1.f}, behind[2] = {}, g[2][3] = {};
    bool live[2] = {p.inside[0], p.inside[1]};
    for (int k = 0; k < 2; ++k)
        if (p.inside[k])
            for (int channel = 0; channel < 3; ++channel) {
                int at = 3 * (p.y[k] * width + p.x) + channel;
                g[k][channel] = grad[at];
                behind[k] += grad[at] * image[at];
            }
    bool going = __any_sync(FULL, live[0] || live[1]);
    for (int first = p.start; going && first < p.end; first += 32) {
        unsigned bits = take(p, first, ids, records, shared, shared_id);
        while (bits) {
            int at = __ffs(bits) - 1;
            bits &= bits - 1;
            float4 r0 = shared[3 * at], r1 = shared[3 * at + 1];
            float blue = shared[3 * at + 2].x;
            float v[8] = {}, of_blue = 0.f;
            bool any = false;
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                float dx = r0.x - (p.x + 0.5f), dy = r0.y - (p.y[k] + 0.5f);
                float sigma = 0.5f * (r0.z * dx * dx + r1.x * dy * dy) + r0.w * dx * dy;
                float whole = r1.y * __expf(-sigma), alpha = fminf(whole, ALPHA_MAX);
                if (!live[k] || sigma < 0.f || alpha < ALPHA_MIN) continue;
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
                float qx = q * dx, qy = q * dy;
                v[0] += q;
                v[1] += qx;
                v[2] += qy;
                v[3] += qx * dx;
                v[4] += qx * dy;
                v[5] += qy * dy;
                v[6] += w * g[k][0];
                v[7] += w * g[k][1];
                of_blue += w * g[k][2];
                T[k] = after;
            }
            if (!__any_sync(FULL, any)) continue;
            float sum = sums_of_eight(v, p.lane);
            for (int step = 16; step; step /= 2) of_blue += __shfl_xor_sync(FULL, of_blue, step);
            int column = p.lane == 1 ? 8 : p.lane / 4;
            if (p.lane % 4 == 0 || p.lane == 1)
                atomicAdd(sums + RECORD * shared_id[at] + column, p.lane == 1 ? of_blue : sum);
        }
        going = __any_sync(FULL, live[0] || live[1]);
    }
}

// From ``sums`` to the gradients by mean, conic, opacity and SH colour (before 0.5 is added and negatives are cut).
extern "C" __global__ void finish(const float4 *records, const float *sums, const float *sh_colors, int n, float *by_means2d,
                                  float *by_conics, float *by_opacities, float *by_colors) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 r0 = records[3 * i], r1 = records[3 * i + 1];
    const float *s = sums + RECORD * i;
    by_means2d[2 * i] = -(r0.z * s[1] + r0.w * s[2]);
    by_means2d[2 * i + 1] = -(r0.w * s[1] + r1.x * s[2]);
    by_conics[3 * i] = -0.5f * s[3];
    by_conics[3 * i + 1] = -s[4];
    by_conics[3 * i + 2] = -0.5f * s[5];
    by_opacities[i] = s[0] / fmaxf(r1.y, 1e-12f);
    for (int channel = 0; channel < 3; ++channel)
        by_colors[3 * i + channel] = sh_colors[3 * i + channel] + 0.5f > 0.f ? s[6 + channel] : 0.f;
}
