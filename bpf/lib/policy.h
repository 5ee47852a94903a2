/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Policy: what a set of rules says of a flow's first packet. docs/design/policy.md has the reasons,
 * internal/plan/decide.go is the same in Go. All numbers (of sets, lists, rules, peer sets, identities) are the
 * agent's.
 */
#pragma once
#include "l4.h"

/* enum model.Verdict */
enum weft_answer {
	WEFT_ALLOW = 1,
	WEFT_DENY = 2,
	WEFT_DENY_LOUD = 3, /* reject: tell the sender */
	WEFT_LATER = 4,     /* of a rule: go on at another one. Of a flow: decide when it has been translated */
};

/* A set of rules. An established flow looks here only, once for each of its ends that has a set. */
struct weft_set {
	__u32 generation; /* no two sets ever have the same, nor a set the same twice */
	__u32 flags;
};
#define SET_HOSTS 1 /* has rules for what the node itself sends */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEFT_SETS_MAX);
	__type(key, __u32);
	__type(value, struct weft_set);
} sets SEC(".maps");

/* A set's protocols and ports. The longest prefix that covers a packet has all of the set's rules that can match it. */
struct weft_match {
	__u32 len; /* 40: the set alone; 48: and the protocol; up to 16 more of the port */
	__u32 set;
	__u8 pad;
	__u8 proto;
	__be16 port;
};

struct weft_matched {
	__u32 list; /* 0: of no rules */
	__u32 len;  /* of the key, which a lookup does not tell */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, WEFT_MATCHES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weft_match);
	__type(value, struct weft_matched);
} matches SEC(".maps");

struct weft_rule {
	__u32 number; /* of its counter */
	__u32 peers;  /* peer set that the other side must be in, 0: anybody */
	__u16 sport_first;
	__u16 sport_last; /* less than the first: from any port */
	__u8 answer;      /* enum weft_answer */
	__u8 flags;
	__u16 next; /* of WEFT_LATER: element of the list, RULE_NONE: after its end */
};
#define RULE_IPV4   0x01 /* not for IPv6 */
#define RULE_IPV6   0x02 /* not for IPv4 */
#define RULE_HOSTS  0x04 /* asked about what the node itself sends, too */
#define RULE_NOTED  0x08 /* is counted and does not decide */
#define RULE_LAST   0x10 /* of the list */
#define RULE_TURN   0x20 /* of the element: go on at the next one */
#define RULE_STAGED 0x40 /* noted; the first of them that matches is the one that would decide */
#define RULE_LOG    0x80 /* what it decides or notes is recorded */
#define RULE_NONE   0xffff

#define LIST_CHUNK  8

struct weft_rules {
	struct weft_rule rule[LIST_CHUNK];
};

struct weft_list {
	__u32 list;
	__u32 chunk;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_HASH);
			__uint(max_entries, WEFT_LISTS_MAX);
			__uint(map_flags, BPF_F_NO_PREALLOC);
			__inner(key, struct weft_list);
			__inner(value, struct weft_rules);
		});
} lists SEC(".maps");

/* Which identities are in a peer set: one bit each. An element is as large as it would be with one bit. */
struct weft_block {
	__u32 peers;
	__u32 block; /* identity / 256 */
};

struct weft_bits {
	__u32 word[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_HASH);
			__uint(max_entries, WEFT_MEMBERS_MAX);
			__uint(map_flags, BPF_F_NO_PREALLOC);
			__inner(key, struct weft_block);
			__inner(value, struct weft_bits);
		});
} members SEC(".maps");

/* Identities of addresses, and of prefixes. What is in neither is the world. */
#define IDENTITY_WORLD 1

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_HASH);
			__uint(max_entries, WEFT_ADDRESSES_MAX);
			__uint(map_flags, BPF_F_NO_PREALLOC);
			__inner(key, struct weft_addr);
			__type(value, __u32);
		});
} addresses SEC(".maps");

struct weft_network {
	__u32 identity;
	__u32 len; /* of the key, which a lookup does not tell */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, WEFT_NETWORKS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct weft_prefix);
	__type(value, struct weft_network);
} networks SEC(".maps");

/*
 * How often a rule decided, or was noted. The agent makes the entries. One for all CPUs: only first and denied packets
 * count, and with one for each a rule would take a kilobyte on a machine of 64.
 */
struct weft_hits {
	__u64 packets;
	__u64 last; /* jiffies64 */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_HASH);
			__uint(max_entries, WEFT_RULES_MAX);
			__uint(map_flags, BPF_F_NO_PREALLOC);
			__type(key, __u32);
			__inner(value, struct weft_hits);
		});
} rulestats SEC(".maps");

/* The agent's own: what numbers it gave, so that the next agent goes on with them. No program reads it. */
struct weft_name {
	__u32 id[2]; /* plan.ID */
	__u32 kind;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_HASH);
			__uint(max_entries, WEFT_NUMBERS_MAX);
			__uint(map_flags, BPF_F_NO_PREALLOC);
			__inner(key, struct weft_name);
			__type(value, __u32);
		});
} numbers SEC(".maps");

/* A question, and as far as it is found the answer. */
struct weft_question {
	__u32 identity; /* of the other side */
	__u32 list;
	__u32 chunk; /* of the list, that is next */
	__u32 rule;
	__u16 sport; /* in host byte order */
	__be16 dport;
	__u8 proto;
	__u8 unwanted; /* flags of rules that are not asked */
	__u8 wanted;   /* flags that a rule must have to be asked */
	__u8 quiet;    /* 1: count nothing */
	__u32 answer : 8;
	__u32 logged : 24; /* the last rule that matched and wants a record, 0: none. Another word would not fit the
			      stack of 6.1 */
};

static __always_inline void count_rule(__u32 number)
{
	void *table = grown(&rulestats);
	struct weft_hits *hits;

	if (!table)
		return;
	hits = bpf_map_lookup_elem(table, &number);
	if (hits) {
		__u64 now = bpf_jiffies64();

		__sync_fetch_and_add(&hits->packets, 1);
		if (hits->last != now)
			hits->last = now;
	}
}

static __always_inline bool is_member(void *table, __u32 peers, __u32 identity)
{
	struct weft_block key = {.peers = peers, .block = identity >> 8};
	const struct weft_bits *bits = bpf_map_lookup_elem(table, &key);

	return bits && bits->word[(identity >> 5) & 7] >> (identity & 31) & 1;
}

static __always_inline bool rule_matches(const struct weft_rule *r, const struct weft_question *q, void *members)
{
	if ((r->flags & q->unwanted) || (r->flags & q->wanted) != q->wanted)
		return false;
	if (r->sport_first <= r->sport_last && (q->sport < r->sport_first || q->sport > r->sport_last))
		return false;
	return !r->peers || is_member(members, r->peers, q->identity);
}

/* ask_rules asks the rules of one element of a list. It returns 1 when the answer is found. */
__global int ask_rules(const struct weft_rules *rules, struct weft_question *q)
{
	void *peers = grown(&members);
	__u32 i;

	if (!rules || !q || !peers)
		return 1;
#pragma clang loop unroll(disable)
	for (i = 0; i < LIST_CHUNK; i++) {
		const struct weft_rule *r = &rules->rule[i];

		if (rule_matches(r, q, peers)) {
			if (r->flags & RULE_LOG)
				q->logged = r->number;
			if (!(r->flags & RULE_NOTED) && r->answer != WEFT_LATER) {
				q->answer = r->answer;
				q->rule = r->number;
				return 1;
			}
			if (!q->quiet)
				count_rule(r->number);
			q->unwanted |= r->flags & RULE_STAGED;
			if (!(r->flags & RULE_NOTED)) {
				q->chunk = r->next;
				if (r->next != RULE_NONE)
					return 0;
				q->answer = WEFT_ALLOW;
				return 1;
			}
		}
		if (r->flags & RULE_LAST) {
			q->answer = WEFT_ALLOW;
			return 1;
		}
		if (r->flags & RULE_TURN)
			return 0;
	}
	return 0;
}

/* ask_chunk is ask_rules for the element that is next. */
static long ask_chunk(__u32 n __attribute__((unused)), struct weft_question *q)
{
	struct weft_list key = {.list = q->list, .chunk = q->chunk};
	void *table = grown(&lists);
	const struct weft_rules *rules;

	if (!table)
		return 1;
	rules = bpf_map_lookup_elem(table, &key);
	if (!rules)
		return 1;
	q->chunk++;
	return ask_rules(rules, q) ? 1 : 0;
}

/* As many steps as the longest list has elements. */
#define ASK_STEPS 65536

/* ask_set fills in the answer. What cannot be found out is denied, by no rule. */
static __always_inline void ask_set(__u32 set, struct weft_question *q)
{
	struct weft_match key = {.len = 64, .set = set, .proto = q->proto, .port = q->dport};
	const struct weft_matched *m = bpf_map_lookup_elem(&matches, &key);

	q->answer = WEFT_DENY;
	if (!m)
		return;
	q->list = m->list;
	if (!q->list)
		q->answer = WEFT_ALLOW;
	else
		bpf_loop(ASK_STEPS, ask_chunk, q, 0);
}

/* identity_of is the identity of an address; known is that of the pod of this node that has it, 0 if there is none. */
static __noinline __u32 identity_of(const struct weft_addr *addr, __u32 known)
{
	struct weft_prefix key = {.len = 128, .addr = *addr};
	const struct weft_network *network;
	void *table = grown(&addresses);
	const __u32 *identity = table ? bpf_map_lookup_elem(table, &key.addr) : NULL;

	if (identity)
		return *identity;
	if (known)
		return known;
	network = bpf_map_lookup_elem(&networks, &key);
	return network ? network->identity : IDENTITY_WORLD;
}
