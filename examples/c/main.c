/* Fits y = W x + b with AdamW: two leaves of different sizes, updated in place by code that optgen compiled. */
#include "adamw.h"

#include <stdio.h>

enum { INPUTS = 7, OUTPUTS = 3, SAMPLES = 64, STEPS = 400 };

typedef struct leaf {
    float *w, *g, *m, *v;
    size_t size;
} leaf;

static float weight[OUTPUTS][INPUTS], weight_grad[OUTPUTS][INPUTS], weight_m[OUTPUTS][INPUTS], weight_v[OUTPUTS][INPUTS];
static float bias[OUTPUTS], bias_grad[OUTPUTS], bias_m[OUTPUTS], bias_v[OUTPUTS];
static float x[SAMPLES][INPUTS], y[SAMPLES][OUTPUTS];

/* The params, and their state, which for AdamW begins as zeros. */
static leaf leaves[] = {
    {weight[0], weight_grad[0], weight_m[0], weight_v[0], OUTPUTS * INPUTS},
    {bias, bias_grad, bias_m, bias_v, OUTPUTS},
};

static float uniform(void)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static void make_data(void)
{
    int i, j, k;
    float truth[OUTPUTS][INPUTS];
    for (j = 0; j < OUTPUTS; ++j)
        for (k = 0; k < INPUTS; ++k)
            truth[j][k] = uniform();
    for (i = 0; i < SAMPLES; ++i) {
        for (k = 0; k < INPUTS; ++k)
            x[i][k] = uniform();
        for (j = 0; j < OUTPUTS; ++j) {
            y[i][j] = 0.5f * (float)(j + 1);
            for (k = 0; k < INPUTS; ++k)
                y[i][j] += truth[j][k] * x[i][k];
        }
    }
}

/* The mean squared error; its derivatives go to the leaves' g. */
static float loss_and_grads(void)
{
    int i, j, k;
    size_t l, n;
    float loss = 0.0f;
    for (l = 0; l < sizeof leaves / sizeof *leaves; ++l)
        for (n = 0; n < leaves[l].size; ++n)
            leaves[l].g[n] = 0.0f;
    for (i = 0; i < SAMPLES; ++i)
        for (j = 0; j < OUTPUTS; ++j) {
            float error = bias[j] - y[i][j];
            for (k = 0; k < INPUTS; ++k)
                error += weight[j][k] * x[i][k];
            loss += error * error / SAMPLES;
            bias_grad[j] += 2.0f * error / SAMPLES;
            for (k = 0; k < INPUTS; ++k)
                weight_grad[j][k] += 2.0f * error * x[i][k] / SAMPLES;
        }
    return loss;
}

int main(void)
{
    adamw_hypers hypers;
    uint64_t step;
    size_t l;
    float loss;
    adamw_hypers_init(&hypers);
    hypers.lr = 0.05;
    hypers.weight_decay = 0.0;
    make_data();
    for (step = 1; step <= STEPS; ++step) {
        loss = loss_and_grads();
        if (step == 1 || step % 100 == 0)
            printf("step %3u  loss %.6f\n", (unsigned)step, (double)loss);
        for (l = 0; l < sizeof leaves / sizeof *leaves; ++l) {
            const leaf *p = &leaves[l];
            const int status = adamw_update(p->w, p->g, p->m, p->v, p->size, step, &hypers, NULL);
            if (status) {
                fprintf(stderr, "%s\n", adamw_error(status));
                return 1;
            }
        }
    }
    printf("bias %.3f %.3f %.3f\n", (double)bias[0], (double)bias[1], (double)bias[2]);
    return 0;
}
