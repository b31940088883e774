/* Hello, spaces, staging: what a session sets up before it works. */
#include <stdio.h>
#include <string.h>

#include "daemon/engine/reclaim.h"
#include "daemon/policy/quota.h"
#include "daemon/serve/request.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "libclient/codec/copy.h"
#include "libclient/codec/format.h"

void request_hello(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__HelloRequest *m = message;
        struct server *s = c->server;
        Kvtier__HelloReply reply = KVTIER__HELLO_REPLY__INIT;

        if (m->version_min > KVT_PROTO_MAX || m->version_max < KVT_PROTO_MIN || m->version_min > m->version_max) {
                char text[128];
                snprintf(text, sizeof text, "this kvtierd speaks protocol versions %d to %d, the library %u to %u", KVT_PROTO_MIN,
                         KVT_PROTO_MAX, m->version_min, m->version_max);
                session_error(c, id, KVT_E_VERSION, text);
                session_close(c, text);
                return;
        }
        c->version = (uint8_t)MIN(m->version_max, (uint32_t)KVT_PROTO_MAX);
        snprintf(c->name, sizeof c->name, "%s", m->name);
        for (char *p = c->name; *p; p++) /* ASCII: it is shown in logs and terminals */
                if (*p < ' ' || *p > '~')
                        *p = '?';
        c->state = SESSION_READY;
        list_remove(&c->greet_link);
        reply.version = c->version;
        reply.boot_token = (ProtobufCBinaryData){sizeof s->boot_token, s->boot_token};
        reply.daemon = (char *)KVT_RELEASE;
        reply.tenant = c->tenant->name;
        reply.lease_usec = s->conf.p.lease_usec;
        reply.staging_max_bytes = s->conf.p.staging_bytes;
        reply.busy_poll_usec = s->conf.p.busy_poll_usec;
        session_reply(c, KVT_MSG_HELLO, id, &reply);
        log_debug("'%s' (pid %d, tenant %s, library %.16s) connected", c->name, c->pid, c->tenant->name, m->library);
}

static int check_name(const char *name)
{
        size_t n = strlen(name);

        if (!n || n > KVT_NAME_MAX)
                return -1;
        for (size_t i = 0; i < n; i++)
                if ((unsigned char)name[i] < ' ' || name[i] == 0x7f)
                        return -1;
        return 0;
}

static bool remember_space(struct session *c, struct space *s)
{
        for (uint32_t i = 0; i < c->n_spaces; i++)
                if (c->spaces[i] == s->id)
                        return true;
        uint32_t *grown = reallocarray(c->spaces, c->n_spaces + 1, sizeof *grown);
        if (!grown)
                return false;
        c->spaces = grown;
        c->spaces[c->n_spaces++] = s->id;
        s->n_open++;
        s->n_sessions++;
        return true;
}

void request_space_open(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__SpaceOpenRequest *m = message;
        struct server *sv = c->server;
        Kvtier__SpaceOpenReply reply = KVTIER__SPACE_OPEN_REPLY__INIT;
        _cleanup_(freep) kvt_plane *planes = NULL;
        struct geometry g = {};
        struct space *s;
        const char *why = NULL;
        bool created;
        int r;

        if (check_name(m->name) < 0 || m->salt.len > KVT_SALT_MAX || m->n_planes > KVT_PLANES_MAX) {
                session_error(c, id, KVT_E_BAD_REQUEST, "name, salt or number of planes out of range");
                return;
        }
        planes = new0(kvt_plane, m->n_planes + 1);
        if (!planes) {
                session_error(c, id, KVT_E_NO_MEMORY, NULL);
                return;
        }
        for (size_t i = 0; i < m->n_planes; i++) {
                const Kvtier__Plane *p = m->planes[i];
                planes[i] = (kvt_plane){p->layer, p->role, p->dtype, p->heads, p->dim, p->opaque_bytes, p->window_tokens};
        }
        r = geometry_init(&g, m->block_tokens, m->n_shards, planes, m->n_planes, &why);
        if (r == 0 && !fidelity_ok(m->max_rel_l2)) {
                r = KVT_E_BAD_REQUEST;
                why = "fidelity: the largest relative error is a number from 0 to 1";
        }
        if (r == 0 && copy_bytes(&g, false, g.part_bytes + hints_max(&g)) > sv->conf.p.host_bytes / 2) {
                r = KVT_E_TOO_LARGE;
                why = "a part would fill more than half of the host tier";
        }
        if (r == 0)
                r = space_open(&sv->engine.tenants, c->tenant, m->name, m->salt.data, m->salt.len, m->max_rel_l2, &g,
                               (uint32_t)sv->conf.p.max_spaces_tenant, &s, &created);
        geometry_deinit(&g);
        if (r == 0 && !remember_space(c, s)) {
                engine_settle_space(&sv->engine, s);
                r = KVT_E_NO_MEMORY;
        }
        if (r != 0) {
                session_error(c, id, r, why);
                return;
        }
        reply.space = s->id;
        reply.part_bytes = s->geometry.part_bytes;
        reply.created = created;
        session_reply(c, KVT_MSG_SPACE_OPEN, id, &reply);
}

/* The ladder that the message asks for, made of s's. Answers with an error itself. */
static bool make_ladder(struct session *c, uint32_t id, const Kvtier__SpaceSetRequest *m, const struct space *s, struct ladder *ret)
{
        const char *texts[LADDER_N] = {m->hot, m->cold, m->nvme}, *why = NULL;

        *ret = s->ladder;
        for (unsigned i = 0; i < LADDER_N; i++) {
                if (!*texts[i])
                        continue;
                if (strlen(texts[i]) >= CODEC_PAIR_MAX || ladder_set(ret, i, texts[i], &why) != 0) {
                        session_error(c, id, KVT_E_BAD_REQUEST, why ?: "a codec's text is too long");
                        return false;
                }
                if (s->max_rel_l2 == 0 && !codec_pair_lossless(&ret->rungs[i])) {
                        session_error(c, id, KVT_E_FIDELITY, "a lossy codec, and the space is lossless");
                        return false;
                }
        }
        return true;
}

void request_space_set(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__SpaceSetRequest *m = message;
        struct tenants *t = &c->server->engine.tenants;
        struct tenant *of = *m->tenant && strcmp(m->tenant, "*") ? tenant_find(t, m->tenant) : c->tenant;
        bool all = !strcmp(m->tenant, "*");
        Kvtier__SpaceSetReply reply = KVTIER__SPACE_SET_REPLY__INIT;
        struct ladder ladder;

        if (!of || (!c->privileged && (all || of != c->tenant))) {
                session_error(c, id, KVT_E_DENIED, "no such tenant, or not yours");
                return;
        }
        for (int set = 0; set < 2; set++) /* all of them or none */
                list_for_each (s, &t->spaces, struct space, link) {
                        if ((!all && s->tenant != of) || strcmp(s->name, m->name))
                                continue;
                        if (!make_ladder(c, id, m, s, &ladder))
                                return;
                        if (!set)
                                continue;
                        s->ladder = ladder;
                        s->has_ladder = true;
                        reply.n_spaces++;
                }
        if (!reply.n_spaces) {
                session_error(c, id, KVT_E_UNKNOWN_SPACE, NULL);
                return;
        }
        session_reply(c, KVT_MSG_SPACE_SET, id, &reply);
}

void request_staging_open(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__StagingOpenRequest *m = message;
        struct server *s = c->server;
        Kvtier__StagingOpenReply reply = KVTIER__STAGING_OPEN_REPLY__INIT;
        uint64_t bytes = align_up(MIN(MAX(m->bytes, 4096ull), s->conf.p.staging_bytes), 4096);
        int r;

        if (c->staging) {
                session_error(c, id, KVT_E_BAD_REQUEST, "the session has its staging already");
                return;
        }
        if (!session_may_send_fds(c)) {
                session_error(c, id, KVT_E_AGAIN, "descriptors are not acknowledged yet");
                return;
        }
        /* All sessions together at most half of what the tenant may count on, and each at most half of what is left of that. */
        uint64_t share = MIN(c->tenant->hard_bytes, quota_soft(&s->engine.tenants, c->tenant)) / 8192 * 4096;
        uint64_t left = share > c->tenant->staging_bytes ? share - c->tenant->staging_bytes : 0;
        bytes = MIN(bytes, MAX(left / 8192 * 4096, MIN(left, 4096ull)));
        r = bytes ? reclaim_charge(&s->engine, c->tenant, bytes) : KVT_E_QUOTA;
        if (r == 0)
                r = staging_new(&c->staging, &s->engine, c->tenant, bytes);
        if (r != 0) {
                session_error(c, id, r, "no room for staging");
                return;
        }
        reply.bytes = bytes;
        r = session_send(c, KVT_MSG_STAGING_OPEN | KVT_REPLY, id, &reply.base, &c->staging->fd, 1);
        if (r != 0) {
                c->staging = staging_unref(c->staging);
                session_error(c, id, r, "too many descriptors in flight");
        }
}
