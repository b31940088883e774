/* Trying codecs: planes are encoded and decoded as a copy's are, timed, and what came of it is added up. For the tools that measure codecs.
 *
 * A trial holds the buffers of one thread. Bytes are those of payloads, all that a decoder needs; the 24 bytes of a plane in the header of every copy are not
 * counted, they are the same for raw. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libclient/codec/kernels.h"
#include "libclient/codec/plane.h"

struct trial {
        unsigned n_repeats; /* of each encoding and decoding: the fastest is what counts; 0 is 1 */
        uint8_t *payload, *scratch; /* owned; scratch is 64-byte aligned */
        size_t payload_bytes, scratch_bytes;
};

struct trial_plane {
        struct kvt_copy_plane copy;
        bool fell_back; /* it is not coded as the spec says, but better */
        uint64_t encode_nsec; /* all that a put does: widening, encoding, decoding and measuring again if it is lossy, hashing */
        uint64_t decode_nsec;
};

struct trial_sums {
        uint64_t n_planes, n_fell_back, n_values, n_raw_bytes, n_bytes, encode_nsec, decode_nsec;
        struct error_sums error;
};

void trial_deinit(struct trial *t);
/* Encodes src as q says and decodes it to dst (p->n_bytes). 0, KVT_E_NO_MEMORY, or KVT_E_CORRUPT: the codec does not decode what it encoded. The payload stays in
 * t->payload until the next call. */
int trial_run(struct trial *t, const struct shape *p, const struct plane_request *q, const void *src, void *dst, struct trial_plane *ret);
/* Adds a plane that trial_run() made of src. */
void trial_add(struct trial_sums *sums, const struct shape *p, const void *src, const void *dst, const struct trial_plane *x);
void trial_sums_add(struct trial_sums *sums, const struct trial_sums *more);

double trial_bits(const struct trial_sums *s); /* a value */
double trial_rel_l2(const struct trial_sums *s); /* of all planes together */
double trial_fell_back(const struct trial_sums *s); /* share of the planes */
/* Bytes of decoded planes a second, in 10^9. */
double trial_encode_gbps(const struct trial_sums *s);
double trial_decode_gbps(const struct trial_sums *s);
