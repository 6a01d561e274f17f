/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which connections are wanted. What is not is counted as filtered. */
#ifndef TCBEE_FILTER_H
#define TCBEE_FILTER_H

#include "transport.h"

#define FILTER_PORTS        1 /* one of the ports must be listed */
#define FILTER_NOT_PORTS    2 /* none may be excluded */
#define FILTER_PREFIXES     4
#define FILTER_NOT_PREFIXES 8
#define FILTER_SAMPLE       16
#define FILTER_CGROUP       32

const volatile __u32 cfg_filter = 0;
const volatile __u32 cfg_sample = 1; /* one connection of so many */
const volatile __u64 cfg_cgroup = 0; /* id of the cgroup that has the sockets, itself or below */

/* Bits: 65536 for ports that are listed, then 65536 for those excluded. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048);
	__type(key, __u32);
	__type(value, __u64);
} ports SEC(".maps");

struct prefix {
	__u32 bits; /* of addr as IPv6 or mapped IPv4 */
	__u8 addr[16];
};

/* The longest match decides: 1 listed, 2 excluded. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1 << 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} prefixes SEC(".maps");

static __always_inline int port_in(__u32 port, __u32 base)
{
	__u32 i = base + (port >> 6);
	__u64 *word = bpf_map_lookup_elem(&ports, &i);

	return word && *word >> (port & 63) & 1;
}

static __always_inline __u32 prefix_of(const __u8 *addr)
{
	struct prefix p = {.bits = 128};
	__u32 *v;

	__builtin_memcpy(p.addr, addr, sizeof(p.addr));
	v = bpf_map_lookup_elem(&prefixes, &p);
	return v ? *v : 0;
}

/*
 * Tells by its addresses and ports whether a connection is wanted: the same
 * for both directions, and for both ends of it.
 */
__noinline int wanted(struct tcb_header *h)
{
	if (!h)
		return 0;
	if (cfg_filter & FILTER_NOT_PORTS && (port_in(h->local_port, 1024) || port_in(h->peer_port, 1024)))
		return 0;
	if (cfg_filter & FILTER_PORTS && !port_in(h->local_port, 0) && !port_in(h->peer_port, 0))
		return 0;
	if (cfg_filter & (FILTER_PREFIXES | FILTER_NOT_PREFIXES)) {
		__u32 local = prefix_of(h->local), peer = prefix_of(h->peer);

		if (local == 2 || peer == 2)
			return 0;
		if (cfg_filter & FILTER_PREFIXES && local != 1 && peer != 1)
			return 0;
	}
	if (cfg_filter & FILTER_SAMPLE) {
		const __u32 *a = (const __u32 *)h->local, *b = (const __u32 *)h->peer;
		__u64 x = 0;

		/* Sums and products do not change when the ends swap their places. */
		for (int i = 0; i < 4; i++)
			x = x * 0x9e3779b97f4a7c15ULL + ((__u64)a[i] + b[i]) + ((__u64)a[i] ^ b[i]);
		x = x * 0x9e3779b97f4a7c15ULL + ((__u64)(h->local_port + h->peer_port) << 16) +
		    (h->local_port ^ h->peer_port);
		x ^= x >> 32;
		x *= 0xd6e8feb86659fd93ULL;
		x ^= x >> 32;
		if ((__u32)x % cfg_sample)
			return 0;
	}
	return 1;
}

/* Tells whether a socket belongs to the wanted cgroup or to one below it. */
static __always_inline int in_cgroup(struct sock *sk)
{
	struct cgroup_subsys_state *css;

	if (!FIELD_EXISTS(sk->sk_cgrp_data))
		return 0;
	css = &sk->sk_cgrp_data.cgroup->self;
	for (int i = 0; i < 16 && css; i++) {
		if (css->cgroup->kn->id == cfg_cgroup)
			return 1;
		css = css->parent;
	}
	return 0;
}

#endif
