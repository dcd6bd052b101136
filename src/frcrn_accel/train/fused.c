/* What training does to the activations of FRCRN between its convolutions, in as few passes over memory as there can
 * be: they are bfloat16, (batch, pixels, channels), and each pass over one of them takes as long as a convolution.
 * Sums are float over a block of pixels, and double over the blocks, which are added in order: any number of threads
 * gives the same. What needs memory for sums gives 0 if there is none, and 1 otherwise. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
enum { BLOCK = 512, REAL = 2 * CHANNELS }; /* pixels of a partial sum; channels, real and imaginary */

static inline float wide(bf16 v) {
    union { uint32_t bits; float value; } x = {.bits = (uint32_t)v << 16};
    return x.value;
}

static inline bf16 narrow(float v) {
    union { float value; uint32_t bits; } x = {.value = v};
    return (bf16)((x.bits + 0x7fff + ((x.bits >> 16) & 1)) >> 16);
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Blocks that pixels are summed in. */
static int64_t blocks_of(int64_t pixels) { return (pixels + BLOCK - 1) / BLOCK; }

static void add_up(int64_t rows, int64_t blocks, const float *restrict sums, double factor, float *restrict out) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < REAL; i++) {
            double sum = 0;
            for (int64_t b = 0; b < blocks; b++) sum += sums[(row * blocks + b) * REAL + i];
            out[row * REAL + i] = (float)(sum * factor);
        }
}

/* With the bias, in place. */
void leaky_relu(int64_t pixels, float slope, const float *restrict bias, bf16 *restrict y) {
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < pixels; p++)
#pragma omp simd
        for (int64_t i = 0; i < REAL; i++) {
            float v = wide(y[p * REAL + i]) + bias[i];
            y[p * REAL + i] = narrow(v > 0 ? v : slope * v);
        }
}

int leaky_relu_backward(int64_t pixels, float slope, const bf16 *restrict y, const bf16 *restrict dy,
                        bf16 *restrict dx, float *restrict dbias) {
    int64_t blocks = blocks_of(pixels);
    float *sums = calloc(blocks * REAL, sizeof(float));
    if (!sums) return 0;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        float *sum = sums + b * REAL;
        for (int64_t p = b * BLOCK; p < smaller((b + 1) * BLOCK, pixels); p++)
#pragma omp simd
            for (int64_t i = 0; i < REAL; i++) {
                float d = wide(dy[p * REAL + i]);
                d = wide(y[p * REAL + i]) > 0 ? d : slope * d;
                dx[p * REAL + i] = narrow(d);
                sum[i] += d;
            }
    }
    add_up(1, blocks, sums, 1, dbias);
    free(sums);
    return 1;
}

/* Plus the bias and rectified, behind `past` zeros: (rows, n) to (rows, past + n); n is a multiple of REAL. */
void relu_behind(int64_t rows, int64_t past, int64_t n, const bf16 *restrict x, const float *restrict bias,
                 bf16 *restrict y) {
    for (int64_t row = 0; row < rows; row++) {
        bf16 *to = y + row * (past + n) + past;
        const bf16 *from = x + row * n;
        memset(to - past, 0, past * sizeof(bf16));
#pragma omp parallel for schedule(static)
        for (int64_t at = 0; at < n; at += REAL)
#pragma omp simd
            for (int64_t i = 0; i < REAL; i++) {
                float v = wide(from[at + i]) + bias[i];
                to[at + i] = narrow(v > 0 ? v : 0);
            }
    }
}

/* Its gradient: that of what is behind the zeros, (rows, past + n), gives (rows, n). */
int relu_behind_backward(int64_t rows, int64_t past, int64_t n, const bf16 *restrict y, const bf16 *restrict dy,
                         bf16 *restrict dx, float *restrict dbias) {
    int64_t pixels = n / REAL, blocks = blocks_of(pixels);
    float *sums = calloc(rows * blocks * REAL, sizeof(float));
    if (!sums) return 0;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < rows * blocks; k++) {
        int64_t row = k / blocks, first = k % blocks * BLOCK;
        const bf16 *value = y + row * (past + n) + past, *from = dy + row * (past + n) + past;
        bf16 *to = dx + row * n;
        float *sum = sums + k * REAL;
        for (int64_t p = first; p < smaller(first + BLOCK, pixels); p++)
#pragma omp simd
            for (int64_t i = 0; i < REAL; i++) {
                bf16 d = value[p * REAL + i] ? from[p * REAL + i] : 0;
                to[p * REAL + i] = d;
                sum[i] += wide(d);
            }
    }
    add_up(1, rows * blocks, sums, 1, dbias);
    free(sums);
    return 1;
}

/* (x_re - x_im + y_0 + y_3, x_im + x_re + y_1 + y_2) of each pixel. */
void complex_sum(int64_t pixels, const bf16 *restrict x, const bf16 *restrict y, bf16 *restrict out) {
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < pixels; p++) {
        const bf16 *re = x + REAL * p, *im = re + CHANNELS;
        const bf16 *y0 = y + 2 * REAL * p, *y1 = y0 + CHANNELS, *y2 = y1 + CHANNELS, *y3 = y2 + CHANNELS;
        bf16 *to = out + REAL * p;
#pragma omp simd
        for (int64_t i = 0; i < CHANNELS; i++) {
            float r = wide(re[i]), m = wide(im[i]);
            to[i] = narrow(r - m + (wide(y0[i]) + wide(y3[i])));
            to[CHANNELS + i] = narrow(m + r + (wide(y1[i]) + wide(y2[i])));
        }
    }
}

/* Gradient of y. */
void complex_sum_backward_y(int64_t pixels, const bf16 *restrict d, bf16 *restrict dy) {
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < pixels; p++) {
        const bf16 *re = d + REAL * p, *im = re + CHANNELS;
        bf16 *y = dy + 2 * REAL * p;
#pragma omp simd
        for (int64_t i = 0; i < CHANNELS; i++) {
            y[i] = y[3 * CHANNELS + i] = re[i];
            y[CHANNELS + i] = y[2 * CHANNELS + i] = im[i];
        }
    }
}

/* Gradient of x, added to what is in dx. */
void complex_sum_backward_x(int64_t pixels, const bf16 *restrict d, bf16 *restrict dx) {
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < pixels; p++) {
        const bf16 *re = d + REAL * p, *im = re + CHANNELS;
        bf16 *to_re = dx + REAL * p, *to_im = to_re + CHANNELS;
#pragma omp simd
        for (int64_t i = 0; i < CHANNELS; i++) {
            float r = wide(re[i]), m = wide(im[i]);
            to_re[i] = narrow(wide(to_re[i]) + (r + m));
            to_im[i] = narrow(wide(to_im[i]) + (m - r));
        }
    }
}

/* Means over the pixels: (rows, pixels, REAL) to (rows, REAL). */
int channel_means(int64_t rows, int64_t pixels, const bf16 *restrict x, float *restrict out) {
    int64_t blocks = blocks_of(pixels);
    float *sums = calloc(rows * blocks * REAL, sizeof(float));
    if (!sums) return 0;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < rows * blocks; b++) {
        int64_t first = b % blocks * BLOCK;
        const bf16 *from = x + (b / blocks * pixels + first) * REAL;
        float *sum = sums + b * REAL;
        for (int64_t p = 0; p < smaller(BLOCK, pixels - first); p++)
#pragma omp simd
            for (int64_t i = 0; i < REAL; i++) sum[i] += wide(from[p * REAL + i]);
    }
    add_up(rows, blocks, sums, 1.0 / pixels, out);
    free(sums);
    return 1;
}

/* dx + dmean / pixels */
void channel_means_backward(int64_t rows, int64_t pixels, const bf16 *restrict dx, const float *restrict dmean,
                            bf16 *restrict out) {
    float share = 1.0f / pixels;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < rows * pixels; p++) {
        const float *mean = dmean + p / pixels * REAL;
#pragma omp simd
        for (int64_t i = 0; i < REAL; i++) out[p * REAL + i] = narrow(wide(dx[p * REAL + i]) + share * mean[i]);
    }
}

/* Channels of `a` times `scale_a`, then those of `b` times `scale_b`, (rows, REAL) each. */
void scaled_concat(int64_t rows, int64_t pixels, const bf16 *restrict a, const float *restrict scale_a,
                   const bf16 *restrict b, const float *restrict scale_b, bf16 *restrict out) {
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < rows * pixels; p++) {
        const float *sa = scale_a + p / pixels * REAL, *sb = scale_b + p / pixels * REAL;
        bf16 *to = out + 2 * REAL * p;
#pragma omp simd
        for (int64_t i = 0; i < REAL; i++) {
            to[i] = narrow(sa[i] * wide(a[p * REAL + i]));
            to[REAL + i] = narrow(sb[i] * wide(b[p * REAL + i]));
        }
    }
}

int scaled_concat_backward(int64_t rows, int64_t pixels, const bf16 *restrict d, const bf16 *restrict a,
                           const float *restrict scale_a, const bf16 *restrict b, const float *restrict scale_b,
                           bf16 *restrict da, float *restrict dscale_a, bf16 *restrict db, float *restrict dscale_b) {
    int64_t blocks = blocks_of(pixels);
    float *sums = calloc(2 * rows * blocks * REAL, sizeof(float));
    if (!sums) return 0;
    float *sums_a = sums, *sums_b = sums + rows * blocks * REAL;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < rows * blocks; k++) {
        int64_t row = k / blocks, first = k % blocks * BLOCK, begin = row * pixels + first;
        const float *sa = scale_a + row * REAL, *sb = scale_b + row * REAL;
        float *sum_a = sums_a + k * REAL, *sum_b = sums_b + k * REAL;
        for (int64_t p = begin; p < begin + smaller(BLOCK, pixels - first); p++) {
            const bf16 *from = d + 2 * REAL * p;
#pragma omp simd
            for (int64_t i = 0; i < REAL; i++) {
                float ga = wide(from[i]), gb = wide(from[REAL + i]);
                da[p * REAL + i] = narrow(sa[i] * ga);
                db[p * REAL + i] = narrow(sb[i] * gb);
                sum_a[i] += ga * wide(a[p * REAL + i]);
                sum_b[i] += gb * wide(b[p * REAL + i]);
            }
        }
    }
    add_up(rows, blocks, sums_a, 1, dscale_a);
    add_up(rows, blocks, sums_b, 1, dscale_b);
    free(sums);
    return 1;
}
