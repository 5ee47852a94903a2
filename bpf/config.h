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

/* Flows that the stack may have translated; allocated in advance, 104 bytes each, least recently used goes first. */
#define WEFT_TRACK_MAX 32768

/* TTL or hop limit of the outer header. */
#define WEFT_OUTER_TTL 64

/* Outer source ports are 32768 to 65535. */
#define WEFT_SPORT_BASE 0x8000
