/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The one object: every program and every map. docs/design/datapath.md draws the ways of packets through it. */
#include "hook_pod.c"
#include "hook_net.c"
#include "hook_overlay.c"
#include "hook_node.c"

char weft_license[] SEC("license") = "Dual BSD/GPL";
