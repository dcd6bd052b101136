/* The operators between the convolutions of FRCRN for training, in as few passes over memory as possible. Activations
 * are bfloat16, (batch, bins, frames, channels), and each pass over one of them takes as long as a convolution. Sums are
 * float within a block and double over the blocks, which are added in order, so that the result does not depend on the
 * number of threads. Functions that allocate memory for sums return 0 if they get none, and 1 otherwise. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
enum { REAL = 2 * CHANNELS, BLOCK = 512, FRAMES = 16 }; /* real channels; pixels and frames per block of a sum */

static inline float wide(bf16 v) {
    union { uint32_t bits; float value; } x = {.bits = (uint32_t)v << 16};
    return x.value;
}

static inline bf16 narrow(float v) {
    union { float value; uint32_t bits; } x = {.value = v};
    return (bf16)((x.bits + 0x7fff + ((x.bits >> 16) & 1)) >> 16);
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Number of blocks of `size` that `count` items take. */
static inline int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Add the bias and apply leaky ReLU, in place. */
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
    int64_t blocks = blocks_of(pixels, BLOCK);
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
    for (int64_t i = 0; i < REAL; i++) {
        double sum = 0;
        for (int64_t b = 0; b < blocks; b++) sum += sums[b * REAL + i];
        dbias[i] = (float)sum;
    }
    free(sums);
    return 1;
}

/* One layer of complex FSMN, see `Operators.memory`: (batch, steps, others, REAL), with the memory along the steps. A
 * column (all steps at one index of `others`) and everything computed from it fit into a core's cache, so an activation
 * is read and written only once. Intermediate values are float, and the backward pass computes them again. */

/* SUMS: vectors that fit into the registers as sums. */
#ifdef __AVX512F__
enum { WIDTH = CHANNELS % 16 ? 8 : 16, SUMS = 24 };
#else
enum { WIDTH = 8, SUMS = 12 };
#endif
enum { VECTORS = CHANNELS / WIDTH, COLUMNS = 8 }; /* vectors per part; columns per block of a sum */
typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4 * WIDTH), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * WIDTH), aligned(4 * WIDTH)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 20")

/* The weights of a layer, arranged for the products below. */
typedef struct {
    vector to_hidden[CHANNELS][2 * VECTORS];    /* from each channel of a part to both networks */
    vector from_hidden[REAL][VECTORS];          /* its transpose */
    vector bias[2 * VECTORS];
    vector project[2][CHANNELS][VECTORS];       /* from each hidden channel, for each network */
    vector project_back[2][CHANNELS][VECTORS];  /* its transpose */
    vector taps[4 * VECTORS][20];               /* for each memory */
    vector taps_back[4 * VECTORS][20];          /* reversed */
} Layer;

/* Gradients of the weights, summed over columns. */
typedef struct {
    float weight[REAL][CHANNELS], bias[REAL], project[2][CHANNELS][CHANNELS], taps[4 * VECTORS][20][WIDTH];
} Gradients;

/* Intermediate values of a column: arrays of rows (step, part), except for the memories, which have a plane of steps
 * per vector. */
typedef struct {
    vector *x, *hidden, *memory, *d, *dmemory, *dhidden, *dx;
} Column;

/* Keep the elements of `x` where `y` is above zero, and zero the others. */
INLINE vector where_above_zero(vector x, vector y) { return (vector)((mask)x & (y > 0)); }

/* Multiply (rows, length) by (length, vectors), for as many rows and vectors as the registers hold. */
INLINE void product_of(int64_t rows, int64_t count, const float *a, int64_t stride, int64_t length, const vector *b,
                       int64_t vectors, vector *out, int64_t row_stride, int64_t vector_stride) {
    vector sums[12][4];
    UNROLL for (int64_t r = 0; r < rows; r++)
        UNROLL for (int64_t v = 0; v < count; v++) sums[r][v] = (vector){0};
    for (int64_t k = 0; k < length; k++)
        UNROLL for (int64_t r = 0; r < rows; r++)
            UNROLL for (int64_t v = 0; v < count; v++) sums[r][v] += a[r * stride + k] * b[k * vectors + v];
    UNROLL for (int64_t r = 0; r < rows; r++)
        UNROLL for (int64_t v = 0; v < count; v++) out[r * row_stride + v * vector_stride] = sums[r][v];
}

INLINE void product_of_rows(int64_t at_once, int64_t count, int64_t rows, const float *a, int64_t stride,
                            int64_t length, const vector *b, int64_t vectors, vector *out, int64_t row_stride,
                            int64_t vector_stride) {
    int64_t r = 0;
    for (; r + at_once <= rows; r += at_once)
        product_of(at_once, count, a + r * stride, stride, length, b, vectors, out + r * row_stride, row_stride,
                   vector_stride);
    for (; r < rows; r++)
        product_of(1, count, a + r * stride, stride, length, b, vectors, out + r * row_stride, row_stride,
                   vector_stride);
}

INLINE void product(int64_t rows, const float *a, int64_t stride, int64_t length, const vector *b, int64_t vectors,
                    vector *out, int64_t row_stride, int64_t vector_stride) {
    int64_t v = 0;
    for (; SUMS >= 24 && v + 4 <= vectors; v += 4)
        product_of_rows(SUMS / 4, 4, rows, a, stride, length, b + v, vectors, out + v * vector_stride, row_stride,
                        vector_stride);
    for (; v + 2 <= vectors; v += 2)
        product_of_rows(SUMS / 2, 2, rows, a, stride, length, b + v, vectors, out + v * vector_stride, row_stride,
                        vector_stride);
    for (; v < vectors; v++)
        product_of_rows(12, 1, rows, a, stride, length, b + v, vectors, out + v * vector_stride, row_stride,
                        vector_stride);
}

/* Add the transpose of (rows, length) times (rows, VECTORS) to (length, CHANNELS). `length` is a multiple of 8. */
INLINE void add_outer(int64_t rows, const float *a, int64_t stride, int64_t length, const vector *b, int64_t b_stride,
                      float *out) {
    for (int64_t i = 0; i < length; i += 8)
        for (int64_t v = 0; v < VECTORS; v++) {
            vector sums[8];
            UNROLL for (int64_t k = 0; k < 8; k++) sums[k] = (vector){0};
            for (int64_t r = 0; r < rows; r++) {
                vector factor = b[r * b_stride + v];
                UNROLL for (int64_t k = 0; k < 8; k++) sums[k] += a[r * stride + i + k] * factor;
            }
            UNROLL for (int64_t k = 0; k < 8; k++)
                for (int64_t w = 0; w < WIDTH; w++) out[(i + k) * CHANNELS + v * WIDTH + w] += sums[k][w];
        }
}

/* Add the filtered input to a plane of `steps`: at each step, the `count` inputs from there on, times the taps. */
INLINE void add_filtered(int64_t steps, int64_t count, const vector *x, const vector *taps, vector *out,
                         int64_t stride) {
    int64_t s = 0;
    for (; s + 8 <= steps; s += 8) {
        vector sums[8];
        UNROLL for (int64_t k = 0; k < 8; k++) sums[k] = out[(s + k) * stride];
        for (int64_t t = 0; t < count; t++)
            UNROLL for (int64_t k = 0; k < 8; k++) sums[k] += taps[t] * x[s + k + t];
        UNROLL for (int64_t k = 0; k < 8; k++) out[(s + k) * stride] = sums[k];
    }
    for (; s < steps; s++)
        for (int64_t t = 0; t < count; t++) out[s * stride] += taps[t] * x[s + t];
}

/* Add the gradients of these taps. */
INLINE void add_taps(int64_t steps, int64_t count, const vector *d, const vector *x, float (*out)[WIDTH]) {
    vector sums[20];
    UNROLL for (int64_t t = 0; t < count; t++) sums[t] = (vector){0};
    for (int64_t s = 0; s < steps; s++)
        UNROLL for (int64_t t = 0; t < count; t++) sums[t] += d[s] * x[s + t];
    for (int64_t t = 0; t < count; t++)
        for (int64_t w = 0; w < WIDTH; w++) out[t][w] += sums[t][w];
}

INLINE void load(int64_t steps, int64_t stride, const bf16 *from, float *to) {
    for (int64_t s = 0; s < steps; s++)
#pragma omp simd
        for (int64_t i = 0; i < REAL; i++) to[s * REAL + i] = wide(from[s * stride + i]);
}

INLINE void store(int64_t steps, int64_t stride, const float *from, bf16 *to) {
    for (int64_t s = 0; s < steps; s++)
#pragma omp simd
        for (int64_t i = 0; i < REAL; i++) to[s * stride + i] = narrow(from[s * REAL + i]);
}

/* Compute the hidden layers and the memories, which begin with `past` steps of zeros. */
static void remember(int64_t steps, int64_t past, const Layer *layer, const Column *c) {
    product(2 * steps, (float *)c->x, CHANNELS, CHANNELS, layer->to_hidden[0], 2 * VECTORS, c->hidden, 2 * VECTORS,
            1);
    for (int64_t r = 0; r < 2 * steps; r++)
        for (int64_t v = 0; v < 2 * VECTORS; v++) {
            vector y = c->hidden[r * 2 * VECTORS + v] + layer->bias[v];
            c->hidden[r * 2 * VECTORS + v] = where_above_zero(y, y);
        }
    int64_t plane = past + steps;
    for (int64_t part = 0; part < 2; part++)
        for (int64_t net = 0; net < 2; net++) {
            vector *planes = c->memory + (2 * part + net) * VECTORS * plane;
            for (int64_t v = 0; v < VECTORS; v++)
                for (int64_t t = 0; t < past; t++) planes[v * plane + t] = (vector){0};
            product(steps, (float *)(c->hidden + (2 * part + net) * VECTORS), 2 * REAL, CHANNELS,
                    layer->project[net][0], VECTORS, planes + past, 1, plane);
        }
}

/* Part of the output that a memory is added to: the real one for (real, real) and (imaginary, imaginary). */
INLINE int64_t part_of(int64_t memory) { return memory == 1 || memory == 2; }

static int column_in(Column *c, int64_t steps, int64_t past) {
    int64_t plane = steps + past, sizes[] = {2 * steps * VECTORS, 4 * steps * VECTORS, 4 * plane * VECTORS,
                                             2 * plane * VECTORS, 4 * steps * VECTORS, 4 * steps * VECTORS,
                                             2 * steps * VECTORS};
    vector **arrays[] = {&c->x, &c->hidden, &c->memory, &c->d, &c->dmemory, &c->dhidden, &c->dx};
    int64_t total = 0, at = 0;
    for (int i = 0; i < 7; i++) total += sizes[i];
    vector *all = aligned_alloc(sizeof(vector), total * sizeof(vector));
    for (int i = 0; i < 7; at += sizes[i++]) *arrays[i] = all + at;
    return all != NULL;
}

static Layer *layer_of(int64_t count, const float *weight, const float *bias, const float *projection,
                       const float *taps) {
    Layer *layer = aligned_alloc(sizeof(vector), sizeof(Layer));
    if (!layer) return NULL;
    for (int64_t o = 0; o < REAL; o++) {
        ((float *)layer->bias)[o] = bias[o];
        for (int64_t i = 0; i < CHANNELS; i++)
            ((float *)layer->to_hidden[i])[o] = ((float *)layer->from_hidden[o])[i] = weight[o * CHANNELS + i];
    }
    for (int64_t net = 0; net < 2; net++)
        for (int64_t o = 0; o < CHANNELS; o++)
            for (int64_t i = 0; i < CHANNELS; i++)
                ((float *)layer->project[net][i])[o] = ((float *)layer->project_back[net][o])[i] =
                    projection[(net * CHANNELS + o) * REAL + net * CHANNELS + i];
    for (int64_t v = 0; v < 4 * VECTORS; v++)
        for (int64_t t = 0; t < count; t++)
            for (int64_t w = 0; w < WIDTH; w++)
                layer->taps[v][t][w] = layer->taps_back[v][count - 1 - t][w] = taps[(v * WIDTH + w) * count + t];
    return layer;
}

int memory(int64_t batch, int64_t steps, int64_t others, int64_t count, const bf16 *restrict x,
           const float *restrict weight, const float *restrict bias, const float *restrict projection,
           const float *restrict taps, bf16 *restrict out) {
    int64_t past = count - 1, stride = others * REAL;
    int fine = 1;
    Layer *layer = layer_of(count, weight, bias, projection, taps);
    if (!layer) return 0;
#pragma omp parallel reduction(&& : fine)
    {
        Column c;
        fine = column_in(&c, steps, past);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < batch * others; k++) {
            if (!fine) continue;
            int64_t begin = k / others * steps * stride + k % others * REAL;
            load(steps, stride, x + begin, (float *)c.x);
            remember(steps, past, layer, &c);
            for (int64_t s = 0; s < steps; s++)
                for (int64_t v = 0; v < VECTORS; v++) {
                    vector re = c.x[2 * s * VECTORS + v], im = c.x[(2 * s + 1) * VECTORS + v];
                    c.dx[2 * s * VECTORS + v] = re - im;
                    c.dx[(2 * s + 1) * VECTORS + v] = im + re;
                }
            for (int64_t m = 0; m < 4; m++)
                for (int64_t v = 0; v < VECTORS; v++)
                    add_filtered(steps, count, c.memory + (m * VECTORS + v) * (past + steps),
                                 layer->taps[m * VECTORS + v], c.dx + part_of(m) * VECTORS + v, 2 * VECTORS);
            store(steps, stride, (float *)c.dx, out + begin);
        }
        free(c.x);
    }
    free(layer);
    return fine;
}

static void memory_column_backward(int64_t steps, int64_t count, const Layer *layer, const Column *c, Gradients *sum) {
    int64_t past = count - 1;
    remember(steps, past, layer, c);
    memset(c->dmemory, 0, 4 * steps * VECTORS * sizeof(vector));
    for (int64_t m = 0; m < 4; m++)
        for (int64_t v = 0; v < VECTORS; v++) {
            const vector *d = c->d + (part_of(m) * VECTORS + v) * (steps + past);
            const vector *plane = c->memory + (m * VECTORS + v) * (past + steps);
            float(*of_taps)[WIDTH] = sum->taps[m * VECTORS + v];
            int64_t t = 0;
            for (; t + SUMS / 6 * 5 <= count; t += SUMS / 6 * 5)
                add_taps(steps, SUMS / 6 * 5, d, plane + t, of_taps + t);
            for (; t < count; t++) add_taps(steps, 1, d, plane + t, of_taps + t);
            add_filtered(steps, count, d, layer->taps_back[m * VECTORS + v], c->dmemory + m * VECTORS + v,
                         4 * VECTORS);
        }
    for (int64_t net = 0; net < 2; net++) {
        const float *dmemory = (float *)(c->dmemory + net * VECTORS);
        add_outer(2 * steps, dmemory, REAL, CHANNELS, c->hidden + net * VECTORS, 2 * VECTORS, sum->project[net][0]);
        product(2 * steps, dmemory, REAL, CHANNELS, layer->project_back[net][0], VECTORS, c->dhidden + net * VECTORS,
                2 * VECTORS, 1);
    }
    vector of_bias[2 * VECTORS] = {0};
    for (int64_t r = 0; r < 2 * steps; r++)
        for (int64_t v = 0; v < 2 * VECTORS; v++) {
            vector *d = c->dhidden + r * 2 * VECTORS + v;
            *d = where_above_zero(*d, c->hidden[r * 2 * VECTORS + v]);
            of_bias[v] += *d;
        }
    for (int64_t i = 0; i < REAL; i++) sum->bias[i] += ((float *)of_bias)[i];
    add_outer(2 * steps, (float *)c->dhidden, REAL, REAL, c->x, VECTORS, sum->weight[0]);
    product(2 * steps, (float *)c->dhidden, REAL, REAL, layer->from_hidden[0], VECTORS, c->dx, VECTORS, 1);
    for (int64_t s = 0; s < steps; s++)
        for (int64_t v = 0; v < VECTORS; v++) {
            vector re = c->d[v * (steps + past) + s], im = c->d[(VECTORS + v) * (steps + past) + s];
            c->dx[2 * s * VECTORS + v] += re + im;
            c->dx[(2 * s + 1) * VECTORS + v] += im - re;
        }
}

/* At the end, `sums` holds the `Gradients` over all columns. */
int memory_backward(int64_t batch, int64_t steps, int64_t others, int64_t count, const bf16 *restrict x,
                    const float *restrict weight, const float *restrict bias, const float *restrict projection,
                    const float *restrict taps, const bf16 *restrict d, bf16 *restrict dx, float *restrict dweight,
                    float *restrict dbias, float *restrict dprojection, float *restrict dtaps) {
    int64_t past = count - 1, stride = others * REAL, columns = batch * others;
    int64_t blocks = blocks_of(columns, COLUMNS), size = sizeof(Gradients) / sizeof(float);
    int fine = 1;
    Layer *layer = layer_of(count, weight, bias, projection, taps);
    Gradients *sums = calloc(blocks, sizeof(Gradients)), *sum = sums;
    if (layer && sums) {
#pragma omp parallel reduction(&& : fine)
        {
            Column c;
            fine = column_in(&c, steps, past);
#pragma omp for schedule(static)
            for (int64_t block = 0; block < blocks; block++)
                for (int64_t k = block * COLUMNS; fine && k < smaller((block + 1) * COLUMNS, columns); k++) {
                    int64_t begin = k / others * steps * stride + k % others * REAL;
                    load(steps, stride, d + begin, (float *)c.dx);
                    for (int64_t v = 0; v < 2 * VECTORS; v++) {
                        vector *plane = c.d + v * (steps + past);
                        for (int64_t s = 0; s < steps; s++) plane[s] = c.dx[s * 2 * VECTORS + v];
                        for (int64_t s = steps; s < steps + past; s++) plane[s] = (vector){0};
                    }
                    load(steps, stride, x + begin, (float *)c.x);
                    memory_column_backward(steps, count, layer, &c, sums + block);
                    store(steps, stride, (float *)c.dx, dx + begin);
                }
            free(c.x);
        }
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < size; i++) {
            double total = 0;
            for (int64_t block = 0; block < blocks; block++) total += ((float *)(sums + block))[i];
            ((float *)sum)[i] = (float)total;
        }
        memcpy(dweight, sum->weight, sizeof(sum->weight));
        memcpy(dbias, sum->bias, sizeof(sum->bias));
        memset(dprojection, 0, REAL * REAL * sizeof(float));
        for (int64_t net = 0; net < 2; net++)
            for (int64_t o = 0; o < CHANNELS; o++)
                memcpy(dprojection + (net * CHANNELS + o) * REAL + net * CHANNELS, sum->project[net][o],
                       CHANNELS * sizeof(float));
        for (int64_t v = 0; v < 4 * VECTORS; v++)
            for (int64_t w = 0; w < WIDTH; w++)
                for (int64_t t = 0; t < count; t++) dtaps[(v * WIDTH + w) * count + t] = sum->taps[v][t][w];
    }
    fine = fine && layer && sums;
    free(layer);
    free(sums);
    return fine;
}

/* Compute means over the bins, (batch, frames, REAL). */
void frame_means(int64_t batch, int64_t bins, int64_t frames, const bf16 *restrict x, float *restrict out) {
    int64_t blocks = blocks_of(frames, FRAMES);
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < batch * blocks; k++) {
        int64_t first = k % blocks * FRAMES, count = smaller(FRAMES, frames - first) * REAL;
        float sum[FRAMES * REAL] = {0};
        for (int64_t bin = 0; bin < bins; bin++) {
            const bf16 *from = x + ((k / blocks * bins + bin) * frames + first) * REAL;
#pragma omp simd
            for (int64_t i = 0; i < count; i++) sum[i] += wide(from[i]);
        }
        float *to = out + (k / blocks * frames + first) * REAL;
        for (int64_t i = 0; i < count; i++) to[i] = sum[i] / bins;
    }
}

/* dx + dmean / bins */
void frame_means_backward(int64_t batch, int64_t bins, int64_t frames, const bf16 *restrict dx,
                          const float *restrict dmean, bf16 *restrict out) {
    float share = 1.0f / bins;
    int64_t row = frames * REAL;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < batch * bins; k++) {
        const float *mean = dmean + k / bins * row;
#pragma omp simd
        for (int64_t i = 0; i < row; i++) out[k * row + i] = narrow(wide(dx[k * row + i]) + share * mean[i]);
    }
}

/* Concatenate `a` times `scale_a` and `b` times `scale_b` along the channels; scales are (batch, frames, REAL). */
void scaled_concat(int64_t batch, int64_t bins, int64_t frames, const bf16 *restrict a, const float *restrict scale_a,
                   const bf16 *restrict b, const float *restrict scale_b, bf16 *restrict out) {
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < batch * bins * frames; p++) {
        int64_t frame = p / (bins * frames) * frames + p % frames;
        const float *sa = scale_a + frame * REAL, *sb = scale_b + frame * REAL;
        bf16 *to = out + 2 * REAL * p;
#pragma omp simd
        for (int64_t i = 0; i < REAL; i++) {
            to[i] = narrow(sa[i] * wide(a[p * REAL + i]));
            to[REAL + i] = narrow(sb[i] * wide(b[p * REAL + i]));
        }
    }
}

void scaled_concat_backward(int64_t batch, int64_t bins, int64_t frames, const bf16 *restrict d,
                            const bf16 *restrict a, const float *restrict scale_a, const bf16 *restrict b,
                            const float *restrict scale_b, bf16 *restrict da, float *restrict dscale_a,
                            bf16 *restrict db, float *restrict dscale_b) {
    int64_t blocks = blocks_of(frames, FRAMES);
    memset(dscale_a, 0, batch * frames * REAL * sizeof(float));
    memset(dscale_b, 0, batch * frames * REAL * sizeof(float));
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < batch * blocks; k++) {
        int64_t row = k / blocks, first = k % blocks * FRAMES;
        for (int64_t bin = 0; bin < bins; bin++)
            for (int64_t t = first; t < smaller(first + FRAMES, frames); t++) {
                int64_t p = (row * bins + bin) * frames + t, frame = (row * frames + t) * REAL;
                const float *sa = scale_a + frame, *sb = scale_b + frame;
                float *sum_a = dscale_a + frame, *sum_b = dscale_b + frame;
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
}
