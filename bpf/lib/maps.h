/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The tables that the agent fills. Go's mirrors of keys and values are generated from here. Changing one
 * changes the layout's hash, and then a new agent fills new maps before it switches the programs.
 */
#pragma once
#include "ip.h"

/*
 * A table that grows is an array of one map, which the agent replaces by a larger one. grown is the map, or NULL before
 * the agent has made it.
 */
static __always_inline void *grown(void *table)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(table, &key);
}

/* What policy says of a pod or of the node: numbers of the agent. */
struct weft_guard {
	__u32 identity;
	__u32 ingress; /* set of rules; 0: everything is allowed */
	__u32 egress;
};
#define WEFT_SET_CLOSED 0xffffffff /* everything is denied: the rules are not known yet */

/* The constants of this node. An entry of an array can be changed while the programs run. */
struct weft_settings {
	struct weft_addr own[2]; /* underlay addresses by addr_index(), zero where there is none */
	__u32 underlay;          /* interface index */
	__u32 overlay;           /* interface index, 0 where nothing is tunnelled */
	__u32 vni;               /* in host byte order */
	__be16 port;             /* VXLAN */
	__u16 tracked;           /* 1: flows may be translated by the stack */
	struct weft_mac gateway; /* of the host side of every pod's link */
	struct weft_mac sender;  /* inner source in the tunnel; a VXLAN device drops its own MAC as a loop, and all have
				    the same */
	__u32 ready;             /* 1: written */
	struct weft_guard host;  /* of the node itself, by the underlay's device */
	__u32 second;            /* of ticks() */
	__be16 probe;            /* UDP port on which the nodes measure paths */
	__u16 policed;           /* 1: a pod of this node, or the node, has a set of rules */
	__u16 keep;              /* 1: what was once allowed stays so */
	__u16 others;            /* 1: the node has guards on other devices as well */
	struct weft_guard over;  /* of the node itself, by the overlay's device */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct weft_settings);
} settings SEC(".maps");

/* What policy says of the node itself by other devices than the underlay's and the overlay's; by interface index. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WEFT_DEVICES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct weft_guard);
} devices SEC(".maps");

/* A pod of this node, under each of its addresses. It may send from them, on that interface and with that MAC only. */
struct weft_local {
	__u32 ifindex; /* host side of its link */
	struct weft_mac mac;
	__u16 shaped; /* 1: deliver through the host side's queue */
	struct weft_guard guard;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WEFT_LOCALS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weft_addr);
	__type(value, struct weft_local);
} locals SEC(".maps");

/*
 * The same pods by the low bits of their addresses. A node's pods have neighbouring addresses, so that one look at
 * an array finds nearly every pod, or that an address is no pod's, at a tenth of the cost of the hash.
 */
struct weft_slot {
	struct weft_addr addr; /* zero: empty */
	struct weft_local local;
	__u32 more; /* 1: other addresses have the same slot, look at locals */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEFT_SLOTS);
	__type(key, __u32);
	__type(value, struct weft_slot);
} slots SEC(".maps");

/* A prefix in the unified form: an IPv4 length counts 96 more. */
struct weft_prefix {
	__u32 len;
	struct weft_addr addr;
};

/* Where a prefix on another node is reached. */
struct weft_remote {
	struct weft_addr via; /* the node's underlay address */
	struct weft_mac mac;  /* inner destination in the tunnel */
	__u16 mtu;            /* of the inner packet */
	__u16 tunnel;         /* 1: VXLAN, 0: direct */
	__u16 onlink;         /* 1: via is a neighbour on the underlay, 0: the kernel's routes lead there */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, WEFT_REMOTES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weft_prefix);
	__type(value, struct weft_remote);
} remotes SEC(".maps");

/* Underlay addresses that VXLAN is accepted from. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WEFT_PEERS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weft_addr);
	__type(value, __u32);
} peers SEC(".maps");

/* ticks is the time in 16 jiffies. It wraps after years. */
static __always_inline __u32 ticks(void)
{
	return bpf_jiffies64() >> 4;
}

static __always_inline const struct weft_settings *get_settings(void)
{
	__u32 key = 0;
	const struct weft_settings *s = bpf_map_lookup_elem(&settings, &key);

	return s && s->ready ? s : NULL;
}

static __always_inline const struct weft_local *get_local(const struct weft_addr *addr)
{
	__u32 key = addr_slot(addr);
	const struct weft_slot *slot = bpf_map_lookup_elem(&slots, &key);

	if (likely(slot)) {
		if (addr_equal(&slot->addr, addr))
			return slot->local.ifindex ? &slot->local : NULL;
		if (likely(!slot->more))
			return NULL;
	}
	return bpf_map_lookup_elem(&locals, addr);
}

static __always_inline const struct weft_remote *get_remote(const struct weft_addr *addr)
{
	struct weft_prefix key = {.len = 128, .addr = *addr};

	return bpf_map_lookup_elem(&remotes, &key);
}
