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
