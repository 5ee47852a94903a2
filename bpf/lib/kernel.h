/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The part of the kernel's ABI that the programs use: numbers and layouts that the kernel promises not to
 * change. Written down here so that the object depends on no header of the machine it is compiled on, and
 * reads no kernel structure (so needs no BTF of the running kernel).
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef _Bool bool;
typedef __u16 __be16; /* in network byte order */
typedef __u32 __be32;

#define true               1
#define false              0
#define NULL               ((void *)0)

#define SEC(name)          __attribute__((section(name), used))
#define __uint(name, val)  int(*name)[val]
#define __type(name, val)  typeof(val) *name
#define __array(name, val) typeof(val) *name[]
/* For a map in a map, whose types clang leaves incomplete unless they are an array's. */
#define __inner(name, val) typeof(val)(*name)[1]
#define __always_inline    inline __attribute__((always_inline))
#define __noinline         __attribute__((noinline))
/* A function that the verifier walks through once, and not with every state of every caller. Its pointers may be NULL.
 */
#define __global    __attribute__((noinline))
#define __packed    __attribute__((packed, aligned(2)))
#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define bpf_htons(x) ((__be16)__builtin_bswap16((__u16)(x)))
#define bpf_htonl(x) ((__be32)__builtin_bswap32((__u32)(x)))
#else
#define bpf_htons(x) ((__be16)(x))
#define bpf_htonl(x) ((__be32)(x))
#endif
#define bpf_ntohs(x) ((__u16)bpf_htons(x))
#define bpf_ntohl(x) ((__u32)bpf_htonl(x))

/* Verdicts of a classifier, the same for TCX and for a direct-action filter. NEXT asks whoever comes after us. */
#define TCX_NEXT     (-1)
#define TCX_PASS     0
#define TCX_DROP     2
#define TCX_REDIRECT 7

/* enum bpf_map_type, BPF_MAP_CREATE and BPF_MAP_UPDATE_ELEM flags */
#define BPF_MAP_TYPE_HASH          1
#define BPF_MAP_TYPE_ARRAY         2
#define BPF_MAP_TYPE_PERCPU_ARRAY  6
#define BPF_MAP_TYPE_LRU_HASH      9
#define BPF_MAP_TYPE_LPM_TRIE      11
#define BPF_MAP_TYPE_ARRAY_OF_MAPS 12
#define BPF_MAP_TYPE_RINGBUF       27
#define BPF_F_NO_PREALLOC          (1U << 0)
#define BPF_ANY                    0

/* struct __sk_buff, up to the last field that we read. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 reserved[14];
	__u64 flow_keys __attribute__((aligned(8)));
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk __attribute__((aligned(8)));
	__u32 gso_size;
};
_Static_assert(__builtin_offsetof(struct __sk_buff, gso_size) == 176, "struct __sk_buff");

/*
 * Where the directly readable part of the packet begins and ends. Read by hand: a compiler that keeps the 32-bit
 * field in a 32-bit register makes a number of it, which the verifier does not take for a pointer.
 */
static __always_inline void *packet_start(const struct __sk_buff *skb)
{
	void *p;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(p) : "r"(skb), "i"(__builtin_offsetof(struct __sk_buff, data)));
	return p;
}

static __always_inline void *packet_end(const struct __sk_buff *skb)
{
	void *p;

	asm volatile("%0 = *(u32 *)(%1 + %2)"
		     : "=r"(p)
		     : "r"(skb), "i"(__builtin_offsetof(struct __sk_buff, data_end)));
	return p;
}

/* struct bpf_sk_lookup, and verdicts of a program that sees it. */
struct bpf_sk_lookup {
	__u64 cookie;
	__u32 family;
	__u32 protocol;
	__be32 remote_ip4;
	__be32 remote_ip6[4];
	__be16 remote_port;
	__u16 reserved;
	__be32 local_ip4;
	__be32 local_ip6[4];
	__u32 local_port; /* in host byte order */
	__u32 ingress_ifindex;
};
_Static_assert(__builtin_offsetof(struct bpf_sk_lookup, ingress_ifindex) == 64, "struct bpf_sk_lookup");
/* Read by hand: a compiler that adds to the context before it reads makes something of it that the verifier refuses. */
#define lookup_word(ctx, field)                                                                                        \
	({                                                                                                             \
		__u32 word;                                                                                            \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                                                  \
			     : "=r"(word)                                                                              \
			     : "r"(ctx), "i"(__builtin_offsetof(struct bpf_sk_lookup, field)));                        \
		word;                                                                                                  \
	})
#define SK_DROP 0
#define SK_PASS 1

/* skb->pkt_type: the frame is for this host. */
#define PACKET_HOST 0

/* bpf_skb_adjust_room() */
#define BPF_ADJ_ROOM_MAC             1
#define BPF_F_ADJ_ROOM_FIXED_GSO     (1ULL << 0)
#define BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 (1ULL << 1)
#define BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 (1ULL << 2)
#define BPF_F_ADJ_ROOM_ENCAP_L4_UDP  (1ULL << 4)
#define BPF_F_ADJ_ROOM_NO_CSUM_RESET (1ULL << 5)
#define BPF_F_ADJ_ROOM_ENCAP_L2_ETH  (1ULL << 6)
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7) /* since Linux 6.3 */
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)
#define BPF_F_ADJ_ROOM_ENCAP_L2(len) ((__u64)(len) << 56)

/* bpf_check_mtu() */
#define BPF_MTU_CHK_SEGS (1U << 0)

/* skb->gso_size of a superpacket that is a list of packets, each with a size of its own: SCTP's. */
#define GSO_BY_FRAGS 0xffff

/* bpf_csum_level() */
#define BPF_CSUM_LEVEL_DEC 2

/* bpf_skb_{get,set}_tunnel_key() */
#define BPF_F_TUNINFO_IPV6  (1ULL << 0)
#define BPF_F_ZERO_CSUM_TX  (1ULL << 1)
#define BPF_F_DONT_FRAGMENT (1ULL << 2)

struct bpf_tunnel_key {
	__u32 tunnel_id;
	__u32 remote[4]; /* an IPv4 address is in host byte order, in the first word */
	__u8 tunnel_tos;
	__u8 tunnel_ttl;
	__u16 tunnel_ext;
	__u32 tunnel_label;
	__u32 local[4];
};

/* bpf_redirect_neigh(): the next hop. */
struct bpf_redir_neigh {
	__u32 nh_family;
	__be32 nh[4];
};

/* bpf_fib_lookup(): where the host would send a packet that arrives on a device. */
struct bpf_fib_lookup {
	__u8 family;
	__u8 l4_protocol;
	__be16 sport;
	__be16 dport;
	__u16 tot_len;
	__u32 ifindex;
	__be32 flowinfo;
	__be32 src[4]; /* an IPv4 address is in the first word */
	__be32 dst[4];
	__u8 rest[16];
};
_Static_assert(sizeof(struct bpf_fib_lookup) == 64, "struct bpf_fib_lookup");
#define BPF_FIB_LKUP_RET_NOT_FWDED    4
#define BPF_FIB_LKUP_RET_FWD_DISABLED 5

/* Helpers by their number (enum bpf_func_id). */
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static long (*bpf_skb_get_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size,
				      __u64 flags) = (void *)20;
static long (*bpf_skb_set_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size,
				      __u64 flags) = (void *)21;
static long (*bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*bpf_skb_load_bytes)(const struct __sk_buff *skb, __u32 offset, void *to, __u32 len) = (void *)26;
static long (*bpf_csum_diff)(const __be32 *from, __u32 from_size, const __be32 *to, __u32 to_size,
			     __u32 seed) = (void *)28;
static long (*bpf_skb_change_type)(struct __sk_buff *skb, __u32 type) = (void *)32;
static __u32 (*bpf_get_hash_recalc)(struct __sk_buff *skb) = (void *)34;
static long (*bpf_skb_pull_data)(struct __sk_buff *skb, __u32 len) = (void *)39;
static long (*bpf_csum_update)(struct __sk_buff *skb, __u32 csum) = (void *)40;
static long (*bpf_skb_adjust_room)(struct __sk_buff *skb, int len_diff, __u32 mode, __u64 flags) = (void *)50;
static long (*bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int plen, __u32 flags) = (void *)69;
static __u64 (*bpf_jiffies64)(void) = (void *)118;
static void *(*bpf_ringbuf_reserve)(void *ringbuf, __u64 size, __u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, __u64 flags) = (void *)132;
static long (*bpf_csum_level)(struct __sk_buff *skb, __u64 level) = (void *)135;
static long (*bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int plen, __u64 flags) = (void *)152;
static long (*bpf_redirect_peer)(__u32 ifindex, __u64 flags) = (void *)155;
static long (*bpf_check_mtu)(struct __sk_buff *skb, __u32 ifindex, __u32 *mtu, __s32 len_diff,
			     __u64 flags) = (void *)163;
static long (*bpf_loop)(__u32 times, void *callback, void *ctx, __u64 flags) = (void *)181;
