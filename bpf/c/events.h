/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What happens to connections, from the kernel's TCP tracepoints. */
#ifndef TCBEE_EVENTS_H
#define TCBEE_EVENTS_H

#include "sockets.h"

/* Begins an incident about sk, a TCP socket; NULL if it is not to be recorded. */
static __always_inline struct tcb_incident *incident(struct slot **slot, __u32 hook, __u32 dir, struct sock *sk,
						     struct sock_state **state)
{
	struct sock_state *st;
	struct tcb_incident *r;
	struct slot *s;
	__u64 now, cookie;

	s = take(hook);
	if (!s)
		return NULL;
	now = bpf_ktime_get_ns();
	if (other_netns(sk)) {
		skip(s, hook);
		return NULL;
	}
	r = room(s);
	if (!r) {
		skip(s, hook);
		return NULL;
	}
	cookie = sock_cookie(sk);
	st = sock_state(sk, cookie);
	__builtin_memset(r, 0, sizeof(*r));
	fill_header(&r->h, sk, hook, cookie, st, now);
	r->h.kind = TCB_INCIDENT;
	r->h.size = sizeof(*r);
	r->h.dir = dir;
	r->cgroup = sk->sk_cgrp_data.cgroup->kn->id;
	*slot = s;
	if (state)
		*state = st;
	return r;
}

static __always_inline int done(struct slot *s, struct tcb_incident *r)
{
	keep(s, r->h.hook, sizeof(*r), r->h.time);
	give(s);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int inet_sock_set_state(__u64 *ctx)
{
	struct sock *sk = (struct sock *)bpf_skc_to_tcp_sock((void *)ctx[0]);
	int old = (int)ctx[1], new = (int)ctx[2];
	struct sock_state *st;
	struct tcb_incident *r;
	struct slot *s;

	if (!sk)
		return 0;
	r = incident(&s, TCB_HOOK_SET_STATE, TCB_DIR_NONE, sk, &st);
	if (!r)
		return 0;
	r->old_state = old;
	r->new_state = new;
	r->uid = sk->sk_uid.val;
	if (new == TCP_SYN_SENT || new == TCP_LISTEN) {
		/* In connect() or listen(): the task that runs is the connection's. */
		__u64 id = bpf_get_current_pid_tgid();

		r->pid = id >> 32;
		r->tid = id;
		bpf_get_current_comm(r->comm, sizeof(r->comm));
		r->present = 1;
		if (st) {
			st->pid = r->pid;
			st->tid = r->tid;
			copy16(st->comm, r->comm);
		}
	} else if (st && st->pid) {
		/* An accepted connection has its listener's process. */
		r->pid = st->pid;
		r->tid = st->tid;
		copy16(r->comm, st->comm);
		r->present = 1;
	}
	return done(s, r);
}

SEC("tp_btf/tcp_retransmit_skb")
int tcp_retransmit_skb(__u64 *ctx)
{
	struct sock *sk = (struct sock *)bpf_skc_to_tcp_sock((void *)ctx[0]);
	struct tcb_incident *r;
	struct skb_cb cb;
	struct slot *s;

	if (!sk)
		return 0;
	r = incident(&s, TCB_HOOK_RETRANSMIT_SKB, TCB_DIR_OUT, sk, NULL);
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
	r->old_state = r->new_state = sk->__sk_common.skc_state;
	return done(s, r);
}

SEC("tp_btf/tcp_receive_reset")
int tcp_receive_reset(__u64 *ctx)
{
	struct sock *sk = (struct sock *)bpf_skc_to_tcp_sock((void *)ctx[0]);
	struct tcb_incident *r;
	struct slot *s;

	if (!sk)
		return 0;
	r = incident(&s, TCB_HOOK_RECEIVE_RESET, TCB_DIR_IN, sk, NULL);
	if (!r)
		return 0;
	r->old_state = r->new_state = sk->__sk_common.skc_state;
	return done(s, r);
}

#endif
