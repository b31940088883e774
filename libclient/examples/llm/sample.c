/* Greedy and seeded sampling. The generator is splitmix64, so that a seed means the same on every machine. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "libclient/examples/llm/sample.h"

struct choice {
        float weight;
        uint32_t id;
};

int sampler_init(struct sampler *s, size_t n_vocab, float temperature, float top_p, uint64_t seed)
{
        *s = (struct sampler){.temperature = temperature, .top_p = top_p, .state = seed, .n_vocab = n_vocab};
        s->choices = calloc(n_vocab, sizeof(*s->choices));
        return s->choices ? 0 : -ENOMEM;
}

void sampler_deinit(struct sampler *s)
{
        free(s->choices);
        *s = (struct sampler){0};
}

static double next_uniform(struct sampler *s)
{
        uint64_t z = s->state += 0x9e3779b97f4a7c15;

        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static size_t find_likeliest(const float *logits, size_t n)
{
        size_t best = 0;

        for (size_t i = 1; i < n; i++)
                if (logits[i] > logits[best])
                        best = i;
        return best;
}

static int compare_choices(const void *a, const void *b)
{
        const struct choice *x = a, *y = b;

        if (x->weight != y->weight)
                return x->weight > y->weight ? -1 : 1;
        return (x->id > y->id) - (x->id < y->id);
}

uint32_t sampler_next(struct sampler *s, const float *logits)
{
        size_t best = find_likeliest(logits, s->n_vocab), n;
        double total = 0, sum = 0, target;

        if (s->temperature <= 0)
                return (uint32_t)best;
        for (size_t i = 0; i < s->n_vocab; i++) {
                s->choices[i] = (struct choice){expf((logits[i] - logits[best]) / s->temperature), (uint32_t)i};
                total += s->choices[i].weight;
        }
        qsort(s->choices, s->n_vocab, sizeof(*s->choices), compare_choices);
        for (n = 0; n < s->n_vocab && sum < s->top_p * total; n++)
                sum += s->choices[n].weight;
        target = next_uniform(s) * sum;
        for (size_t i = 0; i < n; i++) {
                target -= s->choices[i].weight;
                if (target < 0)
                        return s->choices[i].id;
        }
        return s->choices[n ? n - 1 : 0].id;
}

double sample_nll(const float *logits, size_t n_vocab, uint32_t id)
{
        float max = logits[find_likeliest(logits, n_vocab)];
        double sum = 0;

        for (size_t i = 0; i < n_vocab; i++)
                sum += exp((double)(logits[i] - max));
        return log(sum) - (double)(logits[id] - max);
}

void sample_compare(const float *p, const float *q, size_t n_vocab, uint32_t id, struct sample_pair *ret)
{
        size_t p_best = find_likeliest(p, n_vocab), q_best = find_likeliest(q, n_vocab);
        double p_sum = 0, q_sum = 0, differences = 0, p_lse, q_lse;

        for (size_t i = 0; i < n_vocab; i++) {
                double weight = (double)expf(p[i] - p[p_best]);

                p_sum += weight;
                q_sum += (double)expf(q[i] - q[q_best]);
                differences += weight * ((double)p[i] - (double)q[i]);
        }
        p_lse = log(p_sum) + (double)p[p_best];
        q_lse = log(q_sum) + (double)q[q_best];
        *ret = (struct sample_pair){
                .kl = differences / p_sum - (p_lse - q_lse),
                .p_nll = p_lse - (double)p[id],
                .q_nll = q_lse - (double)q[id],
                .same_best = p_best == q_best,
        };
}
