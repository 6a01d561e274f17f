/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What happens to connections, from the kernel's TCP tracepoints. */
#ifndef TCBEE_EVENTS_H
#define TCBEE_EVENTS_H

#include "sockets.h"

const volatile __u8 cfg_retransmit_err = 0; /* tp_btf/tcp_retransmit_skb has the argument err (6.13) */
const volatile __u8 cfg_reset_reason = 0;   /* tp_btf/tcp_send_reset has the argument reason (6.10) */
const volatile __u8 cfg_kfree_sock = 0;     /* tp_btf/kfree_skb has the argument rx_sk (6.11) */

/* Begins an incident about sk, a TCP socket; NULL if it is not to be recorded. */
static __always_inline struct tcb_incident *incident(struct slot *first, struct slot **slot, __u32 hook, __u32 dir,
						     struct sock *sk, struct sock_state **state)
{
	struct sock_state *st;
	struct tcb_incident *r;
	struct slot *s;
	__u64 now, cookie;

	if (other_netns(first, sk)) {
		pass(first, hook);
		return NULL;
	}
	s = take(first, hook);
	if (!s)
		return NULL;
	now = bpf_ktime_get_ns();
	r = room(s);
	if (!r) {
		skip(s, hook);
		return NULL;
	}
	cookie = sock_cookie(sk);
	st = sock_state(sk, cookie, NULL);
	if (state)
		*state = st;
	__builtin_memset(r, 0, sizeof(*r));
	fill_header(&r->h, sk, hook, cookie, st, now);
	if (cfg_filter && (!wanted(&r->h) || (cfg_filter & FILTER_CGROUP && !in_cgroup(sk)))) {
		skip(s, hook);
		return NULL;
	}
	r->h.kind = TCB_INCIDENT;
	r->h.size = sizeof(*r);
	r->h.dir = dir;
	if (FIELD_EXISTS(sk->sk_cgrp_data))
		r->cgroup = sk->sk_cgrp_data.cgroup->kn->id;
	*slot = s;
	return r;
}

static __always_inline int done(struct slot *s, struct tcb_incident *r)
{
	keep(s, r->h.hook, sizeof(*r), r->h.time);
	give(s);
	return 0;
}

TRACE("tp_btf/inet_sock_set_state", inet_sock_set_state, TCB_HOOK_SET_STATE)
{
	struct sock *sk = (struct sock *)bpf_skc_to_tcp_sock((void *)ctx[0]);
	int old = (int)ctx[1], new = (int)ctx[2];
	struct sock_state *st = NULL;
	struct tcb_incident *r;
	struct slot *s;

	if (!sk)
		return 0;
	if (old == TCP_LISTEN && new == TCP_SYN_RECV && !sk->__sk_common.skc_dport) {
		/*
		 * Some kernels (6.12, not 6.18) tell of an accepted connection when it
		 * still is its listener's copy: with the listener's cookie and
		 * no peer. Its next state tells the same with its identity.
		 */
		pass(first, TCB_HOOK_SET_STATE);
		return 0;
	}
	r = incident(first, &s, TCB_HOOK_SET_STATE, TCB_DIR_NONE, sk, &st);
	if (st && (new == TCP_SYN_SENT || new == TCP_LISTEN)) {
		/*
		 * In connect() or listen(): the task that runs is the
		 * connection's. Kept even if this event is not wanted: in
		 * connect() the local port is not known yet.
		 */
		__u64 id = bpf_get_current_pid_tgid();

		st->pid = id >> 32;
		st->tid = id;
		bpf_get_current_comm(st->comm, sizeof(st->comm));
	}
	if (!r)
		return 0;
	r->old_state = old;
	r->new_state = new;
	r->uid = sk->sk_uid.val;
	if (st && st->pid) {
		/* An accepted connection has its listener's process. */
		r->pid = st->pid;
		r->tid = st->tid;
		copy16(r->comm, st->comm);
		r->present = 1;
	}
	return done(s, r);
}

TRACE("tp_btf/tcp_retransmit_skb", tcp_retransmit_skb, TCB_HOOK_RETRANSMIT_SKB)
{
	struct sock *sk = (struct sock *)bpf_skc_to_tcp_sock((void *)ctx[0]);
	struct tcb_incident *r;
	struct skb_cb cb;
	struct slot *s;

	if (!sk)
		return 0;
	r = incident(first, &s, TCB_HOOK_RETRANSMIT_SKB, TCB_DIR_OUT, sk, NULL);
	if (!r)
		return 0;
	read_cb(&cb, (struct sk_buff *)ctx[1]);
	r->seq = cb.seq;
	r->ack = cb.ack;
	r->len = cb.len;
	r->segs = cb.segs ? cb.segs : 1;
	r->tcp_flags = cb.flags;
	r->sacked = cb.sacked;
	r->ca_state = BITS((struct inet_connection_sock *)sk, icsk_ca_state);
	if (cfg_retransmit_err)
		r->err = (int)ctx[2];
	r->old_state = r->new_state = sk->__sk_common.skc_state;
	return done(s, r);
}

TRACE("tp_btf/tcp_receive_reset", tcp_receive_reset, TCB_HOOK_RECEIVE_RESET)
{
	struct sock *sk = (struct sock *)bpf_skc_to_tcp_sock((void *)ctx[0]);
	struct tcb_incident *r;
	struct slot *s;

	if (!sk)
		return 0;
	r = incident(first, &s, TCB_HOOK_RECEIVE_RESET, TCB_DIR_IN, sk, NULL);
	if (!r)
		return 0;
	r->old_state = r->new_state = sk->__sk_common.skc_state;
	return done(s, r);
}

TRACE("tp_btf/tcp_cong_state_set", tcp_cong_state_set, TCB_HOOK_CONG_STATE_SET)
{
	struct sock *sk = (struct sock *)bpf_skc_to_tcp_sock((void *)ctx[0]);
	struct sock_state *st = NULL;
	struct tcb_incident *r;
	struct slot *s;
	__u8 old;

	if (!sk)
		return 0;
	r = incident(first, &s, TCB_HOOK_CONG_STATE_SET, TCB_DIR_NONE, sk, &st);
	old = BITS((struct inet_connection_sock *)sk, icsk_ca_state);
	if (st && old != (__u8)ctx[1]) /* each accepted socket's is set, to what it was */
		look_again(first, sk, st);
	if (!r)
		return 0;
	r->old_state = old;
	r->ca_state = (__u8)ctx[1];
	r->new_state = sk->__sk_common.skc_state;
	return done(s, r);
}

TRACE("tp_btf/tcp_rcv_space_adjust", tcp_rcv_space_adjust, TCB_HOOK_RCV_SPACE_ADJUST)
{
	struct sock *sk = (struct sock *)bpf_skc_to_tcp_sock((void *)ctx[0]);
	struct tcb_incident *r;
	struct slot *s;

	if (!sk)
		return 0;
	r = incident(first, &s, TCB_HOOK_RCV_SPACE_ADJUST, TCB_DIR_IN, sk, NULL);
	if (!r)
		return 0;
	r->value = ((struct tcp_sock *)sk)->rcvq_space.space;
	r->old_state = r->new_state = sk->__sk_common.skc_state;
	return done(s, r);
}

/* Begins an incident that has no full socket; NULL if it is not to be recorded. */
static __always_inline struct tcb_incident *bare_incident(struct slot *first, struct slot **slot, __u32 hook, __u32 dir,
							__u64 netns)
{
	struct tcb_incident *r;
	struct slot *s = take(first, hook);
	__u64 now;

	if (!s)
		return NULL;
	now = bpf_ktime_get_ns();
	if (cfg_netns && netns != cfg_netns) {
		skip(s, hook);
		return NULL;
	}
	r = room(s);
	if (!r) {
		skip(s, hook);
		return NULL;
	}
	__builtin_memset(r, 0, sizeof(*r));
	r->h.time = now;
	r->h.netns = netns;
	r->h.kind = TCB_INCIDENT;
	r->h.size = sizeof(*r);
	r->h.hook = hook;
	r->h.cpu = bpf_get_smp_processor_id();
	r->h.dir = dir;
	*slot = s;
	return r;
}

TRACE("tp_btf/tcp_retransmit_synack", tcp_retransmit_synack, TCB_HOOK_RETRANSMIT_SYNACK)
{
	struct sock *listener = (struct sock *)ctx[0];
	struct request_sock *req = (struct request_sock *)ctx[1];
	struct tcb_incident *r;
	struct slot *s;

	r = bare_incident(first, &s, TCB_HOOK_RETRANSMIT_SYNACK, TCB_DIR_OUT,
			  listener->__sk_common.skc_net.net->net_cookie);
	if (!r)
		return 0;
	/* The cookie passes on to the connection; 0 as long as nobody asked for one. */
	r->h.cookie = req->__req_common.skc_cookie.counter;
	fill_addresses(&r->h, &req->__req_common);
	r->h.local_port = req->__req_common.skc_num;
	if (cfg_filter && (!wanted(&r->h) || (cfg_filter & FILTER_CGROUP && !in_cgroup(listener)))) {
		skip(s, TCB_HOOK_RETRANSMIT_SYNACK);
		return 0;
	}
	r->segs = 1;
	r->tcp_flags = 0x12;
	r->old_state = r->new_state = TCP_NEW_SYN_RECV;
	return done(s, r);
}

/* TCP and IP header fields of an skb that no longer is at a packet hook. */
struct headers {
	__u32 family; /* 0: not TCP */
	__be32 saddr[4];
	__be32 daddr[4];
	__u32 seq;
	__u32 ack;
	__u32 len;
	__u16 sport;
	__u16 dport;
	__u16 flags;
	__u16 pad;
};

/*
 * An argument of a tracepoint as a number. What is only probed must not be a
 * typed pointer: kernels before 6.14 take one that may be NULL for good.
 */
static __always_inline __u64 argument(__u64 *ctx, int i)
{
	__u64 v = 0;

	bpf_probe_read_kernel(&v, sizeof(v), ctx + i);
	return v;
}

/*
 * Reads the headers behind skb->network_header, which is all that a dropped
 * skb is sure to have. A global function: verified once.
 */
__noinline int read_headers(__u64 address, struct headers *h)
{
	struct sk_buff *skb = (struct sk_buff *)address;
	unsigned char *head = NULL;
	__u16 network = 0;
	__u32 total, off;
	struct tcphdr tcp;
	union {
		struct iphdr ip4;
		struct ipv6hdr ip6;
	} u;

	if (!h)
		return 0;
	h->family = 0;
	if (bpf_probe_read_kernel(&head, sizeof(head), &skb->head) ||
	    bpf_probe_read_kernel(&network, sizeof(network), &skb->network_header) || !network)
		return 0;
	if (bpf_probe_read_kernel(&u.ip4, sizeof(u.ip4), head + network))
		return 0;
	if (u.ip4.ver_ihl >> 4 == 4) {
		if (u.ip4.protocol != IPPROTO_TCP || u.ip4.frag_off & bpf_ntohs(0x1fff))
			return 0;
		off = (u.ip4.ver_ihl & 15) * 4;
		total = bpf_ntohs(u.ip4.tot_len);
		h->saddr[0] = h->saddr[1] = h->daddr[0] = h->daddr[1] = 0;
		h->saddr[2] = h->daddr[2] = 0xffff0000;
		h->saddr[3] = u.ip4.saddr;
		h->daddr[3] = u.ip4.daddr;
		h->family = 4;
	} else if (u.ip4.ver_ihl >> 4 == 6) {
		if (bpf_probe_read_kernel(&u.ip6, sizeof(u.ip6), head + network) || u.ip6.nexthdr != IPPROTO_TCP)
			return 0;
		off = sizeof(u.ip6);
		total = sizeof(u.ip6) + bpf_ntohs(u.ip6.payload_len);
		for (int i = 0; i < 4; i++) {
			h->saddr[i] = u.ip6.saddr[i];
			h->daddr[i] = u.ip6.daddr[i];
		}
		h->family = 6;
	} else {
		return 0;
	}
	if (bpf_probe_read_kernel(&tcp, sizeof(tcp), head + network + off)) {
		h->family = 0;
		return 0;
	}
	h->sport = bpf_ntohs(tcp.source);
	h->dport = bpf_ntohs(tcp.dest);
	h->seq = bpf_ntohl(tcp.seq);
	h->ack = bpf_ntohl(tcp.ack_seq);
	h->flags = bpf_ntohs(tcp.off_flags);
	off += h->flags >> 12 << 2;
	h->flags &= 0xfff;
	h->len = total > off ? total - off : 0;
	return 0;
}

/* The cookie of a namespace whose address is known, 0 if it cannot be read. */
static __always_inline __u64 net_cookie(struct net *net)
{
	__u64 cookie = 0;

	if (net)
		bpf_probe_read_kernel(&cookie, sizeof(cookie), &net->net_cookie);
	return cookie;
}

static __always_inline __u64 netns_of_sock(struct sock *sk)
{
	struct net *net = NULL;

	if (sk)
		bpf_probe_read_kernel(&net, sizeof(net), &sk->__sk_common.skc_net.net);
	return net_cookie(net);
}

/* The namespace of the device that an skb is on, else of its socket, 0 if it has neither. */
static __always_inline __u64 netns_of(__u64 address)
{
	struct sk_buff *skb = (struct sk_buff *)address;
	struct net_device *dev = NULL;
	struct sock *sk = NULL;
	struct net *net = NULL;
	__u64 cookie = 0;

	if (!bpf_probe_read_kernel(&dev, sizeof(dev), &skb->dev) && dev &&
	    !bpf_probe_read_kernel(&net, sizeof(net), &dev->nd_net.net))
		cookie = net_cookie(net);
	if (!cookie && !bpf_probe_read_kernel(&sk, sizeof(sk), &skb->sk))
		cookie = netns_of_sock(sk);
	return cookie;
}

/* Fills an incident from the headers of a packet that goes in the given direction. */
static __always_inline void fill_headers(struct tcb_incident *r, struct headers *h, int out)
{
	r->h.family = h->family;
	copy_address(out ? r->h.local : r->h.peer, h->saddr);
	copy_address(out ? r->h.peer : r->h.local, h->daddr);
	r->h.local_port = out ? h->sport : h->dport;
	r->h.peer_port = out ? h->dport : h->sport;
	r->seq = h->seq;
	r->ack = h->ack;
	r->len = h->len;
	r->tcp_flags = h->flags;
}

/* Tells whether an incident without a socket is not wanted; no cgroup is known to own it. */
static __always_inline int bare_unwanted(struct tcb_incident *r)
{
	return cfg_filter && (!wanted(&r->h) || cfg_filter & FILTER_CGROUP);
}

/*
 * A reset goes out: with a full socket where there is one, else in answer to
 * the segment in skb. skb, too, may be missing (the application aborts).
 */
TRACE("tp_btf/tcp_send_reset", tcp_send_reset, TCB_HOOK_SEND_RESET)
{
	void *any = (void *)ctx[0];
	struct tcb_incident *r;
	struct headers h = {};
	struct sock *sk = NULL;
	struct slot *s;

	if (any)
		sk = (struct sock *)bpf_skc_to_tcp_sock(any);
	if (sk && sk->__sk_common.skc_state == TCP_LISTEN)
		sk = NULL; /* a listener is not the connection */
	if (sk) {
		r = incident(first, &s, TCB_HOOK_SEND_RESET, TCB_DIR_OUT, sk, NULL);
		if (!r)
			return 0;
		r->old_state = r->new_state = sk->__sk_common.skc_state;
	} else {
		read_headers(argument(ctx, 1), &h);
		if (!h.family)
			return 0;
		r = bare_incident(first, &s, TCB_HOOK_SEND_RESET, TCB_DIR_OUT, netns_of(argument(ctx, 1)));
		if (!r)
			return 0;
		fill_headers(r, &h, 0);
		if (bare_unwanted(r)) {
			skip(s, TCB_HOOK_SEND_RESET);
			return 0;
		}
	}
	if (cfg_reset_reason)
		r->reason = (__u32)ctx[2];
	return done(s, r);
}

TRACE("tp_btf/tcp_bad_csum", tcp_bad_csum, TCB_HOOK_BAD_CSUM)
{
	struct tcb_incident *r;
	struct headers h = {};
	struct slot *s;

	read_headers(argument(ctx, 0), &h);
	if (!h.family)
		return 0;
	r = bare_incident(first, &s, TCB_HOOK_BAD_CSUM, TCB_DIR_IN, netns_of(argument(ctx, 0)));
	if (!r)
		return 0;
	fill_headers(r, &h, 0);
	if (bare_unwanted(r)) {
		skip(s, TCB_HOOK_BAD_CSUM);
		return 0;
	}
	return done(s, r);
}

TRACE("tp_btf/kfree_skb", kfree_skb, TCB_HOOK_KFREE_SKB)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct tcb_incident *r;
	struct headers h = {};
	__u64 netns = 0;
	struct slot *s;
	int out;

	if (skb->protocol != bpf_ntohs(ETH_P_IP) && skb->protocol != bpf_ntohs(ETH_P_IPV6))
		return 0;
	read_headers(argument(ctx, 0), &h);
	if (!h.family)
		return 0;
	/* What came in has an interface to tell; a socket it may have, too. */
	out = skb->sk && !skb->skb_iif;
	if (cfg_kfree_sock)
		netns = netns_of_sock((struct sock *)argument(ctx, 3));
	if (!netns)
		netns = netns_of(argument(ctx, 0));
	r = bare_incident(first, &s, TCB_HOOK_KFREE_SKB, out ? TCB_DIR_OUT : TCB_DIR_IN, netns);
	if (!r)
		return 0;
	fill_headers(r, &h, out);
	if (bare_unwanted(r)) {
		skip(s, TCB_HOOK_KFREE_SKB);
		return 0;
	}
	r->location = ctx[1];
	r->reason = (__u32)ctx[2];
	return done(s, r);
}

#endif
