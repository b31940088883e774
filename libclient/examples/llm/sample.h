/* From logits to a token. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct sampler {
        float temperature; /* 0: the likeliest token, always */
        float top_p; /* draw from the likeliest tokens that together have this probability */
        uint64_t state; /* of the generator: the seed */
        struct choice *choices; /* owned; room for n_vocab */
        size_t n_vocab;
};

/* 0 or -ENOMEM */
int sampler_init(struct sampler *s, size_t n_vocab, float temperature, float top_p, uint64_t seed);
void sampler_deinit(struct sampler *s);
uint32_t sampler_next(struct sampler *s, const float *logits);
/* -log of the probability that softmax gives token id, in nats. */
double sample_nll(const float *logits, size_t n_vocab, uint32_t id);

/* What another run's logits q are worth against logits p at a place of the text where token id follows. */
struct sample_pair {
        double kl; /* of q's distribution from p's, in nats; 0 if both are the same bits */
        double p_nll, q_nll; /* -log of the probability of id */
        int same_best; /* both have the same likeliest token */
};
void sample_compare(const float *p, const float *q, size_t n_vocab, uint32_t id, struct sample_pair *ret);
