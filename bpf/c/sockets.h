/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is read from sockets: identity, and the whole state as tcp_info tells it. */
#ifndef TCBEE_SOCKETS_H
#define TCBEE_SOCKETS_H

#include "filter.h"

const volatile __u32 cfg_hz = 250;        /* CONFIG_HZ of the running kernel */
const volatile __u32 cfg_jiffy_us = 4000; /* a jiffy, 0: no whole number of us */
const volatile __u32 cfg_jiffy_ms = 4;    /* ... of ms */
const volatile __u8 cfg_ca = 3;           /* CA_CUBIC, CA_BBR: this kernel has its struct as event.go reads it */
const volatile __u8 cfg_changes_only = 0; /* samples: changes */
const volatile __u64 cfg_limit_step = 0;  /* samples: limited: time of one sample of a socket, in 2^-LIMIT_SHIFT jiffies; 0: none */
const volatile __u64 cfg_limit_ahead = 0; /* ... by how much a socket may be ahead of its rate */
const volatile __u64 cfg_above_step = 0;  /* ... time of one segment on a CPU above which its sockets are limited; 0: they always are */
const volatile __u64 cfg_cpu_step = 0;    /* ... time of one sample of all sockets on such a CPU; 0: as many as each may have */
const volatile __u64 cfg_netns = 0;       /* only this namespace, 0: all */

enum {
	CA_CUBIC = 1,
	CA_BBR   = 2,
};

/*
 * Kept with every socket that a hook met, and freed with it. What is written at
 * every segment has a cache line of its own: the one before begins 8 bytes
 * earlier with what the kernel reads at each lookup (struct
 * bpf_local_storage_data), and stays with all CPUs that a socket works on.
 */
struct sock_state {
	__u64 cookie;    /* of the socket that seq counts for: an accepted one is cloned from its listener */
	__u64 ca_ops;    /* where ca_name was read */
	__u8 ca_name[16];
	__u8 comm[16];
	__u32 pid;       /* of the process that connected or listened, 0 unknown */
	__u32 tid;
	__u64 seq;       /* of the last event */
	__u64 digest;    /* of the last sample, for samples: changes and limited */
	__u64 due;       /* samples: limited: when the socket would be sampled next at its rate */
	__u64 crowded;   /* samples: limited: when the socket last had a segment on a crowded CPU, 0: never */
	__u64 left;      /* ... and until when none of its segments is looked at, or LOOK */
	__u64 sends;     /* address of the socket, once it is known for a TCP socket of this side; a clone has another one */
};

_Static_assert(offset_of(struct sock_state, seq) == 64 - 8, "what is written shares a cache line with what is read");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct sock_state);
} sock_states SEC(".maps");

/*
 * True if sk is of the namespace that has the cookie: the recorder's own, which
 * it holds, so that no other is ever at the same address. That is found out
 * once for each CPU; the cookie lies in a cache line that nobody else needs.
 */
static __always_inline int in_netns(struct slot *first, struct sock *sk, __u64 cookie)
{
	struct net *net = sk->__sk_common.skc_net.net;
	__u64 own = READ_ONCE(first->net);

	if (likely(own))
		return own == (__u64)net;
	if (net->net_cookie != cookie)
		return 0;
	WRITE_ONCE(first->net, (__u64)net);
	return 1;
}

static __always_inline int other_netns(struct slot *first, struct sock *sk)
{
	return cfg_netns && !in_netns(first, sk, cfg_netns);
}

/* The cookie of a socket, made if it has none yet. */
static __always_inline __u64 sock_cookie(struct sock *sk)
{
	__u64 cookie = sk->__sk_common.skc_cookie.counter;

	return cookie ? cookie : bpf_get_socket_cookie(sk);
}

static __always_inline __u32 next_seq(struct sock_state *st)
{
	return st ? __sync_fetch_and_add(&st->seq, 1) + 1 : 0;
}

/*
 * Returns the state kept with sk, NULL if there is no memory or sk is about to
 * vanish, and with seq the number of an event: at the first touch of its cache
 * line, so that another CPU's is asked for it once, not to read it first.
 */
static __always_inline struct sock_state *sock_state(struct sock *sk, __u64 cookie, __u64 *seq)
{
	struct sock_state *st = bpf_sk_storage_get(&sock_states, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!st)
		return NULL;
	if (seq)
		*seq = next_seq(st);
	if (unlikely(st->cookie != cookie)) {
		__u64 old = st->cookie;

		/* New storage is zero, and two CPUs may meet a new socket at once: only one starts anew, and only an old one. */
		if (__sync_val_compare_and_swap(&st->cookie, old, cookie) == old && old) {
			st->seq = 0;
			st->digest = 0;
			st->due = 0;
			st->crowded = 0;
			st->left = 0;
			if (seq)
				*seq = next_seq(st);
		}
	}
	return st;
}

static __always_inline void copy16(void *dst, const void *src)
{
	((__u64 *)dst)[0] = ((const __u64 *)src)[0];
	((__u64 *)dst)[1] = ((const __u64 *)src)[1];
}

static __always_inline void copy_address(void *dst, const __be32 *src)
{
	for (int i = 0; i < 4; i++)
		((__u32 *)dst)[i] = src[i];
}

static __always_inline void map4(__u8 *dst, __be32 addr)
{
	((__u64 *)dst)[0] = 0;
	((__u32 *)dst)[2] = 0xffff0000; /* bytes 00 00 ff ff */
	((__u32 *)dst)[3] = addr;
}

/* Fills the addresses of h from a socket of any kind. */
static __always_inline void fill_addresses(struct tcb_header *h, const struct sock_common *skc)
{
	h->peer_port = bpf_ntohs(skc->skc_dport);
	if (skc->skc_family == AF_INET6) {
		__u32 a[8];

		a[0] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[0];
		a[1] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[1];
		a[2] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[2];
		a[3] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[3];
		a[4] = skc->skc_v6_daddr.in6_u.u6_addr32[0];
		a[5] = skc->skc_v6_daddr.in6_u.u6_addr32[1];
		a[6] = skc->skc_v6_daddr.in6_u.u6_addr32[2];
		a[7] = skc->skc_v6_daddr.in6_u.u6_addr32[3];
		/* A socket of IPv6 that carries IPv4 counts as what its packets are. */
		h->family = (!a[4] && !a[5] && a[6] == 0xffff0000) ? 4 : 6;
		for (int i = 0; i < 4; i++) {
			((__u32 *)h->local)[i] = a[i];
			((__u32 *)h->peer)[i] = a[4 + i];
		}
		return;
	}
	h->family = 4;
	map4(h->local, skc->skc_rcv_saddr);
	map4(h->peer, skc->skc_daddr);
}

/* Fills all of h but kind, size and dir, from a full socket. */
static __always_inline void fill_header(struct tcb_header *h, struct sock *sk, __u32 hook, __u64 cookie,
					struct sock_state *st, __u64 now)
{
	h->time = now;
	h->cookie = cookie;
	h->netns = sk->__sk_common.skc_net.net->net_cookie;
	h->sock_seq = next_seq(st);
	h->hook = hook;
	h->cpu = bpf_get_smp_processor_id();
	fill_addresses(h, &sk->__sk_common);
	/* Not skc_num: that is 0 once a closing socket has given its port back. */
	h->local_port = bpf_ntohs(((struct inet_sock *)sk)->inet_sport);
}

static __always_inline __u32 jiffies_to_usecs(__u32 j)
{
	__u32 us = cfg_jiffy_us;

	return us ? j * us : ((__u64)j * 1000000) / cfg_hz;
}

/* As the kernel does for its divisors of 1000, and rounded up for the others. */
static __always_inline __u32 jiffies_to_msecs(__u32 j)
{
	__u32 ms = cfg_jiffy_ms;

	return ms ? j * ms : ((__u64)j * 1000 + cfg_hz - 1) / cfg_hz;
}

/* The name of the congestion control, kept with the socket: it is asked for at every segment and hardly ever changes. */
static __always_inline void fill_ca_name(__u8 *dst, struct inet_connection_sock *icsk, struct sock_state *st)
{
	const struct tcp_congestion_ops *ops = icsk->icsk_ca_ops;

	if (likely(st && st->ca_ops == (__u64)ops)) {
		copy16(dst, st->ca_name);
		return;
	}
	if (bpf_probe_read_kernel(dst, 16, &ops->name)) {
		__builtin_memset(dst, 0, 16);
	} else if (st) {
		copy16(st->ca_name, dst);
		barrier();
		st->ca_ops = (__u64)ops;
	}
}

/* True if what samples: changes watches is as it was in the socket's last sample. */
static __always_inline int unchanged(struct tcp_sock *tp, struct sock_state *st)
{
	struct inet_connection_sock *icsk = &tp->inet_conn;
	__u64 d = 0xcbf29ce484222325ULL;

	if (!st)
		return 0;
#define MIX(v) d = (d ^ (__u64)(v)) * 0x9e3779b97f4a7c15ULL, d ^= d >> 29
	MIX(tp->snd_cwnd | (__u64)tp->snd_ssthresh << 32);
	MIX(tp->srtt_us | (__u64)tp->mdev_us << 32);
	MIX(tp->lost_out | (__u64)tp->sacked_out << 32);
	MIX(tp->retrans_out | (__u64)tp->total_retrans << 32);
	MIX(tp->mss_cache | (__u64)tp->reordering << 32);
	MIX(tp->snd_wnd | (__u64)icsk->icsk_rto << 32);
	MIX(tp->rtt_min.s[0].v | (__u64)BITS(icsk, icsk_ca_state) << 32 | (__u64)icsk->icsk_retransmits << 40 |
	    (__u64)((struct sock *)tp)->__sk_common.skc_state << 48);
#undef MIX
	if (st->digest == d)
		return 1;
	st->digest = d;
	return 0;
}

#define LIMIT_SHIFT 20

/*
 * Counts a segment; true if the CPU has had more of them lately than
 * cfg_above_step allows: a quarter of a second's worth at once, or more for
 * long. All count, sampled or not, and it ends when there have been fewer for
 * as long. Who interrupts another one here may go uncounted.
 */
static __always_inline int crowded(struct slot *first)
{
	__u64 most = ((__u64)cfg_hz << LIMIT_SHIFT) / 4, now = bpf_jiffies64() << LIMIT_SHIFT, due;

	if (!cfg_limit_step)
		return 0;
	if (!cfg_above_step)
		return 1;
	due = READ_ONCE(first->due);
	if (due < now)
		due = now;
	due += cfg_above_step;
	if (due > now + 2 * most)
		due = now + 2 * most;
	WRITE_ONCE(first->due, due);
	return due > now + most;
}

/*
 * True if the socket has had as many samples as its rate allows (the generic
 * cell rate algorithm, ITU-T I.371). By jiffies, because the clock costs more
 * than all the rest.
 */
static __always_inline int beyond_rate(struct sock_state *st, __u64 now)
{
	__u64 due = st->due;

	if (due < now)
		due = now;
	if (due > now + cfg_limit_ahead)
		return 1;
	st->due = due + cfg_limit_step;
	return 0;
}

/*
 * True if all sockets together have had as many samples on this CPU as a crowded
 * one allows: a quarter of a second's worth at once, or more for long.
 */
static __always_inline int over_budget(struct slot *first)
{
	__u64 most = ((__u64)cfg_hz << LIMIT_SHIFT) / 4;

	return cfg_cpu_step && READ_ONCE(first->budget) > (bpf_jiffies64() << LIMIT_SHIFT) + most;
}

/*
 * Counts a sample on a crowded CPU. Those that are taken whatever the budget, of
 * new sockets and of changes, use up no more than the next half a second's.
 */
static __always_inline void spend(struct slot *first, __u64 now)
{
	__u64 due = READ_ONCE(first->budget);

	if (due < now)
		due = now;
	if (due - now < ((__u64)cfg_hz << LIMIT_SHIFT) / 2)
		WRITE_ONCE(first->budget, due + cfg_cpu_step);
}

/* The next segment of the socket is looked at, whatever the CPU's budget. */
#define LOOK 1

/*
 * True if the socket's segment is not looked at: as long as the socket, which
 * had one left out, is beyond its rate, or the crowded CPU over its budget.
 */
static __always_inline int left_alone(struct slot *first, struct sock_state *st, int crowd)
{
	__u64 left;

	if (!st || !cfg_limit_step)
		return 0;
	left = st->left;
	return left > bpf_jiffies64() << LIMIT_SHIFT || (crowd && left != LOOK && over_budget(first));
}

/*
 * The same by what this CPU remembers: without touching more of the socket than
 * the cache line of its addresses. One that another has displaced is looked at
 * once more.
 */
static __always_inline int left_here(struct slot *first, struct sock *sk, int crowd)
{
	__u32 hash = sk->__sk_common.skc_hash;
	__u64 left;

	if (!cfg_limit_step)
		return 0;
	left = READ_ONCE(first->left[hash % LEFT]);
	/* Nobody is left alone for long: the time of one forgotten long ago seems to come once jiffies wrap. */
	if (left >> 32 == hash)
		return (__u32)left - (__u32)bpf_jiffies64() - 1 < cfg_hz;
	return crowd && over_budget(first);
}

/* This CPU, too, remembers until when the socket is left alone. */
static __always_inline void remember_left(struct slot *first, struct tcp_sock *tp, struct sock_state *st)
{
	__u64 hash = ((struct sock *)tp)->__sk_common.skc_hash;

	WRITE_ONCE(first->left[hash % LEFT], hash << 32 | (__u32)(st->left >> LIMIT_SHIFT));
}

/* The next segment that the socket sends, or that this CPU receives for it, is looked at. */
static __always_inline void look_again(struct slot *first, struct sock *sk, struct sock_state *st)
{
	__u64 hash = sk->__sk_common.skc_hash;

	st->left = LOOK;
	WRITE_ONCE(first->left[hash % LEFT], hash << 32 | (__u32)bpf_jiffies64());
}

/*
 * True if the socket is on a crowded CPU, or was lately, is beyond its rate, and
 * nothing of what tells of an incident changed since its last sample: that is
 * sampled at the next segment that is looked at, which is the next one sent if
 * tcp_cong_state_set tells of it, else the first that the rate allows. And if the
 * CPU is over its budget, unless tcp_cong_state_set has told of a change.
 *
 * Lately, because the cost of a sample is not its instructions: a socket that
 * works on two CPUs has most of its cache lines on one of them, and a sample
 * taken on the other one fetches them all, for the first to fetch them back.
 */
static __always_inline int limited(struct slot *first, struct tcp_sock *tp, struct sock_state *st, int crowd)
{
	__u64 now = bpf_jiffies64() << LIMIT_SHIFT, lately = ((__u64)cfg_hz << LIMIT_SHIFT) / 4, d;
	struct inet_connection_sock *icsk = &tp->inet_conn;
	int here = crowd, spent, beyond;

	if (!st)
		return 0;
	if (st->left > now)
		goto left;
	d = (__u64)tp->snd_ssthresh << 32 | (tp->mss_cache & 0xffff) << 16 | BITS(icsk, icsk_ca_state) << 8 |
	    icsk->icsk_retransmits;
	if (here)
		st->crowded = now;
	else
		crowd = st->crowded && now - st->crowded < lately;
	spent = here && over_budget(first);
	beyond = spent || beyond_rate(st, now);
	if (crowd && beyond && (st->digest == d || (spent && st->left != LOOK))) {
		st->left = spent ? now + cfg_limit_step : st->due - cfg_limit_ahead;
		if (st->left > st->crowded + lately)
			st->left = st->crowded + lately;
		goto left;
	}
	if (here)
		spend(first, now);
	st->left = 0;
	st->digest = d;
	return 0;
left:
	remember_left(first, tp, st);
	return 1;
}

/* True if the socket is not to be sampled at a segment, by what samples is. crowd is what crowded() said. */
static __always_inline int unsampled(struct slot *first, struct tcp_sock *tp, struct sock_state *st, int crowd)
{
	if (cfg_limit_step)
		return limited(first, tp, st, crowd);
	return cfg_changes_only && unchanged(tp, st);
}

/* Counts a sample that unsampled() left out, in a slot that the caller owns. */
static __always_inline void leave_out(struct slot *s, __u32 hook)
{
	if (cfg_limit_step)
		s->tally[hook].limited++;
	else
		s->tally[hook].filtered++;
}

/* The same without a slot. */
static __always_inline void leave_out_apart(struct slot *first, __u32 hook)
{
	__sync_fetch_and_add(cfg_limit_step ? &first->apart[hook].limited : &first->apart[hook].filtered, 1);
}

/*
 * Fills all of r but its header and trigger, field by field as tcp_get_info()
 * does (net/ipv4/tcp.c).
 */
static __always_inline void fill_sample(struct tcb_sample *r, struct tcp_sock *tp, struct sock_state *st, __u64 now)
{
	struct inet_connection_sock *icsk = &tp->inet_conn;
	struct sock *sk = (struct sock *)tp;
	__u32 jiffies = bpf_jiffies64();
	__u32 present = TCB_HAS_TCP;
	__u64 stat[3], v;
	__u32 ato, chrono;
	__u8 state = sk->__sk_common.skc_state;
	__u8 options = 0;

	r->state = state;
	r->pacing_rate = sk->sk_pacing_rate;
	r->max_pacing_rate = sk->sk_max_pacing_rate;
	r->reordering = tp->reordering;
	r->snd_cwnd = tp->snd_cwnd;

	r->bytes_acked = tp->bytes_acked;
	r->bytes_received = tp->bytes_received;
	r->bytes_sent = tp->bytes_sent;
	r->bytes_retrans = tp->bytes_retrans;

	v = tp->rate_interval_us;
	if (v)
		v = (__u64)tp->rate_delivered * tp->mss_cache * 1000000 / v;
	r->delivery_rate = v;

	chrono = BITS(tp, chrono_type);
	stat[0] = tp->chrono_stat[0];
	stat[1] = tp->chrono_stat[1];
	stat[2] = tp->chrono_stat[2];
	v = (__u32)(jiffies - tp->chrono_start);
	if (chrono == 1)
		stat[0] += v;
	else if (chrono == 2)
		stat[1] += v;
	else if (chrono == 3)
		stat[2] += v;
	v = cfg_jiffy_us;
	if (!v)
		v = 1000000 / cfg_hz;
	r->busy_time = (stat[0] + stat[1] + stat[2]) * v;
	r->rwnd_limited = stat[1] * v;
	r->sndbuf_limited = stat[2] * v;

	r->rto = jiffies_to_usecs(icsk->icsk_rto);
	ato = BITS(icsk, icsk_ack.ato);
	if (FIELD_EXISTS(icsk->icsk_delack_max)) {
		__u32 most = icsk->icsk_delack_max;

		if (FIELD_EXISTS(icsk->icsk_rto_min)) {
			__u32 min = icsk->icsk_rto_min;

			min = (min > 2 ? min : 2) - 1;
			most = most < min ? most : min;
		}
		ato = ato < most ? ato : most;
	}
	r->ato = jiffies_to_usecs(ato);
	r->snd_mss = tp->mss_cache;
	r->rcv_mss = icsk->icsk_ack.rcv_mss;
	if (state == TCP_LISTEN) {
		r->unacked = sk->sk_ack_backlog;
		r->sacked = sk->sk_max_ack_backlog;
	} else {
		r->unacked = tp->packets_out;
		r->sacked = tp->sacked_out;
	}
	r->lost = tp->lost_out;
	r->retrans = tp->retrans_out;
	r->last_data_sent = jiffies_to_msecs(jiffies - tp->lsndtime);
	r->last_data_recv = jiffies_to_msecs(jiffies - icsk->icsk_ack.lrcvtime);
	r->last_ack_recv = jiffies_to_msecs(jiffies - tp->rcv_tstamp);
	r->pmtu = icsk->icsk_pmtu_cookie;
	r->rcv_ssthresh = tp->rcv_ssthresh;
	r->rtt = tp->srtt_us >> 3;
	r->rttvar = tp->mdev_us >> 2;
	r->snd_ssthresh = tp->snd_ssthresh;
	r->advmss = tp->advmss;
	r->rcv_rtt = tp->rcv_rtt_est.rtt_us >> 3;
	r->rcv_space = tp->rcvq_space.space;
	r->total_retrans = tp->total_retrans;
	r->segs_out = tp->segs_out;
	r->segs_in = tp->segs_in;
	r->snd_nxt = tp->snd_nxt;
	r->write_seq = tp->write_seq;
	r->notsent_bytes = (__s32)(r->write_seq - r->snd_nxt) > 0 ? r->write_seq - r->snd_nxt : 0;
	r->min_rtt = tp->rtt_min.s[0].v;
	r->data_segs_in = tp->data_segs_in;
	r->data_segs_out = tp->data_segs_out;
	r->delivered = tp->delivered;
	r->delivered_ce = tp->delivered_ce;
	r->dsack_dups = tp->dsack_dups;
	r->reord_seen = tp->reord_seen;
	r->rcv_ooopack = tp->rcv_ooopack;
	r->snd_wnd = tp->snd_wnd;
	r->rcv_wnd = tp->rcv_wnd;
	present |= TCB_HAS_RCV_WND;

	v = 0;
	if (FIELD_EXISTS(tp->timeout_rehash)) {
		v = tp->timeout_rehash;
		present |= TCB_HAS_REHASH;
	}
	if (FIELD_EXISTS(tp->plb_rehash))
		v += tp->plb_rehash;
	r->rehash = v;

	if (FIELD_EXISTS(tp->total_rto)) {
		r->total_rto = tp->total_rto;
		r->total_rto_recoveries = tp->total_rto_recoveries;
		v = tp->total_rto_time;
		if (tp->rto_stamp)
			v += (__u32)(now / 1000000) - tp->rto_stamp;
		r->total_rto_time = v;
		present |= TCB_HAS_TOTAL_RTO;
	} else {
		r->total_rto = 0;
		r->total_rto_recoveries = 0;
		r->total_rto_time = 0;
	}

	if (FIELD_EXISTS(tp->received_ecn_bytes)) {
		r->received_ce = tp->received_ce;
		r->delivered_e1_bytes = tp->delivered_ecn_bytes[0];
		r->delivered_e0_bytes = tp->delivered_ecn_bytes[1];
		r->delivered_ce_bytes = tp->delivered_ecn_bytes[2];
		r->received_e1_bytes = tp->received_ecn_bytes[0];
		r->received_e0_bytes = tp->received_ecn_bytes[1];
		r->received_ce_bytes = tp->received_ecn_bytes[2];
		r->accecn_fail_mode = BITS(tp, accecn_fail_mode);
		r->accecn_opt_seen = BITS(tp, saw_accecn_opt);
		present |= TCB_HAS_ACCECN;
	} else {
		__builtin_memset(&r->received_ce, 0,
				 offset_of(struct tcb_sample, state) - offset_of(struct tcb_sample, received_ce));
	}

	r->ca_state = BITS(icsk, icsk_ca_state);
	r->retransmits = icsk->icsk_retransmits;
	r->probes = icsk->icsk_probes_out;
	r->backoff = icsk->icsk_backoff;

	r->snd_wscale = 0;
	r->rcv_wscale = 0;
	if (BITS(tp, rx_opt.tstamp_ok))
		options |= 1;
	if (BITS(tp, rx_opt.sack_ok))
		options |= 2;
	if (BITS(tp, rx_opt.wscale_ok)) {
		options |= 4;
		r->snd_wscale = BITS(tp, rx_opt.snd_wscale);
		r->rcv_wscale = BITS(tp, rx_opt.rcv_wscale);
	}
	v = BITS(tp, ecn_flags);
	if (v & 0x11) /* classic ECN or AccECN was negotiated */
		options |= 8;
	if (v & 8)
		options |= 16;
	if (BITS(tp, syn_data_acked))
		options |= 32;
	if (FIELD_EXISTS(tp->tcp_usec_ts) && BITS(tp, tcp_usec_ts))
		options |= 64;
	if (FIELD_EXISTS(tp->syn_fastopen_child) && BITS(tp, syn_fastopen_child))
		options |= 128;
	r->options = options;
	r->app_limited = BITS(tp, rate_app_limited);
	r->fastopen_client_fail = BITS(tp, fastopen_client_fail);

	r->snd_una = tp->snd_una;
	r->rcv_nxt = tp->rcv_nxt;
	r->copied_seq = tp->copied_seq;
	r->rcv_wup = tp->rcv_wup;
	r->sk_rcvbuf = sk->sk_rcvbuf;
	r->sk_sndbuf = sk->sk_sndbuf;
	r->sk_wmem_queued = sk->sk_wmem_queued;
	r->sk_mark = sk->sk_mark;

	fill_ca_name(r->ca_name, icsk, st);
	if (bpf_probe_read_kernel(r->ca_priv, sizeof(r->ca_priv), &icsk->icsk_ca_priv))
		__builtin_memset(r->ca_priv, 0, sizeof(r->ca_priv));
	r->ca_more[0] = r->ca_more[1] = 0;
	v = *(__u64 *)r->ca_name;
	if (v == 0x6369627563 && cfg_ca & CA_CUBIC) { /* "cubic" */
		present |= TCB_HAS_CA_PRIV;
	} else if (v == 0x726262 && cfg_ca & CA_BBR) { /* "bbr" */
		r->ca_more[0] = icsk->icsk_ca_priv[9] >> 32;
		r->ca_more[1] = icsk->icsk_ca_priv[10];
		present |= TCB_HAS_CA_PRIV | TCB_HAS_CA_MORE;
	}
	r->present = present;
}

/* What tcp_skb_cb says of an skb that TCP works on. */
struct skb_cb {
	__u32 seq;
	__u32 ack;
	__u32 len;   /* of the payload */
	__u16 flags;
	__u16 segs;
	__u8 sacked;
	__u8 pad[3];
};

static __always_inline void read_cb(struct skb_cb *out, const struct sk_buff *skb)
{
	struct tcp_skb_cb *cb = 0;
	__u8 raw[48];
	__u32 end;

	__builtin_memset(out, 0, sizeof(*out));
	if (bpf_probe_read_kernel(raw, sizeof(raw), &skb->cb))
		return;
	out->seq = *(__u32 *)(raw + FIELD_OFFSET(cb->seq));
	end = *(__u32 *)(raw + FIELD_OFFSET(cb->end_seq));
	out->ack = *(__u32 *)(raw + FIELD_OFFSET(cb->ack_seq));
	out->segs = *(__u16 *)(raw + FIELD_OFFSET(cb->tcp_gso_segs));
	out->sacked = raw[FIELD_OFFSET(cb->sacked)];
	if (FIELD_SIZE(cb->tcp_flags) == 1)
		out->flags = raw[FIELD_OFFSET(cb->tcp_flags)];
	else
		out->flags = *(__u16 *)(raw + FIELD_OFFSET(cb->tcp_flags)) & 0xfff;
	/* SYN and FIN take a sequence number each. */
	out->len = end - out->seq - (out->flags & 1) - ((out->flags >> 1) & 1);
}


/* Makes a sample of sk at one of the hooks; skb may be NULL. A segment that leaves has its acknowledgement number in ack only. */
static __always_inline int sample_at(struct slot *first, __u32 hook, __u32 dir, struct sock *sk, struct sk_buff *skb,
				     __u32 ack)
{
	int segment = hook == TCB_HOOK_TCP_PROBE || hook == TCB_HOOK_TRANSMIT, crowd = 0;
	struct sock_state *st;
	struct tcb_sample *r;
	struct skb_cb cb = {};
	struct tcp_sock *tp;
	struct slot *s;
	__u64 now, cookie;

	/* What is not wanted is told before a slot is taken: on a busy host that is nearly all. */
	if (other_netns(first, sk)) {
		pass(first, hook);
		return 0;
	}
	if (!cfg_filter && segment) {
		crowd = crowded(first);
		/* What a sent segment's CPU remembers is not asked: look_again() may have been called on another one. */
		if (hook == TCB_HOOK_TCP_PROBE && left_here(first, sk, crowd)) {
			leave_out_apart(first, hook);
			return 0;
		}
	}
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	sk = (struct sock *)tp;
	cookie = sock_cookie(sk);
	st = sock_state(sk, cookie, NULL);
	if (!cfg_filter && segment && unsampled(first, tp, st, crowd)) {
		leave_out_apart(first, hook);
		return 0;
	}
	s = take(first, hook);
	if (!s)
		return 0;
	now = bpf_ktime_get_ns();
	r = room(s);
	if (!r)
		goto filtered;
	if (skb)
		read_cb(&cb, skb);
	r->trigger_seq = cb.seq;
	r->trigger_ack = hook == TCB_HOOK_TRANSMIT ? ack : cb.ack;
	r->trigger_len = cb.len;
	fill_header(&r->h, sk, hook, cookie, NULL, now);
	if (cfg_filter) {
		if (!wanted(&r->h) || (cfg_filter & FILTER_CGROUP && !in_cgroup(sk)))
			goto filtered;
		/* Only now, because what is not wanted makes no CPU crowded. */
		if (segment && unsampled(first, tp, st, crowded(first))) {
			leave_out(s, hook);
			give(s);
			return 0;
		}
	}
	r->h.sock_seq = next_seq(st);
	r->h.kind = TCB_SAMPLE;
	r->h.size = sizeof(*r);
	r->h.dir = dir;
	fill_sample(r, tp, st, now);
	keep(s, hook, sizeof(*r), now);
	give(s);
	return 0;
filtered:
	skip(s, hook);
	return 0;
}

TRACE_OWNED("tp_btf/tcp_probe", tcp_probe, TCB_HOOK_TCP_PROBE)
{
	return sample_at(first, TCB_HOOK_TCP_PROBE, TCB_DIR_IN, (struct sock *)ctx[0], (struct sk_buff *)ctx[1], 0);
}

/*
 * A segment is about to leave its socket, whose counters do not tell of it yet:
 * once for each, whatever happens to it below TCP. Where a kernel does not run
 * this program the egress programs take these samples.
 */
TRACE_OWNED("fentry/__tcp_transmit_skb", tcp_transmit, TCB_HOOK_TRANSMIT)
{
	return sample_at(first, TCB_HOOK_TRANSMIT, TCB_DIR_OUT, (struct sock *)ctx[0], (struct sk_buff *)ctx[1],
			 (__u32)ctx[4]);
}

TRACE("tp_btf/tcp_destroy_sock", tcp_destroy_sock, TCB_HOOK_DESTROY_SOCK)
{
	return sample_at(first, TCB_HOOK_DESTROY_SOCK, TCB_DIR_NONE, (struct sock *)ctx[0], NULL, 0);
}

/*
 * Samples the sockets that are there, run once for each namespace at the start.
 * One byte for each lets user space take them in portions.
 */
SEC("iter/tcp")
int inventory(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct slot *first = first_slot();
	struct tcp_sock *tp;
	__u8 one = 1;

	if (!skc || !first)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (tp)
		sample_at(first, TCB_HOOK_INVENTORY, TCB_DIR_NONE, (struct sock *)tp, NULL, 0);
	bpf_seq_write(ctx->meta->seq, &one, sizeof(one));
	return 0;
}

#endif
