// Blend the Gaussians of each tile front to back, and carry the image's gradient back to them. Compiled at start by NVRTC.
//
// One warp has a block of 8 x 4 PIXELS pixels, PIXELS a lane, x along lanes of a row and y along rows of lanes. It takes a
// chunk of 32 Gaussians of its tile's list (gsplat) at a time, each lane tests one of them exactly against the block, and only
// those that touch it are blended: so tiles can be large, and their lists short to sort. Forward leaves the tests' results
// and the number of chunks (all that is behind is hidden) to backward, which walks front to back again with what lies
// behind the current Gaussian. What limits both is the number of instructions: hence no branch for a pixel.
// Thresholds are gsplat's: alpha from 1/255, transmittance at least 1e-4; opacities are at most 0.999 (LOGIT_MAX).

// TILE, WARPS (of a thread block), PIXELS and RECORD (floats) are given by launches.py; what is in a record: gaussians.cu, ``pack``.
// BACKGROUND_RED, _GREEN and _BLUE (raster.py): what lies behind the Gaussians; black where they are not given. Backward needs
// no more than the image, in which the background is a part of what lies behind each Gaussian. It cannot be shifted into the
// colours instead: gaussians.cu reads a colour above 0 as "not clamped".
#define WIDE 8
#define HIGH (4 * PIXELS)
#define ACROSS (TILE / WIDE)
#define BLOCKS (ACROSS * (TILE / HIGH))  // of a tile
#define FULL 0xffffffffu
#define ALPHA_MIN (1.0f / 255.0f)
#define T_MIN 1e-4f
#define HIDDEN 1e-10f  // the transmittance of a pixel that is done; not 0, as backward divides by it
#define CLASSES 128    // of lists, by their lengths

// A class of similar lengths (to a quarter), rising with them.
__device__ int class_of(const int *offsets, int pairs, int tiles, int tile) {
    unsigned length = (tile + 1 == tiles ? pairs : offsets[tile + 1]) - offsets[tile] + 4;
    int octave = 29 - __clz(length);
    return 4 * octave + (length >> octave & 3);
}

// The tiles with the longest lists first, so that the last blocks to run are short ones. One block of threads.
extern "C" __global__ void __launch_bounds__(512) order_tiles(const int *offsets, int pairs, int tiles, int *order) {
    __shared__ int counts[CLASSES], starts[CLASSES];
    int first = threadIdx.x;
    if (first < CLASSES) counts[first] = 0;
    __syncthreads();
    for (int tile = first; tile < tiles; tile += blockDim.x) atomicAdd(counts + class_of(offsets, pairs, tiles, tile), 1);
    __syncthreads();
    if (first < CLASSES) {
        int longer = 0;
        for (int other = first + 1; other < CLASSES; ++other) longer += counts[other];
        starts[first] = longer;
    }
    __syncthreads();
    for (int tile = first; tile < tiles; tile += blockDim.x)
        order[atomicAdd(starts + class_of(offsets, pairs, tiles, tile), 1)] = tile;
}

struct Block {
    int number, lane, x, y, width, height;  // x and y of the lane's first pixel
    bool there;
    int start, end, hits;  // of its list; where its first chunk's hits are
    float left, top;
};

__device__ Block block_of(const int *order, const int *offsets, int pairs, int width, int height, int columns, int tiles) {
    Block b;
    b.number = blockIdx.x * WARPS + threadIdx.x / 32;
    b.there = b.number < tiles * BLOCKS;
    int tile = order[min(b.number / BLOCKS, tiles - 1)], of_tile = b.number % BLOCKS;
    int left = tile % columns * TILE + of_tile % ACROSS * WIDE, top = tile / columns * TILE + of_tile / ACROSS * HIGH;
    b.lane = threadIdx.x % 32;
    b.x = left + b.lane % WIDE, b.y = top + b.lane / WIDE;
    b.width = width, b.height = height;
    b.start = offsets[tile];
    b.end = tile + 1 == tiles ? pairs : offsets[tile + 1];
    b.hits = (b.start / 32 + tile) * BLOCKS + of_tile;  // a list of n has at most n / 32 + 1 chunks
    b.left = left + 0.5f, b.top = top + 0.5f;
    return b;
}

// The number of the lane's pixel k in the image, or -1.
__device__ int pixel_of(const Block &b, int k) {
    int y = b.y + 4 * k;
    return b.there && b.x < b.width && y < b.height ? y * b.width + b.x : -1;
}

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

// The Gaussians of a chunk that touch the block, without gaps: r0, r1 and (blue, number).
struct Batch {
    float4 records[96];
};

__device__ void put(Batch &batch, unsigned hits, int lane, float4 r0, float4 r1, float blue, int id) {
    float4 *to = batch.records + 3 * __popc(hits & ((1u << lane) - 1u));
    to[0] = r0;
    to[1] = r1;
    to[2] = make_float4(blue, __int_as_float(id), 0.f, 0.f);
}

// One of a batch as the pixels of a lane's column see it: alpha at dy is 2^(middle - dy (slope + c dy)).
struct Seen {
    float dx, dy, c, slope, middle, red, green, blue;
    int id;
};

__device__ Seen seen(const Batch &batch, int i, float x, float y) {
    float4 r0 = batch.records[3 * i], r1 = batch.records[3 * i + 1];
    float2 r2 = *(const float2 *)(batch.records + 3 * i + 2);
    Seen s = {r0.x - x, r0.y - y, r1.x, 0.f, 0.f, r1.z, r1.w, r2.x, __float_as_int(r2.y)};
    s.slope = r0.w * s.dx;
    s.middle = fmaf(-s.dx, r0.z * s.dx, r1.y);
    return s;
}

__device__ float alpha_of(const Seen &s, float dy) {
    float alpha = exp2f(fmaf(-dy, fmaf(s.c, dy, s.slope), s.middle));
    return alpha >= ALPHA_MIN ? alpha : 0.f;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    blend(const int *order, const int *offsets, const int *ids, int pairs, const float4 *records, int width, int height,
          int columns, int tiles, unsigned *hits, int *chunks, float *image) {
    __shared__ Batch batches[WARPS];
    Batch &batch = batches[threadIdx.x / 32];
    Block b = block_of(order, offsets, pairs, width, height, columns, tiles);
    float T[PIXELS], rgb[PIXELS][3] = {}, x = b.x + 0.5f, y = b.y + 0.5f;
    for (int k = 0; k < PIXELS; ++k) T[k] = pixel_of(b, k) >= 0 ? 1.f : 0.f;
#ifdef BACKGROUND_RED
    float left[PIXELS];  // the transmittance behind the last Gaussian that is drawn; T is that behind the next one in the end
    for (int k = 0; k < PIXELS; ++k) left[k] = 1.f;
#endif
    bool going = true;
    int chunk = 0;
    for (int first = b.start; going && first < b.end; first += 32, ++chunk) {
        bool hit = false;
        float4 r0, r1, r2;
        int id;
        if (first + b.lane < b.end) {
            id = ids[first + b.lane];
            r0 = records[3 * id], r1 = records[3 * id + 1], r2 = records[3 * id + 2];
            hit = least(r0, r1.x, b.left, b.top) <= r2.y + 1e-3f;
        }
        unsigned bits = __ballot_sync(FULL, hit);
        __syncwarp();  // all have read the batch before
        if (hit) put(batch, bits, b.lane, r0, r1, r2.x, id);
        if (b.lane == 0 && b.there) hits[b.hits + chunk * BLOCKS] = bits;
        __syncwarp();
        for (int i = 0, count = __popc(bits); i < count; ++i) {
            Seen s = seen(batch, i, x, y);
#pragma unroll
            for (int k = 0; k < PIXELS; ++k) {
                // Once T is at most T_MIN it stays so: no Gaussian behind is drawn.
                float w = alpha_of(s, s.dy - 4 * k) * T[k];
                T[k] -= w;
                w = T[k] > T_MIN ? w : 0.f;
#ifdef BACKGROUND_RED
                left[k] = T[k] > T_MIN ? T[k] : left[k];
#endif
                rgb[k][0] += w * s.red;
                rgb[k][1] += w * s.green;
                rgb[k][2] += w * s.blue;
            }
        }
        bool any = false;
        for (int k = 0; k < PIXELS; ++k) any |= T[k] > T_MIN;
        going = __any_sync(FULL, any);
    }
#ifdef BACKGROUND_RED
    const float background[3] = {BACKGROUND_RED, BACKGROUND_GREEN, BACKGROUND_BLUE};
    for (int k = 0; k < PIXELS; ++k)
        for (int channel = 0; channel < 3; ++channel) rgb[k][channel] += left[k] * background[channel];
#endif
    if (b.lane == 0 && b.there) chunks[b.number] = chunk;
    for (int k = 0; k < PIXELS; ++k)
        if (pixel_of(b, k) >= 0)
            for (int channel = 0; channel < 3; ++channel) image[3 * pixel_of(b, k) + channel] = rgb[k][channel];
}

// The column of ``sums`` whose sum over the warp ``sum_over_warp`` gives to a lane, or -1.
__device__ int column_of(int lane) {
    int row = lane / 8, part = lane & 4 ? 2 : lane & 2 ? 1 : 0;
    if (lane & 1 || (lane & 6) == 6) return -1;
    if (row == 0) return part == 2 ? 3 : part;             // q, q dx, q dx dx
    if (row == 1) return part == 0 ? 2 : 3 + part;         // q dy, q dx dy, q dy dy
    return row == 2 ? (part ? -1 : 6) : part == 2 ? -1 : 7 + part;  // red; green, blue
}

// dx is the same in a lane's column: so rows are summed first, each for a part of the values, and multiplied by dx then.
// Half of what a lane has left changes hands at each step: nine exchanges for nine sums.
__device__ float sum_over_warp(float q, float qy, float qyy, float red, float green, float blue, float dx, int lane) {
    bool upper = lane & 16, odd = lane & 8, right = lane & 4, second = lane & 2;
    int row = lane / 8;
    float a0 = (upper ? red : q) + __shfl_xor_sync(FULL, upper ? q : red, 16);
    float a1 = (upper ? green : qy) + __shfl_xor_sync(FULL, upper ? qy : green, 16);
    float a2 = (upper ? blue : qyy) + __shfl_xor_sync(FULL, upper ? qyy : blue, 16);
    float b0 = (odd ? a1 : a0) + __shfl_xor_sync(FULL, odd ? a0 : a1, 8);
    float b1 = a2 + __shfl_xor_sync(FULL, a2, 8);
    // Rows have q; q dy, q dy dy; red; green, blue. c0, c1 and c2 are what ``column_of`` calls parts.
    float times_dx = b0 * dx, c1 = row == 3 ? b1 : times_dx, c2 = row == 0 ? times_dx * dx : b1;
    float d0 = (right ? c2 : b0) + __shfl_xor_sync(FULL, right ? b0 : c2, 4);
    float d1 = c1 + __shfl_xor_sync(FULL, c1, 4);
    d1 = right ? d0 : d1;
    float sum = (second ? d1 : d0) + __shfl_xor_sync(FULL, second ? d0 : d1, 2);
    return sum + __shfl_xor_sync(FULL, sum, 1);
}

// Adds to ``sums`` [n, RECORD]: with q = alpha dL/dalpha the sums of q, q dx, q dy, q dx dx, q dx dy, q dy dy, and dL/drgb.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    blend_backward(const int *order, const int *offsets, const int *ids, int pairs, const float4 *records, int width,
                   int height, int columns, int tiles, const unsigned *hits, const int *chunks, const float *image,
                   const float *grad, float *sums) {
    __shared__ Batch batches[WARPS];
    Batch &batch = batches[threadIdx.x / 32];
    Block b = block_of(order, offsets, pairs, width, height, columns, tiles);
    float T[PIXELS], behind[PIXELS] = {}, g[PIXELS][3] = {}, x = b.x + 0.5f, y = b.y + 0.5f;
    for (int k = 0; k < PIXELS; ++k) {
        int pixel = pixel_of(b, k);
        T[k] = pixel >= 0 ? 1.f : HIDDEN;
        for (int channel = 0; channel < 3 && pixel >= 0; ++channel) {
            g[k][channel] = grad[3 * pixel + channel];
            behind[k] += g[k][channel] * image[3 * pixel + channel];
        }
    }
    int column = column_of(b.lane), count = b.there ? chunks[b.number] : 0;
    unsigned next = count ? hits[b.hits] : 0u;
    for (int chunk = 0; chunk < count; ++chunk) {
        unsigned bits = next;
        if (chunk + 1 < count) next = hits[b.hits + (chunk + 1) * BLOCKS];
        __syncwarp();
        if (bits >> b.lane & 1u) {
            int id = ids[b.start + 32 * chunk + b.lane];
            put(batch, bits, b.lane, records[3 * id], records[3 * id + 1], records[3 * id + 2].x, id);
        }
        __syncwarp();
        for (int i = 0, touching = __popc(bits); i < touching; ++i) {
            Seen s = seen(batch, i, x, y);
            float q = 0.f, qy = 0.f, qyy = 0.f, red = 0.f, green = 0.f, blue = 0.f;
#pragma unroll
            for (int k = 0; k < PIXELS; ++k) {
                float dy = s.dy - 4 * k, w = alpha_of(s, dy) * T[k], after = T[k] - w;
                bool drawn = after > T_MIN;
                T[k] = drawn ? after : HIDDEN;
                w = drawn ? w : 0.f;
                float shade = g[k][0] * s.red + g[k][1] * s.green + g[k][2] * s.blue;
                behind[k] -= w * shade;
                float own = w * (shade - behind[k] * (1.f / after)), own_y = own * dy;
                q += own;
                qy += own_y;
                qyy += own_y * dy;
                red += w * g[k][0];
                green += w * g[k][1];
                blue += w * g[k][2];
            }
            float sum = sum_over_warp(q, qy, qyy, red, green, blue, s.dx, b.lane);
            if (column >= 0) atomicAdd(sums + (unsigned)(RECORD * s.id + column), sum);
        }
    }
}
