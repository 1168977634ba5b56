// 0.8 L1 + 0.2 (1 - SSIM) of an image and a photo, and its gradient by the image. Compiled at start by NVRTC.
//
// An image [H, W, 3] is read as H rows of ``line`` = 3 W numbers, so a pixel to the right is three numbers away. A block has
// THREADS columns and walks down ``strip`` rows: each row is blurred across from shared memory, and the sums of the 11 windows
// that the row is in stay in registers, so no blurred map is ever written. Windows are whole, named by their first pixel.

// THREADS is given by launches.py
#define TAPS 11
#define REACH (TAPS - 1)
#define HALO (3 * REACH)
#define C1 1e-4f  // splat.metrics
#define C2 9e-4f

// splat.metrics.gaussian_window; symmetric, so a blur and its adjoint take the same weights.
__constant__ float window[TAPS] = {0.00102838012f, 0.00759875821f, 0.0360007733f, 0.109360687f, 0.213005543f, 0.266011715f,
                                   0.213005543f,   0.109360687f,   0.0360007733f, 0.00759875821f, 0.00102838012f};

// Take a row into the sums of the windows that it is in. sums[0] is the window that ends with this row.
__device__ void go_down(float *sums, float value) {
#pragma unroll
    for (int j = 0; j < REACH; ++j) sums[j] = sums[j + 1] + window[REACH - j] * value;
    sums[REACH] = window[0] * value;
}

// Adds the sum of ``value`` over the block to ``total``.
__device__ void add_up(float value, float *total) {
    __shared__ float of_warps[THREADS / 32];
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x) return;
    float sum = 0.f;
    for (int warp = 0; warp < THREADS / 32; ++warp) sum += of_warps[warp];
    atomicAdd(total, sum);
}

__device__ float2 pair(const float *image, const unsigned char *photo, int row, int column, int line) {
    if (column >= line) return make_float2(0.f, 0.f);
    size_t at = (size_t)row * line + column;
    return make_float2(image[at], photo[at] * (1.f / 255.f));
}

// ``slopes`` [3, H, line]: SSIM of each window by its E[x], E[xx] and E[xy]. Adds ``ssim`` times the sum of 1 - SSIM.
extern "C" __global__ void __launch_bounds__(THREADS) similarity(const float *image, const unsigned char *photo, float *slopes,
                                                                 float *total, float ssim, int height, int line,
                                                                 int strip) {
    __shared__ float2 rows[2][THREADS + HALO];
    int t = threadIdx.x, column = blockIdx.x * THREADS + t, top = blockIdx.y * strip;
    int end = min(top + strip, height - REACH) + REACH;
    bool live = column < line - HALO;
    size_t plane = (size_t)height * line;
    float x[TAPS] = {}, y[TAPS] = {}, xx[TAPS] = {}, yy[TAPS] = {}, xy[TAPS] = {}, dissimilar = 0.f;
    float2 next = pair(image, photo, top, column, line), beyond = make_float2(0.f, 0.f);
    if (t < HALO) beyond = pair(image, photo, top, column + THREADS, line);
    for (int row = top; row < end; ++row) {
        float2 *here = rows[row & 1];
        here[t] = next;
        if (t < HALO) here[t + THREADS] = beyond;
        __syncthreads();
        if (row + 1 < end) {
            next = pair(image, photo, row + 1, column, line);
            if (t < HALO) beyond = pair(image, photo, row + 1, column + THREADS, line);
        }
        float a = 0.f, b = 0.f, aa = 0.f, bb = 0.f, ab = 0.f;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) {
            float2 value = here[t + 3 * tap];
            float wx = window[tap] * value.x, wy = window[tap] * value.y;
            a += wx, b += wy, aa += wx * value.x, bb += wy * value.y, ab += wx * value.y;
        }
        go_down(x, a), go_down(y, b), go_down(xx, aa), go_down(yy, bb), go_down(xy, ab);
        if (!live || row < top + REACH) continue;
        a = x[0], b = y[0];
        float a1 = 2.f * a * b + C1, a2 = 2.f * (xy[0] - a * b) + C2;
        float b1 = a * a + b * b + C1, b2 = (xx[0] - a * a) + (yy[0] - b * b) + C2;
        float inverse = 1.f / (b1 * b2), value = a1 * a2 * inverse;
        float by_xx = -value / b2, by_xy = 2.f * a1 * inverse;
        size_t at = (size_t)(row - REACH) * line + column;
        slopes[at] = 2.f * b * a2 * inverse - 2.f * a * value / b1 - 2.f * a * by_xx - b * by_xy;
        slopes[plane + at] = by_xx;
        slopes[2 * plane + at] = by_xy;
        dissimilar += 1.f - value;
    }
    add_up(ssim * dissimilar, total);
}

__device__ float3 slope(const float *slopes, int row, int column, int height, int line) {
    if (row < 0 || row >= height - REACH || column < 0 || column >= line - HALO) return make_float3(0.f, 0.f, 0.f);
    size_t plane = (size_t)height * line, at = (size_t)row * line + column;
    return make_float3(slopes[at], slopes[plane + at], slopes[2 * plane + at]);
}

// The adjoint of the blur, and from it the gradient of l1 * sum |x - y| - ssim * sum SSIM by x. Adds l1 * sum |x - y|.
extern "C" __global__ void __launch_bounds__(THREADS)
    image_gradient(const float *image, const unsigned char *photo, const float *slopes, float *grad, float *total, float l1,
                   float ssim, int height, int line, int strip) {
    __shared__ float3 rows[2][THREADS + HALO];
    int t = threadIdx.x, column = blockIdx.x * THREADS + t, top = blockIdx.y * strip, end = min(top + strip, height);
    bool live = column < line;
    float x[TAPS] = {}, xx[TAPS] = {}, xy[TAPS] = {}, apart = 0.f;
    float3 next = slope(slopes, top - REACH, column, height, line), before = make_float3(0.f, 0.f, 0.f);
    if (t < HALO) before = slope(slopes, top - REACH, column - HALO, height, line);
    for (int row = top - REACH; row < end; ++row) {
        float3 *here = rows[row & 1];
        here[t + HALO] = next;
        if (t < HALO) here[t] = before;
        __syncthreads();
        if (row + 1 < end) {
            next = slope(slopes, row + 1, column, height, line);
            if (t < HALO) before = slope(slopes, row + 1, column - HALO, height, line);
        }
        float a = 0.f, aa = 0.f, ab = 0.f;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) {
            float3 value = here[t + 3 * tap];
            a += window[tap] * value.x, aa += window[tap] * value.y, ab += window[tap] * value.z;
        }
        go_down(x, a), go_down(xx, aa), go_down(xy, ab);
        if (!live || row < top) continue;
        float2 here_xy = pair(image, photo, row, column, line);
        float difference = here_xy.x - here_xy.y, sign = difference > 0.f ? l1 : difference < 0.f ? -l1 : 0.f;
        grad[(size_t)row * line + column] = sign - ssim * (x[0] + 2.f * here_xy.x * xx[0] + here_xy.y * xy[0]);
        apart += fabsf(difference);
    }
    add_up(l1 * apart, total);
}
