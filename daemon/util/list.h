/* Intrusive doubly linked ring. A head and a link are the same struct; an unlinked one points to itself. */
#pragma once

#include "daemon/util/macro.h"

struct list {
        struct list *prev, *next;
};

static inline void list_init(struct list *l)
{
        l->prev = l->next = l;
}
static inline bool list_empty(const struct list *l)
{
        return l->next == l;
}
static inline void list_append(struct list *head, struct list *l)
{
        l->prev = head->prev;
        l->next = head;
        head->prev->next = l;
        head->prev = l;
}
static inline void list_remove(struct list *l)
{
        l->prev->next = l->next;
        l->next->prev = l->prev;
        list_init(l);
}
#define list_first(head, type, member) (list_empty(head) ? NULL : container_of((head)->next, type, member))
#define list_for_each(i, head, type, member)                                                                                               \
        for (type *i = container_of((head)->next, type, member); &i->member != (head); i = container_of(i->member.next, type, member))
/* i may be removed in the body */
#define list_for_each_safe(i, head, type, member)                                                                                          \
        for (type *i = container_of((head)->next, type, member), *i##_next = container_of(i->member.next, type, member);                   \
             &i->member != (head); i = i##_next, i##_next = container_of(i->member.next, type, member))
