/* list.h - doubly linked lists of things that hold their own links. A zeroed list is empty. */
#ifndef PCCL_LIST_H
#define PCCL_LIST_H

#include <stddef.h>

struct list_node {
    struct list_node *prev, *next;
};

struct list {
    struct list_node *first, *last;
};

/* What holds the node. */
#define LIST_OWNER(node, type, member) ((type *)(void *)((char *)(node) - offsetof(type, member)))

static inline void list_append(struct list *list, struct list_node *node)
{
    node->prev = list->last;
    node->next = NULL;
    if (list->last)
        list->last->next = node;
    else
        list->first = node;
    list->last = node;
}

static inline void list_remove(struct list *list, struct list_node *node)
{
    if (node->prev)
        node->prev->next = node->next;
    else
        list->first = node->next;
    if (node->next)
        node->next->prev = node->prev;
    else
        list->last = node->prev;
    node->prev = node->next = NULL;
}

#endif
