// What is done once per Gaussian: activations, colours, Adam with the gradients' last part. Compiled at start by NVRTC.
//
// A thread has one Gaussian. SH coefficients and Adam's moments lie by component (component c of Gaussian i is
// [c * stride + i]), so that neighbouring threads read neighbouring numbers, and the gradient by an SH coefficient is
// used where it is computed: it is never written.
//
// On several GPUs each has a shard of the model, a step has VIEWS photos, one a GPU, and arrays of what differs from view to
// view are [VIEWS, n, ...]. Their gradients are summed before the one step of Adam. By the rule of Zhao et al. 2024 ("On
// Scaling Up 3D Gaussian Splatting Training") rates are sqrt(VIEWS) times as high (shard.py) and betas beta^VIEWS, so
// that moments forget as much as in VIEWS steps. gsplat's trainer takes 1 - VIEWS (1 - beta), which is nearly the same for
// few views and below 0 from 11 on. Adam sees the sum over sqrt(VIEWS), with the same epsilon; with the mean, epsilon would
// be 1 / sqrt(VIEWS) as large. The sum is as large as the gradient of one view where views differ: so second moments mean
// the same for any number of GPUs.

#ifndef VIEWS
#define VIEWS 1
#define RANK 0  // Gaussian i of shard RANK is number VIEWS i + RANK of the model
#endif

static __device__ constexpr double power(double base, int exponent) { return exponent ? base * power(base, exponent - 1) : 1.; }

static __device__ constexpr double root(double square) {
    double x = square;
    for (int i = 0; i < 30; ++i) x = 0.5 * (x + square / x);  // Newton
    return x;
}

constexpr float BETA1 = power(0.9, VIEWS), BETA2 = power(0.999, VIEWS), SHARE = 1. / root(VIEWS);

// RECORD (floats of a record), LOGIT_MAX and the constants of spherical harmonics are given by launches.py.
constexpr float Y0 = SH_C0, Y1 = SH_C1, Y20 = SH_C20, Y21 = SH_C21, Y22 = SH_C22;
constexpr float Y30 = SH_C30, Y31 = SH_C31, Y32 = SH_C32, Y33 = SH_C33, Y34 = SH_C34;
#define EPSILON 1e-15f
#define NOISE_STEEPNESS 100.f  // Kheradmand et al. 2024, eq. 10
#define NOISE_CENTER 0.995f

__device__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// Activations: scales [n, 3] and opacities [n] from the parameters; one thread for each of the 3 n log scales.
extern "C" __global__ void prepare(const float *log_scales, const float *logits, int n, float *scales, float *opacities) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < 3 * n) scales[i] = expf(log_scales[i]);
    if (i < n) opacities[i] = sigmoid(logits[i]);
}

// Real spherical harmonics at the unit vector (x, y, z), with the signs of the original 3DGS file format.
template <int DEGREE>
__device__ void harmonics(float x, float y, float z, float *basis) {
    basis[0] = Y0;
    if (DEGREE > 0) {
        basis[1] = -Y1 * y;
        basis[2] = Y1 * z;
        basis[3] = -Y1 * x;
    }
    if (DEGREE > 1) {
        basis[4] = Y20 * x * y;
        basis[5] = -Y20 * y * z;
        basis[6] = Y21 * (3.f * z * z - 1.f);
        basis[7] = -Y20 * x * z;
        basis[8] = Y22 * (x * x - y * y);
    }
    if (DEGREE > 2) {
        basis[9] = -Y30 * y * (3.f * x * x - y * y);
        basis[10] = Y31 * x * y * z;
        basis[11] = -Y32 * y * (5.f * z * z - 1.f);
        basis[12] = Y33 * z * (5.f * z * z - 3.f);
        basis[13] = -Y32 * x * (5.f * z * z - 1.f);
        basis[14] = Y34 * z * (x * x - y * y);
        basis[15] = -Y30 * x * (x * x - 3.f * y * y);
    }
}

// The gradient of sum w[k] basis[k] by (x, y, z).
template <int DEGREE>
__device__ float3 slope_of_harmonics(float x, float y, float z, const float *w) {
    float3 g = make_float3(0.f, 0.f, 0.f);
    if (DEGREE > 0) g = make_float3(-Y1 * w[3], -Y1 * w[1], Y1 * w[2]);
    if (DEGREE > 1) {
        g.x += Y20 * (y * w[4] - z * w[7] + x * w[8]);
        g.y += Y20 * (x * w[4] - z * w[5] - y * w[8]);
        g.z += (6.f * Y21) * z * w[6] - Y20 * (y * w[5] + x * w[7]);
    }
    if (DEGREE > 2) {
        float xx = x * x, yy = y * y, zz = z * z;
        g.x += -(6.f * Y30) * x * y * w[9] + Y31 * (y * z * w[10] + x * z * w[14]) -
               Y32 * (5.f * zz - 1.f) * w[13] - (3.f * Y30) * (xx - yy) * w[15];
        g.y += -(3.f * Y30) * (xx - yy) * w[9] + Y31 * (x * z * w[10] - y * z * w[14]) -
               Y32 * (5.f * zz - 1.f) * w[11] + (6.f * Y30) * x * y * w[15];
        g.z += Y31 * x * y * w[10] - (10.f * Y32) * z * (y * w[11] + x * w[13]) +
               (3.f * Y33) * (5.f * zz - 1.f) * w[12] + Y34 * (xx - yy) * w[14];
    }
    return g;
}

__device__ float4 sight(const float *means, const float *center, int i) {
    float x = means[3 * i] - center[0], y = means[3 * i + 1] - center[1], z = means[3 * i + 2] - center[2];
    float inverse = rsqrtf(x * x + y * y + z * z + 1e-30f);
    return make_float4(x * inverse, y * inverse, z * inverse, inverse);
}

template <int DEGREE>
__device__ float3 color_of(const float *sh, int stride, int i, float4 d) {
    float basis[16], rgb[3] = {0.5f, 0.5f, 0.5f};
    harmonics<DEGREE>(d.x, d.y, d.z, basis);
#pragma unroll
    for (int k = 0; k < (DEGREE + 1) * (DEGREE + 1); ++k)
#pragma unroll
        for (int channel = 0; channel < 3; ++channel) rgb[channel] += basis[k] * sh[(3 * k + channel) * stride + i];
    return make_float3(fmaxf(rgb[0], 0.f), fmaxf(rgb[1], 0.f), fmaxf(rgb[2], 0.f));
}

// The records of raster.cu, with powers of two in place of e: mean x, y; half the conic a, b, half the conic c, all times
// log2 e (so that alpha = 2^(l - A dx dx - B dx dy - C dy dy)); l = log2 opacity; red, green, blue; log2(255 opacity).
// A Gaussian that is not seen (radius 0) is in no tile's list and keeps its old record.
// ``center`` [3] of the camera; sh [3 K, stride], radii [n, 2], means2d [n, 2] pixels, conics [n, 3], records [n, RECORD].
extern "C" __global__ void pack(const float *means, const float *center, const float *sh, const int2 *radii,
                                const float2 *means2d, const float *conics, const float *opacities, int n, int stride,
                                int degree, float4 *records) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n || radii[i].x <= 0 || radii[i].y <= 0) return;
    float4 d = sight(means, center, i);
    float3 rgb = degree == 0   ? color_of<0>(sh, stride, i, d)
                 : degree == 1 ? color_of<1>(sh, stride, i, d)
                 : degree == 2 ? color_of<2>(sh, stride, i, d)
                               : color_of<3>(sh, stride, i, d);
    float l = log2f(opacities[i]), log2_e = 1.44269504f;
    float2 mean = means2d[i];
    records[3 * i] = make_float4(mean.x, mean.y, 0.5f * log2_e * conics[3 * i], log2_e * conics[3 * i + 1]);
    records[3 * i + 1] = make_float4(0.5f * log2_e * conics[3 * i + 2], l, rgb.x, rgb.y);
    records[3 * i + 2] = make_float4(rgb.z, l + 7.99435344f, 0.f, 0.f);
}

// From ``sums`` of raster.cu to the gradients by projected mean [n, 2] and conic [n, 3].
extern "C" __global__ void projected_gradients(const float *conics, const float4 *sums, int n, float2 *by_means2d, float *by_conics) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 s = sums[3 * i], rest = sums[3 * i + 1];
    float a = conics[3 * i], b = conics[3 * i + 1], c = conics[3 * i + 2];
    bool touched = s.y != 0.f || s.z != 0.f;  // the conic of what is not seen is not a number
    by_means2d[i] = touched ? make_float2(-(a * s.y + b * s.z), -(b * s.y + c * s.z)) : make_float2(0.f, 0.f);
    by_conics[3 * i] = -0.5f * s.w;
    by_conics[3 * i + 1] = -rest.x;
    by_conics[3 * i + 2] = -0.5f * rest.y;
}

// The new value (Kingma & Ba 2015) for the gradient's sum over the views; the moments are replaced.
// correct1 = 1 / (1 - BETA1^t), correct2 likewise.
__device__ float adam(float value, float grad, float *first, float *second, float rate, float correct1, float correct2) {
    grad *= SHARE;
    float m = *first * BETA1 + grad * (1.f - BETA1);
    float v = *second * BETA2 + grad * grad * (1.f - BETA2);
    *first = m;
    *second = v;
    return value - rate * correct1 * m / (sqrtf(v * correct2) + EPSILON);
}

#if VIEWS == 1

template <int DEGREE>
__device__ float3 update_harmonics(float *sh, float *first, float *second, int stride, int i, float4 d, const float *grad,
                                   float rate0, float rate_rest, float correct1, float correct2) {
    float basis[16], along[16];
    harmonics<DEGREE>(d.x, d.y, d.z, basis);
#pragma unroll
    for (int k = 0; k < (DEGREE + 1) * (DEGREE + 1); ++k) {
        along[k] = 0.f;
#pragma unroll
        for (int channel = 0; channel < 3; ++channel) {
            int at = (3 * k + channel) * stride + i;
            float value = sh[at];
            along[k] += grad[channel] * value;
            sh[at] = adam(value, basis[k] * grad[channel], first + at, second + at, k ? rate_rest : rate0, correct1, correct2);
        }
    }
    return slope_of_harmonics<DEGREE>(d.x, d.y, d.z, along);
}

// SH backward and Adam at once. center [3]; records and sums [n, RECORD]; sh and its moments first and second
// [3 K, stride]; ``by_directions`` [n, 3]: the gradient by the mean through the direction of sight.
extern "C" __global__ void __launch_bounds__(128)
    update_colors(const float *means, const float *center, const float4 *records, const float4 *sums, float *sh, float *first,
                  float *second, float *by_directions, int n, int stride, int degree, float rate0, float rate_rest,
                  float correct1, float correct2) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 d = sight(means, center, i), s1 = sums[3 * i + 1], r1 = records[3 * i + 1];
    float s2 = sums[3 * i + 2].x, r2 = records[3 * i + 2].x;
    // A colour of exactly 0 was clamped by ``color_of``, and passes no gradient on: so a record must hold the colour
    // itself, not shifted against a background.
    float grad[3] = {r1.z > 0.f ? s1.z : 0.f, r1.w > 0.f ? s1.w : 0.f, r2 > 0.f ? s2 : 0.f};
    float3 g;
    if (degree == 0)
        g = update_harmonics<0>(sh, first, second, stride, i, d, grad, rate0, rate_rest, correct1, correct2);
    else if (degree == 1)
        g = update_harmonics<1>(sh, first, second, stride, i, d, grad, rate0, rate_rest, correct1, correct2);
    else if (degree == 2)
        g = update_harmonics<2>(sh, first, second, stride, i, d, grad, rate0, rate_rest, correct1, correct2);
    else
        g = update_harmonics<3>(sh, first, second, stride, i, d, grad, rate0, rate_rest, correct1, correct2);
    float along = g.x * d.x + g.y * d.y + g.z * d.z;
    by_directions[3 * i] = (g.x - along * d.x) * d.w;
    by_directions[3 * i + 1] = (g.y - along * d.y) * d.w;
    by_directions[3 * i + 2] = (g.z - along * d.z) * d.w;
}

#else

// The same over all views of a step, a channel at a time: fewer sums to keep, and a Gaussian is seen in few views.
template <int DEGREE>
__device__ float3 update_channel(const float *means, const float *centers, const float *records, const float *sums, float *sh,
                                 float *first, float *second, int n, int stride, int i, int channel, float rate0,
                                 float rate_rest, float correct1, float correct2) {
    const int bands = (DEGREE + 1) * (DEGREE + 1);
    float total[bands] = {};
    float3 by_mean = make_float3(0.f, 0.f, 0.f);
#pragma unroll 1
    for (int view = 0; view < VIEWS; ++view) {
        int color = RECORD * (view * n + i) + 6 + channel;
        float grad = sums[color], basis[16], along[16];
        // A colour of exactly 0 was clamped by ``color_of``, and passes no gradient on: so a record must hold the colour
        // itself, not shifted against a background.
        if (grad == 0.f || !(records[color] > 0.f)) continue;
        float4 d = sight(means, centers + 3 * view, i);
        harmonics<DEGREE>(d.x, d.y, d.z, basis);
#pragma unroll
        for (int k = 0; k < bands; ++k) {
            total[k] += basis[k] * grad;
            along[k] = grad * sh[(3 * k + channel) * stride + i];
        }
        float3 g = slope_of_harmonics<DEGREE>(d.x, d.y, d.z, along);
        float forward = g.x * d.x + g.y * d.y + g.z * d.z;
        by_mean.x += (g.x - forward * d.x) * d.w;
        by_mean.y += (g.y - forward * d.y) * d.w;
        by_mean.z += (g.z - forward * d.z) * d.w;
    }
#pragma unroll
    for (int k = 0; k < bands; ++k) {
        int at = (3 * k + channel) * stride + i;
        sh[at] = adam(sh[at], total[k], first + at, second + at, k ? rate_rest : rate0, correct1, correct2);
    }
    return by_mean;
}

// As above with ``center`` [VIEWS, 3], records and sums [VIEWS, n, RECORD].
extern "C" __global__ void __launch_bounds__(128)
    update_colors(const float *means, const float *center, const float *records, const float *sums, float *sh, float *first,
                  float *second, float *by_directions, int n, int stride, int degree, float rate0, float rate_rest,
                  float correct1, float correct2) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float3 sum = make_float3(0.f, 0.f, 0.f);
#pragma unroll 1
    for (int channel = 0; channel < 3; ++channel) {
        float3 g;
        if (degree == 0)
            g = update_channel<0>(means, center, records, sums, sh, first, second, n, stride, i, channel, rate0, rate_rest,
                                  correct1, correct2);
        else if (degree == 1)
            g = update_channel<1>(means, center, records, sums, sh, first, second, n, stride, i, channel, rate0, rate_rest,
                                  correct1, correct2);
        else if (degree == 2)
            g = update_channel<2>(means, center, records, sums, sh, first, second, n, stride, i, channel, rate0, rate_rest,
                                  correct1, correct2);
        else
            g = update_channel<3>(means, center, records, sums, sh, first, second, n, stride, i, channel, rate0, rate_rest,
                                  correct1, correct2);
        sum.x += g.x, sum.y += g.y, sum.z += g.z;
    }
    by_directions[3 * i] = sum.x;
    by_directions[3 * i + 1] = sum.y;
    by_directions[3 * i + 2] = sum.z;
}

#endif

// Philox 4x32-10 (Salmon et al. 2011).
__device__ uint4 philox(uint4 counter, unsigned key0, unsigned key1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        unsigned high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        unsigned high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// Three of Gaussian i's standard normal numbers of this step (Box & Muller 1958).
__device__ float3 normals(unsigned i, unsigned seed) {
    uint4 bits = philox(make_uint4(i, 0u, 0u, 0u), seed, 0u);
    const float unit = 1.f / 16777216.f, turn = 6.28318531f / 16777216.f;
    float r0 = sqrtf(-2.f * logf(((bits.x >> 8) + 1u) * unit)), r1 = sqrtf(-2.f * logf(((bits.z >> 8) + 1u) * unit));
    float angle0 = (bits.y >> 8) * turn, angle1 = (bits.w >> 8) * turn;
    return make_float3(r0 * cosf(angle0), r0 * sinf(angle0), r1 * cosf(angle1));
}

// Sigma times a normal vector: R diag(s^2) R^T normal.
__device__ float3 displacement(float4 q, float s0, float s1, float s2, float3 normal) {
    float inverse = rsqrtf(q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w + 1e-24f);
    float w = q.x * inverse, x = q.y * inverse, y = q.z * inverse, z = q.w * inverse;
    float r00 = 1.f - 2.f * (y * y + z * z), r01 = 2.f * (x * y - w * z), r02 = 2.f * (x * z + w * y);
    float r10 = 2.f * (x * y + w * z), r11 = 1.f - 2.f * (x * x + z * z), r12 = 2.f * (y * z - w * x);
    float r20 = 2.f * (x * z - w * y), r21 = 2.f * (y * z + w * x), r22 = 1.f - 2.f * (x * x + y * y);
    float a0 = s0 * s0 * (r00 * normal.x + r10 * normal.y + r20 * normal.z);
    float a1 = s1 * s1 * (r01 * normal.x + r11 * normal.y + r21 * normal.z);
    float a2 = s2 * s2 * (r02 * normal.x + r12 * normal.y + r22 * normal.z);
    return make_float3(r00 * a0 + r01 * a1 + r02 * a2, r10 * a0 + r11 * a1 + r12 * a2, r20 * a0 + r21 * a1 + r22 * a2);
}

// Adam on means, scales, quats and opacities; ``first`` and ``second`` are [11, stride] moments in this order. Adds the
// gradients of the mean opacity and mean scale, and moves nearly transparent Gaussians at random (noise > 0).
// ``scales`` and ``opacities`` are those of ``prepare``. Gradients: by means (through the projection; ``by_directions`` is of
// ``update_colors``), scales and quats; sums [VIEWS, n, RECORD].
extern "C" __global__ void __launch_bounds__(128)
    update_geometry(float *means, float *log_scales, float4 *quats, float *logits, float *first, float *second,
                    const float *scales, const float *opacities, const float *by_means, const float *by_directions,
                    const float *by_scales, const float4 *by_quats, const float4 *sums, int n, int stride, float rate_means,
                    float rate_scales, float rate_quats, float rate_opacities, float opacity_reg, float scale_reg,
                    float correct1, float correct2, float noise, int seed) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 q = quats[i], by_q = by_quats[i];
    float opacity = opacities[i], s[3] = {scales[3 * i], scales[3 * i + 1], scales[3 * i + 2]};
    float moved[3] = {0.f, 0.f, 0.f};
    if (noise > 0.f) {
        float3 by_noise = displacement(q, s[0], s[1], s[2], normals(VIEWS * i + RANK, seed));
        float amount = noise * sigmoid(NOISE_STEEPNESS * ((1.f - opacity) - NOISE_CENTER));
        moved[0] = amount * by_noise.x, moved[1] = amount * by_noise.y, moved[2] = amount * by_noise.z;
    }
    first += i, second += i;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        int at = 3 * i + axis, mean = axis * stride, scale = (3 + axis) * stride;
        float grad = by_means[at] + by_directions[at];
        means[at] = moved[axis] + adam(means[at], grad, first + mean, second + mean, rate_means, correct1, correct2);
        grad = (by_scales[at] + scale_reg) * s[axis];
        log_scales[at] = adam(log_scales[at], grad, first + scale, second + scale, rate_scales, correct1, correct2);
    }
    first += 6 * stride, second += 6 * stride;
    q.x = adam(q.x, by_q.x, first, second, rate_quats, correct1, correct2);
    q.y = adam(q.y, by_q.y, first + stride, second + stride, rate_quats, correct1, correct2);
    q.z = adam(q.z, by_q.z, first + 2 * stride, second + 2 * stride, rate_quats, correct1, correct2);
    q.w = adam(q.w, by_q.w, first + 3 * stride, second + 3 * stride, rate_quats, correct1, correct2);
    quats[i] = q;
    // The first sum is opacity dL/dopacity.
    float by_opacity = sums[3 * i].x;
    for (int view = 1; view < VIEWS; ++view) by_opacity += sums[3 * (view * n + i)].x;
    float grad = (by_opacity + opacity_reg * opacity) * (1.f - opacity);
    float logit = adam(logits[i], grad, first + 4 * stride, second + 4 * stride, rate_opacities, correct1, correct2);
    logits[i] = fminf(logit, LOGIT_MAX);  // so blending need not limit alpha
}
