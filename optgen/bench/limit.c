// The limit: each rule with the loads and stores that it needs and little else, in one pass over all leaves.
// Compiled where the benchmark runs. Threads split the elements of all leaves evenly, wherever leaves begin.
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct {
  int64_t leaves, elements;
  const int64_t *sizes;
  void **w, **g;
  float **m, **v;
} tree;

typedef struct {
  float lr, momentum, beta1, rest1, beta2, rest2, alpha, eps, keep;
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
#define ADAM(L, S)                                   \
  float x = L(g + i);                                \
  float a = s.beta1 * m[i] + s.rest1 * x;            \
  float b = s.beta2 * v[i] + s.rest2 * x * x;        \
  m[i] = a;                                          \
  v[i] = b;                                          \
  S(w + i, s.keep * L(w + i) - s.alpha * a / (sqrtf(b) + s.eps));

#define KERNEL(NAME, TYPE, LOAD, STORE, BODY)                                                                        \
  static void NAME##_leaf(int64_t n, TYPE *restrict w, const TYPE *restrict g, float *restrict m, float *restrict v, \
                          scalars s) {                                                                               \
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
                    t->v ? t->v[j] + from : 0, *s);                                                                  \
      }                                                                                                              \
    }                                                                                                                \
  }

#define RULE(NAME, BODY)                               \
  KERNEL(NAME##_f32, float, load_f32, store_f32, BODY) \
  KERNEL(NAME##_bf16, uint16_t, load_bf16, store_bf16, BODY)

RULE(sgd, SGD)
RULE(momentum, MOMENTUM)
RULE(adam, ADAM)
