// The limit: each rule with the loads and stores that it needs and little else, in one pass over all leaves.
// Compiled where the benchmark runs. Threads split the elements of all leaves evenly, wherever leaves begin.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int64_t leaves, elements;
  const int64_t *sizes;
  void **w, **g;
  float **m, **v, **e;
} tree;

typedef struct {
  float lr, momentum, beta1, rest1, beta2, rest2, alpha, eps, keep, decay, correct1, correct2, max_norm, average, scale;
} scalars;

static inline float load_f32(const float *p) { return *p; }
static inline void store_f32(float *p, float x) { *p = x; }

static inline float load_bf16(const uint16_t *p) {
  uint32_t bits = (uint32_t)*p << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static inline void store_bf16(uint16_t *p, float x) { // to the nearest, ties to even; there are no NaNs here
  uint32_t bits;
  memcpy(&bits, &x, 4);
  *p = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#define SGD(L, S) S(w + i, L(w + i) - s.lr * L(g + i));
#define MOMENTUM(L, S)                \
  float a = s.momentum * m[i] + L(g + i); \
  m[i] = a;                           \
  S(w + i, L(w + i) - s.lr * a);
// Adam's moments of the grad x, and the new param z.
#define MOMENTS(X)                                   \
  float x = X;                                       \
  float a = s.beta1 * m[i] + s.rest1 * x;            \
  float b = s.beta2 * v[i] + s.rest2 * x * x;        \
  m[i] = a;                                          \
  v[i] = b;
#define STEPPED(L) (s.keep * L(w + i) - s.alpha * a / (sqrtf(b) + s.eps))
#define ADAM(L, S)                                   \
  MOMENTS(L(g + i))                                  \
  S(w + i, STEPPED(L));
#define LION(L, S)                                                          \
  float x = L(g + i);                                                       \
  float u = s.beta1 * m[i] + s.rest1 * x;                                   \
  m[i] = s.beta2 * m[i] + s.rest2 * x;                                      \
  S(w + i, s.keep * L(w + i) - s.lr * ((float)(u > 0) - (float)(u < 0)));
#define CLIPPED(L, S)                                \
  MOMENTS(L(g + i) * s.scale)                        \
  S(w + i, STEPPED(L));
#define AVERAGED(L, S)                               \
  MOMENTS(L(g + i) * s.scale)                        \
  float z = STEPPED(L);                              \
  S(w + i, z);                                       \
  e[i] = s.average * e[i] + (1 - s.average) * z;
// LAMB's update; it stores nothing before both norms of the leaf are known.
#define LAMB_UPDATE                                  \
  float x = g[i];                                    \
  float a = s.beta1 * m[i] + s.rest1 * x;            \
  float b = s.beta2 * v[i] + s.rest2 * x * x;        \
  float u = a * s.correct1 / (sqrtf(b * s.correct2) + s.eps) + s.decay * w[i];

#define KERNEL(NAME, TYPE, LOAD, STORE, BODY)                                                                        \
  static void NAME##_leaf(int64_t n, TYPE *restrict w, const TYPE *restrict g, float *restrict m, float *restrict v, \
                          float *restrict e, scalars s) {                                                                               \
    for (int64_t i = 0; i < n; i++) {                                                                                \
      BODY(LOAD, STORE)                                                                                              \
    }                                                                                                                \
  }                                                                                                                  \
  void NAME(const tree *t, const scalars *s, int threads) {                                                          \
    int count = t->elements < 32768 ? 1 : threads;                                                                   \
    _Pragma("omp parallel for num_threads(count) schedule(static, 1) if (count > 1)") for (int k = 0; k < count;    \
                                                                                           k++) {                   \
      int64_t low = t->elements * k / count & ~(int64_t)15;                                                          \
      int64_t high = k + 1 == count ? t->elements : t->elements * (k + 1) / count & ~(int64_t)15;                    \
      int64_t base = 0;                                                                                              \
      for (int64_t j = 0; j < t->leaves && base < high; base += t->sizes[j++]) {                                     \
        int64_t n = t->sizes[j];                                                                                     \
        int64_t from = low > base ? low - base : 0, to = high - base < n ? high - base : n;                          \
        if (from >= to) continue;                                                                                    \
        NAME##_leaf(to - from, (TYPE *)t->w[j] + from, (const TYPE *)t->g[j] + from, t->m ? t->m[j] + from : 0,      \
                    t->v ? t->v[j] + from : 0, t->e ? t->e[j] + from : 0, *s);                                                                  \
      }                                                                                                              \
    }                                                                                                                \
  }

#define RULE(NAME, BODY)                               \
  KERNEL(NAME##_f32, float, load_f32, store_f32, BODY) \
  KERNEL(NAME##_bf16, uint16_t, load_bf16, store_bf16, BODY)

RULE(sgd, SGD)
RULE(momentum, MOMENTUM)
RULE(adam, ADAM)
RULE(lion, LION)
RULE(clipped, CLIPPED)
RULE(averaged, AVERAGED)

// Calls BODY for each piece of a leaf that a thread has: leaf j, elements from..to, thread k of count.
#define PIECES(BODY)                                                                                          \
  _Pragma("omp parallel for num_threads(count) schedule(static, 1) if (count > 1)") for (int k = 0; k < count; k++) { \
    int64_t low = t->elements * k / count & ~(int64_t)15;                                                     \
    int64_t high = k + 1 == count ? t->elements : t->elements * (k + 1) / count & ~(int64_t)15;               \
    int64_t base = 0;                                                                                         \
    for (int64_t j = 0; j < t->leaves && base < high; base += t->sizes[j++]) {                                \
      int64_t n = t->sizes[j];                                                                                \
      int64_t from = low > base ? low - base : 0, to = high - base < n ? high - base : n;                     \
      if (from < to) BODY                                                                                     \
    }                                                                                                         \
  }

static double squares(const float *restrict g, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; i++) total += (double)g[i] * g[i];
  return total;
}

static void clip(const tree *t, scalars *s, int threads) {
  int count = t->elements < 32768 ? 1 : threads;
  double sums[256] = {0};
  PIECES({ sums[k] += squares((const float *)t->g[j] + from, to - from); })
  double total = 0;
  for (int k = 0; k < count; k++) total += sums[k];
  double norm = sqrt(total);
  s->scale = norm > s->max_norm ? (float)(s->max_norm / norm) : 1.0f;
}

void adamw_clip_f32(const tree *t, scalars *s, int threads) {
  clip(t, s, threads);
  clipped_f32(t, s, threads);
}

void adamw_clip_ema_f32(const tree *t, scalars *s, int threads) {
  clip(t, s, threads);
  averaged_f32(t, s, threads);
}

static void lamb_norms(const float *restrict w, const float *restrict g, const float *restrict m,
                       const float *restrict v, int64_t n, scalars s, double *ww, double *uu) {
  double p = 0, q = 0;
  for (int64_t i = 0; i < n; i++) {
    LAMB_UPDATE
    p += (double)w[i] * w[i];
    q += (double)u * u;
  }
  *ww += p;
  *uu += q;
}

static void lamb_leaf(float *restrict w, const float *restrict g, float *restrict m, float *restrict v, int64_t n,
                      scalars s, float rate) {
  for (int64_t i = 0; i < n; i++) {
    LAMB_UPDATE
    m[i] = a;
    v[i] = b;
    w[i] -= rate * u;
  }
}

void lamb_f32(const tree *t, const scalars *s, int threads) {
  int count = t->elements < 32768 ? 1 : threads;
  double *sums = calloc(2 * count * t->leaves, sizeof(double));
  PIECES({
    double *at = sums + 2 * (k * t->leaves + j);
    lamb_norms((float *)t->w[j] + from, (float *)t->g[j] + from, t->m[j] + from, t->v[j] + from, to - from, *s, at,
               at + 1);
  })
  for (int64_t j = 0; j < t->leaves; j++)
    for (int k = 1; k < count; k++) {
      sums[2 * j] += sums[2 * (k * t->leaves + j)];
      sums[2 * j + 1] += sums[2 * (k * t->leaves + j) + 1];
    }
  PIECES({
    lamb_leaf((float *)t->w[j] + from, (float *)t->g[j] + from, t->m[j] + from, t->v[j] + from, to - from, *s,
              s->lr * (float)sqrt(sums[2 * j] / sums[2 * j + 1]));
  })
  free(sums);
}
