/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets at the tc hooks: parsed, recorded, and the sending socket sampled. */
#ifndef TCBEE_PACKETS_H
#define TCBEE_PACKETS_H

#include "sockets.h"

const volatile __u8 cfg_packets = 1;     /* record segments */
const volatile __u8 cfg_transmit = 1;    /* sample the socket of sent segments: tcp_transmit does not */
const volatile __u8 cfg_checksum = 0;
const volatile __u64 cfg_link_netns = 0; /* namespace of the interfaces, 0 unknown */

/* Where the headers are and what lies around them; only numbers, so that the verifier can merge paths. */
struct packet {
	__u32 l3; /* offset of the IP header */
	__u32 l4; /* offset of the TCP header, 0: there is none */
	__u16 vlan;
	__u16 vlan_inner;
	__u16 frag;
	__u16 family; /* 4 or 6 */
	__u32 at;     /* where find_tcp is: kept here because the verifier does not follow it here */
	__u32 next;   /* the next header's number */
};

/* Copies of headers that are not in the linear part of the skb. */
struct copies {
	union {
		struct iphdr ip4;
		struct ipv6hdr ip6;
	} ip;
	struct tcphdr tcp;
	__u32 pad;
};

#define FIND_TCP  find_tcp
#define CONTEXT   struct __sk_buff
#define LOAD      bpf_skb_load_bytes
#define TAGGED(c) (c)->vlan_present
#define TAG(c)    (c)->vlan_tci
#define PROTO(c)  (c)->protocol
#include "find_tcp.h"

/* The common case, in place: Ethernet and IP without tags, options, extensions and fragments. */
static __always_inline int find_tcp_fast(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip4 = data + sizeof(*eth);
	struct ipv6hdr *ip6 = data + sizeof(*eth);

	if ((void *)(ip4 + 1) > end || skb->vlan_present)
		return 0;
	if (eth->h_proto == bpf_ntohs(ETH_P_IP)) {
		if (ip4->ver_ihl != 0x45 || ip4->protocol != IPPROTO_TCP || ip4->frag_off & bpf_ntohs(0x3fff))
			return 0;
		p->frag = bpf_ntohs(ip4->frag_off);
		p->family = 4;
		p->l4 = sizeof(*eth) + sizeof(*ip4);
	} else if (eth->h_proto == bpf_ntohs(ETH_P_IPV6) && (void *)(ip6 + 1) <= end && ip6->nexthdr == IPPROTO_TCP) {
		p->frag = 0;
		p->family = 6;
		p->l4 = sizeof(*eth) + sizeof(*ip6);
	} else {
		return 0;
	}
	p->l3 = sizeof(*eth);
	p->vlan = p->vlan_inner = 0xffff;
	return 1;
}

/* Returns size bytes at off: in place where they are linear, else copied to buf; NULL past the end. */
static __always_inline void *bytes_at(struct __sk_buff *skb, __u32 off, void *buf, __u32 size)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	/* A jumbo's extension headers end before this. */
	if (off > 4095)
		return NULL;
	/* The compiler may test one copy of off and add another, which older verifiers do not connect: this one is added. */
	asm volatile("" : "+r"(off));
	off &= 4095;
	if (likely(data + off + size <= end))
		return data + off;
	if (bpf_skb_load_bytes(skb, off, buf, size))
		return NULL;
	return buf;
}

/* Copies n option bytes (n a multiple of 4, at most 40) and zeroes up to the next multiple of 8. */
static __always_inline void copy_options(struct __sk_buff *skb, __u32 off, __u32 n, __u8 *dst)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 *to = (__u32 *)dst, *from;

	/* At most 4095 + 20, which the verifier of 6.1 may have forgotten: as in bytes_at. */
	asm volatile("" : "+r"(off));
	off &= 8191;
	from = data + off;
	if (likely(n == 12) && likely((void *)(from + 3) <= end)) {
		to[0] = from[0];
		to[1] = from[1];
		to[2] = from[2];
		to[3] = 0;
		return;
	}
	if (!n || n > TCB_OPTIONS_MAX)
		return;
	to[0] = to[1] = to[2] = to[3] = to[4] = to[5] = to[6] = to[7] = to[8] = to[9] = 0;
	/* The verifier of 6.1 does not learn from n != 0 that n is at least 1: said in a way that it does. */
	asm volatile("" : "+r"(n));
	bpf_skb_load_bytes(skb, off, dst, ((n - 1) & 63) + 1);
}

/* What the socket of a packet is, as far as the hook knows it. */
struct owner {
	struct sock_state *st;
	__u64 cookie;
	__u64 seq;  /* of the segment among the socket's events */
	__u64 full; /* a socket of this side that can be sampled */
	__u64 unwanted;
};

/* The segment at which a socket is sampled. */
struct trigger {
	__u64 now;
	__u32 seq;
	__u32 ack;
	__u32 len;
	__u32 crowd; /* what crowded() said of it */
};

/*
 * Samples the socket of a sent segment, unless it is left out. A function so
 * that the code of those that are not looked at is small.
 */
static __noinline int sample_owner(struct __sk_buff *skb, struct slot *first, struct slot *s, struct owner *o,
				   struct trigger *t)
{
	struct tcp_sock *tp = NULL;
	struct tcb_sample *m;

	if (skb->sk)
		tp = bpf_skc_to_tcp_sock(skb->sk);
	if (!tp)
		return 0; /* not reached */
	if (unsampled(first, tp, o->st, t->crowd)) {
		leave_out(s, TCB_HOOK_TRANSMIT);
		return 0;
	}
	m = room(s);
	if (!m)
		return 0; /* not reached */
	fill_header(&m->h, (struct sock *)tp, TCB_HOOK_TRANSMIT, o->cookie, o->st, t->now);
	m->h.kind = TCB_SAMPLE;
	m->h.size = sizeof(*m);
	m->h.dir = TCB_DIR_OUT;
	fill_sample(m, tp, o->st, t->now);
	m->trigger_seq = t->seq;
	m->trigger_ack = t->ack;
	m->trigger_len = t->len;
	keep(s, TCB_HOOK_TRANSMIT, sizeof(*m), t->now);
	return 0;
}

/*
 * Records a segment, and a sample of its socket if there is one. The same code
 * for the hooks and for the load generator.
 */
static __always_inline void record_packet(struct __sk_buff *skb, struct slot *first, struct packet *p, struct owner *o,
					  __u32 hook, __u32 dir)
{
	__u32 tcp_len, n, len, total, seq, ack, l3 = p->l3, l4 = p->l4;
	int sample = dir == TCB_DIR_OUT && cfg_transmit && o->full;
	struct copies copies;
	struct tcb_segment *r;
	struct tcphdr *tcp;
	struct slot *s;
	__u16 flags;
	__u64 now;

	tcp = bytes_at(skb, l4, &copies.tcp, sizeof(copies.tcp));
	if (!tcp)
		return; /* cut short: not a segment */
	s = take(first, cfg_packets ? hook : TCB_HOOK_TRANSMIT);
	if (!s) {
		if (sample && cfg_packets)
			missed_also(first, TCB_HOOK_TRANSMIT);
		return;
	}
	now = bpf_ktime_get_ns();
	r = room(s);
	if (!r)
		goto out; /* not reached: room makes room */
	seq = bpf_ntohl(tcp->seq);
	ack = bpf_ntohl(tcp->ack_seq);
	flags = bpf_ntohs(tcp->off_flags);
	tcp_len = flags >> 12 << 2;

	if (dir == TCB_DIR_OUT) {
		r->h.local_port = bpf_ntohs(tcp->source);
		r->h.peer_port = bpf_ntohs(tcp->dest);
	} else {
		r->h.local_port = bpf_ntohs(tcp->dest);
		r->h.peer_port = bpf_ntohs(tcp->source);
	}
	r->tcp_flags = flags & 0xfff;
	r->window = bpf_ntohs(tcp->window);
	r->urgent = bpf_ntohs(tcp->urg_ptr);
	r->checksum = cfg_checksum ? bpf_ntohs(tcp->check) : 0;
	if (p->family == 4) {
		struct iphdr *ip = bytes_at(skb, l3, &copies.ip.ip4, sizeof(*ip));

		if (!ip)
			goto out; /* not reached: find_tcp read it */
		r->h.family = 4;
		map4(dir == TCB_DIR_OUT ? r->h.local : r->h.peer, ip->saddr);
		map4(dir == TCB_DIR_OUT ? r->h.peer : r->h.local, ip->daddr);
		r->ip_id = bpf_ntohs(ip->id);
		r->tos = ip->tos;
		r->ttl = ip->ttl;
		total = bpf_ntohs(ip->tot_len);
	} else {
		struct ipv6hdr *ip = bytes_at(skb, l3, &copies.ip.ip6, sizeof(*ip));
		__u32 first;

		if (!ip)
			goto out;
		first = bpf_ntohl(ip->ver_class_flow);
		r->h.family = 6;
		copy_address(dir == TCB_DIR_OUT ? r->h.local : r->h.peer, ip->saddr);
		copy_address(dir == TCB_DIR_OUT ? r->h.peer : r->h.local, ip->daddr);
		r->ip_id = first & 0xfffff;
		r->tos = first >> 20;
		r->ttl = ip->hop_limit;
		total = bpf_ntohs(ip->payload_len);
		if (total)
			total += sizeof(*ip);
	}
	if (unlikely(!total))
		total = skb->len - l3; /* longer than 16 bits can say: BIG TCP, jumbogram */
	n = l4 - l3 + tcp_len;
	len = total > n ? total - n : 0;

	if (cfg_filter && (o->unwanted || !wanted(&r->h))) {
		s->tally[cfg_packets ? hook : TCB_HOOK_TRANSMIT].filtered++;
		if (cfg_packets && sample) {
			s->tally[TCB_HOOK_TRANSMIT].seen++;
			s->tally[TCB_HOOK_TRANSMIT].filtered++;
		}
		goto out;
	}
	if (!cfg_packets)
		goto sample;
	r->h.time = now;
	r->h.cookie = o->cookie;
	r->h.netns = cfg_link_netns;
	r->h.sock_seq = o->seq;
	r->h.kind = TCB_SEGMENT;
	r->h.hook = hook;
	r->h.cpu = bpf_get_smp_processor_id();
	r->h.dir = dir;
	r->ip_off = p->frag;
	r->seq = seq;
	r->ack = ack;
	r->payload_len = len;
	r->ifindex = skb->ifindex;
	n = skb->gso_size;
	r->gso_size = n;
	r->gso_segs = 1;
	if (n) {
		__u32 segs = skb->gso_segs;

		if (!segs)
			segs = (len + n - 1) / n;
		if (segs)
			r->gso_segs = segs;
	}
	r->vlan = p->vlan;
	r->vlan_inner = p->vlan_inner;
	r->wire_len = skb->len;
	r->ip_len = l4 - l3;
	r->tcp_len = tcp_len;
	n = tcp_len - sizeof(struct tcphdr);
	if (n > TCB_OPTIONS_MAX)
		n = 0; /* a data offset below 5: malformed */
	r->options_len = n;
	copy_options(skb, l4 + sizeof(struct tcphdr), n, r->options);
	n = (offset_of(struct tcb_segment, options) + n + 7) & ~7U;
	r->h.size = n;
	keep(s, hook, n, now);
sample:
	if (sample) {
		if (cfg_packets)
			s->tally[TCB_HOOK_TRANSMIT].seen++;
		n = crowded(first);
		if (left_alone(first, o->st, n)) {
			leave_out(s, TCB_HOOK_TRANSMIT);
		} else {
			struct trigger t = {now, seq, ack, len, n};

			sample_owner(skb, first, s, o, &t);
		}
	}
out:
	give(s);
}

/*
 * Finds the socket that sent skb where find_owner does not know it yet. In a
 * namespace that only forwards, skb->sk still is the sender's of another
 * namespace: that is not this side's socket.
 */
static __noinline int find_new_owner(struct __sk_buff *skb, struct slot *first, struct owner *o)
{
	void *sk = skb->sk;
	struct tcp_sock *tp;

	if (!sk)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (tp) {
		struct sock *full = (struct sock *)tp;

		if (!in_netns(first, full, cfg_link_netns) || BITS(full, sk_type) != SOCK_STREAM)
			return 0;
		o->full = 1;
		o->cookie = full->__sk_common.skc_cookie.counter;
		if (unlikely(!o->cookie))
			o->cookie = bpf_get_socket_cookie(skb);
		o->st = sock_state(full, o->cookie, cfg_packets ? &o->seq : NULL);
		if (o->st) {
			barrier();
			WRITE_ONCE(o->st->sends, (__u64)sk);
		}
	} else {
		/* A SYN-ACK's: the connection will inherit its cookie. */
		struct tcp_request_sock *rsk = bpf_skc_to_tcp_request_sock(sk);

		if (rsk && rsk->req.req.__req_common.skc_net.net->net_cookie == cfg_link_netns)
			o->cookie = bpf_get_socket_cookie(skb);
	}
	return 0;
}

/* Finds the socket that sent skb: what is kept with it says that it was found before, and nothing of the socket itself is read. */
static __always_inline void find_owner(struct __sk_buff *skb, struct slot *first, struct owner *o)
{
	void *sk = skb->sk;

	if (!sk)
		return;
	o->st = bpf_sk_storage_get(&sock_states, sk, NULL, 0);
	if (unlikely(!o->st || READ_ONCE(o->st->sends) != (__u64)sk)) {
		o->st = NULL;
		find_new_owner(skb, first, o);
		return;
	}
	o->full = 1;
	o->cookie = o->st->cookie;
	if (cfg_packets)
		o->seq = next_seq(o->st);
}

/* Tells whether the socket that sent skb is of the wanted cgroup. */
static __always_inline int sender_in_cgroup(struct __sk_buff *skb)
{
	struct tcp_sock *tp = skb->sk ? bpf_skc_to_tcp_sock(skb->sk) : NULL;

	return tp && in_cgroup((struct sock *)tp);
}

/*
 * Tells whether a received packet is for a socket of the wanted cgroup. A
 * global function: verified once.
 */
__noinline int packet_in_cgroup(struct __sk_buff *skb, struct packet *p)
{
	struct sock_common *sk = NULL;
	struct tcp_sock *tp;
	__be32 tuple[9]; /* saddr, daddr, then both ports */
	int in = 0;

	if (!p)
		return 0;
	if (p->family == 4) {
		if (bpf_skb_load_bytes(skb, p->l3 + offset_of(struct iphdr, saddr), tuple, 8) ||
		    bpf_skb_load_bytes(skb, p->l4, tuple + 2, 4))
			return 0;
		sk = bpf_skc_lookup_tcp(skb, tuple, 12, -1, 0);
	} else {
		if (bpf_skb_load_bytes(skb, p->l3 + offset_of(struct ipv6hdr, saddr), tuple, 32) ||
		    bpf_skb_load_bytes(skb, p->l4, tuple + 8, 4))
			return 0;
		sk = bpf_skc_lookup_tcp(skb, tuple, 36, -1, 0);
	}
	if (!sk)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (tp)
		in = in_cgroup((struct sock *)tp);
	bpf_sk_release(sk);
	return in;
}

static __always_inline int on_packet(struct __sk_buff *skb, __u32 hook, __u32 dir, int l2)
{
	struct slot *first = first_slot();
	struct owner owner = {};
	struct packet p;

	if (!first)
		return TC_ACT_UNSPEC;
	if (!l2 || !find_tcp_fast(skb, &p)) {
		struct packet found = {};

		find_tcp(skb, &found, l2);
		if (!found.l4)
			return TC_ACT_UNSPEC;
		p = found;
		if (p.l4 > 4095)
			return TC_ACT_UNSPEC;
	}
	if (dir == TCB_DIR_OUT) {
		find_owner(skb, first, &owner);
		if (cfg_filter & FILTER_CGROUP)
			owner.unwanted = !owner.full || !sender_in_cgroup(skb);
	} else if (cfg_filter & FILTER_CGROUP) {
		struct packet copy = {.l3 = p.l3, .l4 = p.l4, .family = p.family};

		owner.unwanted = !packet_in_cgroup(skb, &copy);
	}
	if (cfg_packets || (owner.full && cfg_transmit))
		record_packet(skb, first, &p, &owner, hook, dir);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int tc_ingress(struct __sk_buff *skb)
{
	return on_packet(skb, TCB_HOOK_TC_INGRESS, TCB_DIR_IN, 1);
}

SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	return on_packet(skb, TCB_HOOK_TC_EGRESS, TCB_DIR_OUT, 1);
}

/* For devices without a link header: tun, wireguard, ipip. */
SEC("tc")
int tc_ingress_l3(struct __sk_buff *skb)
{
	return on_packet(skb, TCB_HOOK_TC_INGRESS, TCB_DIR_IN, 0);
}

SEC("tc")
int tc_egress_l3(struct __sk_buff *skb)
{
	return on_packet(skb, TCB_HOOK_TC_EGRESS, TCB_DIR_OUT, 0);
}

#endif
