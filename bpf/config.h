/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What one would turn: sizes of maps and constants of headers that we write.
 * What differs between nodes is in the settings map, not here.
 */
#pragma once

/* Addresses of pods on this node. Elements are allocated when they are used; the table itself is 16 bytes each. */
#define WEFT_LOCALS_MAX 4096

/* Slots by which pods are found, 32 bytes each; a power of two. */
#define WEFT_SLOTS 4096

/* Prefixes on other nodes. A trie: nothing is allocated before it is used. */
#define WEFT_REMOTES_MAX 65536

/* Underlay addresses of other nodes. */
#define WEFT_PEERS_MAX 16384

/* Devices of the host on which the node itself is guarded, but for the underlay's and the overlay's. */
#define WEFT_DEVICES_MAX 256

/* Flows that the stack may have translated; allocated in advance, 104 bytes each, least recently used goes first. */
#define WEFT_TRACK_MAX 32768

/*
 * Tables of policy. Those that are marked so grow: the agent makes them as large as what they hold, up to this. They
 * are next to nothing before the first policy.
 */
#define WEFT_SETS_MAX      65536   /* sets of rules; an array of 8 bytes each, in advance */
#define WEFT_MATCHES_MAX   1048576 /* a trie */
#define WEFT_NETWORKS_MAX  1048576 /* a trie; /32 and /128 that are too many for the hash are here as well */
#define WEFT_ADDRESSES_MAX 262144  /* grows */
#define WEFT_LISTS_MAX     1048576 /* grows; of 8 rules */
#define WEFT_MEMBERS_MAX   1048576 /* grows; of 256 identities of one peer set */
#define WEFT_RULES_MAX     262144  /* grows; counters */
#define WEFT_NUMBERS_MAX   4194304 /* grows; no program reads it */
#define WEFT_VIPS_MAX      65536   /* grows */

/* Flows of pods under policy: allocated in advance when the first pod is, 128 bytes each. */
#define WEFT_CONNS_MAX 65536

/* Datagrams of which the first fragment was seen; allocated in advance, 112 bytes each. */
#define WEFT_FRAGS_MAX 1024

/* What a CPU records of denied packets in a second; the rest is only counted. */
#define WEFT_RECORDS 256

/* The ring of records, in bytes. */
#define WEFT_RING 262144

/*
 * Bits of skb->mark between our programs and the stack. Clear of kube-proxy (0x4000, 0x8000), the portmap plugin
 * (0x2000), Cilium (0x0f00), Calico (0xffff0000), Tailscale (0xff0000), the AWS plugin (0x80), and different from the
 * whole marks of Istio (0x539) and wg-quick (0xca6c), which have no 0x1000. datapath/nft has the same numbers.
 */
#define WEFT_MARK_MASK        0x1030
#define WEFT_MARK_UNDECIDED   0x1000 /* decided when it has been translated */
#define WEFT_MARK_REJECT      0x1010 /* the stack tells the sender */
#define WEFT_MARK_NODE        0x1020 /* not for the node itself; what it is translated to is asked about again */
#define WEFT_MARK_NODE_REJECT 0x1030 /* likewise, and the stack tells the sender */

/* TTL or hop limit of the outer header. */
#define WEFT_OUTER_TTL 64

/* Outer source ports are 32768 to 65535. */
#define WEFT_SPORT_BASE 0x8000
