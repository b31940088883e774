/* What the fake daemon answers to each request. Included by fake.h only. */
#pragma once

static inline int fake_block(struct fake *f, const ProtobufCBinaryData *keys, size_t i)
{
        const uint8_t *k = keys->data + 16 * i;
        return k[1] == 77 && k[0] < FAKE_BLOCKS ? k[0] : -1;
}

static inline void fake_map(struct fake *f, unsigned i_conn, const struct frame *to, const Kvtier__MapRequest *q)
{
        size_t n = q->keys.len / 16, n_fds = 0, n_slabs = 0;
        struct kvt_map_entry *entries = calloc(n ? n : 1, sizeof(*entries));
        struct kvt_map_slab slabs[KVT_FDS_MAX] = {0};
        Kvtier__MapReply m = KVTIER__MAP_REPLY__INIT;
        int fds[KVT_FDS_MAX], own = -1, other[2] = {-1, -1};
        bool again = fake_errs(f, FAKE_MAP_AGAIN) || fake_errs(f, FAKE_MAP_AGAIN_FOREVER);
        bool few = fake_errs(f, FAKE_MAP_FEW_ENTRIES);

        f->n_map++;
        for (size_t i = 0; i < n; i++) {
                int b = fake_block(f, &q->keys, i);
                struct kvt_map_entry *e = &entries[i];

                if (b < 0 || !f->stored[b]) {
                        e->status = KVT_E_MISS;
                        continue;
                }
                if ((again && (i % 2 || f->wrong == FAKE_MAP_AGAIN_FOREVER)) ||
                    (!f->sent[i_conn][b] && (n_fds == KVT_FDS_MAX || f->unacked[i_conn]))) {
                        e->status = KVT_E_AGAIN;
                        continue;
                }
                if (!f->sent[i_conn][b]) {
                        f->sent[i_conn][b] = true;
                        slabs[n_slabs++] = (struct kvt_map_slab){.slab = 100 + (uint32_t)b, .bytes = FAKE_SLAB_BYTES};
                        fds[n_fds++] = f->slabs[b];
                }
                e->slab = 100 + (uint32_t)b;
                e->generation = FAKE_GENERATION + (uint64_t)b;
                e->lease = 5000 + (uint64_t)b;
                f->n_leases++;
        }
        if (n && !entries[0].status) {
                struct kvt_copy_header *h = f->headers[fake_block(f, &q->keys, 0)];

                if (fake_errs(f, FAKE_MAP_SLABS_WITHOUT_FD))
                        slabs[n_slabs++] = (struct kvt_map_slab){.slab = 999, .bytes = 4096};
                if (fake_errs(f, FAKE_MAP_UNSEALED))
                        fds[0] = own = fake_memfd(FAKE_SLAB_BYTES, false);
                if (f->wrong == FAKE_MAP_PIPE && !pipe(other)) {
                        f->n_wrong++;
                        fds[0] = other[0];
                }
                if (fake_errs(f, FAKE_MAP_LARGER_THAN_FILE))
                        slabs[0].bytes = FAKE_SLAB_BYTES + 4096;
                if (fake_errs(f, FAKE_MAP_EMPTY_SLAB))
                        slabs[0].bytes = 0;
                if (fake_errs(f, FAKE_MAP_TWICE)) {
                        slabs[n_slabs++] = slabs[0];
                        fds[n_fds++] = fds[0];
                }
                if (fake_errs(f, FAKE_MAP_UNKNOWN_SLAB))
                        entries[0].slab = 4242;
                if (fake_errs(f, FAKE_MAP_OFFSET_END))
                        entries[0].offset = FAKE_SLAB_BYTES - 8;
                if (fake_errs(f, FAKE_MAP_OFFSET_HUGE))
                        entries[0].offset = UINT64_MAX - 7;
                if (fake_errs(f, FAKE_MAP_OFFSET_ODD))
                        entries[0].offset = 4;
                if (fake_errs(f, FAKE_MAP_GENERATION_ZERO))
                        entries[0].generation = 0;
                if (fake_errs(f, FAKE_MAP_STALE))
                        entries[0].generation++;
                if (fake_errs(f, FAKE_MAP_HEADER_PLANES))
                        h->n_planes = 3;
                if (fake_errs(f, FAKE_MAP_HEADER_BYTES))
                        h->payload_bytes--;
                if (fake_errs(f, FAKE_MAP_HEADER_CODEC))
                        h->zero = 9;
                if (fake_errs(f, FAKE_MAP_HEADER_LAYOUT))
                        h->layout = 0;
        }
        m.entries = (ProtobufCBinaryData){.len = (n - (few && n)) * sizeof(*entries), .data = (uint8_t *)entries};
        m.slabs = (ProtobufCBinaryData){.len = n_slabs * sizeof(*slabs), .data = (uint8_t *)slabs};
        m.lease_usec = 10000000;
        f->unacked[i_conn] |= n_fds > 0;
        fake_reply(f, f->conns[i_conn], to, KVT_MSG_MAP | KVT_REPLY, &m.base, fds, n_fds);
        free(entries);
        if (own >= 0)
                close(own);
        if (other[0] >= 0) {
                close(other[0]);
                close(other[1]);
        }
}

static inline void fake_put(struct fake *f, unsigned i_conn, const struct frame *to, const Kvtier__PutCommitRequest *q)
{
        size_t n = q->offsets.len / 8;
        uint8_t *statuses = calloc(n ? n : 1, 1);
        Kvtier__PutCommitReply m = KVTIER__PUT_COMMIT_REPLY__INIT;

        f->n_put++;
        f->n_durable_put += q->durable;
        for (size_t i = 0; i < n; i++) {
                uint64_t at, id;
                int b;

                memcpy(&at, q->offsets.data + 8 * i, 8);
                if (q->reservations.len) {
                        memcpy(&id, q->reservations.data + 8 * i, 8);
                        b = (int)id - 7000;
                } else
                        b = fake_block(f, &q->keys, i);
                if (b < 0 || b >= FAKE_BLOCKS || at > FAKE_STAGING - FAKE_PART)
                        statuses[i] = KVT_E_BAD_STAGING;
                else if (f->stored[b])
                        statuses[i] = KVT_E_EXISTS;
                else {
                        memcpy(fake_payload(f, (unsigned)b), f->staging[i_conn] + at, FAKE_PART);
                        fake_seal_block(f, (unsigned)b);
                        f->stored[b] = true;
                }
        }
        m.statuses = (ProtobufCBinaryData){.len = n - (n && fake_errs(f, FAKE_STATUSES_SHORT)), .data = statuses};
        fake_reply(f, f->conns[i_conn], to, KVT_MSG_PUT_COMMIT | KVT_REPLY, &m.base, NULL, 0);
        free(statuses);
}

static inline void fake_staging(struct fake *f, unsigned i_conn, const struct frame *to)
{
        Kvtier__StagingOpenReply m = KVTIER__STAGING_OPEN_REPLY__INIT;
        int fd;

        if (f->unacked[i_conn]) {
                fake_error(f, f->conns[i_conn], to, KVT_E_AGAIN);
                return;
        }
        if (fake_errs(f, FAKE_STAGING_REFUSED)) {
                fake_error(f, f->conns[i_conn], to, KVT_E_QUOTA);
                return;
        }
        fd = fake_memfd(FAKE_STAGING, !fake_errs(f, FAKE_STAGING_UNSEALED));
        if (f->staging[i_conn])
                munmap(f->staging[i_conn], FAKE_STAGING);
        f->staging[i_conn] = mmap(NULL, FAKE_STAGING, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        m.bytes = FAKE_STAGING;
        f->unacked[i_conn] = true;
        fake_reply(f, f->conns[i_conn], to, KVT_MSG_STAGING_OPEN | KVT_REPLY, &m.base, &fd, !fake_errs(f, FAKE_STAGING_NO_FD));
        close(fd);
}

static inline void fake_leases_end(struct fake *f, const ProtobufCBinaryData *leases)
{
        f->n_leases_ended += (int)(leases->len / 8);
        f->n_leases -= (int)(leases->len / 8);
}

static inline void fake_request(struct fake *f, unsigned i_conn, const struct frame *to, const uint8_t *body)
{
        int fd = f->conns[i_conn];

#define UNPACK(Type, type) Kvtier__##Type *q = kvtier__##type##__unpack(NULL, to->body_bytes, body)
#define FREE(type) kvtier__##type##__free_unpacked(q, NULL)
        switch (to->type) {
        case KVT_MSG_HELLO: {
                Kvtier__HelloReply m = KVTIER__HELLO_REPLY__INIT;
                uint8_t token[16] = {(uint8_t)f->boot};

                f->n_hello++;
                if (fake_errs(f, FAKE_HELLO_REFUSED)) {
                        fake_error(f, fd, to, KVT_E_VERSION);
                        break;
                }
                m.version = fake_errs(f, FAKE_HELLO_VERSION) ? KVT_PROTO_MAX + 1 : KVT_PROTO_MAX;
                m.boot_token = (ProtobufCBinaryData){.len = fake_errs(f, FAKE_HELLO_TOKEN) ? 15 : 16, .data = token};
                m.lease_usec = 10000000;
                m.staging_max_bytes = FAKE_STAGING;
                fake_reply(f, fd, to, KVT_MSG_HELLO | KVT_REPLY, &m.base, NULL, 0);
                break;
        }
        case KVT_MSG_SPACE_OPEN: {
                Kvtier__SpaceOpenReply m = KVTIER__SPACE_OPEN_REPLY__INIT;

                f->n_space++;
                m.space = 3 + f->boot;
                m.part_bytes = FAKE_PART + fake_errs(f, FAKE_SPACE_PART_BYTES);
                fake_reply(f, fd, to, KVT_MSG_SPACE_OPEN | KVT_REPLY, &m.base, NULL, 0);
                break;
        }
        case KVT_MSG_STAGING_OPEN:
                fake_staging(f, i_conn, to);
                break;
        case KVT_MSG_MATCH: {
                UNPACK(MatchRequest, match_request);
                Kvtier__MatchReply m = KVTIER__MATCH_REPLY__INIT;
                size_t n = q->keys.len / 16;

                f->n_match++;
                if (q->space != 3 + f->boot)
                        fake_error(f, fd, to, KVT_E_UNKNOWN_SPACE);
                else {
                        fake_leases_end(f, &q->releases);
                        while (m.n_blocks < n && fake_block(f, &q->keys, m.n_blocks) >= 0 && f->stored[fake_block(f, &q->keys, m.n_blocks)])
                                m.n_blocks++;
                        m.stop = m.n_blocks < n ? KVT_E_MISS : 0;
                        if (fake_errs(f, FAKE_MATCH_MANY))
                                m.n_blocks = (uint32_t)n + 1;
                        if (fake_errs(f, FAKE_MATCH_NO_STOP)) {
                                m.n_blocks = 0;
                                m.stop = 0;
                        }
                        fake_reply(f, fd, to, KVT_MSG_MATCH | KVT_REPLY, &m.base, NULL, 0);
                }
                FREE(match_request);
                break;
        }
        case KVT_MSG_MAP: {
                UNPACK(MapRequest, map_request);
                fake_leases_end(f, &q->releases);
                fake_map(f, i_conn, to, q);
                FREE(map_request);
                break;
        }
        case KVT_MSG_PUT_BEGIN: {
                UNPACK(PutBeginRequest, put_begin_request);
                Kvtier__PutBeginReply m = KVTIER__PUT_BEGIN_REPLY__INIT;
                size_t n = q->keys.len / 16;
                struct kvt_put_entry *e = calloc(n, sizeof(*e));

                f->n_begin++;
                f->n_durable_begin += q->durable;
                for (size_t i = 0; i < n; i++) {
                        int b = fake_block(f, &q->keys, i);

                        e[i].status = b < 0 ? KVT_E_QUOTA : f->stored[b] ? KVT_E_EXISTS : 0;
                        e[i].reservation = e[i].status ? 0 : 7000 + (uint64_t)b;
                }
                m.entries = (ProtobufCBinaryData){.len = n * sizeof(*e) - fake_errs(f, FAKE_STATUSES_SHORT), .data = (uint8_t *)e};
                fake_reply(f, fd, to, KVT_MSG_PUT_BEGIN | KVT_REPLY, &m.base, NULL, 0);
                free(e);
                FREE(put_begin_request);
                break;
        }
        case KVT_MSG_PUT_COMMIT: {
                UNPACK(PutCommitRequest, put_commit_request);
                fake_put(f, i_conn, to, q);
                FREE(put_commit_request);
                break;
        }
        case KVT_MSG_PUT_ABORT: {
                UNPACK(PutAbortRequest, put_abort_request);
                Kvtier__PutAbortReply m = KVTIER__PUT_ABORT_REPLY__INIT;
                uint8_t zeros[KVT_KEYS_MAX] = {0};

                f->n_abort += (int)(q->reservations.len / 8);
                m.statuses = (ProtobufCBinaryData){.len = q->reservations.len / 8, .data = zeros};
                fake_reply(f, fd, to, KVT_MSG_PUT_ABORT | KVT_REPLY, &m.base, NULL, 0);
                FREE(put_abort_request);
                break;
        }
        case KVT_MSG_GET: {
                UNPACK(GetRequest, get_request);
                Kvtier__GetReply m = KVTIER__GET_REPLY__INIT;
                size_t n = q->keys.len / 16;
                uint8_t statuses[KVT_KEYS_MAX] = {0};
                size_t start = q->first_plane * (FAKE_PART / 2), bytes = (q->n_planes ? q->n_planes : 2 - q->first_plane) * (FAKE_PART / 2);
                bool lost = fake_errs(f, FAKE_GET_LOST), again = fake_errs(f, FAKE_GET_AGAIN);

                f->n_get++;
                f->first_plane = (int)q->first_plane;
                f->n_planes = (int)q->n_planes;
                for (size_t i = 0; i < n; i++) {
                        int b = fake_block(f, &q->keys, i);
                        uint64_t at, first;

                        memcpy(&at, q->offsets.data + 8 * i, 8);
                        memcpy(&first, q->offsets.data, 8);
                        if (i == 1)
                                f->get_stride = at - first;
                        if (start + bytes > FAKE_PART || at > FAKE_STAGING - bytes)
                                statuses[i] = KVT_E_BAD_STAGING;
                        else if (b < 0 || !f->stored[b])
                                statuses[i] = KVT_E_MISS;
                        else if (lost || again)
                                statuses[i] = lost ? KVT_E_LEASE_LOST : KVT_E_AGAIN;
                        else
                                memcpy(f->staging[i_conn] + at, fake_payload(f, (unsigned)b) + start, bytes);
                }
                m.statuses = (ProtobufCBinaryData){.len = n - fake_errs(f, FAKE_STATUSES_SHORT), .data = statuses};
                fake_reply(f, fd, to, KVT_MSG_GET | KVT_REPLY, &m.base, NULL, 0);
                FREE(get_request);
                break;
        }
        case KVT_MSG_PREFETCH: {
                UNPACK(PrefetchRequest, prefetch_request);
                Kvtier__PrefetchReply m = KVTIER__PREFETCH_REPLY__INIT;
                size_t n = q->keys.len / 16;
                uint8_t statuses[KVT_KEYS_MAX] = {0};

                f->n_prefetch++;
                f->prefetch_usec = q->deadline_usec;
                for (size_t i = 0; i < n; i++) { /* blocks from 30 on take for ever to load */
                        int b = fake_block(f, &q->keys, i);
                        statuses[i] = b < 0 || !f->stored[b] ? KVT_E_MISS : b < 30 ? 0 : q->deadline_usec ? KVT_E_TIMEOUT : KVT_E_AGAIN;
                }
                m.statuses = (ProtobufCBinaryData){.len = n - fake_errs(f, FAKE_STATUSES_SHORT), .data = statuses};
                fake_reply(f, fd, to, KVT_MSG_PREFETCH | KVT_REPLY, &m.base, NULL, 0);
                FREE(prefetch_request);
                break;
        }
        case KVT_MSG_DROP: {
                UNPACK(DropRequest, drop_request);
                Kvtier__DropReply m = KVTIER__DROP_REPLY__INIT;
                uint8_t zeros[KVT_KEYS_MAX] = {0};

                f->n_drop_corrupt += q->corrupt;
                m.statuses = (ProtobufCBinaryData){.len = q->keys.len / 16, .data = zeros};
                fake_reply(f, fd, to, KVT_MSG_DROP | KVT_REPLY, &m.base, NULL, 0);
                FREE(drop_request);
                break;
        }
        case KVT_MSG_STAT: {
                Kvtier__StatReply m = KVTIER__STAT_REPLY__INIT;
                Kvtier__Tier tier = KVTIER__TIER__INIT, *tiers[] = {&tier};
                Kvtier__Counter hits = KVTIER__COUNTER__INIT, *counters[] = {&hits};

                tier.name = (char *)"host";
                tier.capacity_bytes = 1234;
                hits.name = (char *)"hits";
                hits.value = 77;
                m.tiers = tiers;
                m.n_tiers = 1;
                m.counters = counters;
                m.n_counters = 1;
                m.n_blocks = 5;
                fake_reply(f, fd, to, KVT_MSG_STAT | KVT_REPLY, &m.base, NULL, 0);
                break;
        }
        case KVT_MSG_EXPLAIN: {
                Kvtier__ExplainReply m = KVTIER__EXPLAIN_REPLY__INIT;

                m.why = KVTIER__WHY__WHY_EVICTED;
                m.age_usec = 5;
                m.text = (char *)"gone";
                fake_reply(f, fd, to, KVT_MSG_EXPLAIN | KVT_REPLY, &m.base, NULL, 0);
                break;
        }
        case KVT_MSG_RELEASE: {
                UNPACK(ReleaseRequest, release_request);
                f->n_release_packets++;
                fake_leases_end(f, &q->leases);
                FREE(release_request);
                break;
        }
        case KVT_MSG_SLAB_ACK: {
                UNPACK(SlabAck, slab_ack);
                f->n_slab_ack += (int)q->n_slabs;
                FREE(slab_ack);
                break;
        }
        case KVT_MSG_EVENTS: {
                Kvtier__EventsReply m = KVTIER__EVENTS_REPLY__INIT;

                f->n_events++;
                fake_reply(f, fd, to, KVT_MSG_EVENTS | KVT_REPLY, &m.base, NULL, 0);
                break;
        }
        case KVT_MSG_PING: {
                Kvtier__PingReply m = KVTIER__PING_REPLY__INIT;

                fake_reply(f, fd, to, KVT_MSG_PING | KVT_REPLY, &m.base, NULL, 0);
                break;
        }
        case KVT_MSG_FD_ACK:
                f->n_fd_ack++;
                f->unacked[i_conn] = false;
                break;
        case KVT_MSG_CANCEL:
                f->n_cancel++;
                break;
        default:
                fake_error(f, fd, to, KVT_E_BAD_TYPE);
        }
}
